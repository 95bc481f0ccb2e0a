// Evaluation: who measures which version when, and what ends a run.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "common/config/run_spec.h"

namespace skerry::strategies {

/// The part as a preset says it.
struct Evaluation {
  std::uint64_t every = 1;  ///< rounds between evaluations; 0: never
  std::string split = "holdout";
};

/// Every holder measures the model on its own held-out split, every so many rounds.
Evaluation on_holdouts(std::uint64_t every = 1);

/// One holder's means over its examples.
struct Measured {
  std::uint64_t examples = 0;
  const std::map<std::string, double>* metrics = nullptr;
};

/// Means over all examples, for each metric over those that report it, added up in the order given. Metrics that are
/// not finite or that `allowed` does not name are left out. `perplexity` is the exponential of the mean of its
/// logarithm, as the pooled text would give it.
std::map<std::string, double> merge_metrics(const std::vector<Measured>& reports,
                                            const std::vector<std::string>& allowed);

/// Whether the metrics reach the spec's target; false where there is none.
bool target_reached(const StopSpec& spec, const std::map<std::string, double>& metrics);

}  // namespace skerry::strategies
