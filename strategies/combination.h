// Whether the parts of a run spec can go together; an impossible combination is refused when a run is submitted.
#pragma once

#include <cstddef>
#include <limits>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "common/config/run_spec.h"
#include "strategies/aggregation/rule_catalogue.h"

namespace skerry::strategies {

/// What the other parts of a run offer to the aggregation rule.
struct Surroundings {
  bool individual_updates = true;  ///< the coordinator sees single updates (false under secure sums)
  bool only_sums = false;          ///< the coordinator sees nothing but weighted sums
  bool all_clients = false;        ///< every invited node is waited for
  bool asynchronous = false;
  bool groups = false;             ///< an exchange is of those who come at the same time: fedcompass
  bool staggered = false;          ///< fragments are exchanged one after another
  std::size_t fewest_updates = 1;  ///< an exchange is committed with
  std::size_t most_updates = std::numeric_limits<std::size_t>::max();
  bool start_loss = false;  ///< trainers measure the model that a task starts from
};

Surroundings surroundings(const RunSpec& spec);

/// Refuses what cannot work, with the reason: INVALID_ARGUMENT, for example "aggregation.rule median must see single
/// updates, but the exchange sums them secretly: choose weighted_mean or an exchange without secure sums".
Result<void> check_needs(const Rule& rule, const Surroundings& offered);

/// check_needs and check_participation for a run spec, after its parts were resolved. Errors as they and `resolve` say.
Result<void> check_combination(const RunSpec& spec, const RuleCatalogue& rules = RuleCatalogue());

/// What is possible but rarely meant, a sentence each; an operator sees them when a run is submitted.
std::vector<std::string> combination_notes(const RunSpec& spec);

}  // namespace skerry::strategies
