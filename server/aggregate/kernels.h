// The inner loops, for every SIMD target that the machine may have; each gives the same bits on all of them: no fused
// multiply-add, and sums over elements in 32 lanes (element i in lane i mod 32) that are added up in one fixed order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace skerry::server {

/// How the values of a row lie in memory.
enum class RowKind : std::uint8_t {
  kF32,        ///< float
  kBf16,       ///< the upper half of a float
  kInt8,       ///< codes of one block of the encoding int8, decoded by its codebook
  kInt8Block,  ///< the encoding int8_block, from a block's beginning on
};

/// One row of values to add up.
struct Row {
  const void* values = nullptr;          ///< f32 and bf16 aligned for their type
  const std::byte* codebook = nullptr;   ///< kInt8: 256 f32, any alignment
};

/// At most this many rows in one call of add_rows; sums of more go through memory between calls.
inline constexpr std::size_t kRowsAtOnce = 16;

/// sum[i] += coefficient_0 · row_0[i] + coefficient_1 · row_1[i] + …, in float64, one row after the other; row_k[i] is what its
/// encoding decodes to, in f32.
///
/// Rows hold `count` values of one kind. `first`: the sums start from 0 and `sum` is not read. `rounded`, where not null,
/// receives the sums rounded to f32, and `sum` is not written; so one call alone needs no `sum`.
void add_rows(RowKind kind, std::span<const Row> rows, const double* coefficients, std::size_t count, bool first,
              double* sum, float* rounded);

/// Σ a[i]², in float64. Not finite exactly if a value is not.
double sum_of_squares(const float* values, std::size_t count);

/// Σ a[i] · b[i], in float64.
double dot(const float* a, const float* b, std::size_t count);

/// out[i] = a[i] + b[i], in f32. `out` may be `a` or `b`.
void add(const float* a, const float* b, std::size_t count, float* out);

/// values[i] = (a[i] − b[i]) + values[i], in float64 and rounded once. `a` and `b` are f32 as they lie in a file, any alignment.
void add_difference(std::span<const std::byte> a, std::span<const std::byte> b, std::size_t count, float* values);

}  // namespace skerry::server
