// The geometric median of the updates.
#pragma once

#include "strategies/aggregation/weights.h"

namespace skerry::strategies {

struct RuleEntry;

/// The part "geometric_median": the point of least Σ α_k ‖v − Δ_k‖, by smoothed Weiszfeld iteration from the weighted mean: v ←
/// Σ β_k Δ_k / Σ β_k with β_k = α_k / max(ν, ‖v − Δ_k‖), until no distance changes by more than `tolerance` of itself, or
/// `iterations` times. Each distance is measured by a pass over the values, not worked out from a table of inner products, so
/// that nothing cancels even where one update is 1e30 away. Holds against less than half of the weight. α_k are the weighted
/// shares. Source: Pillutla et al., arXiv 1912.13445, algorithm 2 (RFA), which takes 3 iterations.
struct GeometricMedianOptions {
  Weighting weighting = {Weights::kUniform, 0};
  double smoothing = 1e-6;      ///< ν > 0, in the units of the updates' norms
  std::size_t iterations = 32;  ///< at most; each reads the updates once
  double tolerance = 1e-4;      ///< ≥ 0
};
Part geometric_median(const GeometricMedianOptions& options = {});

RuleEntry geometric_median_entry();

}  // namespace skerry::strategies
