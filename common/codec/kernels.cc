#include "common/codec/kernels.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "common/codec/philox.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "common/codec/kernels.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace skerry::codec_kernels::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::ScalableTag<float>;
using Ints = hn::RebindToSigned<Floats>;
using Words = hn::RebindToUnsigned<Floats>;
using Doubles = hn::CappedTag<double, 8>;  // a block of any encoding is a multiple of it

constexpr std::size_t kSmallBlock = 256;
constexpr std::size_t kLargeBlock = 4096;
constexpr std::uint32_t kMagnitude = 0x7FFFFFFFu;
constexpr std::uint32_t kInfinity = 0x7F800000u;
constexpr float kLargest = std::numeric_limits<float>::max();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr double kRounds = 6755399441055744.0;  // 1.5 · 2⁵²: added and taken away it leaves the nearest integer
constexpr float kUnit = 0x1p-24f;               // times the upper 24 bits of a word: uniform in [0, 1)

// ---- random words ----

#if HWY_TARGET != HWY_SCALAR
HWY_INLINE void high_and_low(hn::Vec<Words> a, std::uint32_t factor, hn::Vec<Words>& high, hn::Vec<Words>& low) {
  const Words d;
  const hn::RepartitionToWide<Words> wide;
  const auto b = hn::Set(d, factor);
  const auto even = hn::MulEven(a, b);
  const auto odd = hn::MulEven(hn::BitCast(d, hn::ShiftRight<32>(hn::BitCast(wide, a))), b);
  high = hn::OddEven(hn::BitCast(d, odd), hn::BitCast(d, hn::ShiftRight<32>(even)));
  low = hn::OddEven(hn::BitCast(d, hn::ShiftLeft<32>(odd)), hn::BitCast(d, even));
}

// One counter a lane; four words of each, side by side. The lower half of the counter does not overflow.
void words_of_counters(std::uint64_t counter, const Rounding& rounding, std::size_t count, std::uint32_t* words) {
  const Words d;
  const std::size_t lanes = hn::Lanes(d);
  for (std::size_t i = 0; i < count; i += lanes) {
    auto c0 = hn::Iota(d, static_cast<std::uint32_t>(counter + i));
    auto c1 = hn::Set(d, static_cast<std::uint32_t>(counter >> 32));
    auto c2 = hn::Set(d, static_cast<std::uint32_t>(rounding.stream));
    auto c3 = hn::Set(d, static_cast<std::uint32_t>(rounding.stream >> 32));
    std::uint32_t k0 = static_cast<std::uint32_t>(rounding.seed);
    std::uint32_t k1 = static_cast<std::uint32_t>(rounding.seed >> 32);
    for (int round = 0; round < 10; ++round) {
      hn::Vec<Words> high_a, low_a, high_b, low_b;
      high_and_low(c0, 0xD2511F53u, high_a, low_a);
      high_and_low(c2, 0xCD9E8D57u, high_b, low_b);
      c0 = hn::Xor(hn::Xor(high_b, c1), hn::Set(d, k0));
      c2 = hn::Xor(hn::Xor(high_a, c3), hn::Set(d, k1));
      c1 = low_b;
      c3 = low_a;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    hn::StoreInterleaved4(c0, c1, c2, c3, d, words + 4 * i);
  }
}
#endif

void RandomWords(const Rounding& rounding, std::uint64_t first, std::uint32_t* words, std::size_t count) {
  std::uint64_t at = first;
  const std::uint64_t end = first + count;
  const auto one = [&] {
    const std::uint64_t counter = at / 4;
    const auto four = philox({static_cast<std::uint32_t>(counter), static_cast<std::uint32_t>(counter >> 32),
                              static_cast<std::uint32_t>(rounding.stream),
                              static_cast<std::uint32_t>(rounding.stream >> 32)},
                             {static_cast<std::uint32_t>(rounding.seed), static_cast<std::uint32_t>(rounding.seed >> 32)});
    for (; at < end && at / 4 == counter; ++at) words[at - first] = four[at % 4];
  };
#if HWY_TARGET != HWY_SCALAR
  const std::size_t lanes = hn::Lanes(Words());
  if (at % 4 != 0) one();
  while (end - at >= 4 * lanes) {
    const std::uint64_t counter = at / 4;
    const std::uint64_t until_carry = (std::uint64_t{1} << 32) - (counter & 0xFFFFFFFFu);
    const std::uint64_t whole = std::min((end - at) / 4, until_carry) / lanes * lanes;
    if (whole == 0) break;
    words_of_counters(counter, rounding, static_cast<std::size_t>(whole), words + (at - first));
    at += 4 * whole;
  }
#endif
  while (at < end) one();
}

// ---- magnitudes ----

HWY_INLINE hn::Vec<Words> load_magnitudes(const float* values) {
  const Words d;
  return hn::And(hn::BitCast(d, hn::LoadU(Floats(), values)), hn::Set(d, kMagnitude));
}

std::uint32_t LargestMagnitudeBits(const float* values, std::size_t count) {
  const Ints d;  // magnitudes are below 2³¹
  const std::size_t lanes = hn::Lanes(d);
  auto a = hn::Zero(d);
  auto b = hn::Zero(d);
  std::size_t i = 0;
  for (; i + 2 * lanes <= count; i += 2 * lanes) {
    a = hn::Max(a, hn::BitCast(d, load_magnitudes(values + i)));
    b = hn::Max(b, hn::BitCast(d, load_magnitudes(values + i + lanes)));
  }
  auto largest = static_cast<std::uint32_t>(hn::GetLane(hn::MaxOfLanes(d, hn::Max(a, b))));
  for (; i < count; ++i) {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(values[i]) & kMagnitude;
    largest = largest < bits ? bits : largest;
  }
  return largest;
}

void MagnitudeBits(const float* values, std::size_t count, std::uint32_t* bits) {
  const std::size_t lanes = hn::Lanes(Words());
  std::size_t i = 0;
  for (; i + lanes <= count; i += lanes) hn::StoreU(load_magnitudes(values + i), Words(), bits + i);
  for (; i < count; ++i) bits[i] = std::bit_cast<std::uint32_t>(values[i]) & kMagnitude;
}

std::size_t CountFrom(const std::uint32_t* bits, std::size_t count, std::uint32_t limit) {
  const Ints d;
  const std::size_t lanes = hn::Lanes(d);
  const auto below = hn::Set(d, static_cast<std::int32_t>(limit - 1));
  auto sum_a = hn::Zero(d);
  auto sum_b = hn::Zero(d);
  const auto* from = reinterpret_cast<const std::int32_t*>(bits);
  std::size_t i = 0;
  for (; i + 2 * lanes <= count; i += 2 * lanes) {
    sum_a = hn::Sub(sum_a, hn::VecFromMask(d, hn::Gt(hn::LoadU(d, from + i), below)));
    sum_b = hn::Sub(sum_b, hn::VecFromMask(d, hn::Gt(hn::LoadU(d, from + i + lanes), below)));
  }
  auto found = static_cast<std::size_t>(hn::GetLane(hn::SumOfLanes(d, hn::Add(sum_a, sum_b))));
  for (; i < count; ++i) found += bits[i] >= limit ? 1 : 0;
  return found;
}

// ---- halves ----

void EncodeBf16AtRandom(const float* values, std::size_t count, const std::uint32_t* random, std::byte* payload) {
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(values[i]);
    const std::uint32_t magnitude = bits & kMagnitude;
    std::uint32_t half = (magnitude < 0x7F7F0000u ? magnitude : 0x7F7F0000u) + (random[i] & 0xFFFFu);
    if (magnitude >= kInfinity) half = magnitude > kInfinity ? magnitude | 0x400000u : magnitude;
    const auto out = static_cast<std::uint16_t>((half >> 16) | ((bits >> 16) & 0x8000u));
    std::memcpy(payload + 2 * i, &out, sizeof out);
  }
}

// The f16 bits of one vector, in the low halves. kRandom: rounds by `random`, else to nearest.
template <bool kRandom>
HWY_INLINE hn::Vec<Ints> halves_of(hn::Vec<Floats> values, hn::Vec<Words> random) {
  const Ints d;
  const Floats f;
  const auto bits = hn::BitCast(d, values);
  const auto given = hn::And(bits, hn::Set(d, static_cast<std::int32_t>(kMagnitude)));
  const auto magnitude = hn::Min(given, hn::Set(d, 0x477FE000));  // 65504
  const auto rebased = hn::Sub(magnitude, hn::Set(d, 0x38000000));
  const auto value = hn::BitCast(f, magnitude);
  hn::Vec<Ints> normal, small;
  if constexpr (kRandom) {
    normal = hn::ShiftRight<13>(hn::Add(rebased, hn::BitCast(d, hn::And(random, hn::Set(Words(), 0x1FFFu)))));
    const auto limited = hn::Min(value, hn::Set(f, 0x1p-14f));  // keeps the conversion in range; used below it alone
    const auto steps = hn::Mul(limited, hn::Set(f, 0x1p24f));
    const auto whole = hn::ConvertTo(d, steps);
    const auto rest = hn::Sub(steps, hn::ConvertTo(f, whole));
    const auto chance = hn::Mul(hn::ConvertTo(f, hn::BitCast(d, hn::ShiftRight<8>(random))), hn::Set(f, kUnit));
    small = hn::Sub(whole, hn::BitCast(d, hn::VecFromMask(f, hn::Gt(rest, chance))));
  } else {
    const auto odd = hn::And(hn::ShiftRight<13>(magnitude), hn::Set(d, 1));
    normal = hn::ShiftRight<13>(hn::Add(hn::Add(rebased, hn::Set(d, 0xFFF)), odd));
    const auto shifted = hn::Add(value, hn::Set(f, 0.5f));  // rounds to a multiple of 2⁻²⁴
    small = hn::Sub(hn::BitCast(d, shifted), hn::Set(d, 0x3F000000));
  }
  auto half = hn::IfThenElse(hn::Lt(magnitude, hn::Set(d, 0x38800000)), small, normal);
  const auto infinity = hn::Set(d, static_cast<std::int32_t>(kInfinity));
  half = hn::IfThenElse(hn::Eq(given, infinity), hn::Set(d, 0x7C00), half);
  half = hn::IfThenElse(hn::Gt(given, infinity), hn::Set(d, 0x7E00), half);
  const auto sign = hn::And(hn::BitCast(d, hn::ShiftRight<16>(hn::BitCast(Words(), bits))), hn::Set(d, 0x8000));
  return hn::Or(half, sign);
}

void EncodeF16(const float* values, std::size_t count, const std::uint32_t* random, std::byte* payload) {
  const Ints d;
  const Floats f;
  const hn::Rebind<std::uint16_t, Ints> half;
  const std::size_t lanes = hn::Lanes(d);
  constexpr std::size_t kMostLanes = HWY_MAX_BYTES / sizeof(float);
  HWY_ALIGN std::uint16_t out[kMostLanes];
  HWY_ALIGN float last[kMostLanes] = {};
  HWY_ALIGN std::uint32_t last_random[kMostLanes] = {};
  for (std::size_t i = 0; i < count; i += lanes) {
    const std::size_t here = count - i < lanes ? count - i : lanes;
    const float* from = values + i;
    const std::uint32_t* words = random == nullptr ? last_random : random + i;
    if (here < lanes) {
      std::memcpy(last, from, here * sizeof(float));
      if (random != nullptr) std::memcpy(last_random, words, here * sizeof(std::uint32_t));
      from = last;
      words = last_random;
    }
    const auto value = hn::LoadU(f, from);
    const auto bits = random == nullptr ? halves_of<false>(value, hn::Zero(Words())) : halves_of<true>(value, hn::LoadU(Words(), words));
    hn::Store(hn::DemoteTo(half, bits), half, out);
    std::memcpy(payload + 2 * i, out, 2 * here);
  }
}

void DecodeF16(const std::byte* payload, std::size_t count, float* values) {
  const Ints d;
  const Floats f;
  const hn::Rebind<std::uint16_t, Ints> half;
  const std::size_t lanes = hn::Lanes(d);
  constexpr std::size_t kMostLanes = HWY_MAX_BYTES / sizeof(float);
  HWY_ALIGN std::uint16_t in[kMostLanes] = {};
  HWY_ALIGN float last[kMostLanes];
  for (std::size_t i = 0; i < count; i += lanes) {
    const std::size_t here = count - i < lanes ? count - i : lanes;
    std::memcpy(in, payload + 2 * i, 2 * here);
    const auto bits = hn::PromoteTo(d, hn::Load(half, in));
    const auto magnitude = hn::And(bits, hn::Set(d, 0x7FFF));
    const auto sign = hn::ShiftLeft<16>(hn::And(bits, hn::Set(d, 0x8000)));
    const auto shifted = hn::ShiftLeft<13>(magnitude);
    const auto normal = hn::Add(shifted, hn::Set(d, 0x38000000));
    const auto small = hn::BitCast(d, hn::Mul(hn::ConvertTo(f, magnitude), hn::Set(f, 0x1p-24f)));
    auto value = hn::IfThenElse(hn::Lt(magnitude, hn::Set(d, 0x400)), small, normal);
    value = hn::IfThenElse(hn::Gt(magnitude, hn::Set(d, 0x7BFF)), hn::Or(shifted, hn::Set(d, static_cast<std::int32_t>(kInfinity))), value);
    const auto whole = hn::BitCast(f, hn::Or(value, sign));
    if (here == lanes) {
      hn::StoreU(whole, f, values + i);
    } else {
      hn::Store(whole, f, last);
      std::memcpy(values + i, last, here * sizeof(float));
    }
  }
}

// ---- a scale for each block of 256 ----

// The block's values, with zeros to its full length where it is short.
struct Block {
  const float* values = nullptr;
  HWY_ALIGN float padded[kSmallBlock];
  HWY_ALIGN std::uint32_t random[kSmallBlock];

  void take(const float* from, std::size_t count, const Rounding& rounding, std::uint64_t first) {
    values = from;
    if (count < kSmallBlock) {
      std::memset(padded, 0, sizeof padded);
      std::memcpy(padded, from, count * sizeof(float));
      values = padded;
    }
    if (rounding.stochastic) RandomWords(rounding, first, random, kSmallBlock);
  }
};

// The smallest f32 that is at least largest / levels, but such that (levels + 1) times it is finite.
float scale_for(float largest, double levels) {
  auto scale = static_cast<float>(static_cast<double>(largest) / levels);
  // The product is exact in float64.
  if (static_cast<double>(scale) * levels < static_cast<double>(largest)) scale = std::nextafter(scale, kLargest);
  const float most = kLargest / static_cast<float>(levels + 1);
  return scale < most ? scale : most;
}

// codes[i] = x / scale, rounded, within ± levels; one byte of two's complement each. The scale is above 0.
template <bool kRandom>
HWY_INLINE void codes_of_quotients(const Block& block, float scale, double levels, std::int8_t* codes) {
  const Doubles d;
  const hn::Rebind<float, Doubles> f;
  const hn::Rebind<std::int32_t, Doubles> i32;
  const hn::Rebind<std::int8_t, Doubles> i8;
  const std::size_t lanes = hn::Lanes(d);
  const auto divisor = hn::Set(d, static_cast<double>(scale));
  const auto magic = hn::Set(d, kRounds);
  const auto high = hn::Set(d, levels);
  const auto low = hn::Set(d, -levels);
  for (std::size_t i = 0; i < kSmallBlock; i += lanes) {
    const auto quotient = hn::Div(hn::PromoteTo(d, hn::LoadU(f, block.values + i)), divisor);
    auto code = hn::Sub(hn::Add(quotient, magic), magic);
    if constexpr (kRandom) {
      const auto one = hn::Set(d, 1.0);
      const auto floor = hn::Sub(code, hn::IfThenElseZero(hn::Gt(code, quotient), one));
      const auto word = hn::ShiftRight<8>(hn::Load(hn::Rebind<std::uint32_t, Doubles>(), block.random + i));
      const auto chance = hn::Mul(hn::PromoteTo(d, hn::BitCast(i32, word)), hn::Set(d, static_cast<double>(kUnit)));
      code = hn::Add(floor, hn::IfThenElseZero(hn::Gt(hn::Sub(quotient, floor), chance), one));
    }
    code = hn::Max(hn::Min(code, high), low);
    hn::StoreU(hn::DemoteTo(i8, hn::DemoteTo(i32, code)), i8, codes + i);
  }
}

void quotients(const float* values, std::size_t count, const Rounding& rounding, std::uint64_t first, double levels,
               Block& block, float& scale, std::int8_t* codes) {
  const std::uint32_t largest = LargestMagnitudeBits(values, count);
  scale = largest < kInfinity ? scale_for(std::bit_cast<float>(largest), levels) : kNaN;
  if (!(scale > 0)) {
    std::memset(codes, 0, kSmallBlock);
    return;
  }
  block.take(values, count, rounding, first);
  rounding.stochastic ? codes_of_quotients<true>(block, scale, levels, codes)
                      : codes_of_quotients<false>(block, scale, levels, codes);
}

void EncodeInt8Block(const float* values, std::size_t count, std::uint64_t first, const Rounding& rounding,
                     std::byte* payload) {
  Block block;
  HWY_ALIGN std::int8_t codes[kSmallBlock];
  for (std::size_t at = 0; at < count; at += kSmallBlock) {
    const std::size_t here = count - at < kSmallBlock ? count - at : kSmallBlock;
    float scale;
    quotients(values + at, here, rounding, first + at, 127, block, scale, codes);
    std::memcpy(payload, &scale, sizeof scale);
    std::memcpy(payload + sizeof scale, codes, here);
    payload += sizeof scale + here;
  }
}

// Byte j: code j below, code j + half above.
void pack(const std::uint8_t* codes, std::size_t count, std::byte* out) {
  const std::size_t half = (count + 1) / 2;
  auto* to = reinterpret_cast<std::uint8_t*>(out);
  std::size_t j = 0;
#if HWY_TARGET != HWY_SCALAR
  const hn::CappedTag<std::uint8_t, kSmallBlock / 2> d;
  const hn::Repartition<std::uint16_t, decltype(d)> pairs;
  for (; count == kSmallBlock && j < half; j += hn::Lanes(d)) {
    const auto low = hn::And(hn::Load(d, codes + j), hn::Set(d, 15));
    const auto shifted = hn::BitCast(d, hn::ShiftLeft<4>(hn::BitCast(pairs, hn::Load(d, codes + j + half))));
    hn::StoreU(hn::Or(low, hn::And(shifted, hn::Set(d, 0xF0))), d, to + j);
  }
#endif
  for (; j < half; ++j) {
    const unsigned high = j + half < count ? codes[j + half] & 15u : 0u;
    to[j] = static_cast<std::uint8_t>((codes[j] & 15u) | high << 4);
  }
}

// The other way round. One code more than `count` is written where that is odd.
void unpack(const std::byte* in, std::size_t count, std::uint8_t* codes) {
  const std::size_t half = (count + 1) / 2;
  const auto* from = reinterpret_cast<const std::uint8_t*>(in);
  std::size_t j = 0;
#if HWY_TARGET != HWY_SCALAR
  const hn::CappedTag<std::uint8_t, kSmallBlock / 2> d;
  const hn::Repartition<std::uint16_t, decltype(d)> pairs;
  for (; count == kSmallBlock && j < half; j += hn::Lanes(d)) {
    const auto both = hn::LoadU(d, from + j);
    const auto shifted = hn::BitCast(d, hn::ShiftRight<4>(hn::BitCast(pairs, both)));
    hn::Store(hn::And(both, hn::Set(d, 15)), d, codes + j);
    hn::Store(hn::And(shifted, hn::Set(d, 15)), d, codes + j + half);
  }
#endif
  for (; j < half; ++j) {
    codes[j] = from[j] & 15u;
    codes[j + half] = static_cast<std::uint8_t>(from[j] >> 4);
  }
}

void EncodeInt4(const float* values, std::size_t count, std::uint64_t first, const Rounding& rounding, std::byte* payload) {
  Block block;
  HWY_ALIGN std::int8_t codes[kSmallBlock];
  for (std::size_t at = 0; at < count; at += kSmallBlock) {
    const std::size_t here = count - at < kSmallBlock ? count - at : kSmallBlock;
    float scale;
    quotients(values + at, here, rounding, first + at, 7, block, scale, codes);
    std::memcpy(payload, &scale, sizeof scale);
    pack(reinterpret_cast<const std::uint8_t*>(codes), here, payload + sizeof scale);
    payload += sizeof scale + (here + 1) / 2;
  }
}

// Decodes blocks of a scale and packed codes; `values_of(codes, scale, out)` makes a whole block of values.
template <typename ValuesOf>
HWY_INLINE void decode_nibbles(const std::byte* payload, std::size_t count, float* out, ValuesOf values_of) {
  HWY_ALIGN std::uint8_t codes[kSmallBlock] = {};
  HWY_ALIGN float last[kSmallBlock];
  for (std::size_t at = 0; at < count; at += kSmallBlock) {
    const std::size_t here = count - at < kSmallBlock ? count - at : kSmallBlock;
    float scale;
    std::memcpy(&scale, payload, sizeof scale);
    unpack(payload + sizeof scale, here, codes);
    if (here == kSmallBlock) {
      values_of(codes, scale, out + at);
    } else {
      values_of(codes, scale, last);
      std::memcpy(out + at, last, here * sizeof(float));
    }
    payload += sizeof scale + (here + 1) / 2;
  }
}

HWY_INLINE hn::Vec<Ints> load_codes(const std::uint8_t* codes) {
  return hn::PromoteTo(Ints(), hn::LoadU(hn::Rebind<std::uint8_t, Ints>(), codes));
}

void DecodeInt4(const std::byte* payload, std::size_t count, float* out) {
  decode_nibbles(payload, count, out, [](const std::uint8_t* codes, float scale, float* to) HWY_ATTR {
    const Ints d;
    const Floats f;
    const auto eight = hn::Set(d, 8);
    for (std::size_t i = 0; i < kSmallBlock; i += hn::Lanes(d)) {
      const auto code = hn::Sub(hn::Xor(load_codes(codes + i), eight), eight);
      hn::StoreU(hn::Mul(hn::Set(f, scale), hn::ConvertTo(f, code)), f, to + i);
    }
  });
}

// The codes of one block of e3m0 under its largest magnitude. Magnitudes and limits are compared as integers.
template <bool kRandom>
HWY_INLINE void codes_of_powers(const Block& block, float largest, std::uint8_t* codes) {
  const Floats f;
  const Ints d;
  const hn::Rebind<std::uint8_t, Ints> bytes;
  constexpr int kLevels = 7;
  hn::Vec<Ints> limits[kLevels];
  for (int k = 0; k < kLevels; ++k) {
    const float level = std::bit_cast<float>((121u + static_cast<std::uint32_t>(k)) << 23);  // 2^(k − 6)
    // Nearest: beyond the middle between this level and the one below (0 below the first). At random: from the level on.
    const float limit = kRandom ? largest * level : largest * (k == 0 ? level * 0.5f : level * 0.75f);
    limits[k] = hn::Set(d, std::bit_cast<std::int32_t>(limit) - (kRandom ? 1 : 0));
  }
  for (std::size_t i = 0; i < kSmallBlock; i += hn::Lanes(d)) {
    const auto bits = hn::BitCast(d, hn::LoadU(f, block.values + i));
    const auto magnitude = hn::And(bits, hn::Set(d, static_cast<std::int32_t>(kMagnitude)));
    auto code = hn::Zero(d);
    for (int k = 0; k < kLevels; ++k) code = hn::Sub(code, hn::VecFromMask(d, hn::Gt(magnitude, limits[k])));
    if constexpr (kRandom) {
      // From level e up to the next, by the share of the way that lies behind the value.
      const auto level = [&](hn::Vec<Ints> e) HWY_ATTR {
        const auto power = hn::BitCast(f, hn::ShiftLeft<23>(hn::Add(e, hn::Set(d, 120))));
        const auto zero = hn::Eq(e, hn::Zero(d));
        return hn::Mul(hn::Set(f, largest), hn::BitCast(f, hn::IfThenZeroElse(zero, hn::BitCast(d, power))));
      };
      const auto below = level(code);
      const auto above = level(hn::Min(hn::Add(code, hn::Set(d, 1)), hn::Set(d, kLevels)));
      const auto word = hn::ShiftRight<8>(hn::Load(Words(), block.random + i));
      const auto chance = hn::Mul(hn::ConvertTo(f, hn::BitCast(d, word)), hn::Set(f, kUnit));
      const auto up = hn::Gt(hn::Sub(hn::BitCast(f, magnitude), below), hn::Mul(chance, hn::Sub(above, below)));
      code = hn::Sub(code, hn::BitCast(d, hn::VecFromMask(f, up)));
      code = hn::Min(code, hn::Set(d, kLevels));
    }
    // The sign of what is not 0.
    const auto sign = hn::And(hn::BitCast(d, hn::ShiftRight<28>(hn::BitCast(Words(), bits))), hn::Set(d, 8));
    code = hn::Or(code, hn::IfThenZeroElse(hn::Eq(code, hn::Zero(d)), sign));
    hn::StoreU(hn::DemoteTo(bytes, code), bytes, codes + i);
  }
}

void EncodeE3m0(const float* values, std::size_t count, std::uint64_t first, const Rounding& rounding, std::byte* payload) {
  Block block;
  HWY_ALIGN std::uint8_t codes[kSmallBlock] = {};
  for (std::size_t at = 0; at < count; at += kSmallBlock) {
    const std::size_t here = count - at < kSmallBlock ? count - at : kSmallBlock;
    const std::uint32_t bits = LargestMagnitudeBits(values + at, here);
    const float largest = bits < kInfinity ? std::bit_cast<float>(bits) : kNaN;
    if (largest > 0) {
      block.take(values + at, here, rounding, first + at);
      rounding.stochastic ? codes_of_powers<true>(block, largest, codes) : codes_of_powers<false>(block, largest, codes);
    } else {
      std::memset(codes, 0, sizeof codes);
    }
    std::memcpy(payload, &largest, sizeof largest);
    pack(codes, here, payload + sizeof largest);
    payload += sizeof largest + (here + 1) / 2;
  }
}

void DecodeE3m0(const std::byte* payload, std::size_t count, float* out) {
  decode_nibbles(payload, count, out, [](const std::uint8_t* codes, float scale, float* to) HWY_ATTR {
    const Ints d;
    const Floats f;
    for (std::size_t i = 0; i < kSmallBlock; i += hn::Lanes(d)) {
      const auto code = load_codes(codes + i);
      const auto exponent = hn::And(code, hn::Set(d, 7));
      const auto sign = hn::ShiftLeft<28>(hn::And(code, hn::Set(d, 8)));
      const auto power = hn::ShiftLeft<23>(hn::Add(exponent, hn::Set(d, 120)));
      const auto factor = hn::Or(hn::IfThenZeroElse(hn::Eq(exponent, hn::Zero(d)), power), sign);
      hn::StoreU(hn::Mul(hn::Set(f, scale), hn::BitCast(f, factor)), f, to + i);
    }
  });
}

// ---- signs ----

double sum_of_magnitudes(const float* values, std::size_t count) {
  constexpr std::size_t kLanes = 8;  // element i goes to lane i mod 8
  const Doubles d;
  const hn::Rebind<float, Doubles> f;
  const std::size_t lanes = hn::Lanes(d);
  alignas(64) double sums[kLanes] = {};
  const std::size_t whole = count / kLanes * kLanes;
  for (std::size_t lane = 0; lane < kLanes; lane += lanes) {
    auto sum = hn::Zero(d);
    for (std::size_t i = lane; i < whole; i += kLanes) sum = hn::Add(sum, hn::PromoteTo(d, hn::Abs(hn::LoadU(f, values + i))));
    hn::StoreU(sum, d, sums + lane);
  }
  for (std::size_t i = whole; i < count; ++i) sums[i - whole] += static_cast<double>(std::abs(values[i]));
  return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

// A bit for each value: whether it decodes to minus the scale.
void EncodeSign(const float* values, std::size_t count, std::uint64_t first, const Rounding& rounding, std::byte* payload) {
  const hn::CappedTag<float, 8> d;
  const hn::RebindToSigned<decltype(d)> i32;
  const hn::RebindToUnsigned<decltype(d)> u32;
  const std::size_t lanes = hn::Lanes(d);
  HWY_ALIGN float padded[8];
  HWY_ALIGN std::uint32_t random[kLargeBlock];
  for (std::size_t at = 0; at < count; at += kLargeBlock) {
    const std::size_t here = count - at < kLargeBlock ? count - at : kLargeBlock;
    const float* block = values + at;
    const std::uint32_t bits = LargestMagnitudeBits(block, here);
    float scale = kNaN;
    if (bits < kInfinity) {
      scale = rounding.stochastic ? std::bit_cast<float>(bits)
                                  : static_cast<float>(sum_of_magnitudes(block, here) / static_cast<double>(here));
    }
    if (rounding.stochastic) RandomWords(rounding, first + at, random, kLargeBlock);
    std::memcpy(payload, &scale, sizeof scale);
    payload += sizeof scale;
    for (std::size_t i = 0; i < here; i += 8) {
      const float* from = block + i;
      if (here - i < 8) {
        std::memset(padded, 0, sizeof padded);
        std::memcpy(padded, from, (here - i) * sizeof(float));
        from = padded;
      }
      unsigned byte = 0;
      for (std::size_t lane = 0; lane < 8; lane += lanes) {
        const auto value = hn::LoadU(d, from + lane);
        auto negative = hn::Lt(value, hn::Zero(d));
        if (rounding.stochastic) {  // with the chance (1 − x/scale) / 2: where 2u − 1 is above x/scale
          const auto word = hn::BitCast(i32, hn::ShiftRight<8>(hn::LoadU(u32, random + i + lane)));
          const auto chance = hn::Sub(hn::Mul(hn::ConvertTo(d, word), hn::Set(d, 2 * kUnit)), hn::Set(d, 1.0f - kUnit));
          negative = hn::Gt(hn::Mul(chance, hn::Set(d, scale)), value);
        }
        std::uint8_t out[8] = {};
        hn::StoreMaskBits(d, negative, out);
        byte |= static_cast<unsigned>(out[0]) << lane;
      }
      if (here - i < 8) byte &= (1u << (here - i)) - 1u;
      *payload++ = static_cast<std::byte>(byte);
    }
  }
}

void DecodeSign(const std::byte* payload, std::size_t count, float* out) {
  const hn::CappedTag<std::uint32_t, 8> d;
  const hn::RebindToFloat<decltype(d)> f;
  const std::size_t lanes = hn::Lanes(d);
  HWY_ALIGN float last[8];
  for (std::size_t at = 0; at < count; at += kLargeBlock) {
    const std::size_t here = count - at < kLargeBlock ? count - at : kLargeBlock;
    std::uint32_t scale;
    std::memcpy(&scale, payload, sizeof scale);
    payload += sizeof scale;
    for (std::size_t i = 0; i < here; i += 8) {
      const auto byte = std::to_integer<std::uint32_t>(*payload++);
      float* to = here - i < 8 ? last : out + at + i;
      for (std::size_t lane = 0; lane < 8; lane += lanes) {
        const auto bit = hn::Shl(hn::Set(d, 1u), hn::Iota(d, static_cast<std::uint32_t>(lane)));
        const auto negative = hn::Ne(hn::And(hn::Set(d, byte), bit), hn::Zero(d));
        const auto sign = hn::And(hn::VecFromMask(d, negative), hn::Set(d, 0x80000000u));
        hn::StoreU(hn::BitCast(f, hn::Xor(hn::Set(d, scale), sign)), f, to + lane);
      }
      if (here - i < 8) std::memcpy(out + at + i, last, (here - i) * sizeof(float));
    }
  }
}

}  // namespace skerry::codec_kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace skerry::codec_kernels {

HWY_EXPORT(RandomWords);
HWY_EXPORT(LargestMagnitudeBits);
HWY_EXPORT(MagnitudeBits);
HWY_EXPORT(CountFrom);
HWY_EXPORT(EncodeBf16AtRandom);
HWY_EXPORT(EncodeF16);
HWY_EXPORT(DecodeF16);
HWY_EXPORT(EncodeInt8Block);
HWY_EXPORT(EncodeInt4);
HWY_EXPORT(DecodeInt4);
HWY_EXPORT(EncodeE3m0);
HWY_EXPORT(DecodeE3m0);
HWY_EXPORT(EncodeSign);
HWY_EXPORT(DecodeSign);

namespace {

// Element-wise encodings at random: so many words at a time.
constexpr std::size_t kWordsAtOnce = 1024;

template <typename Encode>
void with_words(std::span<const float> values, std::uint64_t first, const Rounding& rounding, Encode encode) {
  std::uint32_t words[kWordsAtOnce];
  for (std::size_t at = 0; at < values.size(); at += kWordsAtOnce) {
    const std::size_t here = std::min(kWordsAtOnce, values.size() - at);
    random_words(rounding, first + at, {words, here});
    encode(at, here, words);
  }
}

}  // namespace

void random_words(const Rounding& rounding, std::uint64_t first, std::span<std::uint32_t> words) {
  HWY_DYNAMIC_DISPATCH(RandomWords)(rounding, first, words.data(), words.size());
}

std::uint32_t largest_magnitude_bits(std::span<const float> values) {
  return HWY_DYNAMIC_DISPATCH(LargestMagnitudeBits)(values.data(), values.size());
}

void magnitude_bits(std::span<const float> values, std::uint32_t* bits) {
  HWY_DYNAMIC_DISPATCH(MagnitudeBits)(values.data(), values.size(), bits);
}

std::size_t count_from(std::span<const std::uint32_t> bits, std::uint32_t limit) {
  return HWY_DYNAMIC_DISPATCH(CountFrom)(bits.data(), bits.size(), limit);
}

void encode_bf16_at_random(std::span<const float> values, std::uint64_t first, const Rounding& rounding,
                           std::byte* payload) {
  with_words(values, first, rounding, [&](std::size_t at, std::size_t count, const std::uint32_t* words) {
    HWY_DYNAMIC_DISPATCH(EncodeBf16AtRandom)(values.data() + at, count, words, payload + 2 * at);
  });
}

void encode_f16(std::span<const float> values, std::uint64_t first, const Rounding& rounding, std::byte* payload) {
  if (!rounding.stochastic) return HWY_DYNAMIC_DISPATCH(EncodeF16)(values.data(), values.size(), nullptr, payload);
  with_words(values, first, rounding, [&](std::size_t at, std::size_t count, const std::uint32_t* words) {
    HWY_DYNAMIC_DISPATCH(EncodeF16)(values.data() + at, count, words, payload + 2 * at);
  });
}

void decode_f16(const std::byte* payload, std::span<float> out) {
  HWY_DYNAMIC_DISPATCH(DecodeF16)(payload, out.size(), out.data());
}

void encode_int8_block(std::span<const float> values, std::uint64_t first, const Rounding& rounding,
                       std::byte* payload) {
  HWY_DYNAMIC_DISPATCH(EncodeInt8Block)(values.data(), values.size(), first, rounding, payload);
}

void encode_int4(std::span<const float> values, std::uint64_t first, const Rounding& rounding, std::byte* payload) {
  HWY_DYNAMIC_DISPATCH(EncodeInt4)(values.data(), values.size(), first, rounding, payload);
}

void decode_int4(const std::byte* payload, std::span<float> out) {
  HWY_DYNAMIC_DISPATCH(DecodeInt4)(payload, out.size(), out.data());
}

void encode_e3m0(std::span<const float> values, std::uint64_t first, const Rounding& rounding, std::byte* payload) {
  HWY_DYNAMIC_DISPATCH(EncodeE3m0)(values.data(), values.size(), first, rounding, payload);
}

void decode_e3m0(const std::byte* payload, std::span<float> out) {
  HWY_DYNAMIC_DISPATCH(DecodeE3m0)(payload, out.size(), out.data());
}

void encode_sign(std::span<const float> values, std::uint64_t first, const Rounding& rounding, std::byte* payload) {
  HWY_DYNAMIC_DISPATCH(EncodeSign)(values.data(), values.size(), first, rounding, payload);
}

void decode_sign(const std::byte* payload, std::span<float> out) {
  HWY_DYNAMIC_DISPATCH(DecodeSign)(payload, out.size(), out.data());
}

}  // namespace skerry::codec_kernels
#endif  // HWY_ONCE
