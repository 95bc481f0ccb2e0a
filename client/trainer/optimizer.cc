#include "client/trainer/optimizer.h"

#include <cassert>
#include <cmath>

#include "common/tensor/kernels.h"

namespace skerry::trainer {
namespace {

void sgd_step(const OptimizerOptions& options, float rate, const float* __restrict gradient,
              float* __restrict parameters, float* __restrict velocity, std::size_t count) {
  const float decay = static_cast<float>(options.weight_decay);
  const float momentum = static_cast<float>(options.momentum);
  if (velocity == nullptr) {
    for (std::size_t i = 0; i < count; ++i) parameters[i] -= rate * (gradient[i] + decay * parameters[i]);
    return;
  }
  const float ahead = options.nesterov ? 1.0f : 0.0f;  // θ ← θ − η(g + μv), without Nesterov θ ← θ − ηv
  const float along = options.nesterov ? momentum : 1.0f;
  for (std::size_t i = 0; i < count; ++i) {
    const float g = gradient[i] + decay * parameters[i];
    velocity[i] = momentum * velocity[i] + g;
    parameters[i] -= rate * (ahead * g + along * velocity[i]);
  }
}

void adam_step(const OptimizerOptions& options, double rate, std::uint64_t step, const float* __restrict gradient,
               float* __restrict parameters, float* __restrict first, float* __restrict second, std::size_t count) {
  const bool decoupled = options.kind == OptimizerKind::kAdamW;
  const float keep = decoupled ? static_cast<float>(1.0 - rate * options.weight_decay) : 1.0f;
  const float decay = decoupled ? 0.0f : static_cast<float>(options.weight_decay);
  const float beta1 = static_cast<float>(options.beta1);
  const float beta2 = static_cast<float>(options.beta2);
  const float rest1 = static_cast<float>(1.0 - options.beta1);
  const float rest2 = static_cast<float>(1.0 - options.beta2);
  const double correction1 = 1.0 - std::pow(options.beta1, static_cast<double>(step));
  const double correction2 = 1.0 - std::pow(options.beta2, static_cast<double>(step));
  const float stride = static_cast<float>(rate / correction1);
  const float widen = static_cast<float>(1.0 / std::sqrt(correction2));
  const float epsilon = static_cast<float>(options.epsilon);
  for (std::size_t i = 0; i < count; ++i) {
    const float g = gradient[i] + decay * parameters[i];
    first[i] = beta1 * first[i] + rest1 * g;
    second[i] = beta2 * second[i] + rest2 * (g * g);
    const float denominator = std::sqrt(second[i]) * widen + epsilon;
    parameters[i] = keep * parameters[i] - stride * (first[i] / denominator);
  }
}

}  // namespace

OptimizerState fresh_state(const OptimizerOptions& options, std::size_t parameters) {
  OptimizerState state;
  const bool adam = options.kind != OptimizerKind::kSgd;
  if (adam || options.momentum != 0) state.first.assign(parameters, 0.0f);
  if (adam) state.second.assign(parameters, 0.0f);
  return state;
}

void optimizer_step(const OptimizerOptions& options, double learning_rate, std::span<const float> gradient,
                    std::span<float> parameters, OptimizerState& state) {
  assert(gradient.size() == parameters.size());
  assert(state.first.empty() || state.first.size() == parameters.size());
  ++state.steps;
  if (options.kind == OptimizerKind::kSgd) {
    sgd_step(options, static_cast<float>(learning_rate), gradient.data(), parameters.data(),
             state.first.empty() ? nullptr : state.first.data(), parameters.size());
    return;
  }
  adam_step(options, learning_rate, state.steps, gradient.data(), parameters.data(), state.first.data(),
            state.second.data(), parameters.size());
}

double l2_norm(std::span<const float> values) {
  // Eight sums at once, for the processor's sake; their order is fixed, so the result is.
  double sums[8] = {};
  std::size_t i = 0;
  for (; i + 8 <= values.size(); i += 8) {
    for (std::size_t lane = 0; lane < 8; ++lane) {
      const double value = values[i + lane];
      sums[lane] += value * value;
    }
  }
  double total = 0;
  for (const double sum : sums) total += sum;
  for (; i < values.size(); ++i) total += static_cast<double>(values[i]) * values[i];
  return std::sqrt(total);
}

double clip_to_norm(std::span<float> gradient, double limit) {
  const double norm = l2_norm(gradient);
  const double scale = limit / (norm + 1e-6);
  if (scale < 1.0) {
    const float factor = static_cast<float>(scale);
    for (float& value : gradient) value *= factor;
  }
  return norm;
}

bool all_finite(std::span<const float> values) { return first_non_finite(values) == values.size(); }

}  // namespace skerry::trainer
