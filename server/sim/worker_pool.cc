#include "server/sim/worker_pool.h"

#include <algorithm>
#include <utility>

namespace skerry::sim {

WorkerPool::WorkerPool(unsigned threads) {
  for (unsigned i = 0; i < threads; ++i) threads_.emplace_back([this] { run(); });
}

WorkerPool::~WorkerPool() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    waiting_.clear();
  }
  work_came_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

WorkerPool::Ticket WorkerPool::submit(std::size_t lane, std::function<void()> work) {
  const std::lock_guard lock(mutex_);
  const Ticket ticket = next_++;
  waiting_.push_back({ticket, lane, std::move(work)});
  open_.insert(ticket);
  work_came_.notify_one();
  return ticket;
}

void WorkerPool::wait(Ticket ticket) {
  std::unique_lock lock(mutex_);
  work_done_.wait(lock, [&] { return open_.count(ticket) == 0; });
}

bool WorkerPool::cancel(Ticket ticket) {
  const std::lock_guard lock(mutex_);
  const auto found =
      std::find_if(waiting_.begin(), waiting_.end(), [&](const Item& item) { return item.ticket == ticket; });
  if (found == waiting_.end()) return false;
  waiting_.erase(found);
  open_.erase(ticket);
  return true;
}

void WorkerPool::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    auto next = waiting_.end();
    work_came_.wait(lock, [&] {
      next = std::find_if(waiting_.begin(), waiting_.end(), [&](const Item& item) { return busy_.count(item.lane) == 0; });
      return stopping_ || next != waiting_.end();
    });
    if (stopping_) return;
    const Item item = std::move(*next);
    waiting_.erase(next);
    busy_.insert(item.lane);
    lock.unlock();
    item.work();
    lock.lock();
    busy_.erase(item.lane);
    open_.erase(item.ticket);
    work_done_.notify_all();
    work_came_.notify_one();  // the lane's next may be waiting
  }
}

}  // namespace skerry::sim
