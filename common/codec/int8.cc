#include "common/codec/int8.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

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

void encode_with_codebook(std::span<const float> values, std::span<std::byte> payload) {
  const double squares = sum_of_squares(values);
  std::array<float, kCodes> codebook{};
  std::byte* codes = payload.data() + Int8::kCodebookBytes;
  if (std::isfinite(squares)) {
    const double deviation = std::sqrt(squares / static_cast<double>(std::max<std::size_t>(values.size() - 1, 1)));
    const double per_step = deviation > 0 ? kCodes / (kStandardDeviations * deviation) : 0.0;
    std::array<double, kCodes> sums{};
    std::array<std::uint32_t, kCodes> counts{};
    for (std::size_t i = 0; i < values.size(); ++i) {
      const auto code = static_cast<std::uint8_t>(rounded(double{values[i]} * per_step, -128, 127) + 128);
      codes[i] = std::byte{code};
      sums[code] += double{values[i]};
      ++counts[code];
    }
    for (std::size_t code = 0; code < kCodes; ++code) {
      if (counts[code] > 0) codebook[code] = static_cast<float>(sums[code] / counts[code]);
    }
  } else {
    codebook.fill(std::numeric_limits<float>::quiet_NaN());
    std::fill_n(codes, values.size(), std::byte{128});
  }
  std::memcpy(payload.data(), codebook.data(), Int8::kCodebookBytes);
}

void encode_with_scale(std::span<const float> values, std::span<std::byte> payload) {
  float largest = 0;
  bool finite = true;
  for (const float value : values) {
    finite = finite && std::isfinite(value);
    largest = std::max(largest, std::abs(value));
  }
  // The smallest f32 that is at least largest / 127: the product with 127 is exact in float64.
  auto scale = static_cast<float>(double{largest} / 127.0);
  if (double{scale} * 127.0 < double{largest}) scale = std::nextafter(scale, std::numeric_limits<float>::max());
  scale = finite ? std::min(scale, kLargestScale) : std::numeric_limits<float>::quiet_NaN();
  std::memcpy(payload.data(), &scale, sizeof scale);
  std::byte* codes = payload.data() + Int8Block::kScaleBytes;
  const bool zeros = !finite || scale == 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    codes[i] = std::byte{zeros ? std::uint8_t{0} : rounded(double{values[i]} / double{scale}, -127, 127)};
  }
}

std::string elements_text(std::uint64_t first, std::uint64_t count) {
  return "elements " + std::to_string(first) + " to " + std::to_string(first + count - 1);
}

std::string value_text(float value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "+infinity" : "-infinity";
  return std::to_string(value);
}

}  // namespace

std::uint64_t Int8::encoded_bytes(std::uint64_t count) const {
  return count + (count + kBlock - 1) / kBlock * kCodebookBytes;
}

void Int8::encode(std::span<const float> values, std::uint64_t first, const Rounding& /*rounding*/,
                  std::span<std::byte> payload) const {
  assert(first % kBlock == 0 && payload.size() == encoded_bytes(values.size()));
  (void)first;
  while (!values.empty()) {
    const std::size_t count = std::min<std::size_t>(kBlock, values.size());
    encode_with_codebook(values.first(count), payload.first(kCodebookBytes + count));
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

void Int8Block::encode(std::span<const float> values, std::uint64_t first, const Rounding& /*rounding*/,
                       std::span<std::byte> payload) const {
  assert(first % kBlock == 0 && payload.size() == encoded_bytes(values.size()));
  (void)first;
  while (!values.empty()) {
    const std::size_t count = std::min<std::size_t>(kBlock, values.size());
    encode_with_scale(values.first(count), payload.first(kScaleBytes + count));
    values = values.subspan(count);
    payload = payload.subspan(kScaleBytes + count);
  }
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
    float scale;
    std::memcpy(&scale, payload.data() + encoded_bytes(at), sizeof scale);
    if (!std::signbit(scale) && scale <= kLargestScale) continue;
    return invalid_argument("int8_block payload: the scale of " +
                            elements_text(first + at, std::min(kBlock, count - at)) + " is " + value_text(scale) +
                            ", must be in [0, 2.6584559e36]");
  }
  return {};
}

}  // namespace skerry
