// How long what a client does takes on the virtual clock.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "server/sim/model_files.h"
#include "server/sim/population.h"
#include "server/sim/scenario.h"
#include "skerry/v1/fleet.pb.h"

namespace skerry::sim {

/// Virtual milliseconds, rounded up.
std::int64_t in_ms(double seconds);

/// One inner step.
double step_seconds(const Scenario& scenario, const ClientPlan& client);

/// A task's steps, or its pass over the holdout rows.
double compute_seconds(const Scenario& scenario, const ClientPlan& client, const v1::Task& task, std::uint64_t batch);

/// A message of so many bytes at this rate (megabits a second; 0: any number at once).
std::int64_t carry_ms(const Pace& pace, std::uint64_t bytes, double mbps);

struct Download {
  std::uint64_t bytes = 0;
  std::uint64_t cargo = 0;  ///< of them, those that do not come with the message
  Download& operator+=(const Download& other) { return bytes += other.bytes, cargo += other.cargo, *this; }
};

/// What a daemon fetches to have this version: nothing if it has it, the step where it has the version before, else the
/// whole. `have`: null or the version that it has.
Download download_of(const ModelFile* have, const v1::FragmentVersion& wanted);

}  // namespace skerry::sim
