// The gradient-noise scale, estimated from what the updates of each exchange have in common and what they do not.
//
// If every update is the true outer gradient G plus independent noise of total variance S, then with shares p_k
//   E Σ p_k |Δ_k|² = |G|² + S     and     E |Σ p_k Δ_k|² = |G|² + S Σ p_k²,
// two equations for |G|² and S. S / |G|² is the number of updates whose mean has as much signal as noise: more nodes in
// an exchange than that gain little. With equal shares it is McCandlish et al.'s estimator (arXiv 1812.06162, appendix
// A) with B_small = 1 and B_big = K updates, which Photon's server logs.
#pragma once

#include <cstddef>
#include <optional>

namespace skerry::strategies {

/// What is summed over the updates of an exchange.
struct UpdateSpread {
  double weight = 0;            ///< Σ w_k
  double squared_weight = 0;    ///< Σ w_k²
  double weighted_squares = 0;  ///< Σ w_k |Δ_k|²
  std::size_t updates = 0;

  /// One update of weight > 0 and this L2 norm.
  void add(double update_weight, double norm);
};

struct NoiseEstimate {
  double signal = 0;  ///< of |G|²; of one exchange alone it may be negative
  double noise = 0;   ///< of S
};

/// From one exchange: `mean_norm` is the norm of the weighted mean. Nothing where fewer than two updates share the
/// weight.
std::optional<NoiseEstimate> estimate_noise(const UpdateSpread& spread, double mean_norm);

/// Signal and noise, each smoothed over exchanges before they are divided, because the ratio of two noisy numbers is
/// biased. `before` is empty at the first exchange. Photon's β is 0.99.
NoiseEstimate smooth(const std::optional<NoiseEstimate>& before, const NoiseEstimate& now, double beta = 0.99);

/// S / |G|², in updates. Nothing while the estimate of the signal is not above 0.
std::optional<double> noise_scale(const NoiseEstimate& smoothed);

}  // namespace skerry::strategies
