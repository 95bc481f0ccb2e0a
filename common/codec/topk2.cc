#include "common/codec/topk2.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "common/codec/kernels.h"
#include "common/codec/payload_check.h"
#include "common/codec/philox.h"

namespace skerry {
namespace {

constexpr std::size_t kIndexBits = 12;
constexpr std::uint32_t kInfinity = 0x7F800000u;

std::size_t kept_in(std::size_t count) { return (count + TopK2::kKept - 1) / TopK2::kKept; }
std::size_t index_bytes(std::size_t kept) { return (kIndexBits * kept + 7) / 8; }
std::size_t chunk_bytes(std::size_t count) {
  const std::size_t kept = kept_in(count);
  return TopK2::kMagnitudeBytes + index_bytes(kept) + (2 * kept + 7) / 8;
}

unsigned byte_at(const std::byte* bytes, std::size_t at) { return std::to_integer<unsigned>(bytes[at]); }

// Index i is the bits 12·i … 12·i + 11 of the bytes read as one little-endian number: two of them are three bytes.
std::uint32_t index_at(const std::byte* indices, std::size_t i) {
  const std::byte* at = indices + i / 2 * 3;
  return i % 2 == 0 ? byte_at(at, 0) | (byte_at(at, 1) & 15u) << 8 : byte_at(at, 1) >> 4 | byte_at(at, 2) << 4;
}

void put_index(std::byte* indices, std::size_t i, std::uint32_t index) {
  std::byte* at = indices + i / 2 * 3;
  if (i % 2 == 0) {
    at[0] = static_cast<std::byte>(index);
    at[1] = static_cast<std::byte>(index >> 8);
  } else {
    at[1] |= static_cast<std::byte>((index & 15u) << 4);
    at[2] = static_cast<std::byte>(index >> 4);
  }
}

// The indices of the `kept` largest magnitudes, ascending; of equal ones at the border the first are taken.
void choose(std::span<const std::uint32_t> bits, std::size_t kept, std::uint32_t* indices) {
  std::uint32_t limit = 0;  // the largest that at least `kept` reach, found bit by bit
  for (std::uint32_t bit = 1u << 30; bit != 0; bit >>= 1) {
    if (codec_kernels::count_from(bits, limit | bit) >= kept) limit |= bit;
  }
  std::size_t ties = kept - (limit == 0x7FFFFFFFu ? 0 : codec_kernels::count_from(bits, limit + 1));
  for (std::uint32_t i = 0, found = 0; found < kept; ++i) {
    if (bits[i] < limit || (bits[i] == limit && ties == 0)) continue;
    if (bits[i] == limit) --ties;
    indices[found++] = i;
  }
}

struct Magnitudes {
  float low = 0;
  float high = 0;
  std::uint32_t high_from = 0;  // bits of the smallest magnitude that is rounded to `high`
};

// The two values that differ least from the magnitudes, in squares: the means of a lower and a higher part of them.
Magnitudes nearest_two(std::span<const std::uint32_t> bits) {
  std::array<std::uint32_t, TopK2::kKept> sorted;
  std::copy(bits.begin(), bits.end(), sorted.begin());
  std::sort(sorted.begin(), sorted.begin() + static_cast<std::ptrdiff_t>(bits.size()));
  double total = 0;
  for (std::size_t i = 0; i < bits.size(); ++i) total += double{std::bit_cast<float>(sorted[i])};
  const auto count = static_cast<double>(bits.size());
  Magnitudes best{static_cast<float>(total / count), static_cast<float>(total / count), 0};
  double most = -1;
  double below = 0;
  for (std::size_t split = 1; split < bits.size(); ++split) {
    below += double{std::bit_cast<float>(sorted[split - 1])};
    if (sorted[split] == sorted[split - 1]) continue;
    const auto low_count = static_cast<double>(split);
    const double low = below / low_count;
    const double high = (total - below) / (count - low_count);
    const double explained = below * low + (total - below) * high;
    if (explained <= most) continue;
    most = explained;
    best = {static_cast<float>(low), static_cast<float>(high), sorted[split]};
  }
  return best;
}

float uniform(const Rounding& rounding, std::uint64_t element) {
  const std::uint64_t counter = element / 4;
  const auto words = philox({static_cast<std::uint32_t>(counter), static_cast<std::uint32_t>(counter >> 32),
                             static_cast<std::uint32_t>(rounding.stream), static_cast<std::uint32_t>(rounding.stream >> 32)},
                            {static_cast<std::uint32_t>(rounding.seed), static_cast<std::uint32_t>(rounding.seed >> 32)});
  return static_cast<float>(words[element % 4] >> 8) * 0x1p-24f;
}

void encode_chunk(std::span<const float> values, std::uint64_t first, const Rounding& rounding, std::byte* out) {
  const std::size_t kept = kept_in(values.size());
  std::memset(out, 0, chunk_bytes(values.size()));
  std::byte* indices = out + TopK2::kMagnitudeBytes;
  std::byte* codes = indices + index_bytes(kept);
  std::array<std::uint32_t, TopK2::kChunk> bits;
  codec_kernels::magnitude_bits(values, bits.data());
  std::array<std::uint32_t, TopK2::kKept> chosen;
  choose({bits.data(), values.size()}, kept, chosen.data());
  std::array<std::uint32_t, TopK2::kKept> own;
  for (std::size_t i = 0; i < kept; ++i) own[i] = bits[chosen[i]];
  const auto [smallest, largest] = std::minmax_element(own.begin(), own.begin() + static_cast<std::ptrdiff_t>(kept));
  Magnitudes magnitudes;
  if (*largest >= kInfinity) {
    magnitudes.low = magnitudes.high = std::numeric_limits<float>::quiet_NaN();
  } else if (rounding.stochastic) {
    magnitudes = {std::bit_cast<float>(*smallest), std::bit_cast<float>(*largest), 0};
  } else {
    magnitudes = nearest_two({own.data(), kept});
  }
  std::memcpy(out, &magnitudes.low, sizeof(float));
  std::memcpy(out + sizeof(float), &magnitudes.high, sizeof(float));
  for (std::size_t i = 0; i < kept; ++i) {
    const float magnitude = std::bit_cast<float>(own[i]);
    bool high = own[i] >= magnitudes.high_from;
    if (rounding.stochastic) {
      high = magnitude - magnitudes.low > uniform(rounding, first + chosen[i]) * (magnitudes.high - magnitudes.low);
    }
    put_index(indices, i, chosen[i]);
    const unsigned code = (high ? 1u : 0u) | (values[chosen[i]] < 0 ? 2u : 0u);
    codes[i / 4] |= static_cast<std::byte>(code << 2 * (i % 4));
  }
}

}  // namespace

std::uint64_t TopK2::encoded_bytes(std::uint64_t count) const {
  const std::uint64_t rest = count % kChunk;
  return count / kChunk * kChunkBytes + (rest == 0 ? 0 : chunk_bytes(rest));
}

void TopK2::encode(std::span<const float> values, std::uint64_t first, const Rounding& rounding,
                   std::span<std::byte> payload) const {
  assert(first % kChunk == 0 && payload.size() == encoded_bytes(values.size()));
  std::byte* out = payload.data();
  for (std::size_t at = 0; at < values.size(); at += kChunk) {
    const std::size_t count = std::min<std::size_t>(kChunk, values.size() - at);
    encode_chunk(values.subspan(at, count), first + at, rounding, out);
    out += kChunkBytes;
  }
}

std::size_t TopK2::kept_of(const std::byte* chunk, std::size_t count, Kept* kept) {
  const std::size_t number = kept_in(count);
  const std::byte* indices = chunk + kMagnitudeBytes;
  const std::byte* codes = indices + index_bytes(number);
  std::array<float, 4> values;
  std::memcpy(values.data(), chunk, kMagnitudeBytes);
  values[2] = -values[0];
  values[3] = -values[1];
  for (std::size_t i = 0; i < number; ++i) {
    kept[i] = {index_at(indices, i), values[byte_at(codes, i / 4) >> 2 * (i % 4) & 3u]};
  }
  return number;
}

void TopK2::decode(std::span<const std::byte> payload, std::span<float> out) const {
  assert(payload.size() == encoded_bytes(out.size()));
  std::fill(out.begin(), out.end(), 0.0f);
  std::array<Kept, kKept> kept;
  const std::byte* chunk = payload.data();
  for (std::size_t at = 0; at < out.size(); at += kChunk) {
    const std::size_t count = std::min<std::size_t>(kChunk, out.size() - at);
    const std::size_t number = kept_of(chunk, count, kept.data());
    for (std::size_t i = 0; i < number; ++i) {
      if (kept[i].index < count) out[at + kept[i].index] = kept[i].value;
    }
    chunk += kChunkBytes;
  }
}

Result<void> TopK2::validate(std::span<const std::byte> payload, std::uint64_t first, std::uint64_t count) const {
  SKERRY_TRY(check_payload_size(*this, payload, count));
  for (std::uint64_t at = 0; at < count; at += kChunk) {
    const std::size_t here = std::min(kChunk, count - at);
    const auto chunk = payload.subspan(encoded_bytes(at), chunk_bytes(here));
    const std::size_t kept = kept_in(here);
    float low;
    float high;
    std::memcpy(&low, chunk.data(), sizeof low);
    std::memcpy(&high, chunk.data() + sizeof low, sizeof high);
    const auto refused = [&](const std::string& what) {
      return invalid_argument("topk2 payload: " + elements_text(first + at, here) + ": " + what);
    };
    if (std::signbit(low) || !std::isfinite(high) || !(low <= high)) {
      return refused("the magnitudes are " + value_text(low) + " and " + value_text(high) +
                     ", must be finite, at least 0 and in ascending order");
    }
    const std::byte* indices = chunk.data() + kMagnitudeBytes;
    std::uint32_t before = 0;
    for (std::size_t i = 0; i < kept; ++i) {
      const std::uint32_t index = index_at(indices, i);
      if (index >= here || (i > 0 && index <= before)) {
        return refused("index " + std::to_string(i) + " is " + std::to_string(index) + ", must be below " +
                       std::to_string(here) + " and above the one before");
      }
      before = index;
    }
    // Short chunks have bits that nothing is said in.
    const bool odd_index = kept % 2 == 1 && byte_at(indices, index_bytes(kept) - 1) >> 4 != 0;
    const bool odd_code = kept % 4 != 0 && byte_at(chunk.data(), chunk.size() - 1) >> 2 * (kept % 4) != 0;
    if (odd_index || odd_code) return refused("bits after the last index or value are not 0");
  }
  return {};
}

}  // namespace skerry
