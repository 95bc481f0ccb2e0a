// Fair federated learning: holders whose loss is high count more.
#pragma once

#include "strategies/aggregation/rule.h"

namespace skerry::strategies {

struct RuleEntry;

/// The part "qffl" (q-FedAvg): Δ = Σ F_k^q L Δ_k / Σ (q F_k^(q−1) ‖L Δ_k‖² + L F_k^q), where F_k is the loss of the model that the
/// task started from on the holder's data (metric "start_loss"; below 0 counts as 0, and 1e-10 is added as in the authors' code)
/// and L = 1 / learning rate of the nodes. q = 0 is the plain mean; a large q looks at the worst holder only. A factor multiplies
/// both sums' terms. Source: Li et al., arXiv 1905.10497, algorithm 2.
struct QfflOptions {
  double q = 0.2;
  double learning_rate = 0.1;  ///< of the nodes' inner optimizer; > 0
};
Part qffl(const QfflOptions& options = {});

RuleEntry qffl_entry();

}  // namespace skerry::strategies
