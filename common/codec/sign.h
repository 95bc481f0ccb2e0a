// One bit an element, and a scale for every 4,096.
//
// docs/encodings.md specifies it byte by byte.
#pragma once

#include "common/codec/encoding.h"

namespace skerry {

/// Signs times the mean magnitude of the block; at random: signs with the probability that makes the mean exact, times
/// the largest magnitude.
class Sign final : public Encoding {
 public:
  static constexpr std::uint64_t kBlock = 4096;
  static constexpr std::uint64_t kScaleBytes = 4;

  std::string_view name() const override { return "sign"; }
  std::uint64_t block_elements() const override { return kBlock; }
  std::uint64_t encoded_bytes(std::uint64_t count) const override;
  ErrorBound error_bound(bool stochastic) const override { return {0x1p-23, 0x1p-149, stochastic ? 2.0 : 1.0, stochastic}; }
  void encode(std::span<const float> values, std::uint64_t first, const Rounding& rounding,
              std::span<std::byte> payload) const override;
  void decode(std::span<const std::byte> payload, std::span<float> out) const override;
  Result<void> validate(std::span<const std::byte> payload, std::uint64_t first, std::uint64_t count) const override;
};

}  // namespace skerry
