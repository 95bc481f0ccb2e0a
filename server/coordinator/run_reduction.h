// From accepted updates to the next version of their fragments: the engine's jobs, and what becomes of their results.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "server/aggregate/engine.h"
#include "server/coordinator/run_plan.h"
#include "server/run/run_machine.h"
#include "server/store/store.h"

namespace skerry::server {

/// An accepted update's bytes, or where they are. Shared with reductions that are under way on another thread.
struct AcceptedUpdate {
  std::vector<UpdatePayload> payloads;
};
using AcceptedUpdates = std::map<std::string, std::shared_ptr<const AcceptedUpdate>>;  ///< by task

/// One fragment's next version, durable where it is cargo, not released yet. A fragment that none of the updates carries
/// stays as it was, optimizer state and all, under the new number.
struct Reduction {
  VersionRecord version;
  ReduceStatistics statistics;
};

/// A reduction that can run on any thread: everything it reads is in it or in sealed files.
struct ReductionWork {
  bool small = false;  ///< all inline, and the rule waits for nobody: takes well under a millisecond
  std::function<Result<std::vector<Reduction>>()> run;
};

/// The work for a Reduce command. `version(fragment, number)` finds versions, nullptr where there is none, valid until it is
/// asked again; `accepted` holds the command's tasks. DATA_LOSS where an update or a version is missing.
///
/// Exchanged fragments take the plan's rule and outer optimizer. Control fragments (SCAFFOLD's control variates) take the
/// uniform mean of the S updates, without discounts, and SGD with learning rate S/N, where N is the command's `nodes`: c ← c +
/// (1/N) Σ (c_i⁺ − c_i). Source: Karimireddy et al., arXiv 1910.06378, algorithm 1.
Result<ReductionWork> plan_reduction(
    const Reduce& command, const RunPlan& plan, const std::string& run_id,
    const AcceptedUpdates& accepted,
    const std::function<const VersionRecord*(std::uint32_t fragment, std::uint64_t number)>& version, CargoStore& cargo,
    AggregationEngine& engine);

}  // namespace skerry::server
