// Random draws that a seed and the name of their purpose decide, and nothing else: not the platform, not other draws.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "common/model/philox.h"

namespace skerry::sim {

/// One sequence of draws: Philox4x32-10, stream stream_of_name(purpose) + number of `seed`.
class Draws {
 public:
  Draws(std::uint64_t seed, std::string_view purpose, std::uint64_t number = 0)
      : stream_(seed, stream_of_name(purpose) + number) {}

  /// In (0, 1), never its ends.
  double uniform() { return uniform_from(word()); }
  /// A whole number in [0, limit), each as likely; limit ≥ 1.
  std::uint64_t below(std::uint64_t limit);
  /// Mean 0, variance 1.
  double normal();
  /// Mean `mean` > 0.
  double exponential(double mean);
  /// Shape `shape` > 0, scale 1. Source: Marsaglia and Tsang, "A Simple Method for Generating Gamma Variables" (2000).
  double gamma(double shape);

  template <typename T>
  void shuffle(std::vector<T>& values) {
    for (std::size_t i = values.size(); i > 1; --i) std::swap(values[i - 1], values[below(i)]);
  }

 private:
  std::uint32_t word() { return stream_.word(next_++); }

  PhiloxStream stream_;
  std::uint64_t next_ = 0;
};

}  // namespace skerry::sim
