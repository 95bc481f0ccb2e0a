#include "common/os/clock.h"

#include <ctime>

namespace skerry {
namespace {

std::int64_t read_ms(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return static_cast<std::int64_t>(now.tv_sec) * 1000 + now.tv_nsec / 1'000'000;
}

}  // namespace

std::int64_t SystemClock::monotonic_ms() const { return read_ms(CLOCK_MONOTONIC); }
std::int64_t SystemClock::unix_ms() const { return read_ms(CLOCK_REALTIME); }

}  // namespace skerry
