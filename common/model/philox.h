// Philox4x32-10, a counter-based random generator: any draw can be computed alone, from its position.
// Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011).
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace skerry {

using PhiloxCounter = std::array<std::uint32_t, 4>;
using PhiloxKey = std::array<std::uint32_t, 2>;

/// Ten rounds of Philox4x32: 128 random bits for this counter under this key.
constexpr PhiloxCounter philox4x32(PhiloxCounter counter, PhiloxKey key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t{0xD2511F53u} * counter[0];
    const std::uint64_t p1 = std::uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<std::uint32_t>(p1 >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(p1),
               static_cast<std::uint32_t>(p0 >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(p0)};
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return counter;
}

/// A stream of draws named by a seed and a number: draw i is word i mod 4 of philox4x32 at the counter
/// (low i/4, high i/4, low stream, high stream) under the key (low seed, high seed).
class PhiloxStream {
 public:
  constexpr PhiloxStream(std::uint64_t seed, std::uint64_t stream)
      : key_{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)}, stream_(stream) {}

  /// Draws 4 · block … 4 · block + 3.
  constexpr PhiloxCounter block(std::uint64_t block) const {
    return philox4x32({static_cast<std::uint32_t>(block), static_cast<std::uint32_t>(block >> 32),
                       static_cast<std::uint32_t>(stream_), static_cast<std::uint32_t>(stream_ >> 32)},
                      key_);
  }
  /// Draw i.
  constexpr std::uint32_t word(std::uint64_t i) const { return block(i / 4)[i % 4]; }

 private:
  PhiloxKey key_;
  std::uint64_t stream_;
};

/// 64-bit FNV-1a of a name: the number of a tensor's stream.
constexpr std::uint64_t stream_of_name(std::string_view name) {
  std::uint64_t hash = 0xCBF29CE484222325u;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
  return hash;
}

/// In (0, 1), never its ends: (2·word + 1) / 2^33, exact.
constexpr double uniform_from(std::uint32_t word) { return (2.0 * word + 1.0) * 0x1p-33; }

/// Two independent standard normals from two words by the Box–Muller transform, with a logarithm, sine and cosine of
/// our own made of +, −, ×, ÷ and square root alone, so that every IEEE 754 machine gets the same bits.
/// docs/model-layout.md has the series. The largest magnitude possible is 6.8.
struct NormalPair {
  double first;
  double second;
};
NormalPair normal_pair(std::uint32_t radius_word, std::uint32_t angle_word);

}  // namespace skerry
