// Sums of squares and products of f32 rows, in float64; the same bytes on every SIMD target.
//
// Everything is summed in eight lanes (element i in lane i mod 8) over pieces of at most 512 elements; a piece's lanes are
// added in a fixed tree, and the pieces in order.
#pragma once

#include <cstddef>
#include <span>

namespace skerry::strategies {

/// The number of pairs of `rows` rows.
constexpr std::size_t pairs_of(std::size_t rows) { return rows * (rows - 1) / 2; }

/// Adds ‖x_i − x_j‖² of each pair i < j to `sums`, in the order (0,1), (0,2), …, (1,2), …; the differences are formed in
/// float64. Row k is `count` values at rows[k].
void add_pair_distances(std::span<const float* const> rows, std::size_t count, std::span<double> sums);

/// Adds ‖x_k − v‖² to sums[k] for the first sums.size() rows, where v = Σ coefficients[j] x_j over all rows is formed in
/// float64.
void add_distances_to(std::span<const double> coefficients, std::span<const float* const> rows, std::size_t count,
                      std::span<double> sums);

/// ‖Σ coefficients[j] x_j‖².
double square_of_combination(std::span<const double> coefficients, std::span<const float* const> rows, std::size_t count);

/// Σ a[i] b[i].
double dot_product(const float* a, const float* b, std::size_t count);

}  // namespace skerry::strategies
