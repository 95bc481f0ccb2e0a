// Outer optimizers: an outer gradient → the change of a fragment, value by value.
//
// The outer gradient Δ = old − new points back to where the model was, so every optimizer *subtracts* it: with SGD at
// learning rate 1 the new model is old − Δ = the mean of what came back. State (velocity, moments) is one f32 vector each of the
// fragment's length, zero before the first step, and a count of steps. All are kept per fragment.
//
// Arithmetic is float64 inside a step, rounded once to f32 for each value kept: the same bytes on every machine, SIMD
// target and compiler.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "strategies/part.h"

namespace skerry::strategies {

/// change = −η Δ. With η = 1: FedAvg (arXiv 1602.05629).
struct SgdOptions {
  double learning_rate = 1.0;  ///< η > 0
};

/// u ← βu + Δ; change = −η u. FedAvgM (arXiv 1909.06335); torch.optim.SGD(momentum=β).
struct MomentumOptions {
  double learning_rate = 1.0;  ///< η > 0
  double momentum = 0.9;       ///< β in [0, 1)
};

/// u ← βu + Δ; change = −η (Δ + βu). DiLoCo (arXiv 2311.08105); torch.optim.SGD(momentum=β, nesterov=True).
struct NesterovOptions {
  double learning_rate = 0.7;  ///< η > 0
  double momentum = 0.9;       ///< β in [0, 1)
};

/// m ← β₁m + (1−β₁)Δ; v ← β₂v + (1−β₂)Δ²; change = −η m̂ / (√v̂ + τ). FedAdam (arXiv 2003.00295, algorithm 2, with
/// v₀ = 0) where m̂ = m and v̂ = v; with `bias_correction`, m̂ = m / (1−β₁ᵗ) and v̂ = v / (1−β₂ᵗ) for step t = 1, 2, … as
/// in torch.optim.Adam.
struct AdamOptions {
  double learning_rate = 0.1;  ///< η > 0
  double beta1 = 0.9;          ///< β₁ in [0, 1)
  double beta2 = 0.99;         ///< β₂ in [0, 1)
  double epsilon = 1e-3;       ///< τ > 0, the paper's degree of adaptivity
  bool bias_correction = false;
};

/// The parts as a run spec names them: "sgd", "momentum", "nesterov", "adam".
Part sgd(SgdOptions options = {});
Part momentum(MomentumOptions options = {});
Part nesterov(NesterovOptions options = {});
Part adam(AdamOptions options = {});

/// A piece of a fragment for one outer step. All pointers are to `count` values; none overlap.
struct OuterBlock {
  std::uint64_t step = 1;          ///< which step of this fragment this is: 1, 2, …
  std::size_t count = 0;
  const float* delta = nullptr;    ///< the outer gradient
  const float* base = nullptr;     ///< the fragment's values before the step
  std::span<float* const> state;   ///< one pointer a state vector, in the order of `state_vectors`; updated in place
  float* change = nullptr;         ///< written: new − base, before any encoding
};

/// An outer optimizer, ready to use. Pure; `step` may run on several threads at once, on different blocks.
struct OuterOptimizer {
  std::string name;
  std::vector<std::string> state_vectors;  ///< for example {"velocity"}; empty: it has no state and no state file
  std::function<void(const OuterBlock& block)> step;
};

/// The optimizers there are, with their parameters; for `resolve`, documentation and `skerry strategy`.
std::span<const PartInfo> outer_catalogue();

/// The optimizer that a part names. INVALID_ARGUMENT as `resolve` says.
Result<OuterOptimizer> make_outer_optimizer(const Part& part);

}  // namespace skerry::strategies
