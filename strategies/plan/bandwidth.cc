#include "strategies/plan/bandwidth.h"

#include <algorithm>
#include <limits>

namespace skerry::strategies {

double needed_bandwidth(const LinkLoad& load, double utilisation) {
  const double seconds = load.compute_seconds * (1 / utilisation - 1) + load.hidden_seconds - load.fixed_seconds;
  if (load.bits == 0) return 0;
  return seconds > 0 ? load.bits / seconds : std::numeric_limits<double>::infinity();
}

double compute_utilisation(const LinkLoad& load, double bandwidth) {
  const double transfer = load.bits / bandwidth + load.fixed_seconds;
  return compute_utilisation(load.compute_seconds, std::max(0.0, transfer - load.hidden_seconds));
}

double compute_utilisation(double compute_seconds, double exposed_seconds) {
  return compute_seconds / (compute_seconds + exposed_seconds);
}

std::vector<ExchangeMethod> published_methods(std::uint64_t inner_steps, std::uint64_t fragments) {
  return {{"data-parallel", 16, 1, 1, 0},
          {"DiLoCo", 16, inner_steps, 1, 0},
          {"streaming", 16, inner_steps, fragments, 0},
          {"streaming, overlap", 16, inner_steps, fragments, 1},
          {"streaming, overlap, FP4", 4, inner_steps, fragments, 1}};
}

LinkLoad published_load(const ExchangeMethod& method, double parameters, double step_seconds) {
  const auto parts = static_cast<double>(method.fragments);
  return {.bits = method.bits_per_parameter * parameters / parts,
          .compute_seconds = static_cast<double>(method.inner_steps) * step_seconds / parts,
          .hidden_seconds = (2.0 / 3 + method.overlap_steps) * step_seconds};
}

}  // namespace skerry::strategies
