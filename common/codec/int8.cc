#include "common/codec/int8.h"

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
#include "common/tensor/kernels.h"

namespace skerry {
namespace {

constexpr std::uint64_t kCodes = 256;
constexpr double kStandardDeviations = 6.0;  // from the lowest code to the highest
// Added to a number of at most 2³¹ it leaves the nearest integer in the sum's low bits, ties to even.
constexpr double kRounds = 6755399441055744.0;  // 1.5 · 2⁵²
constexpr float kLargestScale = std::numeric_limits<float>::max() / 128;  // times any code it is finite

// The nearest integer of a value within `low` … `high`, as the low byte of its two's complement.
std::uint8_t rounded(double value, double low, double high) {
  return static_cast<std::uint8_t>(std::bit_cast<std::uint64_t>(std::clamp(value, low, high) + kRounds));
}

// Σ x² in eight lanes, element i in lane i mod 8, so that the sum's bits are specified and vectors can form it.
double sum_of_squares(std::span<const float> values) {
  std::array<double, 8> sums{};
  std::size_t i = 0;
  for (; i + 8 <= values.size(); i += 8) {
    for (std::size_t lane = 0; lane < 8; ++lane) sums[lane] += double{values[i + lane]} * double{values[i + lane]};
  }
  for (; i < values.size(); ++i) sums[i % 8] += double{values[i]} * double{values[i]};
  return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

struct Codes {
  std::array<float, kCodes> codebook{};
  std::byte* codes = nullptr;
};

void encode_to_nearest(std::span<const float> values, double per_step, Codes& out) {
  std::array<double, kCodes> sums{};
  std::array<std::uint32_t, kCodes> counts{};
  for (std::size_t i = 0; i < values.size(); ++i) {
    const auto code = static_cast<std::uint8_t>(rounded(double{values[i]} * per_step, -128, 127) + 128);
    out.codes[i] = std::byte{code};
    sums[code] += double{values[i]};
    ++counts[code];
  }
  for (std::size_t code = 0; code < kCodes; ++code) {
    if (counts[code] > 0) out.codebook[code] = static_cast<float>(sums[code] / counts[code]);
  }
}

// Between the evenly spaced entries of the codebook, whose first and last reach to the block's extremes.
void encode_at_random(std::span<const float> values, double per_step, std::uint64_t first, const Rounding& rounding,
                      Codes& out) {
  if (per_step == 0) {
    std::fill_n(out.codes, values.size(), std::byte{128});
    return;
  }
  for (std::size_t code = 0; code < kCodes; ++code) {
    out.codebook[code] = static_cast<float>((static_cast<double>(code) - 128) / per_step);
  }
  const auto [lowest, highest] = std::minmax_element(values.begin(), values.end());
  out.codebook.front() = std::min(out.codebook.front(), *lowest);
  out.codebook.back() = std::max(out.codebook.back(), *highest);
  std::array<std::uint32_t, 1024> words;
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (i % words.size() == 0) {
      codec_kernels::random_words(rounding, first + i, {words.data(), std::min(words.size(), values.size() - i)});
    }
    // The entry at or below the value: its place by the spacing, put right where roundings misplaced it.
    auto code = static_cast<std::size_t>(std::clamp(std::floor(double{values[i]} * per_step), -128.0, 126.0) + 128);
    if (out.codebook[code] > values[i]) --code;
    else if (code < kCodes - 2 && out.codebook[code + 1] <= values[i]) ++code;
    const double below = out.codebook[code];
    const double share = (double{values[i]} - below) / (double{out.codebook[code + 1]} - below);
    if (share > (words[i % words.size()] >> 8) * 0x1p-24) ++code;
    out.codes[i] = static_cast<std::byte>(code);
  }
}

void encode_block(std::span<const float> values, std::uint64_t first, const Rounding& rounding,
                  std::span<std::byte> payload) {
  const double squares = sum_of_squares(values);
  Codes out;
  out.codes = payload.data() + Int8::kCodebookBytes;
  if (std::isfinite(squares)) {
    const double deviation = std::sqrt(squares / static_cast<double>(std::max<std::size_t>(values.size() - 1, 1)));
    const double per_step = deviation > 0 ? kCodes / (kStandardDeviations * deviation) : 0.0;
    rounding.stochastic ? encode_at_random(values, per_step, first, rounding, out)
                        : encode_to_nearest(values, per_step, out);
  } else {
    out.codebook.fill(std::numeric_limits<float>::quiet_NaN());
    std::fill_n(out.codes, values.size(), std::byte{128});
  }
  std::memcpy(payload.data(), out.codebook.data(), Int8::kCodebookBytes);
}

}  // namespace

std::uint64_t Int8::encoded_bytes(std::uint64_t count) const {
  return count + (count + kBlock - 1) / kBlock * kCodebookBytes;
}

void Int8::encode(std::span<const float> values, std::uint64_t first, const Rounding& rounding,
                  std::span<std::byte> payload) const {
  assert(first % kBlock == 0 && payload.size() == encoded_bytes(values.size()));
  while (!values.empty()) {
    const std::size_t count = std::min<std::size_t>(kBlock, values.size());
    encode_block(values.first(count), first, rounding, payload.first(kCodebookBytes + count));
    first += count;
    values = values.subspan(count);
    payload = payload.subspan(kCodebookBytes + count);
  }
}

void Int8::decode(std::span<const std::byte> payload, std::span<float> out) const {
  assert(payload.size() == encoded_bytes(out.size()));
  decode_at(*this, payload, 0, out);
}

void Int8::decode_part(std::span<const std::byte> prefix, std::span<const std::byte> values, std::span<float> out) const {
  assert(prefix.size() == kCodebookBytes && values.size() == out.size());
  std::array<float, kCodes> codebook;
  std::memcpy(codebook.data(), prefix.data(), kCodebookBytes);
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = codebook[std::to_integer<std::uint8_t>(values[i])];
}

Result<void> Int8::validate(std::span<const std::byte> payload, std::uint64_t first, std::uint64_t count) const {
  SKERRY_TRY(check_payload_size(*this, payload, count));
  for (std::uint64_t at = 0; at < count; at += kBlock) {
    const auto codebook = payload.subspan(encoded_bytes(at), kCodebookBytes);
    const std::uint64_t bad = first_non_finite_f32(codebook);
    if (bad == kCodes) continue;
    float value;
    std::memcpy(&value, codebook.data() + 4 * bad, sizeof value);
    return invalid_argument("int8 payload: in the codebook of " + elements_text(first + at, std::min(kBlock, count - at)) +
                            " code " + std::to_string(bad) + " is " + value_text(value) + ", must be finite");
  }
  return {};
}

std::uint64_t Int8Block::encoded_bytes(std::uint64_t count) const {
  return count + (count + kBlock - 1) / kBlock * kScaleBytes;
}

void Int8Block::encode(std::span<const float> values, std::uint64_t first, const Rounding& rounding,
                       std::span<std::byte> payload) const {
  assert(first % kBlock == 0 && payload.size() == encoded_bytes(values.size()));
  codec_kernels::encode_int8_block(values, first, rounding, payload.data());
}

void Int8Block::decode(std::span<const std::byte> payload, std::span<float> out) const {
  assert(payload.size() == encoded_bytes(out.size()));
  while (!out.empty()) {
    const std::size_t count = std::min<std::size_t>(kBlock, out.size());
    float scale;
    std::memcpy(&scale, payload.data(), sizeof scale);
    scale_int8(payload.subspan(kScaleBytes, count), scale, out.first(count));
    payload = payload.subspan(kScaleBytes + count);
    out = out.subspan(count);
  }
}

Result<void> Int8Block::validate(std::span<const std::byte> payload, std::uint64_t first, std::uint64_t count) const {
  SKERRY_TRY(check_payload_size(*this, payload, count));
  for (std::uint64_t at = 0; at < count; at += kBlock) {
    SKERRY_TRY(check_scale(*this, payload.subspan(encoded_bytes(at)), kLargestScale, first + at, std::min(kBlock, count - at)));
  }
  return {};
}

}  // namespace skerry
