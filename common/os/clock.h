// The time, as a seam: state machines are handed "now", and only the shells ask one of these.
#pragma once

#include <cstdint>

namespace skerry {

class Clock {
 public:
  virtual ~Clock() = default;

  /// Milliseconds since some fixed moment of this boot; never goes back. Deadlines are measured on this one.
  virtual std::int64_t monotonic_ms() const = 0;

  /// Milliseconds since 1970-01-01 UTC; may jump. Only for certificates, tickets and what people read.
  virtual std::int64_t unix_ms() const = 0;
};

/// The machine's clocks: CLOCK_MONOTONIC and CLOCK_REALTIME. Any thread.
class SystemClock final : public Clock {
 public:
  std::int64_t monotonic_ms() const override;
  std::int64_t unix_ms() const override;
};

}  // namespace skerry
