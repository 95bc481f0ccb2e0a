// Presets: the named strategies, each composed of the five parts.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "common/config/fields.h"
#include "common/config/run_spec.h"
#include "strategies/aggregation/rule.h"
#include "strategies/evaluation.h"
#include "strategies/exchange.h"
#include "strategies/part.h"
#include "strategies/participation.h"

namespace skerry::strategies {

struct Preset {
  std::string name;
  std::string meaning;  ///< one line with its source
  Participation participation;
  Exchange exchange;
  Part aggregation;
  Part outer;
  Evaluation evaluation;
};

Preset fedavg();
Preset fedavgm();
Preset fedadam();
Preset diloco();

/// All of them, by name.
std::span<const Preset> presets();

/// What parse_run_spec needs to know of this library: presets, aggregation rules and outer optimizers with their
/// parameters.
const SpecCatalogue& spec_catalogue();

/// The parts of a run spec, ready for make_rule and make_outer_optimizer.
Part aggregation_part(const RunSpec& spec);
Part outer_part(const RunSpec& spec);

/// What the participation and exchange parts of a run offer to the aggregation rule.
struct Surroundings {
  bool individual_updates = true;  ///< the coordinator sees single updates (false under secure sums)
  bool only_sums = false;          ///< the coordinator sees nothing but weighted sums
  bool all_clients = false;        ///< every invited node is waited for
  std::size_t fewest_updates = 1;  ///< an exchange is committed with
  std::size_t most_updates = std::numeric_limits<std::size_t>::max();
};

Surroundings surroundings(const RunSpec& spec);

/// Refuses what cannot work, with the reason: INVALID_ARGUMENT, for example "aggregation.rule median must see single
/// updates, but the exchange sums them secretly: choose weighted_mean or an exchange without secure sums".
Result<void> check_needs(const Rule& rule, const Surroundings& offered);

/// check_needs for a run spec, after its parts were resolved. Errors as `resolve` and check_needs say.
Result<void> check_combination(const RunSpec& spec);

/// What an update with these numbers weighs under the spec's aggregation, before its factor: examples, tokens, steps
/// or 1. A rule without weights counts every update 1.
double update_weight(const RunSpec& spec, std::uint64_t examples, std::uint64_t tokens, std::uint64_t steps);

}  // namespace skerry::strategies
