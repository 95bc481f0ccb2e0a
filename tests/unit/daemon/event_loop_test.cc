#include "client/daemon/loop/event_loop.h"

#include <catch2/catch.hpp>

#include <atomic>
#include <string>
#include <thread>

using namespace skerry::client;

TEST_CASE("timers run in the order of their times, and a cancelled one does not run") {
  auto loop = EventLoop::create();
  REQUIRE(loop.ok());
  std::string order;
  (*loop)->after(20, [&] { order += 'b'; });
  (*loop)->after(1, [&] { order += 'a'; });
  const auto cancelled = (*loop)->after(10, [&] { order += 'x'; });
  (*loop)->cancel(cancelled);
  (*loop)->after(30, [&] { (*loop)->stop(); });
  (*loop)->run();
  CHECK(order == "ab");
}

TEST_CASE("calls from other threads run on the loop's thread in their order") {
  auto loop = EventLoop::create();
  std::string order;
  const auto here = std::this_thread::get_id();
  std::thread other([&] {
    for (char c = 'a'; c <= 'e'; ++c)
      (*loop)->post([&, c] {
        CHECK(std::this_thread::get_id() == here);
        order += c;
      });
    (*loop)->post([&] { (*loop)->stop(); });
  });
  (*loop)->run();
  other.join();
  CHECK(order == "abcde");
}

TEST_CASE("a turn's end runs after what the turn did") {
  auto loop = EventLoop::create();
  int pending = 0, ended_with = 0;
  (*loop)->set_turn_end([&] { ended_with = pending; });
  (*loop)->post([&] { pending = 1; });
  (*loop)->post([&] {
    pending = 2;
    (*loop)->stop();
  });
  (*loop)->run();
  CHECK(ended_with == 2);
}

TEST_CASE("workers do every job and end with those under way") {
  std::atomic<int> done{0};
  {
    Workers workers(3);
    for (int i = 0; i < 50; ++i) workers.run([&] { ++done; });
    while (done < 50) std::this_thread::yield();
  }
  CHECK(done == 50);
}
