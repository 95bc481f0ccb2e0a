// Threads that do the virtual clients' work: one thing at a time for each client, in order.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

namespace skerry::sim {

class WorkerPool {
 public:
  explicit WorkerPool(unsigned threads);
  /// Drops what has not begun.
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  using Ticket = std::uint64_t;

  /// Has `work` done after everything that was submitted for `lane` before. `work` must not throw.
  Ticket submit(std::size_t lane, std::function<void()> work);

  /// Returns when that work is done (or was cancelled).
  void wait(Ticket ticket);

  /// Takes it back; false where it has begun.
  bool cancel(Ticket ticket);

  unsigned threads() const { return static_cast<unsigned>(threads_.size()); }

 private:
  struct Item {
    Ticket ticket;
    std::size_t lane;
    std::function<void()> work;
  };
  void run();

  std::mutex mutex_;
  std::condition_variable work_came_;
  std::condition_variable work_done_;
  std::deque<Item> waiting_;         // in the order of submission
  std::set<std::size_t> busy_;       // lanes
  std::set<Ticket> open_;            // waiting or being done
  Ticket next_ = 1;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace skerry::sim
