// The inner optimizers as flat loops over the model's one vector; the formulas are torch.optim's.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "client/trainer/options.h"

namespace skerry::trainer {

/// What an optimizer remembers between steps: one value per parameter in each vector it uses (none: empty).
struct OptimizerState {
  std::vector<float> first;   ///< sgd with momentum: the velocity; adam, adamw: the mean of the gradient
  std::vector<float> second;  ///< adam, adamw: the mean of its square
  std::uint64_t steps = 0;

  friend bool operator==(const OptimizerState&, const OptimizerState&) = default;
};

/// The state before the first step, zeros for `parameters` values.
OptimizerState fresh_state(const OptimizerOptions& options, std::size_t parameters);

/// One step: `parameters` −= what the rule makes of `gradient` at this learning rate. All of one length, the state's.
/// Source: torch.optim.SGD (dampening 0), Adam, AdamW; arXiv 1412.6980, 1711.05101.
void optimizer_step(const OptimizerOptions& options, double learning_rate, std::span<const float> gradient,
                    std::span<float> parameters, OptimizerState& state);

/// The L2 norm, summed in double in a fixed order.
double l2_norm(std::span<const float> values);

/// Scales `gradient` so that its L2 norm is at most `limit` (torch.nn.utils.clip_grad_norm_); returns the norm it had.
double clip_to_norm(std::span<float> gradient, double limit);

/// Whether no value is NaN or infinite.
bool all_finite(std::span<const float> values);

}  // namespace skerry::trainer
