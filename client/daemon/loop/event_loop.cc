#include "client/daemon/loop/event_loop.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace skerry::client {

std::uint64_t EventLoop::now_ms() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1000 + static_cast<std::uint64_t>(now.tv_nsec) / 1'000'000;
}

Result<std::unique_ptr<EventLoop>> EventLoop::create() {
  std::unique_ptr<EventLoop> loop(new EventLoop);
  loop->epoll_ = FileDescriptor(epoll_create1(EPOLL_CLOEXEC));
  loop->wake_ = FileDescriptor(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!loop->epoll_ || !loop->wake_) return file_error(errno, "open", "an event descriptor");
  SKERRY_TRY(loop->watch(loop->wake_.get(), EPOLLIN, [fd = loop->wake_.get()](std::uint32_t) {
    std::uint64_t count = 0;
    [[maybe_unused]] const auto got = ::read(fd, &count, sizeof count);
  }));
  return loop;
}

Result<void> EventLoop::watch(int fd, std::uint32_t events, std::function<void(std::uint32_t)> on_ready) {
  epoll_event event{};
  event.events = events;
  event.data.fd = fd;
  const int operation = watched_.contains(fd) ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
  if (epoll_ctl(epoll_.get(), operation, fd, &event) != 0) return file_error(errno, "watch", "descriptor " + std::to_string(fd));
  watched_[fd] = std::make_shared<std::function<void(std::uint32_t)>>(std::move(on_ready));
  return {};
}

void EventLoop::unwatch(int fd) {
  if (watched_.erase(fd) > 0) epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
}

EventLoop::TimerId EventLoop::after(std::uint64_t delay_ms, std::function<void()> action) {
  const TimerId id = ++last_timer_;
  const std::uint64_t at = now_ms() + delay_ms;
  timers_.emplace(std::pair(at, id), std::move(action));
  timer_at_.emplace(id, at);
  return id;
}

void EventLoop::cancel(TimerId timer) {
  const auto found = timer_at_.find(timer);
  if (found == timer_at_.end()) return;
  timers_.erase({found->second, timer});
  timer_at_.erase(found);
}

void EventLoop::post(std::function<void()> action) {
  bool wake = false;
  {
    std::lock_guard lock(mutex_);
    wake = posted_.empty();
    posted_.push_back(std::move(action));
  }
  if (!wake) return;
  const std::uint64_t one = 1;
  [[maybe_unused]] const auto written = ::write(wake_.get(), &one, sizeof one);
}

void EventLoop::stop() {
  stopped_ = true;
  const std::uint64_t one = 1;
  [[maybe_unused]] const auto written = ::write(wake_.get(), &one, sizeof one);
}

bool EventLoop::run_posted() {
  std::vector<std::function<void()>> now;
  {
    std::lock_guard lock(mutex_);
    now.swap(posted_);
  }
  for (auto& action : now) action();
  return !now.empty();
}

bool EventLoop::run_timers() {
  bool any = false;
  const std::uint64_t now = now_ms();
  while (!timers_.empty() && timers_.begin()->first.first <= now) {
    auto node = timers_.extract(timers_.begin());
    timer_at_.erase(node.key().second);
    node.mapped()();
    any = true;
  }
  return any;
}

int EventLoop::next_timeout_ms() const {
  if (timers_.empty()) return -1;
  const std::uint64_t at = timers_.begin()->first.first;
  const std::uint64_t now = now_ms();
  return at <= now ? 0 : static_cast<int>(std::min<std::uint64_t>(at - now, 3'600'000));
}

void EventLoop::run() {
  epoll_event events[32];
  bool busy = false;
  while (!stopped_) {
    const int count = epoll_wait(epoll_.get(), events, 32, busy ? 0 : next_timeout_ms());
    bool did = false;
    for (int i = 0; i < count; ++i) {
      const auto found = watched_.find(events[i].data.fd);
      if (found == watched_.end()) continue;
      const auto action = found->second;
      (*action)(events[i].events);
      did = true;
    }
    did = run_posted() || did;
    did = run_timers() || did;
    if (did && turn_end_) turn_end_();
    // What the turn's end posted is run before waiting again.
    std::lock_guard lock(mutex_);
    busy = !posted_.empty();
  }
}

Workers::~Workers() {
  {
    std::lock_guard lock(mutex_);
    ending_ = true;
    jobs_.clear();
  }
  ready_.notify_all();
  for (auto& thread : threads_) thread.join();
}

void Workers::run(std::function<void()> job) {
  std::lock_guard lock(mutex_);
  if (ending_) return;
  jobs_.push_back(std::move(job));
  if (idle_ < jobs_.size() && threads_.size() < limit_) threads_.emplace_back([this] { work(); });
  else ready_.notify_one();
}

void Workers::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    ++idle_;
    ready_.wait(lock, [this] { return ending_ || !jobs_.empty(); });
    --idle_;
    if (ending_) return;
    auto job = std::move(jobs_.front());
    jobs_.pop_front();
    lock.unlock();
    job();
    lock.lock();
  }
}

}  // namespace skerry::client
