// Loops over long vectors, vectorised for the machine they run on; every target gives the same bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace skerry {

/// The index of the first NaN or infinity, values.size() where all are finite. As fast as memory.
std::uint64_t first_non_finite(std::span<const float> values);

/// The same for bf16 values as they lie in a file (little-endian, any alignment); an odd last byte is ignored.
std::uint64_t first_non_finite_bf16(std::span<const std::byte> bytes);

/// The same for f32 values as they lie in a file.
std::uint64_t first_non_finite_f32(std::span<const std::byte> bytes);

/// Rounds each value to bf16, ties to even, into 2 · values.size() little-endian bytes. Unlike f32_to_bf16 a finite
/// value beyond the largest finite bf16 becomes that one, so that finite stays finite. NaN and infinity stay what they
/// are.
void round_to_bf16(std::span<const float> values, std::span<std::byte> bytes);

/// Widens 2 · values.size() little-endian bytes of bf16; exact.
void widen_bf16(std::span<const std::byte> bytes, std::span<float> values);

/// values[i] = scale · (bytes[i] as a signed byte), in f32.
void scale_int8(std::span<const std::byte> bytes, float scale, std::span<float> values);

}  // namespace skerry
