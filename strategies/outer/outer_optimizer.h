// Outer optimizers: an outer gradient → the change of a fragment, value by value.
//
// The outer gradient Δ = old − new points back to where the model was, so every optimizer *subtracts* it: with SGD at
// learning rate 1 the new model is old − Δ = the mean of what came back. State (velocity, moments) is one f32 vector
// each of the fragment's length, zero before the first step, and a count of steps. All are kept per fragment.
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
#include "strategies/outer/schedule.h"
#include "strategies/part.h"

namespace skerry::strategies {

/// change = −η Δ. With η = 1: FedAvg (arXiv 1602.05629).
struct SgdOptions {
  double learning_rate = 1.0;  ///< η > 0
  Schedule schedule = {};      ///< of η, as for every optimizer
};

/// u ← βu + Δ; change = −η u. FedAvgM (arXiv 1909.06335); torch.optim.SGD(momentum=β).
struct MomentumOptions {
  double learning_rate = 1.0;  ///< η > 0
  double momentum = 0.9;       ///< β in [0, 1)
  Schedule schedule = {};
};

/// PyTorch's form: u ← βu + Δ; change = −η (Δ + βu). DiLoCo (arXiv 2311.08105); torch.optim.SGD(momentum=β,
/// nesterov=True).
///
/// FedMom's form (arXiv 2002.02090): v' = w − ηΔ; w' = v' + β(v' − v), where v starts at the model. Kept
/// is z = v − w, which starts at zero as every state does: z ← β(z + ηΔ); change = −ηΔ − z. With a constant η both
/// forms are the same walk; they differ where η changes, because z remembers steps and u outer gradients.
struct NesterovOptions {
  enum class Form : std::uint8_t { kPyTorch, kFedMom };
  double learning_rate = 0.7;  ///< η > 0
  double momentum = 0.9;       ///< β in [0, 1)
  Form form = Form::kPyTorch;
  Schedule schedule = {};
};

/// For updates that come one by one (arXiv 2401.09135, algorithm 3). The buffer b gathers outer gradients and moves the
/// velocity at every N-th step only: b ← b + Δ; then at steps N, 2N, …
///   m ← βm + b/N; change = −η ((1 − cN + c) βm + Δ/N); b ← 0
/// and else change = −η (cβm + Δ/N). With N = 1 it is Nesterov.
struct DelayedNesterovOptions {
  double learning_rate = 0.7;  ///< η > 0
  double momentum = 0.9;       ///< β in [0, 1)
  std::uint64_t delay = 4;     ///< N ≥ 1
  double carry = 0;            ///< c in [0, 1/N]: how much of the velocity goes into the steps between
  Schedule schedule = {};
};

/// v ← v + Δ²; change = −η Δ / (√v + τ). FedAdagrad (arXiv 2003.00295, algorithm 2, β₁ = 0).
struct AdagradOptions {
  double learning_rate = 0.1;      ///< η > 0
  double epsilon = 1e-3;           ///< τ > 0, the paper's degree of adaptivity
  double initial_accumulator = 0;  ///< v₀ ≥ 0; the paper's is τ²
  Schedule schedule = {};
};

/// m ← β₁m + (1−β₁)Δ; then
///   Adam  v ← β₂v + (1−β₂)Δ²
///   Yogi  v ← v − (1−β₂)Δ² sign(v − Δ²)
/// and change = −η m̂ / (√v̂ + τ). FedAdam and FedYogi (arXiv 2003.00295, algorithm 2) where m̂ = m and v̂ = v; with
/// `bias_correction`, m̂ = m / (1−β₁ᵗ) and v̂ = v / (1−β₂ᵗ) for step t = 1, 2, … as in torch.optim.Adam.
struct AdamOptions {
  double learning_rate = 0.1;  ///< η > 0
  double beta1 = 0.9;          ///< β₁ in [0, 1)
  double beta2 = 0.99;         ///< β₂ in [0, 1)
  double epsilon = 1e-3;       ///< τ > 0, the paper's degree of adaptivity
  bool bias_correction = false;
  double initial_accumulator = 0;  ///< v₀ ≥ 0; FedAdam's and FedYogi's is τ²
  Schedule schedule = {};
};

/// The parts as a run spec names them: "sgd", "momentum", "nesterov", "delayed_nesterov", "adagrad", "adam", "yogi".
Part sgd(SgdOptions options = {});
Part momentum(MomentumOptions options = {});
Part nesterov(NesterovOptions options = {});
Part delayed_nesterov(DelayedNesterovOptions options = {});
Part adagrad(AdagradOptions options = {});
Part adam(AdamOptions options = {});
Part yogi(AdamOptions options = {.learning_rate = 0.01});

/// A piece of a fragment for one outer step. All pointers are to `count` values; none overlap.
struct OuterBlock {
  std::uint64_t step = 1;  ///< which exchange of this fragment this is: 1, 2, …; state is zeros at 1
  std::size_t count = 0;
  const float* delta = nullptr;   ///< the outer gradient
  const float* base = nullptr;    ///< the fragment's values before the step
  std::span<float* const> state;  ///< one pointer a state vector, in the order of `state_vectors`; updated in place
  float* change = nullptr;        ///< written: new − base, before any encoding
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
