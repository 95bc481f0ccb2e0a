#include "strategies/outer/outer_step.h"

#include <array>

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
  for_each_vector<0>(block, [&](const float* delta, float*, float*, float* change)
                                HWY_ATTR { store(hn::Mul(rate, load(delta)), change); });
}

void momentum(const OuterBlock& block, double learning_rate, double beta) {
  const VecD rate = hn::Set(Doubles(), -learning_rate);
  const VecD decay = hn::Set(Doubles(), beta);
  for_each_vector<1>(block, [&](const float* delta, float* velocity, float*, float* change) HWY_ATTR {
    const VecD speed = rounded(hn::Add(hn::Mul(decay, load(velocity)), load(delta)));
    store(speed, velocity);
    store(hn::Mul(rate, speed), change);
  });
}

void nesterov(const OuterBlock& block, double learning_rate, double beta) {
  const VecD rate = hn::Set(Doubles(), -learning_rate);
  const VecD decay = hn::Set(Doubles(), beta);
  for_each_vector<1>(block, [&](const float* delta, float* velocity, float*, float* change) HWY_ATTR {
    const VecD gradient = load(delta);
    const VecD speed = rounded(hn::Add(hn::Mul(decay, load(velocity)), gradient));
    store(speed, velocity);
    store(hn::Mul(rate, hn::Add(gradient, hn::Mul(decay, speed))), change);
  });
}

void fedmom(const OuterBlock& block, double learning_rate, double beta) {
  const VecD rate = hn::Set(Doubles(), learning_rate);
  const VecD decay = hn::Set(Doubles(), beta);
  for_each_vector<1>(block, [&](const float* delta, float* ahead, float*, float* change) HWY_ATTR {
    const VecD step = hn::Mul(rate, load(delta));
    const VecD z = rounded(hn::Mul(decay, hn::Add(load(ahead), step)));
    store(z, ahead);
    store(hn::Neg(hn::Add(step, z)), change);
  });
}

// Between two moves of the velocity.
void delayed_nesterov_between(const OuterBlock& block, double learning_rate, double delay, double velocity_share) {
  const Doubles d;
  const VecD rate = hn::Set(d, -learning_rate);
  const VecD share = hn::Set(d, velocity_share);
  const VecD count = hn::Set(d, delay);
  for_each_vector<2>(block, [&](const float* delta, float* velocity, float* buffer, float* change) HWY_ATTR {
    const VecD gradient = load(delta);
    store(hn::Add(load(buffer), gradient), buffer);
    store(hn::Mul(rate, hn::Add(hn::Mul(share, load(velocity)), hn::Div(gradient, count))), change);
  });
}

void delayed_nesterov_move(const OuterBlock& block, double learning_rate, double beta, double delay,
                           double velocity_share) {
  const Doubles d;
  const VecD rate = hn::Set(d, -learning_rate);
  const VecD decay = hn::Set(d, beta);
  const VecD share = hn::Set(d, velocity_share);
  const VecD count = hn::Set(d, delay);
  for_each_vector<2>(block, [&](const float* delta, float* velocity, float* buffer, float* change) HWY_ATTR {
    const VecD gradient = load(delta);
    const VecD mean = hn::Div(hn::Add(load(buffer), gradient), count);
    const VecD speed = rounded(hn::Add(hn::Mul(decay, load(velocity)), mean));
    store(speed, velocity);
    store(hn::Zero(d), buffer);
    store(hn::Mul(rate, hn::Add(hn::Mul(share, speed), hn::Div(gradient, count))), change);
  });
}

// `initial` is the sum of squares before a first step; without one, the state holds it.
void adagrad(const OuterBlock& block, double learning_rate, double tau, const double* initial) {
  const Doubles d;
  const VecD rate = hn::Set(d, -learning_rate);
  const VecD epsilon = hn::Set(d, tau);
  const VecD first = hn::Set(d, initial ? *initial : 0.0);
  for_each_vector<1>(block, [&](const float* delta, float* squares, float*, float* change) HWY_ATTR {
    const VecD gradient = load(delta);
    const VecD before = initial ? first : load(squares);
    const VecD sum = rounded(hn::Add(before, hn::Mul(gradient, gradient)));
    store(sum, squares);
    store(hn::Div(hn::Mul(rate, gradient), hn::Add(hn::Sqrt(sum), epsilon)), change);
  });
}

// What a step of Adam or Yogi divides the moments by: 1 − βᵗ, or 1 without bias correction.
using Corrections = std::array<double, 2>;

// `initial` is the second moment before a first step; without one, the state holds it. `second_moment(v, Δ²)` is the
// new one.
template <typename SecondMoment>
HWY_ATTR void adaptive(const OuterBlock& block, const AdamOptions& options, const Corrections& corrections,
                       const double* initial, const SecondMoment& second_moment) {
  const Doubles d;
  const VecD rate = hn::Set(d, -options.learning_rate);
  const VecD beta1 = hn::Set(d, options.beta1);
  const VecD rest1 = hn::Set(d, 1.0 - options.beta1);
  const VecD epsilon = hn::Set(d, options.epsilon);
  const VecD divide1 = hn::Set(d, corrections[0]);
  const VecD divide2 = hn::Set(d, corrections[1]);
  const VecD start = hn::Set(d, initial ? *initial : 0.0);
  for_each_vector<2>(block, [&](const float* delta, float* first, float* second, float* change) HWY_ATTR {
    const VecD gradient = load(delta);
    const VecD m = rounded(hn::Add(hn::Mul(beta1, load(first)), hn::Mul(rest1, gradient)));
    const VecD v = rounded(second_moment(initial ? start : load(second), hn::Mul(gradient, gradient)));
    store(m, first);
    store(v, second);
    const VecD scale = hn::Add(hn::Sqrt(hn::Div(v, divide2)), epsilon);
    store(hn::Div(hn::Mul(rate, hn::Div(m, divide1)), scale), change);
  });
}

void adam(const OuterBlock& block, const AdamOptions& options, const Corrections& corrections, const double* initial) {
  const VecD beta2 = hn::Set(Doubles(), options.beta2);
  const VecD rest2 = hn::Set(Doubles(), 1.0 - options.beta2);
  adaptive(block, options, corrections, initial,
           [&](VecD v, VecD square) HWY_ATTR { return hn::Add(hn::Mul(beta2, v), hn::Mul(rest2, square)); });
}

void yogi(const OuterBlock& block, const AdamOptions& options, const Corrections& corrections, const double* initial) {
  const VecD rest2 = hn::Set(Doubles(), 1.0 - options.beta2);
  adaptive(block, options, corrections, initial, [&](VecD v, VecD square) HWY_ATTR {
    const VecD part = hn::Mul(rest2, square);
    const VecD grown = hn::IfThenElse(hn::Lt(v, square), hn::Add(v, part), v);
    return hn::IfThenElse(hn::Gt(v, square), hn::Sub(v, part), grown);
  });
}

}  // namespace skerry::strategies::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace skerry::strategies {

HWY_EXPORT(sgd);
HWY_EXPORT(momentum);
HWY_EXPORT(nesterov);
HWY_EXPORT(fedmom);
HWY_EXPORT(delayed_nesterov_between);
HWY_EXPORT(delayed_nesterov_move);
HWY_EXPORT(adagrad);
HWY_EXPORT(adam);
HWY_EXPORT(yogi);

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

template <typename Options>
double rate(const OuterBlock& block, const Options& options) {
  return options.learning_rate * schedule_factor(options.schedule, block.step);
}

// Calls `kernel` with this step's learning rate and corrections.
template <typename Kernel>
void adaptive_step(const OuterBlock& block, AdamOptions options, const Kernel& kernel) {
  options.learning_rate = rate(block, options);
  const bool corrected = options.bias_correction;
  kernel(block, options,
         {corrected ? one_minus_power(options.beta1, block.step) : 1.0,
          corrected ? one_minus_power(options.beta2, block.step) : 1.0},
         block.step == 1 ? &options.initial_accumulator : nullptr);
}

}  // namespace

void sgd_step(const OuterBlock& block, const SgdOptions& options) {
  HWY_DYNAMIC_DISPATCH(sgd)(block, rate(block, options));
}

void momentum_step(const OuterBlock& block, const MomentumOptions& options) {
  HWY_DYNAMIC_DISPATCH(momentum)(block, rate(block, options), options.momentum);
}

void nesterov_step(const OuterBlock& block, const NesterovOptions& options) {
  if (options.form == NesterovOptions::Form::kFedMom)
    HWY_DYNAMIC_DISPATCH(fedmom)(block, rate(block, options), options.momentum);
  else
    HWY_DYNAMIC_DISPATCH(nesterov)(block, rate(block, options), options.momentum);
}

void delayed_nesterov_step(const OuterBlock& block, const DelayedNesterovOptions& options) {
  const double delay = static_cast<double>(options.delay);
  const double between = options.carry * options.momentum;
  if (block.step % options.delay != 0) {
    HWY_DYNAMIC_DISPATCH(delayed_nesterov_between)(block, rate(block, options), delay, between);
    return;
  }
  const double share = (1.0 - options.carry * delay + options.carry) * options.momentum;
  HWY_DYNAMIC_DISPATCH(delayed_nesterov_move)(block, rate(block, options), options.momentum, delay, share);
}

void adagrad_step(const OuterBlock& block, const AdagradOptions& options) {
  HWY_DYNAMIC_DISPATCH(adagrad)
  (block, rate(block, options), options.epsilon, block.step == 1 ? &options.initial_accumulator : nullptr);
}

void adam_step(const OuterBlock& block, const AdamOptions& options) {
  adaptive_step(block, options, HWY_DYNAMIC_DISPATCH(adam));
}

void yogi_step(const OuterBlock& block, const AdamOptions& options) {
  adaptive_step(block, options, HWY_DYNAMIC_DISPATCH(yogi));
}

}  // namespace skerry::strategies
#endif
