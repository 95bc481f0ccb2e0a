// Every encoding against tests/oracle/encodings.py, on every SIMD target, and the properties that all of them promise.
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include "common/codec/encoding.h"
#include "common/codec/kernels.h"
#include "common/codec/philox.h"
#include "common/codec/topk2.h"
#include "common/os/files.h"
#include "tests/support/simd_targets.h"
#include "tests/support/temp_dir.h"

namespace skerry {
namespace {

constexpr std::uint64_t kSeed = 0x123456789abcdef0u;
constexpr std::uint64_t kStream = 0xfedcba9876543210u;

bool have_numpy() { return std::system("/usr/bin/python3 -c 'import numpy' 2>/dev/null") == 0; }

// About normal, with some zeros, some outliers and a few of other sizes, the same on every call.
std::vector<float> bell(std::size_t count, float deviation = 1e-3f) {
  std::vector<float> values;
  std::uint32_t state = 1;
  const auto next = [&] { return (state = state * 1664525u + 1013904223u) / 4294967296.0; };
  for (std::size_t i = 0; i < count; ++i) {
    double sum = 0;
    for (int j = 0; j < 12; ++j) sum += next();
    const double kind = next();
    values.push_back(kind < 0.02 ? 0.0f : static_cast<float>((sum - 6.0) * deviation * (kind > 0.999 ? 100 : 1)));
  }
  return values;
}

std::vector<std::byte> encoded(const Encoding& encoding, std::span<const float> values, const Rounding& rounding = {}) {
  std::vector<std::byte> payload(encoding.encoded_bytes(values.size()));
  encoding.encode(values, 0, rounding, payload);
  return payload;
}

std::vector<float> decoded(const Encoding& encoding, std::span<const std::byte> payload, std::size_t count) {
  std::vector<float> values(count);
  encoding.decode(payload, values);
  return values;
}

std::string run_oracle(const test::TempDir& directory, const std::string& arguments, std::span<const std::byte> input) {
  const char* source = std::getenv("SKERRY_SOURCE");
  REQUIRE(source != nullptr);
  const std::string in = directory.path() + "/in";
  const std::string out = directory.path() + "/out";
  REQUIRE(write_file_atomic(in, as_text(input)).ok());
  const std::string command =
      std::string("/usr/bin/python3 '") + source + "/tests/oracle/encodings.py' " + arguments + " < " + in + " > " + out;
  REQUIRE(std::system(command.c_str()) == 0);
  auto bytes = read_file(out, 64u << 20);
  REQUIRE(bytes.ok());
  return std::move(bytes).value();
}

std::size_t first_difference(std::span<const std::byte> a, std::string_view b) {
  if (a.size() != b.size()) return 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    if (static_cast<char>(a[i]) != b[i]) return i;
  return a.size();
}

}  // namespace

TEST_CASE("every encoding writes and reads the bytes of the NumPy oracle on every SIMD target, rounding either way") {
  if (!have_numpy()) {
    WARN("NumPy is not installed: not compared");
    return;
  }
  const test::TempDir directory;
  for (const std::size_t count : {std::size_t{66'000}, std::size_t{4'400}, std::size_t{131}}) {
    std::vector<float> values = bell(count);
    if (count < 66'000) {  // denormals and large numbers, too
      for (std::size_t i = 0; i < values.size(); i += 3) values[i] *= 1e-38f;
      values[values.size() / 2] = -3e38f;
    }
    for (const std::string_view name : known_encodings()) {
      for (const bool stochastic : {false, true}) {
        CAPTURE(name, stochastic, count);
        const Encoding& encoding = **find_encoding(name);
        const Rounding rounding{stochastic, kSeed, kStream};
        const std::string expected =
            run_oracle(directory, "encode " + std::string(name) + (stochastic ? " stochastic " : " nearest ") +
                                      std::to_string(kSeed) + " " + std::to_string(kStream), std::as_bytes(std::span(values)));
        const std::string values_back = run_oracle(directory, "decode " + std::string(name) + " " + std::to_string(count),
                                                   as_bytes_of(expected));
        on_every_target([&] {
          const auto payload = encoded(encoding, values, rounding);
          CHECK(encoding.validate(payload, 0, count).ok());
          CHECK(payload.size() == expected.size());
          CHECK(first_difference(payload, expected) == payload.size());
          const auto back = decoded(encoding, as_bytes_of(expected), count);
          CHECK(first_difference(std::as_bytes(std::span(back)), values_back) == 4 * count);
        });
      }
    }
  }
}

TEST_CASE("random words are Philox4x32-10 by position, also across a carry of the counter") {
  // The known answers of the authors' library (Random123, kat_vectors).
  CHECK((philox({0, 0, 0, 0}, {0, 0}) == std::array<std::uint32_t, 4>{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}));
  CHECK((philox({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}) ==
         std::array<std::uint32_t, 4>{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu}));
  CHECK((philox({0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}, {0xa4093822u, 0x299f31d0u}) ==
         std::array<std::uint32_t, 4>{0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u}));
  on_every_target([] {
    for (const std::uint64_t first : {std::uint64_t{0}, std::uint64_t{7}, (std::uint64_t{1} << 34) - 150}) {
      std::vector<std::uint32_t> words(300);
      codec_kernels::random_words({true, kSeed, kStream}, first, words);
      std::size_t wrong = 0;
      for (std::size_t i = 0; i < words.size(); ++i) {
        const std::uint64_t counter = (first + i) / 4;
        const auto four = philox({static_cast<std::uint32_t>(counter), static_cast<std::uint32_t>(counter >> 32),
                                  static_cast<std::uint32_t>(kStream), static_cast<std::uint32_t>(kStream >> 32)},
                                 {static_cast<std::uint32_t>(kSeed), static_cast<std::uint32_t>(kSeed >> 32)});
        wrong += words[i] != four[(first + i) % 4] ? 1 : 0;
      }
      CHECK(wrong == 0);
    }
  });
}

TEST_CASE("rounding at random is unbiased wherever an encoding says so, and keeps its bound") {
  constexpr int kDraws = 4096;
  const std::vector<float> values = bell(600);
  for (const std::string_view name : known_encodings()) {
    const Encoding& encoding = **find_encoding(name);
    const ErrorBound bound = encoding.error_bound(true);
    CAPTURE(name);
    CHECK(bound.unbiased == (name != "topk2"));
    std::vector<double> most(values.size());  // that each may be off by
    for (std::size_t i = 0; i < values.size(); ++i) {
      const std::size_t block = i / encoding.block_elements() * encoding.block_elements();
      double largest = 0;
      for (std::size_t j = block; j < std::min<std::size_t>(block + encoding.block_elements(), values.size()); ++j)
        largest = std::max(largest, std::abs(double{values[j]}));
      most[i] = bound.relative * std::abs(double{values[i]}) + bound.absolute + bound.of_largest * largest;
    }
    std::vector<double> sum(values.size());
    std::vector<double> squares(values.size());
    std::size_t outside = 0;
    for (int draw = 0; draw < kDraws; ++draw) {
      const auto back = decoded(encoding, encoded(encoding, values, {true, static_cast<std::uint64_t>(draw), kStream}), values.size());
      for (std::size_t i = 0; i < values.size(); ++i) {
        const double error = double{back[i]} - double{values[i]};
        outside += std::abs(error) > most[i] ? 1 : 0;
        sum[i] += error;
        squares[i] += error * error;
      }
    }
    CHECK(outside == 0);
    if (!bound.unbiased) continue;
    // The mean error of each element is within five of its standard errors, and all together within chance of 0. Where the
    // far code is so rare that the draws do not tell its variance, it is what the mean error says: error times step.
    std::size_t biased = 0;
    double score = 0;
    for (std::size_t i = 0; i < values.size(); ++i) {
      const double mean = sum[i] / kDraws;
      const double deviation = std::sqrt(std::max(squares[i] / kDraws, std::abs(mean) * most[i]) / kDraws);
      // What f32 scales and codebooks round, and 24 bits of chance.
      const double slack = 1e-6 * most[i] + 3e-7 * std::abs(double{values[i]});
      biased += std::abs(mean) > 5 * deviation + slack ? 1 : 0;
      score += deviation > 0 ? mean / deviation : 0;
    }
    CHECK(biased == 0);
    CHECK(std::abs(score) < 5 * std::sqrt(static_cast<double>(values.size())));
  }
}

TEST_CASE("topk2 at random is unbiased in what it keeps") {
  const Encoding& topk2 = **find_encoding("topk2");
  const std::vector<float> values = bell(4096);
  const auto kept = decoded(topk2, encoded(topk2, values), values.size());
  std::vector<double> sum(values.size());
  constexpr int kDraws = 2000;
  for (int draw = 0; draw < kDraws; ++draw) {
    const auto back = decoded(topk2, encoded(topk2, values, {true, static_cast<std::uint64_t>(draw), 1}), values.size());
    for (std::size_t i = 0; i < values.size(); ++i) sum[i] += back[i];
  }
  double largest = 0;
  for (const float value : values) largest = std::max(largest, std::abs(double{value}));
  std::size_t wrong = 0;
  std::size_t number = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (kept[i] == 0) {
      wrong += sum[i] != 0 ? 1 : 0;
      continue;
    }
    ++number;
    wrong += std::abs(sum[i] / kDraws - double{values[i]}) > 5 * largest / 2 / std::sqrt(double{kDraws}) ? 1 : 0;
  }
  CHECK(number == 64);
  CHECK(wrong == 0);
}

TEST_CASE("random bits depend on seed, stream and position alone, not on how the vector was cut") {
  const std::vector<float> values = bell(70'003);
  for (const std::string_view name : known_encodings()) {
    if (name == "f32") continue;
    const Encoding& encoding = **find_encoding(name);
    const Rounding rounding{true, kSeed, kStream};
    const auto whole = encoded(encoding, values, rounding);
    std::vector<std::byte> pieces(whole.size());
    for (std::size_t first = 0; first < values.size();) {
      const std::size_t count = std::min<std::size_t>((first % 5 + 1) * encoding.block_elements(), values.size() - first);
      encoding.encode(std::span(values).subspan(first, count), first, rounding,
                      std::span(pieces).subspan(encoding.encoded_bytes(first), encoding.encoded_bytes(count)));
      first += count;
    }
    CAPTURE(name);
    CHECK(pieces == whole);
    CHECK(encoded(encoding, values, {true, kSeed + 1, kStream}) != whole);
    CHECK(encoded(encoding, values, {true, kSeed, kStream + 1}) != whole);
  }
  CHECK(rounding_stream("f0") == 0x8988c07b54229ebu);
}

TEST_CASE("a hostile payload of a small encoding is refused with the place and what is wrong") {
  const auto refusal = [](std::string_view name, std::size_t count, std::size_t at, std::initializer_list<unsigned> bytes) {
    const Encoding& encoding = **find_encoding(name);
    auto payload = encoded(encoding, std::vector<float>(count, 0.5f));
    REQUIRE(encoding.validate(payload, 0, count).ok());
    for (const unsigned byte : bytes) payload[at++] = static_cast<std::byte>(byte);
    const auto checked = encoding.validate(payload, 0, count);
    REQUIRE(!checked.ok());
    CHECK(checked.error().code == Code::kInvalidArgument);
    (void)decoded(encoding, payload, count);  // decodable nevertheless
    return checked.error().message;
  };
  CHECK(refusal("int4", 300, 132, {0, 0, 0xc0, 0x7f}) ==
        "int4 payload: the scale of elements 256 to 299 is NaN, must be in [0, 4.2535293e+37]");
  CHECK(refusal("int4", 300, 0, {0, 0, 0, 0x7f}).find("the scale of elements 0 to 255 is ") != std::string::npos);
  CHECK(refusal("int4", 3, 5, {0x11}) == "int4 payload: the upper half of its last byte is not 0, though no element is there");
  CHECK(refusal("e3m0", 3, 0, {0, 0, 0x80, 0x7f}) ==
        "e3m0 payload: the scale of elements 0 to 2 is +infinity, must be in [0, 3.4028235e+38]");
  CHECK(refusal("e3m0", 3, 0, {0, 0, 0, 0x80}).find("is -0.000000, must be") != std::string::npos);
  CHECK(refusal("sign", 5000, 516, {0, 0, 0xc0, 0xff}).find("the scale of elements 4096 to 4999 is NaN") != std::string::npos);
  CHECK(refusal("sign", 3, 4, {0x08}) == "sign payload: bits of its last byte are not 0, though no element is there");
  CHECK(refusal("topk2", 4096, 0, {0, 0, 0xc0, 0x7f}).find("the magnitudes are NaN and 0.500000, must be finite") != std::string::npos);
  CHECK(refusal("topk2", 4096, 0, {0, 0, 0x80, 0x3f}).find("the magnitudes are 1.000000 and 0.500000") != std::string::npos);
  CHECK(refusal("topk2", 4096, 8, {0, 0, 0}) ==
        "topk2 payload: elements 0 to 4095: index 1 is 0, must be below 4096 and above the one before");
  CHECK(refusal("topk2", 100, 8, {0x64}) ==
        "topk2 payload: elements 0 to 99: index 0 is 100, must be below 100 and above the one before");
  CHECK(refusal("topk2", 60, 9, {0x10}) == "topk2 payload: elements 0 to 59: bits after the last index or value are not 0");
  CHECK(refusal("topk2", 60, 10, {0x04}) == "topk2 payload: elements 0 to 59: bits after the last index or value are not 0");
  CHECK(refusal("f16", 3, 2, {0, 0x7c}) == "f16 payload: element 1 is +infinity, must be finite");

  for (const std::string_view name : known_encodings()) {
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
      std::vector<float> values(300, 1.5f);
      values[299] = bad;
      CAPTURE(name);
      for (const bool stochastic : {false, true})
        CHECK_FALSE((*find_encoding(name))->validate(encoded(**find_encoding(name), values, {stochastic, 1, 1}), 0, 300).ok());
    }
  }
}

TEST_CASE("the small encodings take the bytes they promise") {
  constexpr double kMany = 100'000'000;
  const std::vector<std::pair<std::string_view, double>> most{{"f16", 2}, {"int4", 0.516}, {"e3m0", 0.516}, {"topk2", 0.0293}, {"sign", 0.126}};
  for (const auto& [name, bytes] : most) {
    CAPTURE(std::string(name));
    CHECK(static_cast<double>((*find_encoding(name))->encoded_bytes(100'000'000)) / kMany <= bytes);
  }
  CHECK(4 * kMany / static_cast<double>((*find_encoding("topk2"))->encoded_bytes(100'000'000)) >= 136);
}

TEST_CASE("topk2 keeps the largest, the first of equal ones, and as many as a short chunk deserves") {
  const Encoding& topk2 = **find_encoding("topk2");
  std::vector<float> values(4096, 1.0f);
  for (std::size_t i = 0; i < 40; ++i) values[100 * i + 7] = i % 2 == 0 ? -3.0f : 3.0f;
  const auto back = decoded(topk2, encoded(topk2, values), values.size());
  std::size_t wrong = 0;
  for (std::size_t i = 0, ones = 0; i < values.size(); ++i) {
    const float expected = std::abs(values[i]) == 3.0f ? values[i] : ones++ < 24 ? 1.0f : 0.0f;
    wrong += back[i] != expected ? 1 : 0;
  }
  CHECK(wrong == 0);
  for (const std::size_t count : {1u, 64u, 65u, 4095u}) {
    const auto some = decoded(topk2, encoded(topk2, bell(count, 1.0f)), count);
    CHECK(static_cast<std::size_t>(std::count(some.begin(), some.end(), 0.0f)) <= count - 1);
    CHECK(static_cast<std::size_t>(std::count_if(some.begin(), some.end(), [](float v) { return v != 0; })) <= (count + 63) / 64);
  }
}

}  // namespace skerry
