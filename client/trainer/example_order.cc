#include "client/trainer/example_order.h"

#include <algorithm>
#include <cassert>
#include <numeric>

#include "common/model/philox.h"

namespace skerry::trainer {
namespace {

/// Whole numbers in [0, limit) from one Philox stream, without bias: the lowest 2^64 mod limit words are drawn again.
class Draws {
 public:
  Draws(std::uint64_t seed, std::uint64_t stream) : stream_(seed, stream) {}

  std::uint64_t below(std::uint64_t limit) {
    const std::uint64_t unfair = (0 - limit) % limit;
    for (;;) {
      const std::uint64_t drawn = word();
      if (drawn >= unfair) return drawn % limit;
    }
  }

 private:
  std::uint64_t word() {
    if (used_ == 2) {
      block_ = stream_.block(next_++);
      used_ = 0;
    }
    const std::uint64_t value = std::uint64_t{block_[2 * used_ + 1]} << 32 | block_[2 * used_];
    ++used_;
    return value;
  }

  PhiloxStream stream_;
  PhiloxCounter block_{};
  std::uint64_t next_ = 0;
  std::size_t used_ = 2;
};

}  // namespace

ExampleOrder::ExampleOrder(std::uint64_t seed, std::uint64_t examples, std::uint64_t shifts)
    : seed_(seed), shifts_(shifts), permutation_(examples) {
  assert(examples > 0 && shifts > 0);
  begin_pass(0);
}

void ExampleOrder::begin_pass(std::uint64_t pass) {
  pass_ = pass;
  at_ = 0;
  Draws draws(seed_, pass);
  shift_ = draws.below(shifts_);
  std::iota(permutation_.begin(), permutation_.end(), std::uint64_t{0});
  for (std::uint64_t i = permutation_.size() - 1; i > 0; --i)
    std::swap(permutation_[i], permutation_[draws.below(i + 1)]);
}

ExampleOrder::Piece ExampleOrder::next(std::uint64_t count) {
  if (at_ == permutation_.size()) begin_pass(pass_ + 1);
  const std::uint64_t taken = std::min<std::uint64_t>(count, permutation_.size() - at_);
  const auto first = permutation_.begin() + static_cast<std::ptrdiff_t>(at_);
  at_ += taken;
  return {{first, first + static_cast<std::ptrdiff_t>(taken)}, shift_};
}

void ExampleOrder::seek(std::uint64_t examples) {
  const std::uint64_t pass = examples / permutation_.size();
  if (pass != pass_ || at_ > examples % permutation_.size()) begin_pass(pass);
  at_ = examples % permutation_.size();
}

}  // namespace skerry::trainer
