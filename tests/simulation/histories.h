// How the simulation tests walk through seeds and say which one failed.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <map>
#include <string>

#include <catch2/catch.hpp>

#include "tests/simulation/simulation.h"

namespace skerry::simulation {

/// Every history of the seeds first … first + count − 1; with SKERRY_SEED set, that one alone and told on stderr.
inline std::map<std::string, std::uint64_t> run_histories(std::uint64_t first, std::uint64_t count,
                                                          const char* program) {
  std::map<std::string, std::uint64_t> totals;
  const char* chosen = std::getenv("SKERRY_SEED");
  if (chosen != nullptr) {
    first = std::strtoull(chosen, nullptr, 10);
    count = 1;
  }
  for (std::uint64_t seed = first; seed < first + count; ++seed) {
    const Outcome outcome = simulate(seed, chosen != nullptr);
    ++totals[outcome.outcome];
    totals["counted"] += outcome.counted;
    totals["discarded"] += outcome.discarded;
    totals["events"] += outcome.events;
    if (!outcome.violations.empty())
      FAIL("seed " << seed << ": " << outcome.violations.front() << "\nreplay: SKERRY_SEED=" << seed << " " << program);
    if (seed % 16 == 0 && simulate(seed).digest != outcome.digest)
      FAIL("seed " << seed << ": the same seed gave another history\nreplay: SKERRY_SEED=" << seed << " " << program);
  }
  return totals;
}

}  // namespace skerry::simulation
