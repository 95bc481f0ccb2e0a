// From accepted updates to the next version of their fragments: the engine's jobs, and what becomes of their results.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "server/aggregate/engine.h"
#include "server/coordinator/run_plan.h"
#include "server/run/run_machine.h"
#include "server/store/store.h"

namespace skerry::server {

/// What a reduction needs of an accepted update.
struct AcceptedUpdate {
  std::vector<UpdatePayload> payloads;
  strategies::Contribution contribution;
};

/// One fragment's next version, durable where it is cargo, not released yet.
struct Reduction {
  VersionRecord version;
  ReduceStatistics statistics;
};

/// A reduction that can run on any thread: everything it reads is in it or in sealed files.
struct ReductionWork {
  bool small = false;  ///< all inline: takes well under a millisecond
  std::function<Result<std::vector<Reduction>>()> run;
};

/// The work for a Reduce command. `base(fragment, version)` finds versions, nullptr where there is none; `accepted` holds the
/// command's tasks. DATA_LOSS where an update or a version is missing.
Result<ReductionWork> plan_reduction(
    const Reduce& command, const RunPlan& plan, const std::string& run_id,
    const std::map<std::string, AcceptedUpdate>& accepted,
    const std::function<const VersionRecord*(std::uint32_t fragment, std::uint64_t version)>& base, CargoStore& cargo,
    AggregationEngine& engine);

}  // namespace skerry::server
