#include "strategies/aggregation/kernels/columns.h"

#include <algorithm>
#include <array>
#include <utility>

// Highway compiles the rest once for each target.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "strategies/aggregation/kernels/columns.cc"
#include <hwy/foreach_target.h>
#include <hwy/aligned_allocator.h>
#include <hwy/cache_control.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace skerry::strategies::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::CappedTag<float, 16>;
using Doubles = hn::Repartition<double, Floats>;
using HalfFloats = hn::Rebind<float, Doubles>;  // as many floats as a vector of doubles has
using VecF = hn::Vec<Floats>;
using VecD = hn::Vec<Doubles>;

// Columns side by side: as many as keep a tile of all rows in the first-level cache, where that is possible.
constexpr std::size_t kWide = 64;
constexpr std::size_t kNarrow = 16;
constexpr std::size_t kRowsOfWideTiles = 128;

// Columns of up to this many rows are sorted in registers.
constexpr std::size_t kRowsInRegisters = 16;

// How far ahead of its use a row is fetched: hardware prefetchers follow fewer streams than there are rows, and stop at the
// ends of pages.
constexpr std::size_t kPrefetchAhead = 512;

HWY_ATTR HWY_INLINE VecD promoted(const float* from) { return hn::PromoteTo(Doubles(), hn::LoadU(HalfFloats(), from)); }
HWY_ATTR HWY_INLINE void store(VecD value, float* to) { hn::StoreU(hn::DemoteTo(HalfFloats(), value), HalfFloats(), to); }

// Row-major: `rows` rows of `width` columns.
struct Tile {
  float* values;
  std::size_t rows;
  std::size_t width;

  float* row(std::size_t k) const { return values + k * width; }
};

HWY_ATTR HWY_INLINE VecF usable(VecF value, bool absolute) {
  return absolute ? hn::Abs(value) : hn::Add(value, hn::Zero(Floats()));  // −0 becomes 0
}

// Columns [first, first + count) of a row; where the tile is wider, a copy in the tile with zeros behind.
const float* row_for(const Tile& tile, std::size_t k, const float* row, std::size_t first, std::size_t count) {
  if (count == tile.width) return row + first;
  std::fill(std::copy(row + first, row + first + count, tile.row(k)), tile.row(k) + tile.width, 0.0f);
  return tile.row(k);
}

// Writes the rows' values, or their absolute values, into the tile.
HWY_ATTR void fill(const Tile& tile, std::span<const float* const> rows, std::size_t first, std::size_t count, bool absolute) {
  const Floats d;
  const std::size_t lanes = hn::Lanes(d);
  for (std::size_t k = 0; k < tile.rows; ++k) {
    const float* from = row_for(tile, k, rows[k], first, count);
    for (std::size_t i = 0; i < tile.width; i += lanes) {
      hwy::Prefetch(from + i + kPrefetchAhead);
      hn::Store(usable(hn::LoadU(d, from + i), absolute), d, tile.row(k) + i);
    }
  }
}

// Batcher's merge exchange (Knuth, The Art of Computer Programming, vol. 3, 5.2.2, algorithm M): compare(i, j) for one pair of
// rows i < j after the other sorts any values.
template <typename Compare>
HWY_ATTR HWY_INLINE constexpr void merge_exchange(std::size_t rows, const Compare& compare) {
  if (rows < 2) return;
  std::size_t top = 1;
  while (2 * top < rows) top *= 2;
  for (std::size_t p = top; p > 0; p /= 2) {
    std::size_t distance = p;
    std::size_t begin = 0;
    for (std::size_t q = top;; q /= 2) {
      // Rows i with (i & p) == begin, in runs of p.
      for (std::size_t run = begin; run + distance < rows; run += 2 * p) {
        const std::size_t end = run + p < rows - distance ? run + p : rows - distance;
        for (std::size_t i = run; i < end; ++i) compare(i, i + distance);
      }
      if (q == p) break;
      distance = q - p;
      begin = p;
    }
  }
}

// The pairs of merge_exchange as a constant.
template <std::size_t kRows>
constexpr auto network_of() {
  constexpr std::size_t pairs = [] {
    std::size_t count = 0;
    merge_exchange(kRows, [&](std::size_t, std::size_t) { ++count; });
    return count;
  }();
  std::array<std::pair<std::size_t, std::size_t>, pairs> network{};
  std::size_t next = 0;
  merge_exchange(kRows, [&](std::size_t low, std::size_t high) { network[next++] = {low, high}; });
  return network;
}

HWY_ATTR HWY_INLINE void order(VecF& low, VecF& high) {
  const VecF smaller = hn::Min(low, high);
  high = hn::Max(low, high);
  low = smaller;
}

template <std::size_t kRows, std::size_t... kPairs>
HWY_ATTR HWY_INLINE void sort_vectors([[maybe_unused]] VecF* values, std::index_sequence<kPairs...>) {
  [[maybe_unused]] constexpr auto network = network_of<kRows>();
  (order(values[network[kPairs].first], values[network[kPairs].second]), ...);
}

// Fills the tile with the columns' values, or their absolute values, sorted upwards. kRows is a constant so that all stay in
// registers.
template <std::size_t kRows>
HWY_ATTR void fill_sorted(const Tile& tile, std::span<const float* const> rows, std::size_t first, std::size_t count,
                          bool absolute) {
  const Floats d;
  const float* from[kRows];
  for (std::size_t k = 0; k < kRows; ++k) from[k] = row_for(tile, k, rows[k], first, count);
  for (std::size_t i = 0; i < tile.width; i += hn::Lanes(d)) {
    VecF values[kRows];
    HWY_UNROLL(16)
    for (std::size_t k = 0; k < kRows; ++k) {
      hwy::Prefetch(from[k] + i + kPrefetchAhead);
      values[k] = usable(hn::LoadU(d, from[k] + i), absolute);
    }
    sort_vectors<kRows>(values, std::make_index_sequence<network_of<kRows>().size()>());
    HWY_UNROLL(16)
    for (std::size_t k = 0; k < kRows; ++k) hn::Store(values[k], d, tile.row(k) + i);
  }
}

// The same for any number of rows.
HWY_ATTR void fill_sorted_in_memory(const Tile& tile, std::span<const float* const> rows, std::size_t first,
                                    std::size_t count, bool absolute) {
  const Floats d;
  const std::size_t lanes = hn::Lanes(d);
  fill(tile, rows, first, count, absolute);
  merge_exchange(tile.rows, [&](std::size_t i, std::size_t j) HWY_ATTR {
    float* low = tile.row(i);
    float* high = tile.row(j);
    for (std::size_t c = 0; c < tile.width; c += lanes) {
      VecF a = hn::Load(d, low + c);
      VecF b = hn::Load(d, high + c);
      order(a, b);
      hn::Store(a, d, low + c);
      hn::Store(b, d, high + c);
    }
  });
}

using Fill = void (*)(const Tile& tile, std::span<const float* const> rows, std::size_t first, std::size_t count, bool absolute);

template <std::size_t... kRows>
Fill fill_sorted_for(std::size_t rows, std::index_sequence<kRows...>) {
  static constexpr Fill kFills[] = {fill_sorted<kRows + 1>...};
  return rows <= kRowsInRegisters ? kFills[rows - 1] : fill_sorted_in_memory;
}

// Fills and sorts tile after tile, and lets `reduce` make `width` results of each.
template <typename Reduce>
HWY_ATTR void for_each_tile(std::span<const float* const> rows, bool absolute, std::span<float> out,
                            const Reduce& reduce) {
  const std::size_t width = rows.size() <= kRowsOfWideTiles ? kWide : kNarrow;
  const auto memory = hwy::AllocateAligned<float>(rows.size() * width);
  const Tile tile{memory.get(), rows.size(), width};
  const Fill fill_sorted_tile = fill_sorted_for(rows.size(), std::make_index_sequence<kRowsInRegisters>());
  for (std::size_t first = 0; first < out.size(); first += width) {
    const std::size_t count = std::min(width, out.size() - first);
    fill_sorted_tile(tile, rows, first, count, absolute);
    float results[kWide];
    reduce(tile, first, count, count == width ? out.data() + first : results);
    if (count < width) std::copy(results, results + count, out.data() + first);
  }
}

HWY_ATTR HWY_INLINE VecD middle(const Tile& tile, std::size_t column) {
  const VecD high = promoted(tile.row(tile.rows / 2) + column);
  if (tile.rows % 2 != 0) return high;
  const VecD low = promoted(tile.row(tile.rows / 2 - 1) + column);
  return hn::Mul(hn::Add(low, high), hn::Set(Doubles(), 0.5));
}

HWY_ATTR void medians_of_tile(const Tile& tile, float* out) {
  const std::size_t lanes = hn::Lanes(Doubles());
  if (tile.rows % 2 != 0) {
    std::copy(tile.row(tile.rows / 2), tile.row(tile.rows / 2) + tile.width, out);
    return;
  }
  for (std::size_t i = 0; i < tile.width; i += lanes) store(middle(tile, i), out + i);
}

HWY_ATTR void means_of_tile(const Tile& tile, std::size_t begin, std::size_t end, float* out) {
  const Doubles d;
  const VecD count = hn::Set(d, static_cast<double>(end - begin));
  for (std::size_t i = 0; i < tile.width; i += hn::Lanes(d)) {
    VecD sum = hn::Zero(d);
    for (std::size_t k = begin; k < end; ++k) sum = hn::Add(sum, promoted(tile.row(k) + i));
    store(hn::Div(sum, count), out + i);
  }
}

// The values closest to the median are a window of the sorted column. It moves past value s, and takes in value s + closest
// instead, where that one is strictly closer; the windows' gains fall as s grows, so each s is decided by itself.
HWY_ATTR void means_around_median_of_tile(const Tile& tile, std::size_t closest, float* out) {
  const Doubles d;
  const std::size_t spare = tile.rows - closest;
  const VecD count = hn::Set(d, static_cast<double>(closest));
  for (std::size_t i = 0; i < tile.width; i += hn::Lanes(d)) {
    const VecD median = middle(tile, i);
    const auto passed = [&](std::size_t s) HWY_ATTR {
      return hn::Lt(hn::Sub(promoted(tile.row(s + closest) + i), median), hn::Sub(median, promoted(tile.row(s) + i)));
    };
    VecD sum = hn::Zero(d);
    for (std::size_t k = 0; k < tile.rows; ++k) {
      VecD value = promoted(tile.row(k) + i);
      if (k < spare) value = hn::IfThenZeroElse(passed(k), value);
      if (k >= closest) value = hn::IfThenElseZero(passed(k - closest), value);
      sum = hn::Add(sum, value);
    }
    store(hn::Div(sum, count), out + i);
  }
}

void medians(std::span<const float* const> rows, std::span<float> out) {
  for_each_tile(rows, false, out,
                [](const Tile& tile, std::size_t, std::size_t, float* to) HWY_ATTR { medians_of_tile(tile, to); });
}

void trimmed_means(std::span<const float* const> rows, std::size_t trim, std::span<float> out) {
  for_each_tile(rows, false, out, [trim](const Tile& tile, std::size_t, std::size_t, float* to) HWY_ATTR {
    means_of_tile(tile, trim, tile.rows - trim, to);
  });
}

void means_around_median(std::span<const float* const> rows, std::size_t closest, std::span<float> out) {
  for_each_tile(rows, false, out, [closest](const Tile& tile, std::size_t, std::size_t, float* to) HWY_ATTR {
    means_around_median_of_tile(tile, closest, to);
  });
}

// Makes out[i] the majority's sign in column first + i, times what out[i] holds or, for `unit`, times 1.
HWY_ATTR void take_majority(std::span<const float* const> rows, std::size_t first, std::size_t count, bool unit, float* out) {
  const Floats d;
  const std::size_t lanes = hn::Lanes(d);
  const VecF one = hn::Set(d, 1.0f);
  std::size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    VecF votes = hn::Zero(d);  // exact up to 2^24 rows
    for (const float* row : rows) {
      const VecF value = hn::LoadU(d, row + first + i);
      votes = hn::Add(votes, hn::IfThenElseZero(hn::Gt(value, hn::Zero(d)), one));
      votes = hn::Sub(votes, hn::IfThenElseZero(hn::Lt(value, hn::Zero(d)), one));
    }
    const VecF size = unit ? one : hn::LoadU(d, out + i);
    const VecF up = hn::IfThenElseZero(hn::Gt(votes, hn::Zero(d)), size);
    hn::StoreU(hn::Sub(up, hn::IfThenElseZero(hn::Lt(votes, hn::Zero(d)), size)), d, out + i);
  }
  for (; i < count; ++i) {
    std::ptrdiff_t votes = 0;
    for (const float* row : rows) votes += (row[first + i] > 0) - (row[first + i] < 0);
    const float size = unit ? 1.0f : out[i];
    out[i] = votes > 0 ? size : votes < 0 ? -size : 0.0f;
  }
}

void majority_signs(std::span<const float* const> rows, VoteMagnitude magnitude, std::span<float> out) {
  if (magnitude == VoteMagnitude::kUnit) return take_majority(rows, 0, out.size(), true, out.data());
  // Means are summed from the smallest up too, so that the order of rows changes no bit.
  for_each_tile(rows, true, out,
                [&](const Tile& tile, std::size_t first, std::size_t count, float* to) HWY_ATTR {
                  if (magnitude == VoteMagnitude::kMean) {
                    means_of_tile(tile, 0, tile.rows, to);
                  } else {
                    medians_of_tile(tile, to);
                  }
                  take_majority(rows, first, count, false, to);
                });
}

}  // namespace skerry::strategies::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace skerry::strategies {

HWY_EXPORT(medians);
HWY_EXPORT(trimmed_means);
HWY_EXPORT(means_around_median);
HWY_EXPORT(majority_signs);

void column_medians(std::span<const float* const> rows, std::span<float> out) { HWY_DYNAMIC_DISPATCH(medians)(rows, out); }

void column_trimmed_means(std::span<const float* const> rows, std::size_t trim, std::span<float> out) {
  HWY_DYNAMIC_DISPATCH(trimmed_means)(rows, trim, out);
}

void column_means_around_median(std::span<const float* const> rows, std::size_t closest, std::span<float> out) {
  HWY_DYNAMIC_DISPATCH(means_around_median)(rows, closest, out);
}

void column_majority_signs(std::span<const float* const> rows, VoteMagnitude magnitude, std::span<float> out) {
  HWY_DYNAMIC_DISPATCH(majority_signs)(rows, magnitude, out);
}

}  // namespace skerry::strategies
#endif
