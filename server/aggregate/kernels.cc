#include "server/aggregate/kernels.h"

// Highway compiles the rest once for each target.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "server/aggregate/kernels.cc"
#include <hwy/foreach_target.h>
#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <bit>
#include <cstring>

HWY_BEFORE_NAMESPACE();
namespace skerry::server::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using Doubles = hn::CappedTag<double, 8>;
using Floats = hn::Rebind<float, Doubles>;
using VecD = hn::Vec<Doubles>;

// How far ahead of its use a row is fetched: hardware prefetchers follow fewer streams than there are rows, and stop at the
// ends of pages.
constexpr std::size_t kPrefetchAhead = 512;

struct F32Row {
  using Value = float;
  static HWY_ATTR HWY_INLINE VecD load(const float* from) { return hn::PromoteTo(Doubles(), hn::LoadU(Floats(), from)); }
  static double one(float value) { return static_cast<double>(value); }
};

struct Bf16Row {
  using Value = std::uint16_t;
  static HWY_ATTR HWY_INLINE VecD load(const std::uint16_t* from) {
    const hn::Rebind<std::uint16_t, Doubles> halves;
    const hn::Rebind<std::uint32_t, Doubles> wholes;
    const auto bits = hn::ShiftLeft<16>(hn::PromoteTo(wholes, hn::LoadU(halves, from)));
    return hn::PromoteTo(Doubles(), hn::BitCast(Floats(), bits));
  }
  static double one(std::uint16_t value) {
    return static_cast<double>(std::bit_cast<float>(static_cast<std::uint32_t>(value) << 16));
  }
};

// kRows is a constant so that the loop over rows unrolls and the sum stays in a register.
template <typename Row, int kRows>
HWY_ATTR void add_row_group(const void* const* data, const double* coefficients, std::size_t count, bool first,
                            double* sum, float* rounded) {
  const Doubles d;
  const std::size_t lanes = hn::Lanes(d);
  const typename Row::Value* rows[kRows];
  VecD scales[kRows];
  for (int k = 0; k < kRows; ++k) {
    rows[k] = static_cast<const typename Row::Value*>(data[k]);
    scales[k] = hn::Set(d, coefficients[k]);
  }
  std::size_t i = 0;
  // Two vectors a turn: two independent chains of additions.
  for (; i + 2 * lanes <= count; i += 2 * lanes) {
    VecD low = first ? hn::Zero(d) : hn::LoadU(d, sum + i);
    VecD high = first ? hn::Zero(d) : hn::LoadU(d, sum + i + lanes);
    HWY_UNROLL(16)
    for (int k = 0; k < kRows; ++k) {
      hwy::Prefetch(rows[k] + i + kPrefetchAhead);
      low = hn::Add(low, hn::Mul(scales[k], Row::load(rows[k] + i)));
      high = hn::Add(high, hn::Mul(scales[k], Row::load(rows[k] + i + lanes)));
    }
    if (rounded != nullptr) {
      hn::StoreU(hn::DemoteTo(Floats(), low), Floats(), rounded + i);
      hn::StoreU(hn::DemoteTo(Floats(), high), Floats(), rounded + i + lanes);
    } else {
      hn::StoreU(low, d, sum + i);
      hn::StoreU(high, d, sum + i + lanes);
    }
  }
  for (; i + lanes <= count; i += lanes) {
    VecD total = first ? hn::Zero(d) : hn::LoadU(d, sum + i);
    HWY_UNROLL(16)
    for (int k = 0; k < kRows; ++k) total = hn::Add(total, hn::Mul(scales[k], Row::load(rows[k] + i)));
    if (rounded != nullptr) {
      hn::StoreU(hn::DemoteTo(Floats(), total), Floats(), rounded + i);
    } else {
      hn::StoreU(total, d, sum + i);
    }
  }
  for (; i < count; ++i) {
    double total = first ? 0.0 : sum[i];
    for (int k = 0; k < kRows; ++k) total += coefficients[k] * Row::one(rows[k][i]);
    if (rounded != nullptr) {
      rounded[i] = static_cast<float>(total);
    } else {
      sum[i] = total;
    }
  }
}

template <typename Row>
void add_rows_of(const void* const* rows, std::size_t row_count, const double* coefficients, std::size_t count,
                 bool first, double* sum, float* rounded) {
  switch (row_count) {
    case 1: return add_row_group<Row, 1>(rows, coefficients, count, first, sum, rounded);
    case 2: return add_row_group<Row, 2>(rows, coefficients, count, first, sum, rounded);
    case 3: return add_row_group<Row, 3>(rows, coefficients, count, first, sum, rounded);
    case 4: return add_row_group<Row, 4>(rows, coefficients, count, first, sum, rounded);
    case 5: return add_row_group<Row, 5>(rows, coefficients, count, first, sum, rounded);
    case 6: return add_row_group<Row, 6>(rows, coefficients, count, first, sum, rounded);
    case 7: return add_row_group<Row, 7>(rows, coefficients, count, first, sum, rounded);
    case 8: return add_row_group<Row, 8>(rows, coefficients, count, first, sum, rounded);
    case 9: return add_row_group<Row, 9>(rows, coefficients, count, first, sum, rounded);
    case 10: return add_row_group<Row, 10>(rows, coefficients, count, first, sum, rounded);
    case 11: return add_row_group<Row, 11>(rows, coefficients, count, first, sum, rounded);
    case 12: return add_row_group<Row, 12>(rows, coefficients, count, first, sum, rounded);
    case 13: return add_row_group<Row, 13>(rows, coefficients, count, first, sum, rounded);
    case 14: return add_row_group<Row, 14>(rows, coefficients, count, first, sum, rounded);
    case 15: return add_row_group<Row, 15>(rows, coefficients, count, first, sum, rounded);
    default: return add_row_group<Row, 16>(rows, coefficients, count, first, sum, rounded);
  }
}

void add_f32_rows(const void* const* rows, std::size_t row_count, const double* coefficients, std::size_t count,
                  bool first, double* sum, float* rounded) {
  add_rows_of<F32Row>(rows, row_count, coefficients, count, first, sum, rounded);
}

void add_bf16_rows(const void* const* rows, std::size_t row_count, const double* coefficients, std::size_t count,
                   bool first, double* sum, float* rounded) {
  add_rows_of<Bf16Row>(rows, row_count, coefficients, count, first, sum, rounded);
}

// Eight running sums, whatever the width of a vector: element i goes to lane i mod 8.
double products(const float* a, const float* b, std::size_t count) {
  const Doubles d;
  const std::size_t lanes = hn::Lanes(d);
  alignas(64) double sums[8] = {};
  const std::size_t whole = count / 8 * 8;
  // One chain of additions a vector; for narrow vectors several of them, side by side.
  for (std::size_t lane = 0; lane < 8; lane += 4 * lanes) {
    VecD s0 = hn::Zero(d);
    VecD s1 = hn::Zero(d);
    VecD s2 = hn::Zero(d);
    VecD s3 = hn::Zero(d);
    const std::size_t chains = (8 - lane) / lanes < 4 ? (8 - lane) / lanes : 4;
    for (std::size_t i = lane; i < whole; i += 8) {
      s0 = hn::Add(s0, hn::Mul(F32Row::load(a + i), F32Row::load(b + i)));
      if (chains > 1) s1 = hn::Add(s1, hn::Mul(F32Row::load(a + i + lanes), F32Row::load(b + i + lanes)));
      if (chains > 2) {
        s2 = hn::Add(s2, hn::Mul(F32Row::load(a + i + 2 * lanes), F32Row::load(b + i + 2 * lanes)));
        s3 = hn::Add(s3, hn::Mul(F32Row::load(a + i + 3 * lanes), F32Row::load(b + i + 3 * lanes)));
      }
    }
    hn::StoreU(s0, d, sums + lane);
    if (chains > 1) hn::StoreU(s1, d, sums + lane + lanes);
    if (chains > 2) {
      hn::StoreU(s2, d, sums + lane + 2 * lanes);
      hn::StoreU(s3, d, sums + lane + 3 * lanes);
    }
  }
  for (std::size_t i = whole; i < count; ++i) {
    sums[i - whole] += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  }
  return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

void add_spans(const float* a, const float* b, std::size_t count, float* out) {
  const hn::ScalableTag<float> d;
  const std::size_t lanes = hn::Lanes(d);
  std::size_t i = 0;
  for (; i + lanes <= count; i += lanes) hn::StoreU(hn::Add(hn::LoadU(d, a + i), hn::LoadU(d, b + i)), d, out + i);
  for (; i < count; ++i) out[i] = a[i] + b[i];
}

HWY_ATTR HWY_INLINE VecD load_bytes(const std::byte* from) {
  float values[8];
  std::memcpy(values, from, hn::Lanes(Floats()) * sizeof(float));
  return F32Row::load(values);
}

void add_difference_of(const std::byte* a, const std::byte* b, std::size_t count, float* values) {
  const Doubles d;
  const std::size_t lanes = hn::Lanes(d);
  std::size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const VecD apart = hn::Sub(load_bytes(a + 4 * i), load_bytes(b + 4 * i));
    hn::StoreU(hn::DemoteTo(Floats(), hn::Add(apart, F32Row::load(values + i))), Floats(), values + i);
  }
  for (; i < count; ++i) {
    float from_a;
    float from_b;
    std::memcpy(&from_a, a + 4 * i, sizeof from_a);
    std::memcpy(&from_b, b + 4 * i, sizeof from_b);
    const double apart = static_cast<double>(from_a) - static_cast<double>(from_b);
    values[i] = static_cast<float>(apart + static_cast<double>(values[i]));
  }
}

}  // namespace skerry::server::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <cassert>

namespace skerry::server {

HWY_EXPORT(add_f32_rows);
HWY_EXPORT(add_bf16_rows);
HWY_EXPORT(products);
HWY_EXPORT(add_spans);
HWY_EXPORT(add_difference_of);

void add_rows(RowKind kind, std::span<const void* const> rows, const double* coefficients, std::size_t count,
              bool first, double* sum, float* rounded) {
  assert(!rows.empty() && rows.size() <= kRowsAtOnce);
  if (kind == RowKind::kF32) {
    HWY_DYNAMIC_DISPATCH(add_f32_rows)(rows.data(), rows.size(), coefficients, count, first, sum, rounded);
  } else {
    HWY_DYNAMIC_DISPATCH(add_bf16_rows)(rows.data(), rows.size(), coefficients, count, first, sum, rounded);
  }
}

double sum_of_squares(const float* values, std::size_t count) {
  return HWY_DYNAMIC_DISPATCH(products)(values, values, count);
}

double dot(const float* a, const float* b, std::size_t count) { return HWY_DYNAMIC_DISPATCH(products)(a, b, count); }

void add(const float* a, const float* b, std::size_t count, float* out) {
  HWY_DYNAMIC_DISPATCH(add_spans)(a, b, count, out);
}

void add_difference(std::span<const std::byte> a, std::span<const std::byte> b, std::size_t count, float* values) {
  assert(a.size() >= count * sizeof(float) && b.size() >= count * sizeof(float));
  HWY_DYNAMIC_DISPATCH(add_difference_of)(a.data(), b.data(), count, values);
}

}  // namespace skerry::server
#endif
