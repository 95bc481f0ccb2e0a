// Order statistics of each column of K f32 rows, by one sorting network over vectors of columns.
//
// Batcher's merge exchange sorts any number of rows with comparisons that do not depend on the values. Values are finite;
// −0 counts as 0. The results are functions of the sorted column alone: neither the order of rows nor the SIMD target changes
// a bit.
#pragma once

#include <cstddef>
#include <span>

namespace skerry::strategies {

/// out[i] = the median of rows[0][i] … rows[K − 1][i]: for an even K half the float64 sum of the two in the middle.
void column_medians(std::span<const float* const> rows, std::span<float> out);

/// out[i] = the mean of the column without its `trim` smallest and `trim` largest values, summed in float64 from the smallest
/// up. 2 · trim < K.
void column_trimmed_means(std::span<const float* const> rows, std::size_t trim, std::span<float> out);

/// out[i] = the mean of the `closest` values of the column that are closest to its median (of two equally close the smaller),
/// summed in float64 from the smallest up. 1 ≤ closest ≤ K.
void column_means_around_median(std::span<const float* const> rows, std::size_t closest, std::span<float> out);

/// How much of the majority's sign a column gets.
enum class VoteMagnitude { kUnit, kMean, kMedian };

/// out[i] = the sign of (number of positive values − number of negative ones) times 1, or the mean or the median of the absolute
/// values.
void column_majority_signs(std::span<const float* const> rows, VoteMagnitude magnitude, std::span<float> out);

}  // namespace skerry::strategies
