// One byte an element: through a codebook for every 65,536 elements, or times a scale for every 256.
//
// docs/encodings.md specifies both byte by byte.
#pragma once

#include "common/codec/encoding.h"

namespace skerry {

/// Uniform quantisation within three standard deviations of 0, decoded through the mean of what fell into each of 256
/// buckets, as hivemind (Uniform8BitQuantization) and PRIME's ring all-reduce have it.
class Int8 final : public Encoding {
 public:
  static constexpr std::uint64_t kBlock = 65536;
  static constexpr std::uint64_t kCodebookBytes = 1024;  ///< 256 f32

  std::string_view name() const override { return "int8"; }
  std::uint64_t block_elements() const override { return kBlock; }
  std::uint64_t prefix_bytes() const override { return kCodebookBytes; }
  std::uint64_t part_elements() const override { return 1; }
  std::uint64_t encoded_bytes(std::uint64_t count) const override;
  ErrorBound error_bound(bool stochastic) const override { return {0x1p-23, 0x1p-149, stochastic ? 2.0 : 1.0, stochastic}; }
  void encode(std::span<const float> values, std::uint64_t first, const Rounding& rounding,
              std::span<std::byte> payload) const override;
  void decode(std::span<const std::byte> payload, std::span<float> out) const override;
  void decode_part(std::span<const std::byte> prefix, std::span<const std::byte> values,
                   std::span<float> out) const override;
  Result<void> validate(std::span<const std::byte> payload, std::uint64_t first, std::uint64_t count) const override;
};

/// Signed bytes times the block's largest magnitude / 127.
class Int8Block final : public Encoding {
 public:
  static constexpr std::uint64_t kBlock = 256;
  static constexpr std::uint64_t kScaleBytes = 4;  ///< one f32

  std::string_view name() const override { return "int8_block"; }
  std::uint64_t block_elements() const override { return kBlock; }
  std::uint64_t encoded_bytes(std::uint64_t count) const override;
  ErrorBound error_bound(bool stochastic) const override {
    return {0x1p-23, 0x1p-149, stochastic ? 1.0 / 127 : 1.0 / 128, stochastic};
  }
  void encode(std::span<const float> values, std::uint64_t first, const Rounding& rounding,
              std::span<std::byte> payload) const override;
  void decode(std::span<const std::byte> payload, std::span<float> out) const override;
  Result<void> validate(std::span<const std::byte> payload, std::uint64_t first, std::uint64_t count) const override;
};

}  // namespace skerry
