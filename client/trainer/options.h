// The training section of a run spec, and the learning rate it gives every step.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "common/base/result.h"

namespace skerry::trainer {

enum class OptimizerKind { kSgd, kAdam, kAdamW };
enum class ScheduleKind { kConstant, kLinear, kCosine, kWsd };
enum class LossKind { kCrossEntropy, kMse };

/// What matrix products are done in. The parameters, their gradient and the optimizer are f32 always.
enum class Precision { kF32, kBf16 };

struct OptimizerOptions {
  OptimizerKind kind = OptimizerKind::kAdamW;
  double momentum = 0;    ///< sgd, in [0, 1)
  bool nesterov = false;  ///< sgd; needs momentum
  double beta1 = 0.9;     ///< adam, adamw, in [0, 1)
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0;  ///< sgd, adam: L2; adamw: decoupled
};

struct ScheduleOptions {
  ScheduleKind kind = ScheduleKind::kConstant;
  double learning_rate = 0;  ///< the peak
  std::uint64_t schedule_steps = 0;  ///< all but constant: where `final_fraction` is reached, from the run's start
  std::uint64_t warmup_steps = 0;
  double final_fraction = 0;      ///< of the peak, in [0, 1]
  std::uint64_t decay_steps = 0;  ///< wsd: the last so many of schedule_steps fall
};

struct ObjectiveOptions {
  double proximal = 0;            ///< FedProx's μ; 0: off
  bool control_variates = false;  ///< SCAFFOLD; needs sgd without momentum
  bool start_loss = false;        ///< measure the training split before the first step
};

struct TrainingOptions {
  OptimizerOptions optimizer;
  ScheduleOptions schedule;
  ObjectiveOptions objective;
  double clip_norm = 0;          ///< global L2 norm of the gradient; 0: off
  std::uint64_t batch = 32;      ///< examples a step, 1 … 1,048,576
  std::uint64_t accumulate = 1;  ///< micro-batches a step, 1 … batch
  std::optional<LossKind> loss;  ///< none: by the model and the data
  double z_loss = 0;             ///< text: coefficient of the mean squared logarithm of the softmax's denominator
  Precision precision = Precision::kF32;
  bool activation_checkpointing = false;
  bool keep_optimizer_state = true;
  bool one_order = false;  ///< the run has one order of its examples; otherwise every task its own
};

/// Reads a training section; members left out have the defaults of docs/trainer-protocol.md.
/// INVALID_ARGUMENT "training: …" naming the member, its value and what is allowed; also for an unknown one, because it
/// may change what is to be learned.
Result<TrainingOptions> parse_training(std::string_view section);

/// The rate of step `step`, counted from 0 over the whole run: the warm-up rises as (step + 1) / warmup_steps of the
/// peak; then linear or cosine falls from the peak to final_fraction of it at schedule_steps and stays there. wsd stays
/// at the peak and falls linearly over the last decay_steps of schedule_steps.
double learning_rate_at(const ScheduleOptions& schedule, std::uint64_t step);

}  // namespace skerry::trainer
