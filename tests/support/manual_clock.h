// A clock that stands still until the test moves it.
#pragma once

#include <cstdint>

#include "common/os/clock.h"

namespace skerry::test {

class ManualClock final : public Clock {
 public:
  std::int64_t monotonic_ms() const override { return monotonic_ms_; }
  std::int64_t unix_ms() const override { return unix_ms_; }

  void advance_ms(std::int64_t ms) {
    monotonic_ms_ += ms;
    unix_ms_ += ms;
  }
  void set_unix_ms(std::int64_t ms) { unix_ms_ = ms; }

 private:
  std::int64_t monotonic_ms_ = 1'000'000;
  std::int64_t unix_ms_ = 1'700'000'000'000;
};

}  // namespace skerry::test
