#include "common/tensor/kernels.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include <hwy/targets.h>
#include <catch2/catch.hpp>

#include "common/model/philox.h"
#include "common/tensor/dtype.h"

namespace skerry {
namespace {

// Any 32 bits: normal values, denormals, infinities and NaNs.
std::vector<float> any_bits(std::size_t count) {
  const PhiloxStream stream(3, 1);
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = std::bit_cast<float>(stream.word(i));
  return values;
}

std::vector<std::byte> rounded(const std::vector<float>& values) {
  std::vector<std::byte> bytes(2 * values.size());
  round_to_bf16(values, bytes);
  return bytes;
}

// Every SIMD target this machine has, best first, each alone.
std::vector<std::int64_t> targets() {
  std::vector<std::int64_t> all;
  for (std::int64_t left = hwy::SupportedTargets(); left != 0; left &= left - 1) all.push_back(left & -left);
  return all;
}

class UseTarget {
 public:
  explicit UseTarget(std::int64_t target) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(target);
  }
  ~UseTarget() {
    hwy::SetSupportedTargetsForTest(0);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
};

}  // namespace

TEST_CASE("every SIMD target of this machine rounds to the same bf16 bytes and widens them to the same values") {
  const std::vector<float> values = any_bits(10'007);
  const std::vector<std::byte> expected = rounded(values);
  std::vector<float> widened(values.size());
  widen_bf16(expected, widened);
  for (const std::int64_t target : targets()) {
    const UseTarget use(target);
    CAPTURE(target);
    CHECK(rounded(values) == expected);
    std::vector<float> again(values.size());
    widen_bf16(expected, again);
    CHECK(std::equal(again.begin(), again.end(), widened.begin(), [](float a, float b) {
      return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b);
    }));
  }
}

TEST_CASE("on every SIMD target the first value that is not finite is found wherever it stands") {
  for (const std::int64_t target : targets()) {
    const UseTarget use(target);
    for (std::size_t at = 0; at < 150; ++at) {
      std::vector<float> values(150, -3.4e38f);
      REQUIRE(first_non_finite(values) == 150);
      REQUIRE(first_non_finite_bf16(rounded(values)) == 150);
      for (std::size_t i = at; i < 150; i += 40) values[i] = i % 2 == 0 ? INFINITY : NAN;
      REQUIRE(first_non_finite(values) == at);
      REQUIRE(first_non_finite_f32(std::as_bytes(std::span(values))) == at);
      REQUIRE(first_non_finite_bf16(rounded(values)) == at);
    }
  }
}

}  // namespace skerry
