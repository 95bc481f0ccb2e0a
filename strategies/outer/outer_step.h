// The formulas of the outer optimizers over spans, for every SIMD target that the machine may have.
#pragma once

#include "strategies/outer/outer_optimizer.h"

namespace skerry::strategies {

/// One step on one block, as outer_optimizer.h gives the formulas. State (as many vectors as the optimizer has, in the
/// order of its `state_vectors`) is rounded to f32 first and the change computed from the rounded state, except in
/// delayed_nesterov_step, whose buffer takes part in no change.
void sgd_step(const OuterBlock& block, const SgdOptions& options);
void momentum_step(const OuterBlock& block, const MomentumOptions& options);
void nesterov_step(const OuterBlock& block, const NesterovOptions& options);
void delayed_nesterov_step(const OuterBlock& block, const DelayedNesterovOptions& options);
void adagrad_step(const OuterBlock& block, const AdagradOptions& options);
void adam_step(const OuterBlock& block, const AdamOptions& options);
void yogi_step(const OuterBlock& block, const AdamOptions& options);

}  // namespace skerry::strategies
