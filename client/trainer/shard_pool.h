// Threads that each do one part of a step. They live as long as the pool and sleep between steps.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace skerry::trainer {

class ShardPool {
 public:
  /// `threads` in all, the caller's among them; `prepare` runs once in each of the others before its first part.
  ShardPool(std::size_t threads, std::function<void()> prepare);
  ShardPool(const ShardPool&) = delete;
  ShardPool& operator=(const ShardPool&) = delete;
  ~ShardPool();

  std::size_t threads() const { return workers_.size() + 1; }

  /// Calls part(0) … part(count − 1), each in a thread of its own, part(0) in the caller's; returns when all have
  /// returned. 1 ≤ count ≤ threads(); `part` must not throw.
  void run(std::size_t count, const std::function<void(std::size_t)>& part);

 private:
  void work(std::size_t index, const std::function<void()>& prepare);

  std::mutex mutex_;
  std::condition_variable begin_;
  std::condition_variable end_;
  const std::function<void(std::size_t)>* part_ = nullptr;
  std::size_t count_ = 0;
  std::size_t running_ = 0;
  std::size_t generation_ = 0;
  bool stopping_ = false;
  std::vector<std::thread> workers_;
};

}  // namespace skerry::trainer
