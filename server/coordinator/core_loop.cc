#include "server/coordinator/core_loop.h"

#include <algorithm>
#include <chrono>
#include <future>

namespace skerry::server {

CoreLoop::CoreLoop(const Clock& clock, Settle settle) : clock_(clock), settle_(std::move(settle)) {}

CoreLoop::~CoreLoop() { stop(); }

void CoreLoop::start() {
  {
    std::lock_guard lock(mutex_);
    running_ = true;
  }
  thread_ = std::thread([this] { run(); });
}

void CoreLoop::stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  if (thread_.joinable()) thread_.join();
}

void CoreLoop::post(Work work) {
  {
    std::lock_guard lock(mutex_);
    if (stopping_) return;
    queue_.push_back(std::move(work));
  }
  wake_.notify_one();
}

void CoreLoop::at(uint64_t due_ms, Work work) { timers_.emplace(due_ms, std::move(work)); }

bool CoreLoop::call(Work work) {
  {
    std::lock_guard lock(mutex_);
    if (!running_) return false;
  }
  auto done = std::make_shared<std::promise<void>>();
  auto finished = done->get_future();
  post([work = std::move(work), done = std::move(done)] {
    work();
    done->set_value();
  });
  try {
    finished.get();
    return true;
  } catch (const std::future_error&) {  // the loop stopped and dropped the work
    return false;
  }
}

void CoreLoop::run() {
  std::deque<Work> batch;
  uint64_t may_wait_ms = 0;
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      const uint64_t now = clock_.monotonic_ms();
      uint64_t wait_ms = 3'600'000;
      if (!timers_.empty()) wait_ms = timers_.begin()->first > now ? timers_.begin()->first - now : 0;
      if (may_wait_ms > 0) wait_ms = std::min(wait_ms, may_wait_ms);
      wake_.wait_for(lock, std::chrono::milliseconds(wait_ms), [this] { return stopping_ || !queue_.empty(); });
      if (stopping_ && queue_.empty()) break;
      batch.swap(queue_);
    }
    may_wait_ms = work_off(batch);
  }
  timers_.clear();
}

uint64_t CoreLoop::work_off(std::deque<Work>& batch) {
  for (Work& work : batch) work();
  batch.clear();
  const uint64_t now = clock_.monotonic_ms();
  while (!timers_.empty() && timers_.begin()->first <= now) {
    const Work work = std::move(timers_.extract(timers_.begin()).mapped());
    work();
  }
  return settle_();
}

std::optional<uint64_t> CoreLoop::turn() {
  std::deque<Work> batch;
  {
    std::lock_guard lock(mutex_);
    batch.swap(queue_);
  }
  const uint64_t may_wait_ms = work_off(batch);
  std::optional<uint64_t> next;
  if (!timers_.empty()) next = timers_.begin()->first;
  if (may_wait_ms > 0) {
    const uint64_t commit = clock_.monotonic_ms() + may_wait_ms;
    next = std::min(next.value_or(commit), commit);
  }
  return next;
}

bool CoreLoop::waiting() {
  std::lock_guard lock(mutex_);
  return !queue_.empty();
}

}  // namespace skerry::server
