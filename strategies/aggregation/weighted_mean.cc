#include "strategies/aggregation/weighted_mean.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "strategies/aggregation/rule_catalogue.h"

namespace skerry::strategies {
namespace {

using Discount = WeightedMeanOptions::Discount;
using Scale = WeightedMeanOptions::Scale;

constexpr std::array<const char*, 2> kDiscounts = {"renormalised", "kept"};  // in the order of Discount
constexpr std::array<const char*, 2> kScales = {"none", "sqrt_updates"};     // in the order of Scale

ParameterInfo share_info(std::string name, std::string meaning) {
  ParameterInfo info;
  info.name = std::move(name);
  info.meaning = std::move(meaning);
  info.fallback = 0.0;
  info.maximum = 1;
  info.below_maximum = true;
  return info;
}

void scale_all(std::vector<double>& values, double scale) {
  for (double& value : values) value *= scale;
}

Result<Pass> mean_pass(const Cohort& cohort, const WeightedMeanOptions& options, std::string_view rule) {
  SKERRY_ASSIGN(std::vector<double> shares, shares_of(cohort, options.weighting, rule));
  if (options.scale == Scale::kSqrtUpdates) {
    const auto counted = std::count_if(shares.begin(), shares.end(), [](double share) { return share > 0; });
    scale_all(shares, std::sqrt(static_cast<double>(counted)));
  }
  if (options.discount == Discount::kKept) {
    double all = 0;
    double discounted = 0;
    for (const Contribution& contribution : cohort.contributions) {
      const double weight = weight_of(contribution, options.weighting);
      all += weight;
      discounted += weight * contribution.factor;
    }
    scale_all(shares, discounted / all);
  }
  return Pass(LinearOutput{std::move(shares)});
}

Rule mean_rule(std::string name, const WeightedMeanOptions& options) {
  Rule rule;
  rule.name = std::move(name);
  rule.needs.linear = true;
  rule.needs.rebased = options.rebase;
  add_needs(options.weighting, rule.needs);
  rule.next = [options, name = rule.name](const Cohort& cohort, std::span<const Table>) {
    return mean_pass(cohort, options, name);
  };
  return rule;
}

Result<Pass> normalised_pass(const Cohort& cohort, const NormalisedMeanOptions& options) {
  std::vector<Contribution> counted(cohort.contributions.begin(), cohort.contributions.end());
  std::vector<double> distances;
  for (Contribution& contribution : counted) {
    distances.push_back(normalised_steps(contribution.steps, options.momentum, options.proximal));
    if (contribution.steps == 0) contribution.factor = 0;
  }
  Cohort with_steps = cohort;
  with_steps.contributions = counted;
  auto shares = shares_of(with_steps, options.weighting, "normalised_mean");
  if (!shares.ok()) return with_context(std::move(shares).error(), "of the updates with inner steps");
  double effective = 0;
  for (std::size_t k = 0; k < counted.size(); ++k) effective += (*shares)[k] * distances[k];
  for (std::size_t k = 0; k < counted.size(); ++k)
    if ((*shares)[k] > 0) (*shares)[k] *= effective / distances[k];
  return Pass(LinearOutput{std::move(shares).value()});
}

// An affine map of (u, D, 1), row by row; the last row is (0, 0, 1).
using Map = std::array<std::array<double, 3>, 2>;

Map after(const Map& second, const Map& first) {
  Map both{};
  for (std::size_t row = 0; row < 2; ++row) {
    for (std::size_t column = 0; column < 3; ++column) {
      both[row][column] = second[row][0] * first[0][column] + second[row][1] * first[1][column];
    }
    both[row][2] += second[row][2];
  }
  return both;
}

}  // namespace

Part weighted_mean(const WeightedMeanOptions& options) {
  Part part{"weighted_mean", {}};
  put_weighting(options.weighting, part);
  part.parameters["discount"] = std::string(kDiscounts[static_cast<std::size_t>(options.discount)]);
  part.parameters["scale"] = std::string(kScales[static_cast<std::size_t>(options.scale)]);
  part.parameters["rebase"] = options.rebase;
  return part;
}

Part weighted_mean(Weights weights) { return weighted_mean(WeightedMeanOptions{.weighting = {weights, 0}}); }

Rule weighted_mean_rule(const WeightedMeanOptions& options) { return mean_rule("weighted_mean", options); }

Rule weighted_mean_rule(Weights weights) { return weighted_mean_rule(WeightedMeanOptions{.weighting = {weights, 0}}); }

Part module_mean(const Weighting& weighting) {
  Part part{"module_mean", {}};
  put_weighting(weighting, part);
  return part;
}

Part normalised_mean(const NormalisedMeanOptions& options) {
  Part part{"normalised_mean", {{"momentum", options.momentum}, {"proximal", options.proximal}}};
  put_weighting(options.weighting, part);
  return part;
}

double normalised_steps(std::uint64_t steps, double momentum, double proximal) {
  // By repeated squaring: a node may claim any number of steps.
  Map power = {{{momentum, -proximal, 1}, {momentum, 1 - proximal, 1}}};
  Map walked = {{{1, 0, 0}, {0, 1, 0}}};
  for (std::uint64_t left = steps; left != 0; left /= 2) {
    if (left % 2 != 0) walked = after(power, walked);
    power = after(power, power);
  }
  return walked[1][2];
}

RuleEntry weighted_mean_entry() {
  PartInfo info{"weighted_mean", "the weighted mean of the updates (FedAvg, arXiv 1602.05629)",
                weighting_parameters(Weights::kExamples)};
  ParameterInfo discount;
  discount.name = "discount";
  discount.meaning =
      "what the discount of a late update does: move weight to the others (renormalised), or shorten the step too (kept; "
      "FedAsync, FedBuff)";
  discount.fallback = std::string(kDiscounts.front());
  discount.choices.assign(kDiscounts.begin(), kDiscounts.end());
  ParameterInfo scale;
  scale.name = "scale";
  scale.meaning = "sqrt_updates: times the root of the number of updates, for updates that are nearly orthogonal";
  scale.fallback = std::string(kScales.front());
  scale.choices.assign(kScales.begin(), kScales.end());
  ParameterInfo rebase;
  rebase.name = "rebase";
  rebase.meaning = "count an update against an older version as (current - then) + update, which mixes models (FedAsync)";
  rebase.fallback = false;
  info.parameters.insert(info.parameters.end(), {discount, scale, rebase});
  return {info, [](const Part& part) -> Result<Rule> {
            WeightedMeanOptions options{.weighting = weighting_of(part), .rebase = flag(part, "rebase")};
            if (text(part, "discount") == kDiscounts[1]) options.discount = Discount::kKept;
            if (text(part, "scale") == kScales[1]) options.scale = Scale::kSqrtUpdates;
            return weighted_mean_rule(options);
          }};
}

RuleEntry module_mean_entry() {
  return {{"module_mean",
           "of the updates that carry a fragment, the weighted mean times the root of their number (DiPaCo, arXiv "
           "2403.10616)",
           weighting_parameters(Weights::kExamples)},
          [](const Part& part) -> Result<Rule> {
            Rule rule = mean_rule("module_mean", {.weighting = weighting_of(part), .scale = Scale::kSqrtUpdates});
            rule.needs.partial_updates = true;
            return rule;
          }};
}

RuleEntry normalised_mean_entry() {
  PartInfo info{"normalised_mean",
                "the weighted mean of updates per inner step, times the mean number of steps (FedNova, arXiv 2007.07481)",
                weighting_parameters(Weights::kExamples)};
  info.parameters.push_back(share_info("momentum", "of the nodes' inner SGD; 0: plain steps"));
  info.parameters.push_back(
      share_info("proximal", "the nodes' learning rate times training.proximal; 0: no proximal term"));
  return {info, [](const Part& part) -> Result<Rule> {
            const NormalisedMeanOptions options{weighting_of(part), number(part, "momentum"), number(part, "proximal")};
            Rule rule;
            rule.name = "normalised_mean";
            rule.needs.linear = true;
            add_needs(options.weighting, rule.needs);
            rule.next = [options](const Cohort& cohort, std::span<const Table>) {
              return normalised_pass(cohort, options);
            };
            return rule;
          }};
}

}  // namespace skerry::strategies
