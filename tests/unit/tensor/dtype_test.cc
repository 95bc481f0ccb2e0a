#include "common/tensor/dtype.h"

#include <bit>
#include <cmath>
#include <limits>

#include <catch2/catch.hpp>

namespace skerry {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
float from_bits(std::uint32_t bits) { return std::bit_cast<float>(bits); }

}  // namespace

TEST_CASE("each dtype has the name and size that safetensors gives it") {
  const std::pair<const char*, std::uint64_t> expected[] = {{"F32", 4}, {"F16", 2}, {"BF16", 2}, {"F64", 8},
                                                            {"I32", 4}, {"I64", 8}, {"U8", 1}};
  for (const auto& [name, bytes] : expected) {
    const auto dtype = parse_dtype(name);
    REQUIRE(dtype.ok());
    CHECK(dtype_name(*dtype) == name);
    CHECK(dtype_bytes(*dtype) == bytes);
  }
  const auto unknown = parse_dtype("F8_E4M3");
  REQUIRE(!unknown.ok());
  CHECK(unknown.error().message == "dtype \"F8_E4M3\" is not supported, only F32, F16, BF16, F64, I32, I64, U8");
}

TEST_CASE("every f16 survives the way to f32 and back") {
  std::size_t changed = 0;
  for (std::uint32_t bits = 0; bits <= 0xFFFF; ++bits) {
    const float wide = f16_to_f32(static_cast<std::uint16_t>(bits));
    if (std::isnan(wide)) {
      changed += std::isnan(f16_to_f32(f32_to_f16(wide))) ? 0 : 1;
    } else {
      changed += f32_to_f16(wide) == bits ? 0 : 1;
    }
  }
  CHECK(changed == 0);
}

TEST_CASE("f16 keeps the values of the standard: ones, limits, denormals") {
  CHECK(f16_to_f32(0x3C00) == 1.0f);
  CHECK(f16_to_f32(0xC000) == -2.0f);
  CHECK(f16_to_f32(0x7BFF) == 65504.0f);
  CHECK(f16_to_f32(0x0001) == std::ldexp(1.0f, -24));
  CHECK(f16_to_f32(0x03FF) == std::ldexp(1023.0f, -24));
  CHECK(f16_to_f32(0x0400) == std::ldexp(1.0f, -14));
  CHECK(f16_to_f32(0x7C00) == kInfinity);
  CHECK(std::isnan(f16_to_f32(0x7C01)));
}

TEST_CASE("between two neighbouring f16 values the nearer is taken, and the even one in the middle") {
  std::size_t wrong = 0;
  for (std::uint32_t bits = 0; bits < 0x7BFF; ++bits) {  // every finite positive pair, denormals too
    const auto low = static_cast<std::uint16_t>(bits);
    const auto high = static_cast<std::uint16_t>(bits + 1);
    const float middle = (f16_to_f32(low) + f16_to_f32(high)) / 2.0f;  // exact in f32
    wrong += f32_to_f16(middle) == ((bits & 1) == 0 ? low : high) ? 0 : 1;
    wrong += f32_to_f16(std::nextafter(middle, 0.0f)) == low ? 0 : 1;
    wrong += f32_to_f16(std::nextafter(middle, kInfinity)) == high ? 0 : 1;
    wrong += f32_to_f16(-middle) == (((bits & 1) == 0 ? low : high) | 0x8000u) ? 0 : 1;
  }
  CHECK(wrong == 0);
}

TEST_CASE("f16 overflows to infinity at 65520 and keeps NaN a NaN of its sign") {
  CHECK(f32_to_f16(65519.996f) == 0x7BFF);
  CHECK(f32_to_f16(65520.0f) == 0x7C00);
  CHECK(f32_to_f16(-1e30f) == 0xFC00);
  CHECK(f32_to_f16(kInfinity) == 0x7C00);
  for (const std::uint32_t nan : {0x7FC00000u, 0xFFC00000u, 0x7F800001u, 0xFF801000u}) {
    const std::uint16_t narrow = f32_to_f16(from_bits(nan));
    CHECK(std::isnan(f16_to_f32(narrow)));
    CHECK((narrow & 0x8000u) == ((nan >> 16) & 0x8000u));
  }
}

TEST_CASE("bf16 rounds to nearest, ties to even") {
  CHECK(f32_to_bf16(1.0f) == 0x3F80);
  CHECK(f32_to_bf16(from_bits(0x3F808000)) == 0x3F80);
  CHECK(f32_to_bf16(from_bits(0x3F808001)) == 0x3F81);
  CHECK(f32_to_bf16(from_bits(0x3F818000)) == 0x3F82);
  CHECK(f32_to_bf16(from_bits(0x00008000)) == 0x0000);
  CHECK(f32_to_bf16(from_bits(0x00008001)) == 0x0001);
  CHECK(f32_to_bf16(from_bits(0x80000000)) == 0x8000);
  CHECK(f32_to_bf16(from_bits(0x7F7FFFFF)) == 0x7F80);
  CHECK(f32_to_bf16(kInfinity) == 0x7F80);
}

TEST_CASE("bf16 keeps NaN a NaN even where its payload is in the lower half") {
  for (const std::uint32_t nan : {0x7F800001u, 0x7FFFFFFFu, 0xFF800001u, 0xFFFFFFFFu}) {
    const std::uint16_t narrow = f32_to_bf16(from_bits(nan));
    CHECK(std::isnan(bf16_to_f32(narrow)));
    CHECK((narrow & 0x8000u) == ((nan >> 16) & 0x8000u));
  }
}

}  // namespace skerry
