// Rules that treat an update's length and its direction apart.
#pragma once

#include "strategies/aggregation/weights.h"

namespace skerry::strategies {

struct RuleEntry;

/// The part "radial_directional": tensor by tensor, the mean of the norms times the mean of the directions brought to length 1:
/// Δ = (Σ p_k ‖Δ_k‖) u / ‖u‖, u = Σ p_k Δ_k / ‖Δ_k‖. Means of nearly orthogonal updates are short; this keeps their length.
/// An update that is zero in a tensor has no direction there, but its norm counts. Where the directions cancel to within
/// float32's precision (‖u‖ ≤ 1e-7) the tensor gets zero. p_k are the weighted shares. Three passes. Source: decoupled DiLoCo
/// (radial-directional averaging; token-rate weights; embeddings by the mean).
struct RadialDirectionalOptions {
  Weighting weighting = {};
  std::string direct = "*embed*";  ///< tensors that get the weighted mean: name patterns between spaces, '*' = any characters
};
Part radial_directional(const RadialDirectionalOptions& options = {});

/// The part "fltrust": Σ t_k (‖g‖ / ‖Δ_k‖) Δ_k / Σ t_k with t_k = f_k max(0, cos(Δ_k, g)): every update is scaled to the length of
/// g and trusted as far as it agrees with it. g is the update of the node `trusted`, which trains on the coordinator's own small
/// clean data set; it is the reference and no more. The model stays as it is where g is zero or nobody agrees. An update of norm
/// zero is not trusted. Source: Cao et al., arXiv 2012.13995, algorithm 2.
Part fltrust(std::string trusted);

RuleEntry radial_directional_entry();
RuleEntry fltrust_entry();

}  // namespace skerry::strategies
