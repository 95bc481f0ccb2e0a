// The element types of tensors, by their safetensors names, and the conversions between f32 and its 16-bit relatives.
#pragma once

#include <bit>
#include <cstdint>
#include <string_view>

#include "common/base/result.h"

namespace skerry {

enum class DType : std::uint8_t { kF32, kF16, kBF16, kF64, kI32, kI64, kU8 };

/// The name safetensors gives it: "F32", "F16", "BF16", "F64", "I32", "I64", "U8".
std::string_view dtype_name(DType dtype);

/// The type of a safetensors name. INVALID_ARGUMENT naming the text and listing the known types where there is none.
Result<DType> parse_dtype(std::string_view name);

/// Bytes of one element: 1, 2, 4 or 8.
constexpr std::uint64_t dtype_bytes(DType dtype) {
  switch (dtype) {
    case DType::kF64:
    case DType::kI64:
      return 8;
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kF16:
    case DType::kBF16:
      return 2;
    case DType::kU8:
      return 1;
  }
  return 0;
}

/// Whether its values may be infinite or not a number.
constexpr bool dtype_is_floating(DType dtype) {
  return dtype != DType::kI32 && dtype != DType::kI64 && dtype != DType::kU8;
}

/// The bfloat16 nearest to `value`, ties to even; beyond the largest finite one it is infinity, as IEEE 754 rounds.
/// A NaN stays a NaN of the same sign (quiet), its upper payload bits kept.
constexpr std::uint16_t f32_to_bf16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x0040u);
  return static_cast<std::uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

/// Exact.
constexpr float bf16_to_f32(std::uint16_t value) { return std::bit_cast<float>(std::uint32_t{value} << 16); }

/// The IEEE 754 binary16 nearest to `value`, ties to even: denormals kept, from 65520 on infinity. NaN as f32_to_bf16.
std::uint16_t f32_to_f16(float value);

/// Exact.
float f16_to_f32(std::uint16_t value);

}  // namespace skerry
