// The engine's threads.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <functional>
#include <list>
#include <mutex>
#include <thread>
#include <vector>

namespace skerry::server {

class ReductionPool {
 public:
  /// `threads` that compute, each caller's own among them; ≥ 1.
  explicit ReductionPool(unsigned threads) : threads_(threads) {}
  ~ReductionPool();

  unsigned threads() const { return threads_; }

  /// Runs body(index, slot) for every index below `count` and returns when all are done. `slot` is below threads() and no two
  /// threads of one call share it, so that it can name scratch memory. One index alone runs on the caller, and starts no thread.
  void run(std::size_t count, const std::function<void(std::size_t index, std::size_t slot)>& body);

 private:
  // One call of run. It lives on the caller's stack; the list points to it while indices are left.
  struct Work {
    const std::function<void(std::size_t, std::size_t)>* body = nullptr;
    std::size_t count = 0;
    std::size_t next = 0;     // first index not yet taken
    std::size_t running = 0;  // indices taken by workers and not yet done
    std::condition_variable done;
  };

  void start_workers();
  void serve(std::size_t slot);

  const unsigned threads_;
  std::mutex mutex_;
  std::condition_variable work_came_;
  std::list<Work*> open_;  // work with indices left, oldest first
  bool started_ = false;
  bool stopping_ = false;
  std::vector<std::thread> workers_;
};

}  // namespace skerry::server
