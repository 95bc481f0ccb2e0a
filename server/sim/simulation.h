// A whole run in one process and on a virtual clock: the coordinator's RunHost and machine, and clients that are the
// trainer's own sessions. docs/simulation.md says what is simulated and what is not.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "common/config/run_spec.h"
#include "server/sim/results.h"
#include "server/sim/scenario.h"
#include "strategies/aggregation/rule_catalogue.h"

namespace skerry::sim {

struct SimulationOptions {
  RunSpec spec;
  Scenario scenario;
  unsigned workers = 1;  ///< virtual clients that compute at one time; changes no byte of the results
  std::string scratch;   ///< an empty directory; large models and the store go there, memory-backed is best
  const std::atomic<bool>* stop = nullptr;              ///< set: ends soon, with the results so far
  std::function<void(const Progress&)> progress = {};  ///< after every exchange
  strategies::RuleCatalogue rules = {};                 ///< that the run may name
};

/// Runs it to its end. What it returns follows from the spec, the scenario and the data alone. An error where nothing
/// could begin (INVALID_ARGUMENT, NOT_FOUND: the data, the scenario) or the scratch directory failed.
Result<SimulationResult> simulate(const SimulationOptions& options);

}  // namespace skerry::sim
