#include "server/aggregate/kernels.h"

// Highway compiles the rest once for each target.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "server/aggregate/kernels.cc"
#include <hwy/foreach_target.h>
#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <bit>
#include <cstring>

#include "common/codec/int8.h"

HWY_BEFORE_NAMESPACE();
namespace skerry::server::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using Doubles = hn::CappedTag<double, 8>;
using Floats = hn::Rebind<float, Doubles>;
using VecD = hn::Vec<Doubles>;

// How far ahead of its use a row is fetched: hardware prefetchers follow fewer streams than there are rows, and stop at the
// ends of pages.
constexpr std::size_t kPrefetchAhead = 256;  // values
constexpr std::size_t kPrefetchBytes = 1024;

struct F32Row {
  using Value = float;
  static HWY_ATTR HWY_INLINE VecD load(const float* from) { return hn::PromoteTo(Doubles(), hn::LoadU(Floats(), from)); }
  static HWY_ATTR HWY_INLINE VecD load(const float* from, float) { return load(from); }
  static double one(float value, float) { return static_cast<double>(value); }
};

struct Bf16Row {
  using Value = std::uint16_t;
  static HWY_ATTR HWY_INLINE VecD load(const std::uint16_t* from, float) {
    const hn::Rebind<std::uint16_t, Doubles> halves;
    const hn::Rebind<std::uint32_t, Doubles> wholes;
    const auto bits = hn::ShiftLeft<16>(hn::PromoteTo(wholes, hn::LoadU(halves, from)));
    return hn::PromoteTo(Doubles(), hn::BitCast(Floats(), bits));
  }
  static double one(std::uint16_t value, float) {
    return static_cast<double>(std::bit_cast<float>(static_cast<std::uint32_t>(value) << 16));
  }
};

// Signed bytes of one block that share a scale.
struct ScaledRow {
  using Value = std::int8_t;
  static HWY_ATTR HWY_INLINE VecD load(const std::int8_t* from, float scale) {
    const hn::Rebind<std::int8_t, Doubles> bytes;
    const hn::Rebind<std::int32_t, Doubles> wholes;
    const auto codes = hn::ConvertTo(Floats(), hn::PromoteTo(wholes, hn::LoadU(bytes, from)));
    return hn::PromoteTo(Doubles(), hn::Mul(hn::Set(Floats(), scale), codes));
  }
  static double one(std::int8_t value, float scale) { return static_cast<double>(scale * static_cast<float>(value)); }
};

// kRows is a constant so that the loop over rows unrolls and the sum stays in a register.
template <typename RowType, int kRows>
HWY_ATTR void add_row_group(const Row* data, const float* scales, const double* coefficients, std::size_t count,
                            bool first, double* sum, float* rounded) {
  const Doubles d;
  const std::size_t lanes = hn::Lanes(d);
  const typename RowType::Value* rows[kRows];
  VecD weights[kRows];
  float scale[kRows];
  for (int k = 0; k < kRows; ++k) {
    rows[k] = static_cast<const typename RowType::Value*>(data[k].values);
    weights[k] = hn::Set(d, coefficients[k]);
    scale[k] = scales == nullptr ? 1.0f : scales[k];
  }
  std::size_t i = 0;
  // Two vectors a turn: two independent chains of additions.
  for (; i + 2 * lanes <= count; i += 2 * lanes) {
    VecD low = first ? hn::Zero(d) : hn::LoadU(d, sum + i);
    VecD high = first ? hn::Zero(d) : hn::LoadU(d, sum + i + lanes);
    HWY_UNROLL(16)
    for (int k = 0; k < kRows; ++k) {
      if constexpr (sizeof(typename RowType::Value) > 1) hwy::Prefetch(rows[k] + i + kPrefetchAhead);
      low = hn::Add(low, hn::Mul(weights[k], RowType::load(rows[k] + i, scale[k])));
      high = hn::Add(high, hn::Mul(weights[k], RowType::load(rows[k] + i + lanes, scale[k])));
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
    for (int k = 0; k < kRows; ++k) {
      total = hn::Add(total, hn::Mul(weights[k], RowType::load(rows[k] + i, scale[k])));
    }
    if (rounded != nullptr) {
      hn::StoreU(hn::DemoteTo(Floats(), total), Floats(), rounded + i);
    } else {
      hn::StoreU(total, d, sum + i);
    }
  }
  for (; i < count; ++i) {
    double total = first ? 0.0 : sum[i];
    for (int k = 0; k < kRows; ++k) total += coefficients[k] * RowType::one(rows[k][i], scale[k]);
    if (rounded != nullptr) {
      rounded[i] = static_cast<float>(total);
    } else {
      sum[i] = total;
    }
  }
}

using AddRowGroup = void (*)(const Row* data, const float* scales, const double* coefficients, std::size_t count,
                             bool first, double* sum, float* rounded);

template <typename RowType>
AddRowGroup row_group_of(std::size_t row_count) {
  constexpr AddRowGroup kGroups[] = {
      &add_row_group<RowType, 1>,  &add_row_group<RowType, 2>,  &add_row_group<RowType, 3>,
      &add_row_group<RowType, 4>,  &add_row_group<RowType, 5>,  &add_row_group<RowType, 6>,
      &add_row_group<RowType, 7>,  &add_row_group<RowType, 8>,  &add_row_group<RowType, 9>,
      &add_row_group<RowType, 10>, &add_row_group<RowType, 11>, &add_row_group<RowType, 12>,
      &add_row_group<RowType, 13>, &add_row_group<RowType, 14>, &add_row_group<RowType, 15>,
      &add_row_group<RowType, 16>};
  return kGroups[row_count - 1];
}

void add_f32_rows(const Row* rows, std::size_t row_count, const double* coefficients, std::size_t count, bool first,
                  double* sum, float* rounded) {
  row_group_of<F32Row>(row_count)(rows, nullptr, coefficients, count, first, sum, rounded);
}

void add_bf16_rows(const Row* rows, std::size_t row_count, const double* coefficients, std::size_t count, bool first,
                   double* sum, float* rounded) {
  row_group_of<Bf16Row>(row_count)(rows, nullptr, coefficients, count, first, sum, rounded);
}

void add_int8_block_rows(const Row* rows, std::size_t row_count, const double* coefficients, std::size_t count,
                         bool first, double* sum, float* rounded) {
  const auto add = row_group_of<ScaledRow>(row_count);
  Row codes[kRowsAtOnce];
  float scales[kRowsAtOnce];
  std::size_t offset = 0;
  for (std::size_t at = 0; at < count; at += Int8Block::kBlock) {
    for (std::size_t k = 0; k < row_count; ++k) {
      const std::byte* block = static_cast<const std::byte*>(rows[k].values) + offset;
      std::memcpy(&scales[k], block, sizeof scales[k]);
      codes[k].values = block + Int8Block::kScaleBytes;
      for (std::size_t line = 0; line < Int8Block::kBlock; line += 64) hwy::Prefetch(block + kPrefetchBytes + line);
    }
    const std::size_t here = count - at < Int8Block::kBlock ? count - at : Int8Block::kBlock;
    add(codes, scales, coefficients, here, first, sum == nullptr ? nullptr : sum + at,
        rounded == nullptr ? nullptr : rounded + at);
    offset += Int8Block::kScaleBytes + Int8Block::kBlock;
  }
}

// Running sums in 32 lanes, whatever the width of a vector: element i goes to lane i mod 32. Four vectors of them at a time are
// four independent chains of additions. kSquares: `b` is `a`, and not read again.
template <bool kSquares>
HWY_ATTR double sum_products(const float* a, const float* b, std::size_t count) {
  constexpr std::size_t kLanes = 32;
  const Doubles d;
  const std::size_t lanes = hn::Lanes(d);
  alignas(64) double sums[kLanes] = {};
  const std::size_t whole = count / kLanes * kLanes;
  const auto product = [&](std::size_t at) HWY_ATTR {
    const VecD value = F32Row::load(a + at);
    if constexpr (kSquares) return hn::Mul(value, value);
    return hn::Mul(value, F32Row::load(b + at));
  };
  for (std::size_t lane = 0; lane < kLanes; lane += 4 * lanes) {
    VecD s0 = hn::Zero(d);
    VecD s1 = hn::Zero(d);
    VecD s2 = hn::Zero(d);
    VecD s3 = hn::Zero(d);
    for (std::size_t i = lane; i < whole; i += kLanes) {
      s0 = hn::Add(s0, product(i));
      s1 = hn::Add(s1, product(i + lanes));
      s2 = hn::Add(s2, product(i + 2 * lanes));
      s3 = hn::Add(s3, product(i + 3 * lanes));
    }
    hn::StoreU(s0, d, sums + lane);
    hn::StoreU(s1, d, sums + lane + lanes);
    hn::StoreU(s2, d, sums + lane + 2 * lanes);
    hn::StoreU(s3, d, sums + lane + 3 * lanes);
  }
  for (std::size_t i = whole; i < count; ++i) {
    sums[i - whole] += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  }
  for (std::size_t half = kLanes / 2; half > 0; half /= 2) {
    for (std::size_t lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
  }
  return sums[0];
}

double squares(const float* a, std::size_t count) { return sum_products<true>(a, a, count); }

double products(const float* a, const float* b, std::size_t count) { return sum_products<false>(a, b, count); }

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
#include <utility>

namespace skerry::server {

HWY_EXPORT(add_f32_rows);
HWY_EXPORT(add_bf16_rows);
HWY_EXPORT(add_int8_block_rows);
HWY_EXPORT(squares);
HWY_EXPORT(products);
HWY_EXPORT(add_spans);
HWY_EXPORT(add_difference_of);

namespace {

// For codebooks: what an update's code adds is one of 256 products, so that adding is a table look-up. Vector gathers are no
// faster than these loads, so it is the same code on every target.
template <std::size_t kRows>
void add_coded_rows(const Row* rows, const double* coefficients, std::size_t count, bool first, double* sum,
                    float* rounded) {
  double products[kRows][256];
  const std::uint8_t* codes[kRows];
  for (std::size_t k = 0; k < kRows; ++k) {
    codes[k] = static_cast<const std::uint8_t*>(rows[k].values);
    float codebook[256];
    std::memcpy(codebook, rows[k].codebook, sizeof codebook);
    for (std::size_t code = 0; code < 256; ++code) {
      products[k][code] = coefficients[k] * static_cast<double>(codebook[code]);
    }
  }
  for (std::size_t i = 0; i < count; ++i) {
    double total = first ? 0.0 : sum[i];
    HWY_UNROLL(16)
    for (std::size_t k = 0; k < kRows; ++k) total += products[k][codes[k][i]];
    if (rounded != nullptr) {
      rounded[i] = static_cast<float>(total);
    } else {
      sum[i] = total;
    }
  }
}

template <std::size_t... kLess>
auto coded_rows_of(std::size_t row_count, std::index_sequence<kLess...>) {
  constexpr decltype(&add_coded_rows<1>) kGroups[] = {&add_coded_rows<kLess + 1>...};
  return kGroups[row_count - 1];
}

}  // namespace

void add_rows(RowKind kind, std::span<const Row> rows, const double* coefficients, std::size_t count, bool first,
              double* sum, float* rounded) {
  assert(!rows.empty() && rows.size() <= kRowsAtOnce);
  switch (kind) {
    case RowKind::kF32:
      return HWY_DYNAMIC_DISPATCH(add_f32_rows)(rows.data(), rows.size(), coefficients, count, first, sum, rounded);
    case RowKind::kBf16:
      return HWY_DYNAMIC_DISPATCH(add_bf16_rows)(rows.data(), rows.size(), coefficients, count, first, sum, rounded);
    case RowKind::kInt8Block:
      return HWY_DYNAMIC_DISPATCH(add_int8_block_rows)(rows.data(), rows.size(), coefficients, count, first, sum, rounded);
    case RowKind::kInt8:
      return coded_rows_of(rows.size(), std::make_index_sequence<kRowsAtOnce>())(rows.data(), coefficients, count, first,
                                                                                 sum, rounded);
  }
}

double sum_of_squares(const float* values, std::size_t count) {
  return HWY_DYNAMIC_DISPATCH(squares)(values, count);
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
