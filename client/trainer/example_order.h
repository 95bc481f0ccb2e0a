// In which order a task sees the examples of a split: a new permutation for every pass, decided by the task's seed
// alone.
#pragma once

#include <cstdint>
#include <vector>

#include "common/base/result.h"

namespace skerry::trainer {

class ExampleOrder {
 public:
  /// Pass p over `examples` (at least 1) is the Fisher–Yates permutation drawn from Philox stream p of `seed`. `shifts`
  /// is the number of shifts a pass may have (text: the window's length), 1: none.
  ExampleOrder(std::uint64_t seed, std::uint64_t examples, std::uint64_t shifts);

  struct Piece {
    std::vector<std::uint64_t> numbers;
    std::uint64_t shift = 0;
  };

  /// The next `count` examples; a piece never crosses the end of a pass, so it may be shorter: ask again for the rest.
  Piece next(std::uint64_t count);

  /// Goes to where it would stand after `examples` examples were taken.
  void seek(std::uint64_t examples);

 private:
  void begin_pass(std::uint64_t pass);

  std::uint64_t seed_;
  std::uint64_t shifts_;
  std::uint64_t pass_ = 0;
  std::uint64_t at_ = 0;
  std::uint64_t shift_ = 0;
  std::vector<std::uint64_t> permutation_;
};

}  // namespace skerry::trainer
