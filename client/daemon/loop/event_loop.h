// One thread that waits for descriptors, timers and calls from other threads; and a few threads beside it for bulk work.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "common/base/result.h"
#include "common/os/files.h"

namespace skerry::client {

/// Everything but post() and stop() belongs to the thread that calls run().
class EventLoop {
 public:
  using TimerId = std::uint64_t;

  static Result<std::unique_ptr<EventLoop>> create();

  /// `on_ready` gets epoll's event bits (EPOLLIN, EPOLLHUP, …). Watching a descriptor again replaces what was there.
  Result<void> watch(int fd, std::uint32_t events, std::function<void(std::uint32_t)> on_ready);
  /// Call before closing the descriptor; success if it was not watched.
  void unwatch(int fd);

  /// Once, after `delay_ms`.
  TimerId after(std::uint64_t delay_ms, std::function<void()> action);
  void cancel(TimerId timer);

  /// Runs `action` on the loop's thread soon; in the order of the calls. Any thread, also before run().
  void post(std::function<void()> action);
  /// Any thread: run() returns after what it is doing.
  void stop();

  /// Called once after each turn that did something, when nothing more is ready: the place for work that many events share.
  void set_turn_end(std::function<void()> action) { turn_end_ = std::move(action); }

  void run();

  /// Milliseconds of a monotonic clock.
  static std::uint64_t now_ms();

 private:
  EventLoop() = default;
  bool run_posted();
  bool run_timers();
  int next_timeout_ms() const;

  FileDescriptor epoll_, wake_;
  // Shared: an action may unwatch its own descriptor while it runs.
  std::unordered_map<int, std::shared_ptr<std::function<void(std::uint32_t)>>> watched_;
  std::map<std::pair<std::uint64_t, TimerId>, std::function<void()>> timers_;
  std::unordered_map<TimerId, std::uint64_t> timer_at_;
  TimerId last_timer_ = 0;
  std::function<void()> turn_end_;
  std::mutex mutex_;
  std::vector<std::function<void()>> posted_;
  std::atomic<bool> stopped_{false};
};

/// Up to `threads` threads, started as they are needed.
class Workers {
 public:
  explicit Workers(unsigned threads) : limit_(threads) {}
  /// Waits for the jobs under way; jobs not begun are dropped.
  ~Workers();

  void run(std::function<void()> job);

 private:
  void work();

  const unsigned limit_;
  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<std::function<void()>> jobs_;
  std::vector<std::thread> threads_;
  unsigned idle_ = 0;
  bool ending_ = false;
};

}  // namespace skerry::client
