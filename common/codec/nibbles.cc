#include "common/codec/nibbles.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <limits>
#include <string>

#include "common/codec/kernels.h"
#include "common/codec/payload_check.h"

namespace skerry {

std::uint64_t NibbleEncoding::encoded_bytes(std::uint64_t count) const {
  const std::uint64_t rest = count % kBlock;
  return count / kBlock * kBlockBytes + (rest == 0 ? 0 : kScaleBytes + (rest + 1) / 2);
}

Result<void> NibbleEncoding::validate(std::span<const std::byte> payload, std::uint64_t first,
                                      std::uint64_t count) const {
  SKERRY_TRY(check_payload_size(*this, payload, count));
  for (std::uint64_t at = 0; at < count; at += kBlock) {
    SKERRY_TRY(check_scale(*this, payload.subspan(encoded_bytes(at)), largest_scale(), first + at, std::min(kBlock, count - at)));
  }
  if (count % 2 == 1 && (payload.back() & std::byte{0xF0}) != std::byte{0}) {
    return invalid_argument(std::string(name()) + " payload: the upper half of its last byte is not 0, though no element is there");
  }
  return {};
}

ErrorBound Int4::error_bound(bool stochastic) const {
  return {0x1p-23, 0x1p-149, stochastic ? 1.0 / 7 : 1.0 / 8, stochastic};
}

float Int4::largest_scale() const { return std::numeric_limits<float>::max() / 8; }

void Int4::encode(std::span<const float> values, std::uint64_t first, const Rounding& rounding,
                  std::span<std::byte> payload) const {
  assert(first % kBlock == 0 && payload.size() == encoded_bytes(values.size()));
  codec_kernels::encode_int4(values, first, rounding, payload.data());
}

void Int4::decode(std::span<const std::byte> payload, std::span<float> out) const {
  assert(payload.size() == encoded_bytes(out.size()));
  codec_kernels::decode_int4(payload.data(), out);
}

ErrorBound E3m0::error_bound(bool stochastic) const {
  if (stochastic) return {1.0, 0x1p-149, 1.0 / 64, true};
  return {0x1.555557p-2, 0x1p-149, 1.0 / 128, false};
}

float E3m0::largest_scale() const { return std::numeric_limits<float>::max(); }

void E3m0::encode(std::span<const float> values, std::uint64_t first, const Rounding& rounding,
                  std::span<std::byte> payload) const {
  assert(first % kBlock == 0 && payload.size() == encoded_bytes(values.size()));
  codec_kernels::encode_e3m0(values, first, rounding, payload.data());
}

void E3m0::decode(std::span<const std::byte> payload, std::span<float> out) const {
  assert(payload.size() == encoded_bytes(out.size()));
  codec_kernels::decode_e3m0(payload.data(), out);
}

}  // namespace skerry
