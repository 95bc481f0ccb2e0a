// The training section of a run spec, and the learning rate it gives every step.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "common/base/result.h"

namespace skerry::trainer {

enum class OptimizerKind { kSgd, kAdam, kAdamW };
enum class ScheduleKind { kConstant, kLinear, kCosine };
enum class LossKind { kCrossEntropy, kMse };

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
  std::uint64_t schedule_steps =
      0;  ///< linear, cosine: where `final_fraction` is reached, counted from the run's start
  std::uint64_t warmup_steps = 0;
  double final_fraction = 0;  ///< of the peak, in [0, 1]
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
  std::optional<LossKind> loss;  ///< none: by the model and the data
  bool keep_optimizer_state = true;
};

/// Reads a training section; members left out have the defaults of docs/trainer-protocol.md.
/// INVALID_ARGUMENT "training: …" naming the member, its value and what is allowed; also for an unknown one, because it
/// may change what is to be learned.
Result<TrainingOptions> parse_training(std::string_view section);

/// The rate of step `step`, counted from 0 over the whole run: the warm-up rises as (step + 1) / warmup_steps of the
/// peak; then linear or cosine falls from the peak to final_fraction of it at schedule_steps and stays there.
double learning_rate_at(const ScheduleOptions& schedule, std::uint64_t step);

}  // namespace skerry::trainer
