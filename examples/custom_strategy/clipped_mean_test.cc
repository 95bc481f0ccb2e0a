// The rule on numbers that can be checked by hand: no coordinator, no data.
#include <cstdio>
#include <cstdlib>

#include "clipped_mean.h"
#include "strategies/sdk/try_rule.hpp"

using skerry::strategies::sdk::try_rule;

static void check(bool kept, const char* promise) {
  std::printf("%s: %s\n", kept ? "ok" : "BROKEN", promise);
  if (!kept) std::exit(1);
}

int main() {
  const auto rule = clipped_mean({"clipped_mean", {{"multiple", 1.0}}}).value();
  // Lengths 5, 5 and 50: the median is 5, so the third counts as (3, 4) too.
  check(try_rule(rule, {{3, 4}, {3, 4}, {30, 40}}).value() == std::vector<float>{3, 4}, "a long update is shortened to the median");
  check(try_rule(rule, {{3, 4}}).value() == std::vector<float>{3, 4}, "one update alone is kept");
  check(try_rule(rule, {{0, 0}, {0, 0}, {1, 1}}).value() == std::vector<float>{0, 0}, "where most have length 0, so has the mean");
}
