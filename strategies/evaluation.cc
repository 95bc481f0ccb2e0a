#include "strategies/evaluation.h"

#include <algorithm>
#include <cmath>

namespace skerry::strategies {

Evaluation on_holdouts(std::uint64_t every) { return {.every = every}; }

std::map<std::string, double> merge_metrics(const std::vector<Measured>& reports,
                                            const std::vector<std::string>& allowed) {
  std::map<std::string, double> sums;
  std::map<std::string, double> weights;
  for (const auto& report : reports) {
    for (const auto& [name, value] : *report.metrics) {
      const double term = name == "perplexity" ? std::log(value) : value;
      if (!std::isfinite(term) || std::find(allowed.begin(), allowed.end(), name) == allowed.end()) continue;
      sums[name] += term * static_cast<double>(report.examples);
      weights[name] += static_cast<double>(report.examples);
    }
  }
  std::map<std::string, double> means;
  for (const auto& [name, sum] : sums) {
    if (weights[name] <= 0) continue;
    const double mean = name == "perplexity" ? std::exp(sum / weights[name]) : sum / weights[name];
    if (std::isfinite(mean)) means[name] = mean;  // finite reports may have a sum beyond all numbers
  }
  return means;
}

bool target_reached(const StopSpec& spec, const std::map<std::string, double>& metrics) {
  const auto found = metrics.find(spec.metric);
  if (spec.metric.empty() || found == metrics.end()) return false;
  return spec.comparison == StopSpec::Comparison::kAtLeast ? found->second >= spec.value : found->second <= spec.value;
}

}  // namespace skerry::strategies
