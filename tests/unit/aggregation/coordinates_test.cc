#include "strategies/aggregation/coordinates.h"

#include <limits>

#include "strategies/aggregation/kernels/columns.h"
#include "tests/unit/aggregation/world.h"

namespace skerry::strategies {
namespace {

using Values = std::vector<float>;
using Magnitude = SignMajorityOptions::Magnitude;

// One column a value: K updates of one value each.
Rows column(const Values& values) {
  Rows rows;
  for (const float value : values) rows.push_back({value});
  return rows;
}

}  // namespace

TEST_CASE("the median of an odd number is the middle value, of an even number the mean of the two in the middle") {
  CHECK(gradient_of({median(), column({7})}) == Values{7});
  CHECK(gradient_of({median(), column({3, 1, 2})}) == Values{2});
  CHECK(gradient_of({median(), column({4, 1, 3, 2})}) == Values{2.5});  // torch.median would say 2
  CHECK(gradient_of({median(), column({5, 5, 1, 5})}) == Values{5});
}

TEST_CASE("the median of two huge values does not overflow") {
  const float huge = std::numeric_limits<float>::max();
  CHECK(gradient_of({median(), column({huge, huge})}) == Values{huge});
  CHECK(gradient_of({median(), column({-huge, huge, 1e30f, -1e30f})}) == Values{0});
  CHECK(gradient_of({trimmed_mean({.trim = 1}), column({huge, huge, huge, huge})}) == Values{huge});
}

TEST_CASE("order statistics keep denormals and make of negative zeros zeros") {
  const float tiny = std::numeric_limits<float>::denorm_min();
  CHECK(gradient_of({median(), column({tiny, 3 * tiny, 2 * tiny})}) == Values{2 * tiny});
  const Values zero = gradient_of({median(), column({-0.0f, -0.0f, -0.0f})});
  CHECK_FALSE(std::signbit(zero.front()));
}

TEST_CASE("the trimmed mean cuts its number of values off each end") {
  const Rows five = column({100, 2, -50, 3, 7});
  CHECK(gradient_of({trimmed_mean({.trim = 1}), five}) == Values{4});   // of 2, 3, 7
  CHECK(gradient_of({trimmed_mean({.trim = 2}), five}) == Values{3});   // the median
  CHECK(gradient_of({trimmed_mean({.trim = 0}), five}) == Values{12.4f});
}

TEST_CASE("a trimmed mean that would leave nothing is refused") {
  CHECK(refusal_of({trimmed_mean({.trim = 2}), column({1, 2, 3, 4})}) ==
        "trimmed_mean needs at least 5 updates (n >= 2 trim + 1 with trim = 2), this exchange has 4");
  CHECK(make_rule({"trimmed_mean", {{"trim", 1.5}}}).error().message ==
        "aggregation.trim is 1.5, must be a whole number");
  CHECK(make_rule({"trimmed_mean", {{"fraction", 0.5}}}).error().message ==
        "aggregation.fraction is 0.5, must be in [0, 0.5)");
}

TEST_CASE("a fraction of the updates is what a person would count") {
  CHECK(trimmed_of(0.29, 100) == 29);  // floor(0.29 * 100) is 28 in float64
  CHECK(trimmed_of(0.1, 30) == 3);
  CHECK(trimmed_of(0.2, 10) == 2);
  CHECK(trimmed_of(0.2, 9) == 1);
  CHECK(trimmed_of(0.1, 9) == 0);
  CHECK(trimmed_of(0.499, 2) == 0);
  CHECK(trimmed_of(0.0, 7) == 0);
  for (std::size_t n = 1; n <= 10000; n += 7)
    for (std::size_t hundredths = 0; hundredths < 50; ++hundredths)
      REQUIRE(trimmed_of(static_cast<double>(hundredths) / 100, n) == hundredths * n / 100);
}

TEST_CASE("the majority's sign wins, and a tie is zero") {
  const Rows rows = {{1, -1, 0, 5, -0.0f}, {2, -9, 0, -5, 0}, {-3, 4, -1, 0, 0}};
  CHECK(gradient_of({sign_majority(), rows}) == Values{1, -1, -1, 0, 0});
  CHECK(gradient_of({sign_majority({Magnitude::kMean}), rows})[0] == 2.0f);
  CHECK(gradient_of({sign_majority({Magnitude::kMedian}), rows})[1] == -4.0f);
}

TEST_CASE("one huge update moves a coordinate by no more than its sign") {
  CHECK(gradient_of({sign_majority(), column({-1e30f, 1e-30f, 1e-30f})}) == Values{1});
}

TEST_CASE("rules by coordinate see single updates and do not weigh") {
  for (const Part& part : {median(), trimmed_mean(), sign_majority()}) {
    const auto rule = make_rule(part);
    REQUIRE(rule.ok());
    CHECK(rule->needs.individual_updates);
    Case world{part, random_rows(5, 50, 3)};
    const Values expected = gradient_of(world);
    for (std::uint64_t k = 0; k < 5; ++k) world.contributions.push_back({k * 1000, k, k, 0.1 * static_cast<double>(k)});
    CHECK(gradient_of(world) == expected);
  }
}

TEST_CASE("the order of updates, the size of blocks and the SIMD target change no bit of a rule by coordinate") {
  for (const std::size_t updates : {1u, 2u, 7u, 10u, 64u, 150u}) {
    for (const Part& part : {median(), trimmed_mean({.fraction = 0.2}), sign_majority({Magnitude::kMean})}) {
      Case world{part, random_rows(updates, 301, 9)};
      const Values expected = gradient_of(world);
      std::rotate(world.updates.begin(), world.updates.begin() + static_cast<std::ptrdiff_t>(updates / 3), world.updates.end());
      std::reverse(world.updates.begin(), world.updates.end());
      on_every_target([&] { CHECK(gradient_of(world, 77) == expected); });
    }
  }
}

TEST_CASE("the network sorts any number of rows") {
  for (std::size_t updates = 1; updates <= 70; ++updates) {
    const Rows rows = random_rows(updates, 40, static_cast<std::uint32_t>(updates));
    std::vector<const float*> pointers;
    for (const auto& row : rows) pointers.push_back(row.data());
    Values medians(40);
    column_medians(pointers, medians);
    for (std::size_t i = 0; i < 40; ++i) {
      Values sorted;
      for (const auto& row : rows) sorted.push_back(row[i]);
      std::sort(sorted.begin(), sorted.end());
      const double low = sorted[(updates - 1) / 2];
      const double high = sorted[updates / 2];
      REQUIRE(medians[i] == static_cast<float>((low + high) / 2));
    }
  }
}

TEST_CASE("of two values equally close to the median the smaller is taken") {
  const auto around = [](const Values& values, std::size_t closest) {
    const Rows rows = column(values);
    std::vector<const float*> pointers;
    for (const auto& row : rows) pointers.push_back(row.data());
    Values out(1);
    column_means_around_median(pointers, closest, out);
    return out.front();
  };
  CHECK(around({4, 1, 2, 3, 0}, 1) == 2);     // median 2: itself
  CHECK(around({4, 1, 2, 3, 0}, 2) == 1.5f);  // 1 and 3 are as close
  CHECK(around({4, 1, 2, 3, 0}, 3) == 2);
  CHECK(around({4, 1, 2, 3, 0}, 4) == 1.5f);  // 0 and 4 are as close
  CHECK(around({0, 10, 11, 12}, 1) == 10);    // median 10.5
  CHECK(around({0, 10, 11, 12}, 3) == 11);
  CHECK(around({5, 5, 5, 5}, 2) == 5);
  CHECK(around({1, 2, 3}, 3) == 2);
}

}  // namespace skerry::strategies
