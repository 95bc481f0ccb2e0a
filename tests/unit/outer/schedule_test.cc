#include "strategies/outer/schedule.h"

#include <cmath>

#include <catch2/catch.hpp>

#include "strategies/outer/outer_optimizer.h"

namespace skerry::strategies {
namespace {

using Kind = Schedule::Kind;

}  // namespace

TEST_CASE("a constant schedule is 1 after its warm-up, which climbs in equal steps") {
  const Schedule schedule{.warmup_steps = 4};
  CHECK(schedule_factor(schedule, 1) == 0.25);
  CHECK(schedule_factor(schedule, 3) == 0.75);
  CHECK(schedule_factor(schedule, 4) == 1.0);
  CHECK(schedule_factor(schedule, 5) == 1.0);
  CHECK(schedule_factor({}, 1) == 1.0);
}

TEST_CASE("linear falls from 1 to the final fraction at schedule_steps, and stays there") {
  const Schedule schedule{.kind = Kind::kLinear, .schedule_steps = 4, .final_fraction = 0.2};
  CHECK(schedule_factor(schedule, 1) == 1.0);
  CHECK(schedule_factor(schedule, 3) == Approx(0.6));
  CHECK(schedule_factor(schedule, 5) == 0.2);
  CHECK(schedule_factor(schedule, 500) == 0.2);
}

TEST_CASE("cosine starts at 1, is halfway in the middle and ends exactly at the final fraction") {
  const Schedule schedule{.kind = Kind::kCosine, .warmup_steps = 2, .schedule_steps = 10, .final_fraction = 0.1};
  CHECK(schedule_factor(schedule, 2) == 1.0);  // the warm-up's end
  CHECK(schedule_factor(schedule, 3) == 1.0);
  CHECK(schedule_factor(schedule, 7) == Approx(0.55).epsilon(1e-15));
  CHECK(schedule_factor(schedule, 11) == 0.1);
  CHECK(schedule_factor(schedule, 12) == 0.1);
}

TEST_CASE("cosine is the cosine to the last bits, worked out without the C library") {
  const Schedule schedule{.kind = Kind::kCosine, .schedule_steps = 1000};
  for (std::uint64_t step = 1; step <= 1001; ++step) {
    const double expected = (1 + std::cos(3.14159265358979323846 * static_cast<double>(step - 1) / 1000)) / 2;
    CHECK(std::abs(schedule_factor(schedule, step) - expected) < 3e-16);
  }
}

TEST_CASE("inverse_sqrt falls with the root of the exchanges, from the warm-up's end on") {
  CHECK(schedule_factor({.kind = Kind::kInverseSqrt}, 1) == 1.0);
  CHECK(schedule_factor({.kind = Kind::kInverseSqrt}, 4) == 0.5);
  const Schedule schedule{.kind = Kind::kInverseSqrt, .warmup_steps = 4};
  CHECK(schedule_factor(schedule, 2) == 0.5);
  CHECK(schedule_factor(schedule, 4) == 1.0);
  CHECK(schedule_factor(schedule, 16) == 0.5);
}

TEST_CASE("step falls by its factor after every so many exchanges") {
  const Schedule schedule{.kind = Kind::kStep, .warmup_steps = 1, .step_every = 3, .step_factor = 0.5};
  CHECK(schedule_factor(schedule, 4) == 1.0);
  CHECK(schedule_factor(schedule, 5) == 0.5);
  CHECK(schedule_factor(schedule, 7) == 0.5);
  CHECK(schedule_factor(schedule, 8) == 0.25);
}

TEST_CASE("a part says no more of its schedule than differs from a constant rate, and says it back") {
  Part silent{"sgd", {}};
  put_schedule({}, silent);
  CHECK(silent.parameters.empty());
  const Schedule schedule{.kind = Kind::kCosine, .warmup_steps = 3, .schedule_steps = 20, .final_fraction = 0.5};
  Part part{"sgd", {}};
  put_schedule(schedule, part);
  const auto resolved = resolve(part, "outer", outer_catalogue());
  REQUIRE(resolved.ok());
  const auto back = schedule_of(*resolved);
  REQUIRE(back.ok());
  CHECK(*back == schedule);
}

}  // namespace skerry::strategies
