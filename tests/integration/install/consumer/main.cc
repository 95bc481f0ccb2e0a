// Uses the installed headers and libraries: the weighted mean of two updates, and one outer step by hand.
#include "strategies/aggregation/weighted_mean.h"
#include "strategies/outer/outer_optimizer.h"

#include <cstdio>
#include <variant>

using namespace skerry::strategies;

int main() {
  const Contribution contributions[] = {{.examples = 30}, {.examples = 10}};
  const Cohort cohort{contributions, {}, 0};
  const auto pass = weighted_mean_rule(Weights::kExamples).next(cohort, {});
  if (!pass.ok()) return 1;
  const auto& coefficients = std::get<LinearOutput>(*pass).coefficients;
  if (coefficients.size() != 2 || coefficients[0] != 0.75 || coefficients[1] != 0.25) return 2;

  const auto optimizer = make_outer_optimizer(sgd({.learning_rate = 0.5}));
  if (!optimizer.ok()) return 3;
  const float delta[] = {2.0f}, base[] = {1.0f};
  float change[] = {0.0f};
  optimizer->step({.count = 1, .delta = delta, .base = base, .state = {}, .change = change});
  if (change[0] != -1.0f) return 4;
  std::puts("the installed package works");
  return 0;
}
