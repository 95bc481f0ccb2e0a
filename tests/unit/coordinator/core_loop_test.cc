// A core loop that somebody turns instead of starting it: as in simulations.
#include "server/coordinator/core_loop.h"

#include <catch2/catch.hpp>

#include <vector>

#include "tests/support/manual_clock.h"

namespace skerry::server {

TEST_CASE("a loop that is turned does what is queued and due, and says when it wants to be turned again") {
  test::ManualClock clock;
  const auto start = static_cast<std::uint64_t>(clock.monotonic_ms());
  std::uint64_t commit_waits_ms = 0;
  CoreLoop loop(clock, [&] { return commit_waits_ms; });
  std::vector<int> done;

  CHECK_FALSE(loop.turn());
  CHECK_FALSE(loop.waiting());
  loop.post([&] {
    done.push_back(1);
    loop.at(start + 100, [&] { done.push_back(3); });
    loop.post([&] { done.push_back(2); });
  });
  CHECK(loop.waiting());
  CHECK(loop.turn() == start + 100);
  CHECK(done == std::vector<int>{1});
  CHECK(loop.waiting());  // what was posted meanwhile
  commit_waits_ms = 10;
  CHECK(loop.turn() == start + 10);
  CHECK(done == std::vector<int>{1, 2});
  commit_waits_ms = 0;
  clock.advance_ms(100);
  CHECK_FALSE(loop.turn());
  CHECK(done == std::vector<int>{1, 2, 3});
}

}  // namespace skerry::server
