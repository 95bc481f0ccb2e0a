#include "client/trainer/options.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <string>

#include <nlohmann/json.hpp>

#include "client/trainer/messages.h"

namespace skerry::trainer {
namespace {

using nlohmann::json;

constexpr double kPi = 3.14159265358979323846;
constexpr double kBelowOne = 0x1.fffffffffffffp-1;

template <typename T>
struct Choice {
  const char* name;
  T value;
};

template <typename T, std::size_t N>
Result<T> choice_member(const json& object, const char* member, const Choice<T> (&choices)[N], T fallback) {
  SKERRY_ASSIGN(const std::string text, text_member(object, member, ""));
  if (text.empty()) return fallback;
  std::string known;
  for (const Choice<T>& choice : choices) {
    if (text == choice.name) return choice.value;
    known += std::string(known.empty() ? "" : ", ") + choice.name;
  }
  return invalid_argument("member \"" + std::string(member) + "\" is \"" + text + "\", must be one of " + known);
}

constexpr Choice<OptimizerKind> kOptimizers[] = {
    {"sgd", OptimizerKind::kSgd}, {"adam", OptimizerKind::kAdam}, {"adamw", OptimizerKind::kAdamW}};
constexpr Choice<ScheduleKind> kSchedules[] = {
    {"constant", ScheduleKind::kConstant},
    {"linear", ScheduleKind::kLinear},
    {"cosine", ScheduleKind::kCosine},
    {"wsd", ScheduleKind::kWsd}};
constexpr Choice<Precision> kPrecisions[] = {{"f32", Precision::kF32}, {"bf16", Precision::kBf16}};
constexpr Choice<LossKind> kLosses[] = {{"cross_entropy", LossKind::kCrossEntropy}, {"mse", LossKind::kMse}};
constexpr Choice<bool> kStates[] = {{"keep", true}, {"reset", false}};
constexpr Choice<bool> kOrders[] = {{"task", false}, {"run", true}};

Result<OptimizerOptions> parse_optimizer(const json& object) {
  OptimizerOptions options;
  SKERRY_ASSIGN(options.kind, choice_member(object, "optimizer", kOptimizers, OptimizerKind::kAdamW));
  SKERRY_ASSIGN(options.momentum, number_member(object, "momentum", 0, kBelowOne, 0));
  SKERRY_ASSIGN(options.nesterov, flag_member(object, "nesterov", false));
  SKERRY_ASSIGN(options.beta1, number_member(object, "beta1", 0, kBelowOne, 0.9));
  SKERRY_ASSIGN(options.beta2, number_member(object, "beta2", 0, kBelowOne, 0.999));
  SKERRY_ASSIGN(options.epsilon, number_member(object, "epsilon", 0, 1, 1e-8));
  SKERRY_ASSIGN(options.weight_decay, number_member(object, "weight_decay", 0, 1e6, 0));
  if (options.kind == OptimizerKind::kSgd && options.nesterov && options.momentum == 0) {
    return invalid_argument("member \"nesterov\" is true but \"momentum\" is 0; give a momentum in (0, 1)");
  }
  return options;
}

Result<ScheduleOptions> parse_schedule(const json& object) {
  ScheduleOptions options;
  SKERRY_ASSIGN(options.learning_rate, number_member(object, "learning_rate", 0, 1e6));
  SKERRY_ASSIGN(options.kind, choice_member(object, "schedule", kSchedules, ScheduleKind::kConstant));
  constexpr std::uint64_t kMaxSteps = std::uint64_t{1} << 53;
  SKERRY_ASSIGN(options.schedule_steps, count_member(object, "schedule_steps", kMaxSteps, 0));
  SKERRY_ASSIGN(options.warmup_steps, count_member(object, "warmup_steps", kMaxSteps, 0));
  SKERRY_ASSIGN(options.final_fraction, number_member(object, "final_fraction", 0, 1, 0));
  if (options.kind != ScheduleKind::kConstant && options.schedule_steps == 0) {
    return invalid_argument("member \"schedule_steps\" is 0, a schedule that falls needs its length in steps");
  }
  SKERRY_ASSIGN(options.decay_steps, count_member(object, "decay_steps", kMaxSteps, 0));
  if (options.kind == ScheduleKind::kWsd && (options.decay_steps == 0 || options.decay_steps > options.schedule_steps)) {
    return invalid_argument("member \"decay_steps\" is " + std::to_string(options.decay_steps) +
                            ", a wsd schedule needs 1 … schedule_steps (" + std::to_string(options.schedule_steps) + ")");
  }
  return options;
}

// `steps`, `epochs` and what follows of `first_step` are repeated by every task.
constexpr std::string_view kMembers[] = {
    "accumulate", "activation_checkpointing", "batch", "beta1", "beta2", "clip_norm", "control_variates",
    "decay_steps", "epochs", "epsilon", "final_fraction", "first_step", "learning_rate", "loss", "momentum",
    "nesterov", "optimizer", "optimizer_state", "order", "precision", "proximal", "schedule", "schedule_steps", "start_loss",
    "steps", "warmup_steps", "weight_decay", "z_loss"};

Result<ObjectiveOptions> parse_objective(const json& object, const OptimizerOptions& optimizer) {
  ObjectiveOptions options;
  SKERRY_ASSIGN(options.proximal, number_member(object, "proximal", 0, 1e30, 0));
  SKERRY_ASSIGN(options.control_variates, flag_member(object, "control_variates", false));
  SKERRY_ASSIGN(options.start_loss, flag_member(object, "start_loss", false));
  if (options.control_variates && (optimizer.kind != OptimizerKind::kSgd || optimizer.momentum != 0))
    return invalid_argument("member \"control_variates\" is true, which needs \"optimizer\" sgd with \"momentum\" 0");
  return options;
}

Result<TrainingOptions> parse_object(const json& object) {
  for (const auto& member : object.items()) {
    if (std::find(std::begin(kMembers), std::end(kMembers), member.key()) == std::end(kMembers))
      return invalid_argument("member \"" + member.key().substr(0, 60) + "\" is not known to this trainer");
  }
  TrainingOptions options;
  SKERRY_ASSIGN(options.optimizer, parse_optimizer(object));
  SKERRY_ASSIGN(options.schedule, parse_schedule(object));
  SKERRY_ASSIGN(options.objective, parse_objective(object, options.optimizer));
  SKERRY_ASSIGN(options.clip_norm, number_member(object, "clip_norm", 0, 1e12, 0));
  SKERRY_ASSIGN(options.batch, count_member(object, "batch", 1 << 20, 32));
  if (options.batch == 0) return invalid_argument("member \"batch\" is 0, must be 1 … 1048576");
  SKERRY_ASSIGN(options.accumulate, count_member(object, "accumulate", 1 << 20, 1));
  if (options.accumulate == 0 || options.accumulate > options.batch) {
    return invalid_argument("member \"accumulate\" is " + std::to_string(options.accumulate) +
                            ", must be 1 … batch (" + std::to_string(options.batch) + ")");
  }
  SKERRY_ASSIGN(options.z_loss, number_member(object, "z_loss", 0, 1e6, 0));
  SKERRY_ASSIGN(options.precision, choice_member(object, "precision", kPrecisions, Precision::kF32));
  SKERRY_ASSIGN(options.activation_checkpointing, flag_member(object, "activation_checkpointing", false));
  if (object.contains("loss") && object["loss"] != json("")) {
    SKERRY_ASSIGN(const LossKind loss, choice_member(object, "loss", kLosses, LossKind::kCrossEntropy));
    options.loss = loss;
  }
  SKERRY_ASSIGN(options.one_order, choice_member(object, "order", kOrders, false));
  SKERRY_ASSIGN(options.keep_optimizer_state, choice_member(object, "optimizer_state", kStates, true));
  return options;
}

}  // namespace

Result<TrainingOptions> parse_training(std::string_view section) {
  const json object = json::parse(section.begin(), section.end(), nullptr, false);
  if (!object.is_object()) return invalid_argument("training: the section is not a JSON object");
  auto options = parse_object(object);
  if (!options.ok()) return with_context(std::move(options).error(), "training");
  return options;
}

double learning_rate_at(const ScheduleOptions& schedule, std::uint64_t step) {
  const double peak = schedule.learning_rate;
  if (step < schedule.warmup_steps) {
    return peak * static_cast<double>(step + 1) / static_cast<double>(schedule.warmup_steps);
  }
  if (schedule.kind == ScheduleKind::kConstant) return peak;
  const double low = peak * schedule.final_fraction;
  if (step >= schedule.schedule_steps) return low;
  if (schedule.kind == ScheduleKind::kWsd) {
    const double left = static_cast<double>(schedule.schedule_steps - step);
    return low + (peak - low) * std::min(1.0, left / static_cast<double>(schedule.decay_steps));
  }
  const double gone = static_cast<double>(step - schedule.warmup_steps) /
                      static_cast<double>(schedule.schedule_steps - schedule.warmup_steps);
  const double share = schedule.kind == ScheduleKind::kLinear ? 1.0 - gone : 0.5 * (1.0 + std::cos(kPi * gone));
  return low + (peak - low) * share;
}

}  // namespace skerry::trainer
