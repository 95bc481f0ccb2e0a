#include "server/coordinator/commit_group.h"

#include <spdlog/spdlog.h>

#include <utility>

namespace skerry::server {

constexpr std::uint64_t kFullDiskRetryMs = 1000;

Batch& CommitGroup::batch() {
  urgent_ = true;
  return batch_;
}

void CommitGroup::expect(WithChain then) { receipts_.push_back(std::move(then)); }

void CommitGroup::decide(const std::string& task_id, WithChain then) {
  if (const auto acceptance = accepted_.extract(task_id); !acceptance.empty()) receipts_[acceptance.mapped()] = nullptr;
  expect(std::move(then));
}

Batch& CommitGroup::lingering() {
  if (linger_until_ == 0) linger_until_ = clock_.monotonic_ms() + kLingerMs;
  return batch_;
}

void CommitGroup::accept(UpdateRecord update, std::int64_t now_ms, WithChain then) {
  accepted_[update.task_id] = receipts_.size();
  lingering().accept(std::move(update), now_ms);
  expect(std::move(then));
}

void CommitGroup::count(std::string task_id, std::string run_id, std::string node, std::uint64_t exchange,
                        std::uint64_t version, std::int64_t now_ms, WithChain then) {
  decide(task_id, std::move(then));
  lingering().count(std::move(task_id), std::move(run_id), std::move(node), exchange, version, now_ms);
}

void CommitGroup::discard(std::string task_id, std::string run_id, std::string node, std::uint64_t exchange,
                          std::string reason, std::int64_t now_ms, WithChain then) {
  decide(task_id, std::move(then));
  lingering().discard(std::move(task_id), std::move(run_id), std::move(node), exchange, std::move(reason), now_ms);
}

void CommitGroup::after(std::function<void()> action) { after_.push_back(std::move(action)); }

void CommitGroup::before(const std::string& key, std::function<void(Batch&)> contribute, bool urgent) {
  urgent_ = urgent_ || urgent;
  lingering();
  if (before_keys_.insert(key).second) before_.push_back(std::move(contribute));
}

std::uint64_t CommitGroup::settle() {
  // An action may ask for more, so go on until nothing is due.
  while (!fatal_) {
    const std::uint64_t now = clock_.monotonic_ms();
    const bool changes = !batch_.empty() || !before_.empty();
    if (!changes && after_.empty()) return 0;
    if (stuck_ && now < linger_until_) return linger_until_ - now;
    if (changes && !urgent_ && now < linger_until_) return linger_until_ - now;

    for (auto& contribute : std::exchange(before_, {})) contribute(batch_);
    before_keys_.clear();
    CommitReport report;
    if (!batch_.empty()) {
      auto committed = store_.commit(batch_);
      if (!committed.ok()) {
        if (committed.error().code != Code::kResourceExhausted && committed.error().code != Code::kUnavailable) {
          fatal_ = committed.error();
          return 0;
        }
        if (!stuck_) spdlog::error("nothing can be stored, all runs wait: {}", committed.error().message);
        stuck_ = true;
        linger_until_ = now + kFullDiskRetryMs;
        return kFullDiskRetryMs;
      }
      ++commits_;
      if (stuck_) spdlog::info("there is room on the disk again, runs go on");
      report = std::move(committed).value();
    }
    batch_.clear();
    stuck_ = false;
    urgent_ = false;
    linger_until_ = 0;

    const auto receipts = std::exchange(receipts_, {});
    accepted_.clear();
    for (std::size_t i = 0; i < receipts.size(); ++i)
      if (receipts[i]) receipts[i](report.chains[i]);
    for (const auto& action : std::exchange(after_, {})) action();
    for (const std::string& id : report.unreferenced_cargo) (void)cargo_.remove_cargo(id).ok();
    for (const std::string& name : report.unreferenced_states) (void)cargo_.remove_state(name).ok();
    for (const std::string& task : report.decided_tasks) cargo_.end_task(task);
  }
  return 0;
}

void CommitGroup::finish() {
  urgent_ = true;
  linger_until_ = 0;
  settle();
  receipts_.clear();
  accepted_.clear();
  after_.clear();
  before_.clear();
}

}  // namespace skerry::server
