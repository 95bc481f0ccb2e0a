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
