#include "common/codec/encoding.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>

#include "common/codec/int8.h"
#include "common/codec/kernels.h"
#include "common/codec/nibbles.h"
#include "common/codec/payload_check.h"
#include "common/codec/sign.h"
#include "common/codec/topk2.h"
#include "common/tensor/dtype.h"
#include "common/tensor/kernels.h"

static_assert(std::endian::native == std::endian::little, "payloads are little-endian, and so must be the machine");

namespace skerry {
namespace {

Error not_finite(const Encoding& encoding, std::uint64_t element, float value) {
  return invalid_argument(std::string(encoding.name()) + " payload: element " + std::to_string(element) + " is " +
                          value_text(value) + ", must be finite");
}

class F32 final : public Encoding {
 public:
  std::string_view name() const override { return "f32"; }
  std::uint64_t block_elements() const override { return 1; }
  std::uint64_t encoded_bytes(std::uint64_t count) const override { return 4 * count; }
  ErrorBound error_bound(bool /*stochastic*/) const override { return {0.0, 0.0, 0.0, true}; }

  void encode(std::span<const float> values, std::uint64_t /*first*/, const Rounding& /*rounding*/,
              std::span<std::byte> payload) const override {
    assert(payload.size() == encoded_bytes(values.size()));
    if (!values.empty()) std::memcpy(payload.data(), values.data(), payload.size());
  }

  void decode(std::span<const std::byte> payload, std::span<float> out) const override {
    assert(payload.size() == encoded_bytes(out.size()));
    if (!out.empty()) std::memcpy(out.data(), payload.data(), payload.size());
  }

  Result<void> validate(std::span<const std::byte> payload, std::uint64_t first, std::uint64_t count) const override {
    SKERRY_TRY(check_payload_size(*this, payload, count));
    const std::uint64_t bad = first_non_finite_f32(payload);
    if (bad == count) return {};
    float value;
    std::memcpy(&value, payload.data() + 4 * bad, sizeof value);
    return not_finite(*this, first + bad, value);
  }
};

class Bf16 final : public Encoding {
 public:
  std::string_view name() const override { return "bf16"; }
  std::uint64_t block_elements() const override { return 1; }
  std::uint64_t encoded_bytes(std::uint64_t count) const override { return 2 * count; }
  ErrorBound error_bound(bool stochastic) const override {
    return {stochastic ? 0x1p-7 : 0x1p-8, stochastic ? 0x1p-133 : 0x1p-134, 0.0, stochastic};
  }

  void encode(std::span<const float> values, std::uint64_t first, const Rounding& rounding,
              std::span<std::byte> payload) const override {
    assert(payload.size() == encoded_bytes(values.size()));
    if (rounding.stochastic) return codec_kernels::encode_bf16_at_random(values, first, rounding, payload.data());
    round_to_bf16(values, payload);
  }

  void decode(std::span<const std::byte> payload, std::span<float> out) const override {
    assert(payload.size() == encoded_bytes(out.size()));
    widen_bf16(payload, out);
  }

  Result<void> validate(std::span<const std::byte> payload, std::uint64_t first, std::uint64_t count) const override {
    SKERRY_TRY(check_payload_size(*this, payload, count));
    const std::uint64_t bad = first_non_finite_bf16(payload);
    if (bad == count) return {};
    std::uint16_t bits;
    std::memcpy(&bits, payload.data() + 2 * bad, sizeof bits);
    return not_finite(*this, first + bad, bf16_to_f32(bits));
  }
};

class F16 final : public Encoding {
 public:
  std::string_view name() const override { return "f16"; }
  std::uint64_t block_elements() const override { return 1; }
  std::uint64_t encoded_bytes(std::uint64_t count) const override { return 2 * count; }
  ErrorBound error_bound(bool stochastic) const override {
    return {stochastic ? 0x1p-10 : 0x1p-11, stochastic ? 0x1p-24 : 0x1p-25, 0.0, stochastic, kLargestF16};
  }

  void encode(std::span<const float> values, std::uint64_t first, const Rounding& rounding,
              std::span<std::byte> payload) const override {
    assert(payload.size() == encoded_bytes(values.size()));
    codec_kernels::encode_f16(values, first, rounding, payload.data());
  }

  void decode(std::span<const std::byte> payload, std::span<float> out) const override {
    assert(payload.size() == encoded_bytes(out.size()));
    codec_kernels::decode_f16(payload.data(), out);
  }

  Result<void> validate(std::span<const std::byte> payload, std::uint64_t first, std::uint64_t count) const override {
    SKERRY_TRY(check_payload_size(*this, payload, count));
    for (std::uint64_t i = 0; i < count; ++i) {
      if ((std::to_integer<unsigned>(payload[2 * i + 1]) & 0x7Cu) != 0x7Cu) continue;
      float value;
      decode(payload.subspan(2 * i, 2), {&value, 1});
      return not_finite(*this, first + i, value);
    }
    return {};
  }

 private:
  static constexpr double kLargestF16 = 65504;
};

const F32 kF32;
const Bf16 kBf16;
const F16 kF16;
const Int8 kInt8;
const Int8Block kInt8Block;
const Int4 kInt4;
const E3m0 kE3m0;
const TopK2 kTopK2;
const Sign kSign;
const std::array<const Encoding*, 9> kEncodings{&kF32,  &kBf16, &kF16,   &kInt8, &kInt8Block,
                                                &kInt4, &kE3m0, &kTopK2, &kSign};

}  // namespace

void Encoding::decode_part(std::span<const std::byte> prefix, std::span<const std::byte> values,
                           std::span<float> out) const {
  assert(prefix.empty());
  decode(values, out);
}

Result<void> check_payload_size(const Encoding& encoding, std::span<const std::byte> payload, std::uint64_t count) {
  if (payload.size() == encoding.encoded_bytes(count)) return {};
  return invalid_argument(std::string(encoding.name()) + " payload of " + std::to_string(count) + " elements has " +
                          std::to_string(payload.size()) + " bytes, must have " +
                          std::to_string(encoding.encoded_bytes(count)));
}

Result<void> check_scale(const Encoding& encoding, std::span<const std::byte> block, float largest, std::uint64_t first,
                         std::uint64_t count) {
  float scale;
  std::memcpy(&scale, block.data(), sizeof scale);
  if (!std::signbit(scale) && scale <= largest) return {};
  char limit[24];
  std::snprintf(limit, sizeof limit, "%.8g", static_cast<double>(largest));
  return invalid_argument(std::string(encoding.name()) + " payload: the scale of " + elements_text(first, count) + " is " +
                          value_text(scale) + ", must be in [0, " + limit + "]");
}

std::string elements_text(std::uint64_t first, std::uint64_t count) {
  return "elements " + std::to_string(first) + " to " + std::to_string(first + count - 1);
}

std::string value_text(float value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "+infinity" : "-infinity";
  return std::to_string(value);
}

PartPlace part_place(const Encoding& encoding, std::uint64_t first, std::uint64_t most) {
  assert(first % encoding.part_elements() == 0);
  if (encoding.prefix_bytes() == 0) {  // blocks lie side by side like parts
    return {0, encoding.encoded_bytes(first), encoding.encoded_bytes(most), most};
  }
  const std::uint64_t within = first % encoding.block_elements();
  const std::uint64_t block = encoding.encoded_bytes(first - within);
  const std::uint64_t skipped = within == 0 ? encoding.prefix_bytes() : encoding.encoded_bytes(within);
  const std::uint64_t elements = std::min(most, encoding.block_elements() - within);
  return {block, block + skipped, encoding.encoded_bytes(within + elements) - skipped, elements};
}

void decode_at(const Encoding& encoding, std::span<const std::byte> payload, std::uint64_t first, std::span<float> out) {
  while (!out.empty()) {
    const PartPlace part = part_place(encoding, first, out.size());
    encoding.decode_part(payload.subspan(part.prefix, encoding.prefix_bytes()), payload.subspan(part.values, part.bytes),
                         out.first(part.elements));
    first += part.elements;
    out = out.subspan(part.elements);
  }
}

void add_scaled(const float* residual, double share, std::size_t count, float* values) {
  for (std::size_t i = 0; i < count; ++i) {
    values[i] = static_cast<float>(share * static_cast<double>(residual[i]) + static_cast<double>(values[i]));
  }
}

void subtract(const float* sent, std::size_t count, float* residual) {
  for (std::size_t i = 0; i < count; ++i) residual[i] -= sent[i];
}

std::uint64_t rounding_stream(std::string_view fragment) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : fragment) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}

Result<const Encoding*> find_encoding(std::string_view name) {
  std::string known;
  for (const Encoding* encoding : kEncodings) {
    if (encoding->name() == name) return encoding;
    known += known.empty() ? "" : ", ";
    known += encoding->name();
  }
  return invalid_argument("encoding \"" + std::string(name.substr(0, 60)) + "\" is not known, only " + known);
}

std::vector<std::string_view> known_encodings() {
  std::vector<std::string_view> names;
  for (const Encoding* encoding : kEncodings) names.push_back(encoding->name());
  return names;
}

}  // namespace skerry
