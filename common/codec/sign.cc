#include "common/codec/sign.h"

#include <algorithm>
#include <cassert>
#include <limits>
#include <string>

#include "common/codec/kernels.h"
#include "common/codec/payload_check.h"

namespace skerry {

std::uint64_t Sign::encoded_bytes(std::uint64_t count) const {
  return (count + 7) / 8 + (count + kBlock - 1) / kBlock * kScaleBytes;
}

void Sign::encode(std::span<const float> values, std::uint64_t first, const Rounding& rounding,
                  std::span<std::byte> payload) const {
  assert(first % kBlock == 0 && payload.size() == encoded_bytes(values.size()));
  codec_kernels::encode_sign(values, first, rounding, payload.data());
}

void Sign::decode(std::span<const std::byte> payload, std::span<float> out) const {
  assert(payload.size() == encoded_bytes(out.size()));
  codec_kernels::decode_sign(payload.data(), out);
}

Result<void> Sign::validate(std::span<const std::byte> payload, std::uint64_t first, std::uint64_t count) const {
  SKERRY_TRY(check_payload_size(*this, payload, count));
  for (std::uint64_t at = 0; at < count; at += kBlock) {
    SKERRY_TRY(check_scale(*this, payload.subspan(encoded_bytes(at)), std::numeric_limits<float>::max(), first + at,
                           std::min(kBlock, count - at)));
  }
  if (count % 8 != 0 && std::to_integer<unsigned>(payload.back()) >> (count % 8) != 0) {
    return invalid_argument("sign payload: bits of its last byte are not 0, though no element is there");
  }
  return {};
}

}  // namespace skerry
