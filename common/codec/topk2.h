// The 64 largest of every 4,096 elements, with two bits each (SparseLoCo).
//
// docs/encodings.md specifies it byte by byte.
#pragma once

#include "common/codec/encoding.h"

namespace skerry {

/// A chunk of n elements keeps k = ⌈n/64⌉ of them: two f32 magnitudes, k indices of 12 bits, k values of 2 bits.
class TopK2 final : public Encoding {
 public:
  static constexpr std::uint64_t kChunk = 4096;
  static constexpr std::uint64_t kKept = 64;
  static constexpr std::uint64_t kMagnitudeBytes = 8;
  static constexpr std::uint64_t kChunkBytes = kMagnitudeBytes + kKept * 14 / 8;

  /// One kept element of a chunk.
  struct Kept {
    std::uint32_t index = 0;  ///< in the chunk
    float value = 0;
  };

  std::string_view name() const override { return "topk2"; }
  std::uint64_t block_elements() const override { return kChunk; }
  std::uint64_t encoded_bytes(std::uint64_t count) const override;
  ErrorBound error_bound(bool /*stochastic*/) const override { return {0.0, 0.0, 1.0, false}; }
  void encode(std::span<const float> values, std::uint64_t first, const Rounding& rounding,
              std::span<std::byte> payload) const override;
  void decode(std::span<const std::byte> payload, std::span<float> out) const override;
  Result<void> validate(std::span<const std::byte> payload, std::uint64_t first, std::uint64_t count) const override;

  /// What a chunk of `count` elements keeps, into `kept`, which has room for kKept; how many there are. An index may be
  /// beyond the chunk where the bytes were not validated.
  static std::size_t kept_of(const std::byte* chunk, std::size_t count, Kept* kept);
};

}  // namespace skerry
