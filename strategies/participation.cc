#include "strategies/participation.h"

#include <algorithm>
#include <cmath>

namespace skerry::strategies {
namespace {

/// SplitMix64's finaliser (Steele, Lea, Flood 2014).
std::uint64_t mix(std::uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

std::uint64_t hashed(std::uint64_t seed, std::uint64_t position, std::string_view name) {
  std::uint64_t state = mix(mix(seed) ^ position);
  for (const char c : name) state = mix(state ^ static_cast<unsigned char>(c));
  return state;
}

}  // namespace

Participation everyone() { return {}; }

Participation a_fraction(double fraction) { return {.cohort_fraction = fraction}; }

Participation buffered(std::uint64_t buffer, std::uint64_t maximum_staleness) {
  return {.mode = ParticipationSpec::Mode::kAsynchronous, .buffer = buffer, .maximum_staleness = maximum_staleness};
}

std::size_t cohort_target(const ParticipationSpec& spec, std::size_t ready) {
  const double share = std::ceil(spec.cohort_fraction * static_cast<double>(ready) - 1e-9);
  const std::size_t wanted =
      spec.cohort_size > 0 ? static_cast<std::size_t>(spec.cohort_size) : static_cast<std::size_t>(share);
  return std::min(ready, std::max(wanted, static_cast<std::size_t>(spec.quorum)));
}

std::uint64_t draw_order(std::uint64_t seed, std::uint64_t exchange, std::string_view node) {
  return hashed(seed ^ 0x636F686F7274u, exchange, node);  // "cohort"
}

std::optional<double> staleness_factor(const ParticipationSpec& spec, std::uint64_t staleness) {
  if (staleness > spec.maximum_staleness) return std::nullopt;
  if (staleness == 0 || spec.staleness_exponent == 0) return 1.0;
  // sqrt is exact to the last bit everywhere, pow is not.
  const double age = 1.0 + static_cast<double>(staleness);
  return spec.staleness_exponent == 0.5 ? 1.0 / std::sqrt(age) : std::pow(age, -spec.staleness_exponent);
}

std::uint64_t task_seed(std::uint64_t seed, std::string_view node, std::uint64_t position) {
  return hashed(seed ^ 0x7461736Bu, position, node) >> 11;  // "task"
}

}  // namespace skerry::strategies
