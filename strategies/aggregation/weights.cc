#include "strategies/aggregation/weights.h"

#include <algorithm>
#include <array>
#include <cassert>

namespace skerry::strategies {
namespace {

constexpr std::array<const char*, 6> kNames = {"examples", "tokens",   "steps",
                                               "uniform",  "reported", "token_rate"};  // in the order of Weights
constexpr double kMost = 9007199254740992.0;  // 2^53, as for everything that nodes count
constexpr double kLeast = 1 / kMost;          // so that no discount takes a weight that counts to 0

const char* name_of(Weights by) { return kNames[static_cast<std::size_t>(by)]; }

double uncapped(const Contribution& contribution, Weights by) {
  const auto tokens = static_cast<double>(contribution.tokens);
  const auto steps = static_cast<double>(contribution.steps);
  switch (by) {
    case Weights::kExamples: return static_cast<double>(contribution.examples);
    case Weights::kTokens: return tokens;
    case Weights::kSteps: return steps;
    case Weights::kUniform: return 1;
    case Weights::kReported:
      if (contribution.metrics.empty()) return 1;
      return contribution.metrics.front() < kLeast ? 0 : std::min(contribution.metrics.front(), kMost);
    case Weights::kTokenRate: return steps > 0 ? tokens * (tokens / steps) : 0;
  }
  return 0;
}

}  // namespace

double weight_of(const Contribution& contribution, const Weighting& weighting) {
  const double weight = uncapped(contribution, weighting.by);
  return weighting.cap > 0 ? std::min(weight, weighting.cap) : weight;
}

double weight_of(const Contribution& contribution, const Part& part) {
  if (part.name == "normalised_mean" && contribution.steps == 0) return 0;
  const auto weights = part.parameters.find("weights");
  const auto* by = weights == part.parameters.end() ? nullptr : std::get_if<std::string>(&weights->second);
  const auto name = by == nullptr ? kNames.end() : std::find(kNames.begin(), kNames.end(), *by);
  if (name == kNames.end()) return 1;
  const auto cap = part.parameters.find("weight_cap");
  const auto* most = cap == part.parameters.end() ? nullptr : std::get_if<double>(&cap->second);
  return weight_of(contribution, {static_cast<Weights>(name - kNames.begin()), most == nullptr ? 0 : *most});
}

Result<std::vector<double>> shares_of(const Cohort& cohort, const Weighting& weighting, std::string_view rule) {
  std::vector<double> shares;
  double total = 0;
  for (const Contribution& contribution : cohort.contributions) {
    shares.push_back(weight_of(contribution, weighting) * contribution.factor);
    total += shares.back();
  }
  if (!(total > 0)) {
    const std::string unit = weighting.by == Weights::kUniform ? "weight" : name_of(weighting.by);
    return invalid_argument(std::string(rule) + ": the " + std::to_string(cohort.size()) + " updates have 0 " + unit +
                            " in total, so they have no mean; choose other weights or look at what the nodes report");
  }
  for (double& share : shares) share /= total;
  return shares;
}

std::vector<ParameterInfo> weighting_parameters(Weights fallback) {
  ParameterInfo weights;
  weights.name = "weights";
  weights.meaning =
      "what an update's weight is: what it saw of examples or tokens, its inner steps, 1 each, the metric \"weight\" that "
      "nodes report, or tokens times tokens per inner step";
  weights.fallback = std::string(name_of(fallback));
  weights.choices.assign(kNames.begin(), kNames.end());
  ParameterInfo cap;
  cap.name = "weight_cap";
  cap.meaning = "no update weighs more than this, whatever its holder claims; 0: no cap";
  cap.fallback = 0.0;
  cap.maximum = kMost;
  return {weights, cap};
}

void put_weighting(const Weighting& weighting, Part& part) {
  part.parameters["weights"] = std::string(name_of(weighting.by));
  part.parameters["weight_cap"] = weighting.cap;
}

Weighting weighting_of(const Part& resolved) {
  const auto name = std::find(kNames.begin(), kNames.end(), text(resolved, "weights"));
  assert(name != kNames.end() && "a resolved part names one of the choices");
  return {static_cast<Weights>(name - kNames.begin()), number(resolved, "weight_cap")};
}

void add_needs(const Weighting& weighting, Needs& needs) {
  if (weighting.by == Weights::kReported) needs.metrics = {"weight"};
}

}  // namespace skerry::strategies
