#include "strategies/noise_scale.h"

#include <cmath>
#include <vector>

#include <catch2/catch.hpp>

#include "common/model/philox.h"

using namespace skerry;
using namespace skerry::strategies;

TEST_CASE("equal weights give McCandlish's estimator with one update against all of them") {
  // Updates (3, 0) and (1, 0): mean norm 2. |G|² = (2·4 − 5)/(2 − 1) = 3 and S = (5 − 4)/(1 − 1/2) = 2.
  UpdateSpread spread;
  spread.add(7, 3);
  spread.add(7, 1);
  const auto estimate = estimate_noise(spread, 2);
  REQUIRE(estimate);
  CHECK(estimate->signal == Approx(3));
  CHECK(estimate->noise == Approx(2));
  CHECK(*noise_scale(*estimate) == Approx(2.0 / 3));
}

TEST_CASE("updates of known signal and noise give their ratio, whatever the weights are") {
  // 64 values of signal 0.5 each: |G|² = 16; noise of standard deviation 2 on each value: S = 256; the scale is 16
  // updates.
  constexpr std::size_t kValues = 64, kUpdates = 6, kExchanges = 4000;
  const double weights[kUpdates] = {1, 1, 2, 3, 5, 8};
  const PhiloxStream draws(7, 1);
  std::uint64_t at = 0;
  double signal = 0, noise = 0;
  for (std::size_t exchange = 0; exchange < kExchanges; ++exchange) {
    UpdateSpread spread;
    std::vector<double> mean(kValues);
    for (const double weight : weights) {
      double squares = 0;
      for (std::size_t i = 0; i < kValues; ++i, at += 2) {
        const double value = 0.5 + 2 * normal_pair(draws.word(at), draws.word(at + 1)).first;
        squares += value * value;
        mean[i] += weight / 20 * value;
      }
      spread.add(weight, std::sqrt(squares));
    }
    double squares = 0;
    for (const double value : mean) squares += value * value;
    const auto estimate = estimate_noise(spread, std::sqrt(squares));
    REQUIRE(estimate);
    signal += estimate->signal / kExchanges;
    noise += estimate->noise / kExchanges;
  }
  CHECK(signal == Approx(16).epsilon(0.02));
  CHECK(noise == Approx(256).epsilon(0.02));
}

TEST_CASE("one update, or all weight on one, says nothing about noise") {
  UpdateSpread spread;
  CHECK_FALSE(estimate_noise(spread, 0));
  spread.add(3, 1);
  CHECK_FALSE(estimate_noise(spread, 1));
}

TEST_CASE("signal and noise are smoothed apart, from the first exchange on") {
  const NoiseEstimate first = smooth(std::nullopt, {4, 8});
  CHECK(first.signal == 4);
  const NoiseEstimate second = smooth(first, {0, 108});
  CHECK(second.signal == Approx(3.96));
  CHECK(second.noise == Approx(9));
  CHECK_FALSE(noise_scale({-1, 5}));
}
