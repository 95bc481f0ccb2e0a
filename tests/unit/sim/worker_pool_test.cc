// Workers: a lane's work in order and alone, lanes side by side.
#include "server/sim/worker_pool.h"

#include <catch2/catch.hpp>

#include <algorithm>
#include <atomic>
#include <future>
#include <vector>

using skerry::sim::WorkerPool;

TEST_CASE("the work of one lane is done in order, one thing at a time") {
  WorkerPool pool(4);
  std::vector<int> done;  // touched by lane 0 alone
  std::atomic<int> inside{0};
  WorkerPool::Ticket last = 0;
  for (int i = 0; i < 200; ++i)
    last = pool.submit(0, [&, i] {
      CHECK(++inside == 1);
      done.push_back(i);
      --inside;
    });
  pool.wait(last);
  REQUIRE(done.size() == 200);
  CHECK(std::is_sorted(done.begin(), done.end()));
}

TEST_CASE("two lanes work at one time") {
  WorkerPool pool(2);
  std::promise<void> first, second;
  const auto a = pool.submit(0, [&] {
    first.set_value();
    second.get_future().wait();  // ends only because the other lane's work runs beside it
  });
  const auto b = pool.submit(1, [&] {
    first.get_future().wait();
    second.set_value();
  });
  pool.wait(a);
  pool.wait(b);
}

TEST_CASE("work that has not begun can be taken back") {
  WorkerPool pool(1);
  std::promise<void> began, gate;
  const auto running = pool.submit(0, [&] {
    began.set_value();
    gate.get_future().wait();
  });
  bool ran = false;
  const auto waiting = pool.submit(1, [&] { ran = true; });
  began.get_future().wait();
  CHECK(pool.cancel(waiting));
  CHECK_FALSE(pool.cancel(running));
  gate.set_value();
  pool.wait(running);
  pool.wait(waiting);
  CHECK_FALSE(ran);
}
