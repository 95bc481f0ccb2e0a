#include "client/trainer/shard_pool.h"

#include <utility>

namespace skerry::trainer {

ShardPool::ShardPool(std::size_t threads, std::function<void()> prepare) {
  for (std::size_t i = 1; i < threads; ++i) {
    workers_.emplace_back([this, i, prepare] { work(i, prepare); });
  }
}

ShardPool::~ShardPool() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  begin_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ShardPool::run(std::size_t count, const std::function<void(std::size_t)>& part) {
  if (count > 1) {
    const std::lock_guard lock(mutex_);
    part_ = &part;
    count_ = count;
    running_ = count - 1;
    ++generation_;
  }
  if (count > 1) begin_.notify_all();
  part(0);
  if (count > 1) {
    std::unique_lock lock(mutex_);
    end_.wait(lock, [&] { return running_ == 0; });
  }
}

void ShardPool::work(std::size_t index, const std::function<void()>& prepare) {
  prepare();
  std::size_t seen = 0;
  std::unique_lock lock(mutex_);
  for (;;) {
    begin_.wait(lock, [&] { return stopping_ || generation_ != seen; });
    if (stopping_) return;
    seen = generation_;
    if (index >= count_) continue;
    const auto* const part = part_;
    lock.unlock();
    (*part)(index);
    lock.lock();
    if (--running_ == 0) end_.notify_one();
  }
}

}  // namespace skerry::trainer
