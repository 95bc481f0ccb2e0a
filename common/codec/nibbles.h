// Half a byte an element and a scale for every 256: int4 (evenly spaced) and e3m0 (powers of two).
//
// docs/encodings.md specifies both byte by byte.
#pragma once

#include "common/codec/encoding.h"

namespace skerry {

/// What both have in common: blocks of one f32 scale, then ⌈n/2⌉ bytes, the low halves holding the first ⌈n/2⌉ codes.
class NibbleEncoding : public Encoding {
 public:
  static constexpr std::uint64_t kBlock = 256;
  static constexpr std::uint64_t kScaleBytes = 4;
  static constexpr std::uint64_t kBlockBytes = kScaleBytes + kBlock / 2;

  std::uint64_t block_elements() const override { return kBlock; }
  std::uint64_t encoded_bytes(std::uint64_t count) const override;
  Result<void> validate(std::span<const std::byte> payload, std::uint64_t first, std::uint64_t count) const override;

 private:
  virtual float largest_scale() const = 0;
};

/// Codes −7 … 7 times the block's largest magnitude / 7.
class Int4 final : public NibbleEncoding {
 public:
  std::string_view name() const override { return "int4"; }
  ErrorBound error_bound(bool stochastic) const override;
  void encode(std::span<const float> values, std::uint64_t first, const Rounding& rounding,
              std::span<std::byte> payload) const override;
  void decode(std::span<const std::byte> payload, std::span<float> out) const override;

 private:
  float largest_scale() const override;
};

/// One bit of sign and three of exponent: 0, or the block's largest magnitude times 2⁰, 2⁻¹, … 2⁻⁶ (Streaming DiLoCo).
class E3m0 final : public NibbleEncoding {
 public:
  std::string_view name() const override { return "e3m0"; }
  ErrorBound error_bound(bool stochastic) const override;
  void encode(std::span<const float> values, std::uint64_t first, const Rounding& rounding,
              std::span<std::byte> payload) const override;
  void decode(std::span<const std::byte> payload, std::span<float> out) const override;

 private:
  float largest_scale() const override;
};

}  // namespace skerry
