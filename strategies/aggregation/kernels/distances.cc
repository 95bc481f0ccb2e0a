#include "strategies/aggregation/kernels/distances.h"

#include <algorithm>

// Highway compiles the rest once for each target.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "strategies/aggregation/kernels/distances.cc"
#include <hwy/foreach_target.h>
#include <hwy/cache_control.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace skerry::strategies::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using Doubles = hn::CappedTag<double, 8>;
using Floats = hn::Rebind<float, Doubles>;
using VecD = hn::Vec<Doubles>;

constexpr std::size_t kPiece = 512;       // so that a piece of one row serves many others from the first-level cache
constexpr std::size_t kSums = 8;          // running sums, whatever the width of a vector
constexpr std::size_t kRowsAtOnce = 8;    // against which a loaded vector is used

HWY_ATTR HWY_INLINE VecD load(const float* from) { return hn::PromoteTo(Doubles(), hn::LoadU(Floats(), from)); }
HWY_ATTR HWY_INLINE VecD load(const double* from) { return hn::LoadU(Doubles(), from); }

double total(const double* sums) {
  return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

// out[r] += ‖x − rows[r]‖². kRows is a constant so that the sums stay in registers.
template <std::size_t kRows, typename From>
HWY_ATTR void add_distances(const From* x, const float* const* rows, std::size_t count, double* out) {
  const Doubles d;
  const std::size_t lanes = hn::Lanes(d);
  const std::size_t whole = count / kSums * kSums;
  double sums[kRows][kSums];
  for (std::size_t lane = 0; lane < kSums; lane += lanes) {
    VecD sum[kRows];
    for (std::size_t r = 0; r < kRows; ++r) sum[r] = hn::Zero(d);
    for (std::size_t i = lane; i < whole; i += kSums) {
      hwy::Prefetch(x + i + kPiece);
      const VecD value = load(x + i);
      HWY_UNROLL(8)
      for (std::size_t r = 0; r < kRows; ++r) {
        const VecD difference = hn::Sub(value, load(rows[r] + i));
        sum[r] = hn::Add(sum[r], hn::Mul(difference, difference));
      }
    }
    for (std::size_t r = 0; r < kRows; ++r) hn::StoreU(sum[r], d, sums[r] + lane);
  }
  for (std::size_t r = 0; r < kRows; ++r) {
    for (std::size_t i = whole; i < count; ++i) {
      const double difference = static_cast<double>(x[i]) - static_cast<double>(rows[r][i]);
      sums[r][i - whole] += difference * difference;
    }
    out[r] += total(sums[r]);
  }
}

template <typename From>
void add_distances_of_group(const From* x, const float* const* rows, std::size_t row_count, std::size_t count, double* out) {
  switch (row_count) {
    case 1: return add_distances<1>(x, rows, count, out);
    case 2: return add_distances<2>(x, rows, count, out);
    case 3: return add_distances<3>(x, rows, count, out);
    case 4: return add_distances<4>(x, rows, count, out);
    case 5: return add_distances<5>(x, rows, count, out);
    case 6: return add_distances<6>(x, rows, count, out);
    case 7: return add_distances<7>(x, rows, count, out);
    default: return add_distances<8>(x, rows, count, out);
  }
}

// Against any number of rows, in groups of about the same size.
template <typename From>
void add_distances_of_all(const From* x, std::span<const float* const> rows, std::size_t first, std::size_t count,
                          double* out) {
  const std::size_t groups = (rows.size() + kRowsAtOnce - 1) / kRowsAtOnce;
  for (std::size_t group = 0; group < groups; ++group) {
    const std::size_t begin = rows.size() * group / groups;
    const std::size_t end = rows.size() * (group + 1) / groups;
    const float* shifted[kRowsAtOnce];
    for (std::size_t r = begin; r < end; ++r) shifted[r - begin] = rows[r] + first;
    add_distances_of_group(x, shifted, end - begin, count, out + begin);
  }
}

void pair_distances(std::span<const float* const> rows, std::size_t count, std::span<double> sums) {
  for (std::size_t first = 0; first < count; first += kPiece) {
    const std::size_t piece = std::min(kPiece, count - first);
    double* out = sums.data();
    for (std::size_t i = 0; i + 1 < rows.size(); ++i) {
      add_distances_of_all(rows[i] + first, rows.subspan(i + 1), first, piece, out);
      out += rows.size() - i - 1;
    }
  }
}

// v = Σ coefficients[j] x_j over the rows' elements from `first` on.
HWY_ATTR void combine(std::span<const double> coefficients, std::span<const float* const> rows, std::size_t first,
                      std::size_t count, double* v) {
  const Doubles d;
  const std::size_t lanes = hn::Lanes(d);
  const std::size_t whole = count / lanes * lanes;
  std::fill(v, v + count, 0.0);
  for (std::size_t k = 0; k < rows.size(); ++k) {
    if (coefficients[k] == 0) continue;
    const float* row = rows[k] + first;
    const VecD scale = hn::Set(d, coefficients[k]);
    for (std::size_t i = 0; i < whole; i += lanes) {
      hwy::Prefetch(row + i + kPiece);
      hn::StoreU(hn::Add(hn::LoadU(d, v + i), hn::Mul(scale, load(row + i))), d, v + i);
    }
    for (std::size_t i = whole; i < count; ++i) v[i] += coefficients[k] * static_cast<double>(row[i]);
  }
}

void distances_to(std::span<const double> coefficients, std::span<const float* const> rows, std::size_t count,
                  std::span<double> sums) {
  double v[kPiece];
  for (std::size_t first = 0; first < count; first += kPiece) {
    const std::size_t piece = std::min(kPiece, count - first);
    combine(coefficients, rows, first, piece, v);
    add_distances_of_all(v, rows.first(sums.size()), first, piece, sums.data());
  }
}

// Σ a[i] b[i] of one piece.
template <typename Value>
HWY_ATTR double product_of_piece(const Value* a, const Value* b, std::size_t count) {
  const Doubles d;
  const std::size_t lanes = hn::Lanes(d);
  const std::size_t whole = count / kSums * kSums;
  double sums[kSums];
  for (std::size_t lane = 0; lane < kSums; lane += lanes) {
    VecD sum = hn::Zero(d);
    for (std::size_t i = lane; i < whole; i += kSums) sum = hn::Add(sum, hn::Mul(load(a + i), load(b + i)));
    hn::StoreU(sum, d, sums + lane);
  }
  for (std::size_t i = whole; i < count; ++i) sums[i - whole] += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return total(sums);
}

double product(const float* a, const float* b, std::size_t count) {
  double sum = 0;
  for (std::size_t first = 0; first < count; first += kPiece)
    sum += product_of_piece(a + first, b + first, std::min(kPiece, count - first));
  return sum;
}

double combination_square(std::span<const double> coefficients, std::span<const float* const> rows, std::size_t count) {
  double v[kPiece];
  double sum = 0;
  for (std::size_t first = 0; first < count; first += kPiece) {
    const std::size_t piece = std::min(kPiece, count - first);
    combine(coefficients, rows, first, piece, v);
    sum += product_of_piece(v, v, piece);
  }
  return sum;
}

}  // namespace skerry::strategies::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace skerry::strategies {

HWY_EXPORT(pair_distances);
HWY_EXPORT(distances_to);
HWY_EXPORT(product);
HWY_EXPORT(combination_square);

void add_pair_distances(std::span<const float* const> rows, std::size_t count, std::span<double> sums) {
  HWY_DYNAMIC_DISPATCH(pair_distances)(rows, count, sums);
}

void add_distances_to(std::span<const double> coefficients, std::span<const float* const> rows, std::size_t count,
                      std::span<double> sums) {
  HWY_DYNAMIC_DISPATCH(distances_to)(coefficients, rows, count, sums);
}

double square_of_combination(std::span<const double> coefficients, std::span<const float* const> rows, std::size_t count) {
  return HWY_DYNAMIC_DISPATCH(combination_square)(coefficients, rows, count);
}

double dot_product(const float* a, const float* b, std::size_t count) { return HWY_DYNAMIC_DISPATCH(product)(a, b, count); }

}  // namespace skerry::strategies
#endif
