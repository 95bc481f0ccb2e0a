#include "strategies/noise_scale.h"

namespace skerry::strategies {

void UpdateSpread::add(double update_weight, double norm) {
  weight += update_weight;
  squared_weight += update_weight * update_weight;
  weighted_squares += update_weight * norm * norm;
  ++updates;
}

std::optional<NoiseEstimate> estimate_noise(const UpdateSpread& spread, double mean_norm) {
  if (spread.updates < 2) return std::nullopt;
  const double share = spread.squared_weight / (spread.weight * spread.weight);  // Σ p²
  if (!(share < 1)) return std::nullopt;
  const double small = spread.weighted_squares / spread.weight;
  const double big = mean_norm * mean_norm;
  return NoiseEstimate{(big - share * small) / (1 - share), (small - big) / (1 - share)};
}

NoiseEstimate smooth(const std::optional<NoiseEstimate>& before, const NoiseEstimate& now, double beta) {
  if (!before) return now;
  return {beta * before->signal + (1 - beta) * now.signal, beta * before->noise + (1 - beta) * now.noise};
}

std::optional<double> noise_scale(const NoiseEstimate& smoothed) {
  if (!(smoothed.signal > 0)) return std::nullopt;
  return smoothed.noise / smoothed.signal;
}

}  // namespace skerry::strategies
