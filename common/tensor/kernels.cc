#include "common/tensor/kernels.h"

#include <bit>
#include <cstring>

static_assert(std::endian::native == std::endian::little,
              "files and payloads are little-endian, and so must be the machine");

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "common/tensor/kernels.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace skerry {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr std::size_t kMostLanes = HWY_MAX_BYTES / sizeof(std::uint32_t);

// The first index whose bits under `mask` are all set. T is uint16_t or uint32_t, `bytes` may be unaligned.
template <typename T>
std::uint64_t FirstWithExponentFull(const std::byte* bytes, std::uint64_t count, T mask) {
  const hn::ScalableTag<T> d;
  const std::size_t lanes = hn::Lanes(d);
  const auto full = hn::Set(d, mask);
  std::uint64_t i = 0;
#if HWY_TARGET != HWY_SCALAR
  const hn::Repartition<std::uint8_t, decltype(d)> d8;
  const auto load = [&](std::uint64_t at) HWY_ATTR {
    return hn::BitCast(d, hn::LoadU(d8, reinterpret_cast<const std::uint8_t*>(bytes) + at * sizeof(T)));
  };
  for (; i + 4 * lanes <= count; i += 4 * lanes) {
    const auto a = hn::Eq(hn::And(load(i), full), full);
    const auto b = hn::Eq(hn::And(load(i + lanes), full), full);
    const auto c = hn::Eq(hn::And(load(i + 2 * lanes), full), full);
    const auto e = hn::Eq(hn::And(load(i + 3 * lanes), full), full);
    if (!hn::AllFalse(d, hn::Or(hn::Or(a, b), hn::Or(c, e)))) break;
  }
#else
  (void)lanes;
  (void)full;
#endif
  for (; i < count; ++i) {
    T bits;
    std::memcpy(&bits, bytes + i * sizeof(T), sizeof(T));
    if ((bits & mask) == mask) return i;
  }
  return count;
}

std::uint64_t FirstNonFinite32(const std::byte* bytes, std::uint64_t count) {
  return FirstWithExponentFull<std::uint32_t>(bytes, count, 0x7F800000u);
}
std::uint64_t FirstNonFinite16(const std::byte* bytes, std::uint64_t count) {
  return FirstWithExponentFull<std::uint16_t>(bytes, count, std::uint16_t{0x7F80u});
}

// One vector of f32 bits to bf16 bits in its low halves.
template <typename D, typename V>
HWY_INLINE V RoundBits(D d, V bits) {
  const auto magnitude = hn::And(bits, hn::Set(d, 0x7FFFFFFF));
  const auto sign = hn::ShiftLeft<15>(hn::ShiftRight<31>(hn::BitCast(hn::RebindToUnsigned<D>(), bits)));
  const auto infinity = hn::Set(d, 0x7F800000);
  const auto finite = hn::Lt(magnitude, infinity);
  const auto nan = hn::Gt(magnitude, infinity);
  const auto limited = hn::IfThenElse(finite, hn::Min(magnitude, hn::Set(d, 0x7F7F0000)), magnitude);
  const auto odd = hn::And(hn::ShiftRight<16>(limited), hn::Set(d, 1));
  // A NaN's magnitude could overflow in the sum; the wrapped result is not used.
  const auto sum = hn::Add(hn::Add(limited, hn::Set(d, 0x7FFF)), odd);
  const auto rounded = hn::ShiftRight<16>(sum);
  const auto quiet = hn::Or(hn::ShiftRight<16>(magnitude), hn::Set(d, 0x40));
  return hn::Or(hn::IfThenElse(nan, quiet, rounded), hn::BitCast(d, sign));
}

void RoundToBf16(const float* values, std::uint64_t count, std::byte* bytes) {
  const hn::ScalableTag<std::int32_t> d;
  const hn::Rebind<std::uint16_t, decltype(d)> half;
  const std::size_t lanes = hn::Lanes(d);
  const auto* in = reinterpret_cast<const std::int32_t*>(values);
  const auto round = [&](const std::int32_t* from, std::uint16_t* to)
                         HWY_ATTR { hn::StoreU(hn::DemoteTo(half, RoundBits(d, hn::LoadU(d, from))), half, to); };
  HWY_ALIGN std::uint16_t buffer[kMostLanes];
  std::uint64_t i = 0;
  if (reinterpret_cast<std::uintptr_t>(bytes) % alignof(std::uint16_t) == 0) {
    auto* out = reinterpret_cast<std::uint16_t*>(bytes);
    for (; i + lanes <= count; i += lanes) round(in + i, out + i);
  }
  for (; i < count; i += lanes) {
    HWY_ALIGN std::int32_t last[kMostLanes] = {};
    const std::uint64_t left = count - i < lanes ? count - i : lanes;
    std::memcpy(last, values + i, left * sizeof(float));
    round(last, buffer);
    std::memcpy(bytes + 2 * i, buffer, left * sizeof(std::uint16_t));
  }
}

void WidenBf16(const std::byte* bytes, std::uint64_t count, float* values) {
  const hn::ScalableTag<std::uint32_t> d;
  const hn::Rebind<std::uint16_t, decltype(d)> half;
  const std::size_t lanes = hn::Lanes(d);
  auto* out = reinterpret_cast<std::uint32_t*>(values);
  const auto widen = [&](const std::uint16_t* from, std::uint32_t* to)
                         HWY_ATTR { hn::StoreU(hn::ShiftLeft<16>(hn::PromoteTo(d, hn::LoadU(half, from))), d, to); };
  std::uint64_t i = 0;
  if (reinterpret_cast<std::uintptr_t>(bytes) % alignof(std::uint16_t) == 0) {
    const auto* in = reinterpret_cast<const std::uint16_t*>(bytes);
    for (; i + lanes <= count; i += lanes) widen(in + i, out + i);
  }
  for (; i < count; i += lanes) {
    HWY_ALIGN std::uint16_t last[kMostLanes] = {};
    HWY_ALIGN std::uint32_t wide[kMostLanes];
    const std::uint64_t left = count - i < lanes ? count - i : lanes;
    std::memcpy(last, bytes + 2 * i, left * sizeof(std::uint16_t));
    widen(last, wide);
    std::memcpy(values + i, wide, left * sizeof(float));
  }
}

void ScaleInt8(const std::byte* bytes, std::uint64_t count, float scale, float* values) {
  const hn::ScalableTag<float> d;
  const hn::Rebind<std::int32_t, decltype(d)> wide;
  const hn::Rebind<std::int8_t, decltype(d)> narrow;
  const std::size_t lanes = hn::Lanes(d);
  const auto scales = hn::Set(d, scale);
  const auto* codes = reinterpret_cast<const std::int8_t*>(bytes);
  std::uint64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto whole = hn::ConvertTo(d, hn::PromoteTo(wide, hn::LoadU(narrow, codes + i)));
    hn::StoreU(hn::Mul(scales, whole), d, values + i);
  }
  for (; i < count; ++i) values[i] = scale * static_cast<float>(codes[i]);
}

}  // namespace HWY_NAMESPACE
}  // namespace skerry
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace skerry {

HWY_EXPORT(FirstNonFinite32);
HWY_EXPORT(FirstNonFinite16);
HWY_EXPORT(RoundToBf16);
HWY_EXPORT(WidenBf16);
HWY_EXPORT(ScaleInt8);

std::uint64_t first_non_finite(std::span<const float> values) {
  return HWY_DYNAMIC_DISPATCH(FirstNonFinite32)(std::as_bytes(values).data(), values.size());
}

std::uint64_t first_non_finite_f32(std::span<const std::byte> bytes) {
  return HWY_DYNAMIC_DISPATCH(FirstNonFinite32)(bytes.data(), bytes.size() / sizeof(std::uint32_t));
}

std::uint64_t first_non_finite_bf16(std::span<const std::byte> bytes) {
  return HWY_DYNAMIC_DISPATCH(FirstNonFinite16)(bytes.data(), bytes.size() / sizeof(std::uint16_t));
}

void round_to_bf16(std::span<const float> values, std::span<std::byte> bytes) {
  HWY_DYNAMIC_DISPATCH(RoundToBf16)(values.data(), values.size(), bytes.data());
}

void widen_bf16(std::span<const std::byte> bytes, std::span<float> values) {
  HWY_DYNAMIC_DISPATCH(WidenBf16)(bytes.data(), values.size(), values.data());
}

void scale_int8(std::span<const std::byte> bytes, float scale, std::span<float> values) {
  HWY_DYNAMIC_DISPATCH(ScaleInt8)(bytes.data(), values.size(), scale, values.data());
}

}  // namespace skerry
#endif  // HWY_ONCE
