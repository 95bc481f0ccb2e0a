#include "server/aggregate/pool.h"

#include <csignal>
#include <system_error>

namespace skerry::server {

ReductionPool::~ReductionPool() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  work_came_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

// With the lock held. Where the system refuses more threads, those there are do the work.
void ReductionPool::start_workers() {
  started_ = true;
  // Signals meant for the program go to its own threads; a SIGBUS belongs to the thread that reads.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  for (const int fault : {SIGBUS, SIGSEGV, SIGFPE, SIGILL, SIGABRT}) sigdelset(&all, fault);
  pthread_sigmask(SIG_BLOCK, &all, &before);
  for (unsigned slot = 1; slot < threads_; ++slot) {
    try {
      workers_.emplace_back([this, slot] { serve(slot); });
    } catch (const std::system_error&) {
      break;
    }
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void ReductionPool::run(std::size_t count, const std::function<void(std::size_t, std::size_t)>& body) {
  if (count <= 1 || threads_ == 1) {
    for (std::size_t index = 0; index < count; ++index) body(index, 0);
    return;
  }
  Work work;
  work.body = &body;
  work.count = count;
  std::unique_lock<std::mutex> lock(mutex_);
  if (!started_) start_workers();
  open_.push_back(&work);
  work_came_.notify_all();
  while (work.next < work.count) {
    const std::size_t index = work.next++;
    if (work.next == work.count) open_.remove(&work);
    lock.unlock();
    body(index, 0);
    lock.lock();
  }
  work.done.wait(lock, [&] { return work.running == 0; });
}

void ReductionPool::serve(std::size_t slot) {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    work_came_.wait(lock, [&] { return stopping_ || !open_.empty(); });
    if (stopping_) return;
    Work& work = *open_.front();
    const std::size_t index = work.next++;
    ++work.running;
    if (work.next == work.count) open_.pop_front();
    lock.unlock();
    (*work.body)(index, slot);
    lock.lock();
    if (--work.running == 0 && work.next == work.count) work.done.notify_one();
  }
}

}  // namespace skerry::server
