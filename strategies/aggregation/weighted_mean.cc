#include "strategies/aggregation/weighted_mean.h"

#include <array>
#include <cassert>

namespace skerry::strategies {
namespace {

constexpr std::array<const char*, 4> kNames = {"examples", "tokens", "steps", "uniform"};  // in the order of Weights

double weight_of(const Contribution& contribution, Weights weights) {
  const double counts[] = {static_cast<double>(contribution.examples), static_cast<double>(contribution.tokens),
                           static_cast<double>(contribution.steps), 1.0};
  return counts[static_cast<std::size_t>(weights)] * contribution.factor;
}

Result<Pass> next_pass(const Cohort& cohort, Weights weights) {
  std::vector<double> coefficients;
  double total = 0;
  for (const Contribution& contribution : cohort.contributions) {
    coefficients.push_back(weight_of(contribution, weights));
    total += coefficients.back();
  }
  if (!(total > 0)) {
    const std::string unit = weights == Weights::kUniform ? "weight" : kNames[static_cast<std::size_t>(weights)];
    return invalid_argument("weighted_mean: the " + std::to_string(cohort.size()) + " updates have 0 " + unit +
                            " in total, so they have no mean; choose other weights or look at what the nodes report");
  }
  for (double& coefficient : coefficients) coefficient /= total;
  return Pass(LinearOutput{std::move(coefficients)});
}

}  // namespace

Part weighted_mean(Weights weights) {
  return {"weighted_mean", {{"weights", std::string(kNames[static_cast<std::size_t>(weights)])}}};
}

Rule weighted_mean_rule(Weights weights) {
  Rule rule;
  rule.name = "weighted_mean";
  rule.needs.linear = true;
  rule.next = [weights](const Cohort& cohort, std::span<const Table>) { return next_pass(cohort, weights); };
  return rule;
}

PartInfo weighted_mean_info() {
  ParameterInfo weights;
  weights.name = "weights";
  weights.meaning = "what an update's weight is: what it saw of examples or tokens, its inner steps, or 1 each";
  weights.fallback = std::string("examples");
  weights.choices.assign(kNames.begin(), kNames.end());
  return {"weighted_mean", "the weighted mean of the updates", {weights}};
}

Weights weights_of(const Part& resolved) {
  const std::string& name = text(resolved, "weights");
  for (std::size_t i = 0; i < kNames.size(); ++i) {
    if (name == kNames[i]) return static_cast<Weights>(i);
  }
  assert(false && "a resolved part names one of the choices");
  return Weights::kExamples;
}

}  // namespace skerry::strategies
