// The coordinator's one thread of decisions: work in arrival order, timers, and commits of many events at once.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <thread>

#include "common/os/clock.h"

namespace skerry::server {

/// Runs posted work on one thread, in order. After each batch of work it calls `settle`, which commits what the batch
/// changed, or returns how long it may wait for more work to join the same commit.
class CoreLoop {
 public:
  using Work = std::function<void()>;
  /// Milliseconds that the commit may still wait; 0: nothing is pending.
  using Settle = std::function<uint64_t()>;

  CoreLoop(const Clock& clock, Settle settle);
  ~CoreLoop();  ///< stops after the work that is queued

  /// From any thread. Dropped after stop().
  void post(Work work);
  /// Runs `work` on the loop when the clock's monotonic time reaches `due_ms`; from the loop's thread only.
  void at(uint64_t due_ms, Work work);
  /// Posts and waits for the work's end; from any other thread. Returns false where the loop does not run.
  bool call(Work work);

  void start();
  void stop();

  // For those who drive the loop on a thread of their own and never start() it (a simulation):

  /// Does what is queued and due, once; when the next timer or the commit is due, nothing where neither waits.
  std::optional<uint64_t> turn();
  /// Whether work is queued.
  bool waiting();

 private:
  void run();
  /// Does `batch`, then what is due; how long the commit may still wait.
  uint64_t work_off(std::deque<Work>& batch);

  const Clock& clock_;
  Settle settle_;
  std::multimap<uint64_t, Work> timers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Work> queue_;
  bool running_ = false;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace skerry::server
