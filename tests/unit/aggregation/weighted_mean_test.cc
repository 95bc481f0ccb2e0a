#include "strategies/aggregation/weighted_mean.h"

#include <catch2/catch.hpp>

namespace skerry::strategies {
namespace {

// examples, tokens, steps, factor
const std::vector<Contribution> kThree = {{100, 5000, 10, 1.0}, {300, 1000, 10, 1.0}, {600, 4000, 20, 0.5}};

std::vector<double> coefficients(const Rule& rule, std::span<const Contribution> contributions) {
  const auto pass = rule.next({contributions, {}, 0}, {});
  REQUIRE(pass.ok());
  REQUIRE(std::holds_alternative<LinearOutput>(*pass));
  return std::get<LinearOutput>(*pass).coefficients;
}

}  // namespace

TEST_CASE("the weighted mean weighs updates by examples, tokens, steps or not at all, times their factor") {
  // With the factor: 100, 300, 300 of 700 examples; 5000, 1000, 2000 of 8000 tokens; 10, 10, 10 of 30 steps.
  CHECK(coefficients(weighted_mean_rule(Weights::kExamples), kThree) ==
        std::vector<double>{100.0 / 700, 300.0 / 700, 300.0 / 700});
  CHECK(coefficients(weighted_mean_rule(Weights::kTokens), kThree) == std::vector<double>{0.625, 0.125, 0.25});
  CHECK(coefficients(weighted_mean_rule(Weights::kSteps), kThree) ==
        std::vector<double>{10.0 / 30, 10.0 / 30, 10.0 / 30});
  CHECK(coefficients(weighted_mean_rule(Weights::kUniform), kThree) == std::vector<double>{0.4, 0.4, 0.2});
}

TEST_CASE("an update without examples has no part in the weighted mean") {
  const std::vector<Contribution> two = {{0, 0, 5, 1.0}, {8, 0, 5, 1.0}};
  CHECK(coefficients(weighted_mean_rule(Weights::kExamples), two) == std::vector<double>{0.0, 1.0});
}

TEST_CASE("a weighted mean of weights that are all zero is refused") {
  const std::vector<Contribution> two(2);
  const auto pass = weighted_mean_rule(Weights::kExamples).next({two, {}, 0}, {});
  REQUIRE(!pass.ok());
  CHECK(pass.error().code == Code::kInvalidArgument);
  CHECK(pass.error().message.find("the 2 updates have 0 examples in total") != std::string::npos);
}

TEST_CASE("no update weighs more than the cap, whatever it claims") {
  // 100, 250, 250 · 0.5 of 475.
  CHECK(coefficients(weighted_mean_rule({.weighting = {Weights::kExamples, 250}}), kThree) ==
        std::vector<double>{100.0 / 475, 250.0 / 475, 125.0 / 475});
}

TEST_CASE("token-rate weights are tokens times tokens per step") {
  // 5000 · 500, 1000 · 100, 4000 · 200 · 0.5, in units of 100,000: 25, 1 and 4 of 30.
  CHECK(coefficients(weighted_mean_rule(Weights::kTokenRate), kThree) == std::vector<double>{25.0 / 30, 1.0 / 30, 4.0 / 30});
  CHECK(weight_of(Contribution{5, 5, 0}, Weighting{Weights::kTokenRate, 0}) == 0);
}

TEST_CASE("a reported weight is what the node's metric says, within bounds") {
  const Rule rule = weighted_mean_rule(Weights::kReported);
  CHECK(rule.needs.metrics == std::vector<std::string>{"weight"});
  const std::vector<Contribution> four = {{1, 1, 1, 1.0, "a", {3.0}},
                                          {1, 1, 1, 1.0, "b", {1.0}},
                                          {1, 1, 1, 1.0, "c", {-5.0}},
                                          {1, 1, 1, 1.0, "d", {0.0}}};
  CHECK(coefficients(rule, four) == std::vector<double>{0.75, 0.25, 0, 0});
  CHECK(weight_of(Contribution{1, 1, 1, 1.0, "a", {1e308}}, Weighting{Weights::kReported, 0}) == 9007199254740992.0);
}

TEST_CASE("a weight that counts is not taken to 0 by a discount") {
  const auto weighed = [](double reported) {
    return weight_of(Contribution{1, 1, 1, 1.0, "a", {reported}}, Weighting{Weights::kReported, 0});
  };
  CHECK(weighed(5e-324) == 0);
  CHECK(weighed(0x1p-53) == 0x1p-53);
}

TEST_CASE("an update without inner steps weighs nothing under the normalised mean") {
  CHECK(weight_of(Contribution{.examples = 10, .steps = 0}, normalised_mean()) == 0);
  CHECK(weight_of(Contribution{.examples = 10, .steps = 1}, normalised_mean()) == 10);
  CHECK(weight_of(Contribution{.examples = 10, .steps = 0}, weighted_mean()) == 10);
}

TEST_CASE("a discount that is kept shortens the step, one that is renormalised moves weight") {
  const std::vector<Contribution> late = {{10, 0, 1, 0.25}};
  using Discount = WeightedMeanOptions::Discount;
  CHECK(coefficients(weighted_mean_rule({.discount = Discount::kRenormalised}), late) == std::vector<double>{1.0});
  CHECK(coefficients(weighted_mean_rule({.discount = Discount::kKept}), late) == std::vector<double>{0.25});
  const std::vector<Contribution> two = {{10, 0, 1, 1.0}, {10, 0, 1, 0.5}};
  CHECK(coefficients(weighted_mean_rule({.discount = Discount::kKept}), two) == std::vector<double>{0.5, 0.25});
}

TEST_CASE("updates that count make the mean longer by the root of their number") {
  const std::vector<Contribution> five = {{1, 0, 1}, {1, 0, 1}, {0, 0, 1}, {1, 0, 1}, {1, 0, 1}};
  const std::vector<double> half = {0.5, 0.5, 0, 0.5, 0.5};  // 1/4 · √4
  CHECK(coefficients(weighted_mean_rule({.scale = WeightedMeanOptions::Scale::kSqrtUpdates}), five) == half);
  const auto rule = make_rule(module_mean());
  REQUIRE(rule.ok());
  CHECK(rule->needs.partial_updates);
  CHECK(rule->needs.linear);
  CHECK(coefficients(*rule, five) == half);
}

TEST_CASE("a rebased mean says so") {
  CHECK(weighted_mean_rule({.rebase = true}).needs.rebased);
  CHECK_FALSE(weighted_mean_rule(WeightedMeanOptions{}).needs.rebased);
}

TEST_CASE("the normalised mean gives every inner step of every node the same say") {
  // 1 and 3 steps, the same examples: τ_eff = 2, so Δ₁ counts 2 · ½ / 1 and Δ₂ counts 2 · ½ / 3.
  const std::vector<Contribution> two = {{10, 0, 1}, {10, 0, 3}};
  const auto rule = make_rule(normalised_mean());
  REQUIRE(rule.ok());
  CHECK(rule->needs.linear);
  CHECK(coefficients(*rule, two) == std::vector<double>{1.0, 1.0 / 3});
  const std::vector<Contribution> equal = {{10, 0, 7}, {30, 0, 7}};
  CHECK(coefficients(*rule, equal) == std::vector<double>{0.25, 0.75});
  const std::vector<Contribution> idle = {{10, 0, 0}, {30, 0, 7}};
  CHECK(coefficients(*rule, idle) == std::vector<double>{0, 1});
  CHECK_FALSE(rule->next({std::span(idle).first(1), {}, 0}, {}).ok());
}

TEST_CASE("local momentum and proximal terms change how far inner steps go") {
  CHECK(normalised_steps(0, 0.9, 0.1) == 0);
  CHECK(normalised_steps(5, 0, 0) == 5);
  CHECK(normalised_steps(3, 0.5, 0) == 1 + 1.5 + 1.75);
  CHECK(normalised_steps(3, 0, 0.5) == 1 + 0.5 + 0.25);
  CHECK(normalised_steps(std::uint64_t{1} << 53, 0, 0) == 9007199254740992.0);
  CHECK(normalised_steps(std::uint64_t{1} << 53, 0, 0.5) == 2);
}

TEST_CASE("the catalogue makes the weighted mean that a part names") {
  const auto rule = make_rule(weighted_mean(Weights::kTokens));
  REQUIRE(rule.ok());
  CHECK(rule->name == "weighted_mean");
  CHECK(coefficients(*rule, kThree) == std::vector<double>{0.625, 0.125, 0.25});
  const auto by_default = make_rule({"weighted_mean", {}});
  REQUIRE(by_default.ok());
  CHECK(coefficients(*by_default, kThree) == coefficients(weighted_mean_rule(Weights::kExamples), kThree));
}

TEST_CASE("the weighted mean may go with secure sums and takes any number of updates") {
  const Rule rule = weighted_mean_rule(Weights::kExamples);
  CHECK(rule.needs.linear);
  CHECK_FALSE(rule.needs.individual_updates);
  CHECK(rule.needs.minimum_updates == 1);
  CHECK(check_cohort(rule, {kThree, {}, 0}).ok());
}

TEST_CASE("unknown rules and weights are refused by name") {
  const std::string unknown = make_rule({"mean", {}}).error().message;
  CHECK(unknown.rfind("aggregation is \"mean\", must be one of weighted_mean, normalised_mean, module_mean, median, ", 0) == 0);
  CHECK(make_rule({"weighted_mean", {{"weights", std::string("rows")}}}).error().message ==
        "aggregation.weights is \"rows\", must be one of examples, tokens, steps, uniform, reported, token_rate");
}

TEST_CASE("a cohort outside the rule's bounds is refused with both numbers") {
  Rule rule = weighted_mean_rule(Weights::kUniform);
  rule.needs.minimum_updates = 5;
  CHECK(check_cohort(rule, {kThree, {}, 0}).error().message ==
        "weighted_mean needs at least 5 updates, this exchange has 3");
  rule.needs.minimum_updates = 1;
  rule.needs.maximum_updates = 2;
  CHECK(check_cohort(rule, {kThree, {}, 0}).error().message ==
        "weighted_mean needs at most 2 updates, this exchange has 3");
}

TEST_CASE("a negative factor is refused, and a rule by tensors without tensors") {
  Rule rule = weighted_mean_rule(Weights::kUniform);
  const std::vector<Contribution> one = {{1, 1, 1, -1.0}};
  CHECK_FALSE(check_cohort(rule, {one, {}, 0}).ok());
  rule.needs.tensors = true;
  CHECK_FALSE(check_cohort(rule, {kThree, {}, 0}).ok());
  const std::vector<TensorRange> tensors = {{"w", 0, 4}};
  CHECK(check_cohort(rule, {kThree, tensors, 0}).ok());
}

}  // namespace skerry::strategies
