#include "strategies/outer/outer_optimizer.h"

#include <cstdio>
#include <utility>

#include "strategies/outer/outer_step.h"

namespace skerry::strategies {
namespace {

ParameterInfo number_info(std::string name, std::string meaning, double fallback, double maximum) {
  ParameterInfo info;
  info.name = std::move(name);
  info.meaning = std::move(meaning);
  info.fallback = fallback;
  info.maximum = maximum;
  return info;
}

ParameterInfo learning_rate_info(double fallback) {
  ParameterInfo info = number_info("learning_rate", "how much of the outer gradient is taken", fallback, 1e6);
  info.above_minimum = true;
  return info;
}

// A share in [0, 1).
ParameterInfo decay_info(std::string name, std::string meaning, double fallback) {
  ParameterInfo info = number_info(std::move(name), std::move(meaning), fallback, 1);
  info.below_maximum = true;
  return info;
}

ParameterInfo velocity_info(double fallback) { return decay_info("momentum", "decay of the velocity", fallback); }

ParameterInfo epsilon_info(double fallback) {
  ParameterInfo info =
      number_info("epsilon", "added to the root of the second moment: the larger, the less adaptive", fallback, 1e6);
  info.above_minimum = true;
  return info;
}

ParameterInfo accumulator_info(double fallback) {
  return number_info("initial_accumulator", "the second moment before the first step; the paper's is epsilon squared",
                     fallback, 1e6);
}

std::vector<ParameterInfo> nesterov_parameters() {
  ParameterInfo form;
  form.name = "form";
  form.meaning =
      "pytorch: the velocity sums outer gradients; fedmom: it sums steps; the same at a constant learning_rate";
  form.fallback = std::string("pytorch");
  form.choices = {"pytorch", "fedmom"};
  return {learning_rate_info(NesterovOptions().learning_rate), velocity_info(NesterovOptions().momentum), form};
}

std::vector<ParameterInfo> delayed_nesterov_parameters() {
  const DelayedNesterovOptions fallback;
  ParameterInfo delay = number_info("delay", "the velocity moves at every so many steps, with their mean",
                                    static_cast<double>(fallback.delay), 1e6);
  delay.minimum = 1;
  delay.whole = true;
  return {learning_rate_info(fallback.learning_rate), velocity_info(fallback.momentum), delay,
          number_info("carry", "how much of the velocity goes into each step between; at most 1 / delay",
                      fallback.carry, 1)};
}

std::vector<ParameterInfo> adam_parameters(double learning_rate) {
  const AdamOptions fallback;
  ParameterInfo bias_correction;
  bias_correction.name = "bias_correction";
  bias_correction.meaning = "divide the moments by 1 - beta^t, as Adam does and the paper's server optimizers do not";
  bias_correction.fallback = fallback.bias_correction;
  return {learning_rate_info(learning_rate),
          decay_info("beta1", "decay of the first moment", fallback.beta1),
          decay_info("beta2", "decay of the second moment", fallback.beta2),
          epsilon_info(fallback.epsilon),
          bias_correction,
          accumulator_info(fallback.initial_accumulator)};
}

Result<OuterOptimizer> make_sgd(const Part& part, const Schedule& schedule) {
  const SgdOptions options{number(part, "learning_rate"), schedule};
  return OuterOptimizer{part.name, {}, [options](const OuterBlock& block) { sgd_step(block, options); }};
}

Result<OuterOptimizer> make_momentum(const Part& part, const Schedule& schedule) {
  const MomentumOptions options{number(part, "learning_rate"), number(part, "momentum"), schedule};
  return OuterOptimizer{part.name, {"velocity"}, [options](const OuterBlock& block) { momentum_step(block, options); }};
}

// The forms keep different vectors, so that a state of one is never taken for the other's.
Result<OuterOptimizer> make_nesterov(const Part& part, const Schedule& schedule) {
  const bool fedmom = text(part, "form") == "fedmom";
  const NesterovOptions options{number(part, "learning_rate"), number(part, "momentum"),
                                fedmom ? NesterovOptions::Form::kFedMom : NesterovOptions::Form::kPyTorch, schedule};
  return OuterOptimizer{part.name, {fedmom ? "ahead" : "velocity"}, [options](const OuterBlock& block) {
                          nesterov_step(block, options);
                        }};
}

Result<OuterOptimizer> make_delayed_nesterov(const Part& part, const Schedule& schedule) {
  const DelayedNesterovOptions options{number(part, "learning_rate"), number(part, "momentum"),
                                       static_cast<std::uint64_t>(number(part, "delay")), number(part, "carry"),
                                       schedule};
  if (options.carry > 1.0 / static_cast<double>(options.delay)) {
    char carry[32];
    std::snprintf(carry, sizeof carry, "%.10g", options.carry);
    return invalid_argument(std::string("outer.carry is ") + carry + ", must be at most 1 / outer.delay (1 / " +
                            std::to_string(options.delay) + ")");
  }
  return OuterOptimizer{
      part.name, {"velocity", "buffer"}, [options](const OuterBlock& block) { delayed_nesterov_step(block, options); }};
}

Result<OuterOptimizer> make_adagrad(const Part& part, const Schedule& schedule) {
  const AdagradOptions options{number(part, "learning_rate"), number(part, "epsilon"),
                               number(part, "initial_accumulator"), schedule};
  return OuterOptimizer{
      part.name, {"sum_of_squares"}, [options](const OuterBlock& block) { adagrad_step(block, options); }};
}

template <void (*step)(const OuterBlock&, const AdamOptions&)>
Result<OuterOptimizer> make_adam(const Part& part, const Schedule& schedule) {
  const AdamOptions options{number(part, "learning_rate"),
                            number(part, "beta1"),
                            number(part, "beta2"),
                            number(part, "epsilon"),
                            flag(part, "bias_correction"),
                            number(part, "initial_accumulator"),
                            schedule};
  return OuterOptimizer{
      part.name, {"first_moment", "second_moment"}, [options](const OuterBlock& block) { step(block, options); }};
}

// An optimizer of the catalogue: how a run spec names it, and how to make it from a resolved part.
struct Entry {
  PartInfo info;
  Result<OuterOptimizer> (*make)(const Part& resolved, const Schedule& schedule);
};

const std::vector<Entry>& entries() {
  static const std::vector<Entry> all = [] {
    std::vector<Entry> out = {
        {{"sgd", "the plain step; with learning_rate 1, FedAvg", {learning_rate_info(SgdOptions().learning_rate)}},
         make_sgd},
        {{"momentum",
          "a step along the decaying sum of outer gradients; FedAvgM",
          {learning_rate_info(MomentumOptions().learning_rate), velocity_info(MomentumOptions().momentum)}},
         make_momentum},
        {{"nesterov", "momentum that looks ahead; DiLoCo, FedMom", nesterov_parameters()}, make_nesterov},
        {{"delayed_nesterov", "Nesterov for updates that come one by one: its velocity moves at every delay-th step",
          delayed_nesterov_parameters()},
         make_delayed_nesterov},
        {{"adagrad",
          "steps scaled by the sum of squares; FedAdagrad",
          {learning_rate_info(AdagradOptions().learning_rate), epsilon_info(AdagradOptions().epsilon),
           accumulator_info(AdagradOptions().initial_accumulator)}},
         make_adagrad},
        {{"adam", "steps scaled by the second moment; FedAdam", adam_parameters(AdamOptions().learning_rate)},
         make_adam<adam_step>},
        {{"yogi", "Adam whose second moment grows and falls by no more than the newest square; FedYogi",
          adam_parameters(0.01)},
         make_adam<yogi_step>},
    };
    for (Entry& entry : out)
      for (ParameterInfo& info : schedule_parameters()) entry.info.parameters.push_back(std::move(info));
    return out;
  }();
  return all;
}

Part adam_part(std::string name, const AdamOptions& options) {
  Part part{std::move(name),
            {{"learning_rate", options.learning_rate},
             {"beta1", options.beta1},
             {"beta2", options.beta2},
             {"epsilon", options.epsilon},
             {"bias_correction", options.bias_correction},
             {"initial_accumulator", options.initial_accumulator}}};
  put_schedule(options.schedule, part);
  return part;
}

}  // namespace

Part sgd(SgdOptions options) {
  Part part{"sgd", {{"learning_rate", options.learning_rate}}};
  put_schedule(options.schedule, part);
  return part;
}

Part momentum(MomentumOptions options) {
  Part part{"momentum", {{"learning_rate", options.learning_rate}, {"momentum", options.momentum}}};
  put_schedule(options.schedule, part);
  return part;
}

Part nesterov(NesterovOptions options) {
  Part part{"nesterov", {{"learning_rate", options.learning_rate}, {"momentum", options.momentum}}};
  if (options.form == NesterovOptions::Form::kFedMom) part.parameters["form"] = std::string("fedmom");
  put_schedule(options.schedule, part);
  return part;
}

Part delayed_nesterov(DelayedNesterovOptions options) {
  Part part{"delayed_nesterov",
            {{"learning_rate", options.learning_rate},
             {"momentum", options.momentum},
             {"delay", static_cast<double>(options.delay)},
             {"carry", options.carry}}};
  put_schedule(options.schedule, part);
  return part;
}

Part adagrad(AdagradOptions options) {
  Part part{"adagrad",
            {{"learning_rate", options.learning_rate},
             {"epsilon", options.epsilon},
             {"initial_accumulator", options.initial_accumulator}}};
  put_schedule(options.schedule, part);
  return part;
}

Part adam(AdamOptions options) { return adam_part("adam", options); }

Part yogi(AdamOptions options) { return adam_part("yogi", options); }

std::span<const PartInfo> outer_catalogue() {
  static const std::vector<PartInfo> infos = [] {
    std::vector<PartInfo> all;
    for (const Entry& entry : entries()) all.push_back(entry.info);
    return all;
  }();
  return infos;
}

Result<OuterOptimizer> make_outer_optimizer(const Part& part) {
  SKERRY_ASSIGN(const Part resolved, resolve(part, "outer", outer_catalogue()));
  for (const Entry& entry : entries()) {
    if (entry.info.name != resolved.name) continue;
    SKERRY_ASSIGN(const Schedule schedule, schedule_of(resolved));
    return entry.make(resolved, schedule);
  }
  return internal_error("outer optimizer " + resolved.name + " is in the catalogue and cannot be made");
}

}  // namespace skerry::strategies
