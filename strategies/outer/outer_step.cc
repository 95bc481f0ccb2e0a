#include "strategies/outer/outer_step.h"

// Highway compiles the rest once for each target.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "strategies/outer/outer_step.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace skerry::strategies::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using Doubles = hn::ScalableTag<double>;
using Floats = hn::Rebind<float, Doubles>;
using VecD = hn::Vec<Doubles>;

HWY_ATTR VecD load(const float* from) { return hn::PromoteTo(Doubles(), hn::LoadU(Floats(), from)); }
HWY_ATTR void store(VecD value, float* to) { hn::StoreU(hn::DemoteTo(Floats(), value), Floats(), to); }
HWY_ATTR VecD rounded(VecD value) { return hn::PromoteTo(Doubles(), hn::DemoteTo(Floats(), value)); }

// Runs `formula(Δ, state…) → change` over the block, a vector at a time; the tail in padded copies. No fused
// multiply-add anywhere: targets without one would give other bytes.
template <int kStates, typename Formula>
HWY_ATTR void for_each_vector(const OuterBlock& block, const Formula& formula) {
  const std::size_t lanes = hn::Lanes(Doubles());
  float* states[2] = {nullptr, nullptr};
  for (int s = 0; s < kStates; ++s) states[s] = block.state[static_cast<std::size_t>(s)];
  std::size_t i = 0;
  for (; i + lanes <= block.count; i += lanes) {
    formula(block.delta + i, states[0] + (kStates > 0 ? i : 0), states[1] + (kStates > 1 ? i : 0), block.change + i);
  }
  const std::size_t rest = block.count - i;
  if (rest == 0) return;
  float padded[4][HWY_MAX_BYTES / sizeof(double)] = {};
  for (std::size_t j = 0; j < rest; ++j) {
    padded[0][j] = block.delta[i + j];
    for (int s = 0; s < kStates; ++s) padded[1 + s][j] = states[s][i + j];
  }
  formula(padded[0], padded[1], padded[2], padded[3]);
  for (std::size_t j = 0; j < rest; ++j) {
    block.change[i + j] = padded[3][j];
    for (int s = 0; s < kStates; ++s) states[s][i + j] = padded[1 + s][j];
  }
}

void sgd(const OuterBlock& block, double learning_rate) {
  const VecD rate = hn::Set(Doubles(), -learning_rate);
  for_each_vector<0>(block, [&](const float* delta, float*, float*, float* change) HWY_ATTR {
    store(hn::Mul(rate, load(delta)), change);
  });
}

void momentum(const OuterBlock& block, double learning_rate, double beta, bool nesterov) {
  const VecD rate = hn::Set(Doubles(), -learning_rate);
  const VecD decay = hn::Set(Doubles(), beta);
  if (nesterov) {
    for_each_vector<1>(block, [&](const float* delta, float* velocity, float*, float* change) HWY_ATTR {
      const VecD gradient = load(delta);
      const VecD speed = rounded(hn::Add(hn::Mul(decay, load(velocity)), gradient));
      store(speed, velocity);
      store(hn::Mul(rate, hn::Add(gradient, hn::Mul(decay, speed))), change);
    });
  } else {
    for_each_vector<1>(block, [&](const float* delta, float* velocity, float*, float* change) HWY_ATTR {
      const VecD speed = rounded(hn::Add(hn::Mul(decay, load(velocity)), load(delta)));
      store(speed, velocity);
      store(hn::Mul(rate, speed), change);
    });
  }
}

// `correction1` and `correction2` divide the moments: 1 − βᵗ, or 1 without bias correction.
void adam(const OuterBlock& block, const AdamOptions& options, double correction1, double correction2) {
  const Doubles d;
  const VecD rate = hn::Set(d, -options.learning_rate);
  const VecD beta1 = hn::Set(d, options.beta1);
  const VecD beta2 = hn::Set(d, options.beta2);
  const VecD rest1 = hn::Set(d, 1.0 - options.beta1);
  const VecD rest2 = hn::Set(d, 1.0 - options.beta2);
  const VecD epsilon = hn::Set(d, options.epsilon);
  const VecD divide1 = hn::Set(d, correction1);
  const VecD divide2 = hn::Set(d, correction2);
  for_each_vector<2>(block, [&](const float* delta, float* first, float* second, float* change) HWY_ATTR {
    const VecD gradient = load(delta);
    const VecD m = rounded(hn::Add(hn::Mul(beta1, load(first)), hn::Mul(rest1, gradient)));
    const VecD square = hn::Mul(gradient, gradient);
    const VecD v = rounded(hn::Add(hn::Mul(beta2, load(second)), hn::Mul(rest2, square)));
    store(m, first);
    store(v, second);
    const VecD scale = hn::Add(hn::Sqrt(hn::Div(v, divide2)), epsilon);
    store(hn::Div(hn::Mul(rate, hn::Div(m, divide1)), scale), change);
  });
}

}  // namespace skerry::strategies::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace skerry::strategies {

HWY_EXPORT(sgd);
HWY_EXPORT(momentum);
HWY_EXPORT(adam);

namespace {

// 1 − βᵗ by repeated squaring: std::pow may differ between C libraries, and bytes must not.
double one_minus_power(double beta, std::uint64_t steps) {
  double power = 1.0;
  double factor = beta;
  for (std::uint64_t left = steps; left != 0; left /= 2) {
    if (left % 2 != 0) power *= factor;
    factor *= factor;
  }
  return 1.0 - power;
}

}  // namespace

void sgd_step(const OuterBlock& block, const SgdOptions& options) {
  HWY_DYNAMIC_DISPATCH(sgd)(block, options.learning_rate);
}

void momentum_step(const OuterBlock& block, const MomentumOptions& options) {
  HWY_DYNAMIC_DISPATCH(momentum)(block, options.learning_rate, options.momentum, false);
}

void nesterov_step(const OuterBlock& block, const NesterovOptions& options) {
  HWY_DYNAMIC_DISPATCH(momentum)(block, options.learning_rate, options.momentum, true);
}

void adam_step(const OuterBlock& block, const AdamOptions& options) {
  const double correction1 = options.bias_correction ? one_minus_power(options.beta1, block.step) : 1.0;
  const double correction2 = options.bias_correction ? one_minus_power(options.beta2, block.step) : 1.0;
  HWY_DYNAMIC_DISPATCH(adam)(block, options, correction1, correction2);
}

}  // namespace skerry::strategies
#endif
