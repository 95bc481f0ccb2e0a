// A run's parts as they follow from its spec, and its initial model.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "common/config/run_spec.h"
#include "common/model/layout.h"
#include "server/coordinator/update_check.h"
#include "server/store/store.h"
#include "skerry/v1/types.pb.h"
#include "strategies/aggregation/rule_catalogue.h"
#include "strategies/outer/outer_optimizer.h"

namespace skerry::server {

/// Bytes of up to this size travel in messages and live in the database.
inline constexpr std::uint64_t kInlineLimit = 64 * 1024;

struct RunPlan {
  RunSpec spec;
  ModelLayout layout;
  std::vector<FragmentShape> shapes;
  strategies::Rule rule;
  strategies::OuterOptimizer outer;

  /// With the aggregation rule out of `rules`. Errors name what is wrong with the spec.
  static Result<RunPlan> from_spec(RunSpec spec, const strategies::RuleCatalogue& rules = strategies::RuleCatalogue());
};

/// Whether the tokenizer that a spec names was uploaded, is one, and fits the model's vocabulary. Any thread. NOT_FOUND
/// (no such cargo) or INVALID_ARGUMENT.
Result<void> check_tokenizer(const RunSpec& spec, const CargoStore& cargo);

/// The tokenizer's cargo; nothing where the run has none, or it is gone.
std::optional<v1::Blob> tokenizer_blob(const RunSpec& spec, const CargoStore& cargo);

/// The initial version of every fragment: drawn by the layout's initialisers, or cut out of an uploaded model
/// (model.initial). Large ones are in cargo when it returns. Takes long for large models; call it on any thread. The
/// caller fills in run_id and time.
Result<std::vector<VersionRecord>> make_initial_versions(const RunPlan& plan, CargoStore& cargo);

/// The versions that a run which continues another one (spec.start) starts from: those that the other run had after its
/// start.round, with the outer optimizer's state and the rule's. Cargo and state files are shared with it. Call it where
/// the store is written, and release the versions in its next commit.
/// NOT_FOUND: there is no such run, it has not finished that round, or the versions are not stored any more
/// (evaluation.keep_every). FAILED_PRECONDITION: another model or outer optimizer.
Result<std::vector<VersionRecord>> continued_versions(const RunPlan& plan, StoreReader& store);

/// The round of a synchronous run that an exchange belongs to: 1 for the first of each fragment.
std::uint64_t round_of(const RunPlan& plan, std::uint64_t exchange);

}  // namespace skerry::server
