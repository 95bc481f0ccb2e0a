#include "common/tensor/dtype.h"

#include <array>
#include <string>

namespace skerry {
namespace {

struct NamedType {
  DType dtype;
  std::string_view name;
};
constexpr std::array<NamedType, 7> kTypes{{{DType::kF32, "F32"},
                                           {DType::kF16, "F16"},
                                           {DType::kBF16, "BF16"},
                                           {DType::kF64, "F64"},
                                           {DType::kI32, "I32"},
                                           {DType::kI64, "I64"},
                                           {DType::kU8, "U8"}}};

// `value` shifted right by 1 … 31 bits, rounded to nearest, ties to even.
constexpr std::uint32_t shift_right_rounding(std::uint32_t value, unsigned bits) {
  const std::uint32_t half = std::uint32_t{1} << (bits - 1);
  const std::uint32_t rest = value & ((std::uint32_t{1} << bits) - 1);
  const std::uint32_t kept = value >> bits;
  return kept + ((rest > half || (rest == half && (kept & 1u) != 0)) ? 1u : 0u);
}

}  // namespace

std::string_view dtype_name(DType dtype) {
  for (const NamedType& type : kTypes)
    if (type.dtype == dtype) return type.name;
  return "?";
}

Result<DType> parse_dtype(std::string_view name) {
  std::string known;
  for (const NamedType& type : kTypes) {
    if (type.name == name) return type.dtype;
    known += known.empty() ? "" : ", ";
    known += type.name;
  }
  return invalid_argument("dtype \"" + std::string(name.substr(0, 40)) + "\" is not supported, only " + known);
}

std::uint16_t f32_to_f16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return static_cast<std::uint16_t>(sign | 0x7E00u | ((magnitude >> 13) & 0x01FFu));
  if (magnitude >= 0x477FF000u) return static_cast<std::uint16_t>(sign | 0x7C00u);  // 65520 and more, and infinity
  if (magnitude >=
      0x38800000u) {  // normal in f16: move the exponent's bias from 127 to 15; a carry may raise it, rightly
    return static_cast<std::uint16_t>(sign | shift_right_rounding(magnitude - (112u << 23), 13));
  }
  if (magnitude <= 0x33000000u) return sign;  // at most 2^-25, half of the smallest denormal: ties to even is zero
  const unsigned exponent = magnitude >> 23;  // 102 … 112
  const std::uint32_t mantissa = (magnitude & 0x007FFFFFu) | 0x00800000u;
  return static_cast<std::uint16_t>(sign | shift_right_rounding(mantissa, 126u - exponent));
}

float f16_to_f32(std::uint16_t value) {
  const std::uint32_t sign = std::uint32_t{value & 0x8000u} << 16;
  const std::uint32_t exponent = (value >> 10) & 0x1Fu;
  const std::uint32_t mantissa = value & 0x03FFu;
  if (exponent == 0x1Fu) return std::bit_cast<float>(sign | 0x7F800000u | (mantissa << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112u) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(magnitude));
}

}  // namespace skerry
