// Randomness for secrets and names, as a seam. Nothing that must be repeatable may come from here: that takes a seed.
#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace skerry {

class Random {
 public:
  virtual ~Random() = default;

  /// Fills `out`; cannot fail.
  virtual void fill(std::span<std::byte> out) = 0;
};

/// getrandom(2): cryptographically strong. Any thread. Aborts the process in the one case that the kernel has no
/// generator, because no secret may be made then.
class SystemRandom final : public Random {
 public:
  void fill(std::span<std::byte> out) override;
};

/// `bytes` random bytes as 2 * `bytes` hex digits, for names such as incarnations and epochs.
std::string random_hex(Random& random, std::size_t bytes);

}  // namespace skerry
