// Rules that shorten updates which are too long or too far away.
#pragma once

#include "strategies/aggregation/weights.h"

namespace skerry::strategies {

struct RuleEntry;

/// The part "norm_bound": the weighted mean of the updates, each scaled to at most the bound: Σ p_k Δ_k min(1, M / ‖Δ_k‖), with
/// p_k the weighted shares. Bounds what a replaced model can do; does not stop many small pushes. Source: Sun et al., arXiv
/// 1911.07963, §4 (without its noise).
struct NormBoundOptions {
  double bound = 0;  ///< M; 0: the median of the updates' norms (of an even number, the mean of the two in the middle)
  Weighting weighting = {};
};
Part norm_bound(const NormBoundOptions& options = {});

/// The part "centered_clipping": v ← v + (1/n) Σ (Δ_k − v) min(1, τ / ‖Δ_k − v‖), `iterations` times, starting from the last
/// exchange's outer gradient, which the rule keeps ("center"); zero at first. Each distance is measured by a pass over the
/// values, not worked out from a table of inner products, so that nothing cancels. A factor (for staleness) multiplies the
/// update's pull. Source: Karimireddy et al., arXiv 2012.10333, §5; it expects nodes that use momentum.
struct CenteredClippingOptions {
  double radius = 0;           ///< τ; 0: the median of the distances to v, in each iteration
  std::size_t iterations = 1;  ///< each reads the updates once
};
Part centered_clipping(const CenteredClippingOptions& options = {});

RuleEntry norm_bound_entry();
RuleEntry centered_clipping_entry();

}  // namespace skerry::strategies
