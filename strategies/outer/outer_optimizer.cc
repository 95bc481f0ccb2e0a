#include "strategies/outer/outer_optimizer.h"

#include "strategies/outer/outer_step.h"

namespace skerry::strategies {
namespace {

ParameterInfo learning_rate_info(double fallback) {
  ParameterInfo info;
  info.name = "learning_rate";
  info.meaning = "how much of the outer gradient is taken";
  info.fallback = fallback;
  info.maximum = 1e6;
  info.above_minimum = true;
  return info;
}

// A share in [0, 1).
ParameterInfo decay_info(std::string name, std::string meaning, double fallback) {
  ParameterInfo info;
  info.name = std::move(name);
  info.meaning = std::move(meaning);
  info.fallback = fallback;
  info.maximum = 1;
  info.below_maximum = true;
  return info;
}

std::vector<ParameterInfo> adam_parameters() {
  const AdamOptions fallback;
  ParameterInfo epsilon;
  epsilon.name = "epsilon";
  epsilon.meaning = "added to the root of the second moment: the larger, the less adaptive";
  epsilon.fallback = fallback.epsilon;
  epsilon.maximum = 1e6;
  epsilon.above_minimum = true;
  ParameterInfo bias_correction;
  bias_correction.name = "bias_correction";
  bias_correction.meaning = "divide the moments by 1 - beta^t, as Adam does and FedAdam does not";
  bias_correction.fallback = fallback.bias_correction;
  return {learning_rate_info(fallback.learning_rate),
          decay_info("beta1", "decay of the first moment", fallback.beta1),
          decay_info("beta2", "decay of the second moment", fallback.beta2), epsilon, bias_correction};
}

OuterOptimizer make_sgd(const Part& part) {
  const SgdOptions options{number(part, "learning_rate")};
  return {part.name, {}, [options](const OuterBlock& block) { sgd_step(block, options); }};
}

OuterOptimizer make_momentum(const Part& part) {
  const MomentumOptions options{number(part, "learning_rate"), number(part, "momentum")};
  return {part.name, {"velocity"}, [options](const OuterBlock& block) { momentum_step(block, options); }};
}

OuterOptimizer make_nesterov(const Part& part) {
  const NesterovOptions options{number(part, "learning_rate"), number(part, "momentum")};
  return {part.name, {"velocity"}, [options](const OuterBlock& block) { nesterov_step(block, options); }};
}

OuterOptimizer make_adam(const Part& part) {
  const AdamOptions options{number(part, "learning_rate"), number(part, "beta1"), number(part, "beta2"),
                            number(part, "epsilon"), flag(part, "bias_correction")};
  return {part.name,
          {"first_moment", "second_moment"},
          [options](const OuterBlock& block) { adam_step(block, options); }};
}

// An optimizer of the catalogue: how a run spec names it, and how to make it from a resolved part.
struct Entry {
  PartInfo info;
  OuterOptimizer (*make)(const Part& resolved);
};

const std::vector<Entry>& entries() {
  static const std::vector<Entry> all = {
      {{"sgd", "the plain step; with learning_rate 1, FedAvg", {learning_rate_info(SgdOptions().learning_rate)}},
       make_sgd},
      {{"momentum",
        "a step along the decaying sum of outer gradients; FedAvgM",
        {learning_rate_info(MomentumOptions().learning_rate),
         decay_info("momentum", "decay of the velocity", MomentumOptions().momentum)}},
       make_momentum},
      {{"nesterov",
        "momentum that looks ahead; DiLoCo",
        {learning_rate_info(NesterovOptions().learning_rate),
         decay_info("momentum", "decay of the velocity", NesterovOptions().momentum)}},
       make_nesterov},
      {{"adam", "steps scaled by the second moment; FedAdam", adam_parameters()}, make_adam},
  };
  return all;
}

}  // namespace

Part sgd(SgdOptions options) { return {"sgd", {{"learning_rate", options.learning_rate}}}; }

Part momentum(MomentumOptions options) {
  return {"momentum", {{"learning_rate", options.learning_rate}, {"momentum", options.momentum}}};
}

Part nesterov(NesterovOptions options) {
  return {"nesterov", {{"learning_rate", options.learning_rate}, {"momentum", options.momentum}}};
}

Part adam(AdamOptions options) {
  return {"adam",
          {{"learning_rate", options.learning_rate},
           {"beta1", options.beta1},
           {"beta2", options.beta2},
           {"epsilon", options.epsilon},
           {"bias_correction", options.bias_correction}}};
}

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
    if (entry.info.name == resolved.name) return entry.make(resolved);
  }
  return internal_error("outer optimizer " + resolved.name + " is in the catalogue and cannot be made");
}

}  // namespace skerry::strategies
