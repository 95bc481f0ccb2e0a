#include "strategies/aggregation/coordinates.h"

#include <array>
#include <cmath>

#include "strategies/aggregation/kernels/columns.h"
#include "strategies/aggregation/rule_catalogue.h"

namespace skerry::strategies {
namespace {

using Magnitude = SignMajorityOptions::Magnitude;

constexpr std::array<const char*, 3> kMagnitudes = {"unit", "mean", "median"};  // in the order of Magnitude

template <typename Reduce>
Rule value_rule(std::string name, Reduce reduce) {
  Rule rule;
  rule.name = std::move(name);
  rule.needs.individual_updates = true;
  rule.next = [reduce](const Cohort&, std::span<const Table>) -> Result<Pass> {
    return Pass(ValueOutput{
        [reduce](const Block& block, std::span<float> out, std::span<float* const>) { reduce(block.updates, out); }});
  };
  return rule;
}

using Rows = std::span<const float* const>;

Result<Rule> make_trimmed_mean(const Part& part) {
  const auto trim = static_cast<std::size_t>(number(part, "trim"));
  const double fraction = number(part, "fraction");
  Rule rule = value_rule(part.name, [trim, fraction](Rows rows, std::span<float> out) {
    column_trimmed_means(rows, fraction > 0 ? trimmed_of(fraction, rows.size()) : trim, out);
  });
  if (fraction > 0) return rule;
  rule.needs.minimum_updates = 2 * trim + 1;
  rule.needs.because = "n >= 2 trim + 1 with trim = " + std::to_string(trim);
  return rule;
}

Result<Rule> make_sign_majority(const Part& part) {
  const std::string& name = text(part, "magnitude");
  const VoteMagnitude magnitude = name == kMagnitudes[0]   ? VoteMagnitude::kUnit
                                  : name == kMagnitudes[1] ? VoteMagnitude::kMean
                                                           : VoteMagnitude::kMedian;
  return value_rule(part.name,
                    [magnitude](Rows rows, std::span<float> out) { column_majority_signs(rows, magnitude, out); });
}

}  // namespace

Part median() { return {"median", {}}; }

Part trimmed_mean(const TrimmedMeanOptions& options) {
  return {"trimmed_mean", {{"trim", static_cast<double>(options.trim)}, {"fraction", options.fraction}}};
}

std::size_t trimmed_of(double fraction, std::size_t updates) {
  // Division rounds correctly, so t / n is the very double that the decimal t/n is written as.
  const auto all = static_cast<double>(updates);
  auto trim = static_cast<std::size_t>(fraction * all) + 1;
  while (static_cast<double>(trim) / all > fraction) --trim;
  return trim;
}

Part sign_majority(const SignMajorityOptions& options) {
  return {"sign_majority", {{"magnitude", std::string(kMagnitudes[static_cast<std::size_t>(options.magnitude)])}}};
}

RuleEntry median_entry() {
  return {{"median", "the middle value of each coordinate (arXiv 1803.01498)", {}},
          [](const Part& part) -> Result<Rule> { return value_rule(part.name, column_medians); }};
}

RuleEntry trimmed_mean_entry() {
  const TrimmedMeanOptions fallback;
  ParameterInfo trim;
  trim.name = "trim";
  trim.meaning = "how many values are cut off each end of each coordinate; needs at least 2 trim + 1 updates";
  trim.fallback = static_cast<double>(fallback.trim);
  trim.maximum = 1e6;
  trim.whole = true;
  ParameterInfo fraction;
  fraction.name = "fraction";
  fraction.meaning = "above 0, instead of trim: the share of the updates that is cut off each end, rounded down";
  fraction.fallback = fallback.fraction;
  fraction.maximum = 0.5;
  fraction.below_maximum = true;
  return {{"trimmed_mean",
           "the mean of each coordinate without its smallest and largest values (arXiv 1803.01498)",
           {trim, fraction}},
          make_trimmed_mean};
}

RuleEntry sign_majority_entry() {
  ParameterInfo magnitude;
  magnitude.name = "magnitude";
  magnitude.meaning =
      "how far a coordinate moves: 1 (the outer learning rate is the step), or the mean or the median of the absolute values";
  magnitude.fallback = std::string(kMagnitudes.front());
  magnitude.choices.assign(kMagnitudes.begin(), kMagnitudes.end());
  return {{"sign_majority", "the sign that most updates have, coordinate by coordinate (arXiv 1810.05291)", {magnitude}},
          make_sign_majority};
}

}  // namespace skerry::strategies
