// Draws: the distributions they claim, and nothing but the seed deciding them.
#include "server/sim/draws.h"

#include <catch2/catch.hpp>

#include <cmath>

using skerry::sim::Draws;

namespace {

struct Moments {
  double mean = 0;
  double variance = 0;
};

template <typename Draw>
Moments moments(const Draw& draw) {
  constexpr int kCount = 20'000;
  double sum = 0;
  double squares = 0;
  for (int i = 0; i < kCount; ++i) {
    const double value = draw();
    sum += value;
    squares += value * value;
  }
  const double mean = sum / kCount;
  return {mean, squares / kCount - mean * mean};
}

}  // namespace

TEST_CASE("one seed, purpose and number give one sequence, others give others") {
  Draws first(1, "a", 3), same(1, "a", 3), purpose(1, "b", 3), number(1, "a", 4), seed(2, "a", 3);
  const double value = first.uniform();
  CHECK(same.uniform() == value);
  CHECK(purpose.uniform() != value);
  CHECK(number.uniform() != value);
  CHECK(seed.uniform() != value);
}

TEST_CASE("normal, exponential and gamma draws have their means and variances") {
  Draws draws(7, "test");
  const Moments normal = moments([&] { return draws.normal(); });
  CHECK(normal.mean == Approx(0).margin(0.03));
  CHECK(normal.variance == Approx(1).epsilon(0.05));
  const Moments exponential = moments([&] { return draws.exponential(5); });
  CHECK(exponential.mean == Approx(5).epsilon(0.05));
  CHECK(exponential.variance == Approx(25).epsilon(0.1));
  for (const double shape : {0.1, 0.5, 1.0, 4.0}) {
    const Moments gamma = moments([&] { return draws.gamma(shape); });
    CHECK(gamma.mean == Approx(shape).epsilon(0.06));
    CHECK(gamma.variance == Approx(shape).epsilon(0.15));
  }
}

TEST_CASE("whole numbers below a limit are all as likely") {
  Draws draws(7, "below");
  int counts[3] = {};
  for (int i = 0; i < 30'000; ++i) ++counts[draws.below(3)];
  for (const int count : counts) CHECK(count == Approx(10'000).epsilon(0.05));
}
