// The outbox: updates that are stored, and what became of them.
#include "client/daemon/machine/client_machine.h"

#include <algorithm>
#include <utility>

namespace skerry::client {
namespace {

constexpr std::size_t kMaxDecided = 64;

}  // namespace

void ClientMachine::on(const OutboxStored& event) {
  const std::string& id = event.update.task.task_id();
  auto& entry = outbox_[id];
  entry.update = event.update;
  entry.serial = ++stored_;
  offer(entry);
  Run* run = find_run(event.update.task.run_id());
  if (run == nullptr || run->storing.empty() || run->storing.front().task.task_id() != id) return;
  run->storing.pop_front();
  store_next(*run);
}

void ClientMachine::on(const StoreFailed& event) {
  for (auto& [id, run] : runs_) {
    if (run.storing.empty() || run.storing.front().task.task_id() != event.task_id) continue;
    fail_task(run.storing.front().task, event.error);
    run.storing.pop_front();
    return store_next(run);
  }
}

void ClientMachine::offer(OutboxEntry& entry) {
  if (session_ != Session::kOpen || entry.phase == OutboxEntry::Phase::kUploading) return;
  entry.retry_at = 0;
  entry.held = !entry.update.uploads.empty() && !entry.uploaded && goes_later(entry);
  if (entry.held) return;
  if (!entry.update.uploads.empty() && !entry.uploaded) {
    entry.phase = OutboxEntry::Phase::kUploading;
    out_.emplace_back(Upload{entry.update});
    return;
  }
  entry.phase = OutboxEntry::Phase::kOffered;
  v1::FromNode message;
  *message.mutable_update() = entry.update.message;
  send(std::move(message));
}

/// Whether the cargo of an earlier update of the run is on its way: that one is needed first. One that did not get through
/// holds up nobody: a coordinator that was restored may never take it.
bool ClientMachine::goes_later(const OutboxEntry& entry) const {
  return std::any_of(outbox_.begin(), outbox_.end(), [&](const auto& known) {
    const OutboxEntry& other = known.second;
    return other.serial < entry.serial && other.update.task.run_id() == entry.update.task.run_id() &&
           !other.update.uploads.empty() && !other.uploaded && other.failures == 0 &&
           (other.phase == OutboxEntry::Phase::kWaiting || other.phase == OutboxEntry::Phase::kUploading);
  });
}

void ClientMachine::on(const UploadDone& event) {
  auto found = outbox_.find(event.task_id);
  if (found == outbox_.end() || found->second.phase != OutboxEntry::Phase::kUploading) return;
  found->second.uploaded = true;
  found->second.phase = OutboxEntry::Phase::kWaiting;
  offer(found->second);
}

void ClientMachine::on(const UploadFailed& event) {
  auto found = outbox_.find(event.task_id);
  if (found == outbox_.end() || found->second.phase != OutboxEntry::Phase::kUploading) return;
  auto& entry = found->second;
  entry.phase = OutboxEntry::Phase::kWaiting;
  if (event.error.retryable) {
    entry.retry_at = now_ + 1 + backoff(entry.failures++, options_.backoff_base_ms, options_.backoff_cap_ms);
    note(Note::Level::kWarning, "upload of task " + event.task_id + " failed and is tried again: " + to_string(event.error));
    return;
  }
  const v1::Task task = entry.update.task;
  outbox_.erase(found);
  out_.emplace_back(ForgetUpdate{task.run_id(), task.task_id(), task.kind(), v1::UPDATE_DISCARDED, "upload refused: " + event.error.message});
  fail_task(task, event.error);
}

void ClientMachine::retry_uploads() {
  if (session_ != Session::kOpen) return;
  for (auto& [id, entry] : outbox_)
    if (entry.phase == OutboxEntry::Phase::kWaiting && (entry.held || (entry.retry_at != 0 && now_ >= entry.retry_at)))
      offer(entry);
}

void ClientMachine::query_receipts() {
  v1::FromNode message;
  auto* query = message.mutable_receipt_query();
  for (const auto& [id, entry] : outbox_) query->add_task_ids(id);
  // Tasks of the last session are asked for too: those that can never count are not worth finishing.
  for (const auto& [id, run] : runs_) {
    for (const auto& active : run.storing) query->add_task_ids(active.task.task_id());
    for (const auto& active : run.tasks) query->add_task_ids(active.task.task_id());
  }
  if (query->task_ids_size() > 0) send(std::move(message));
}

void ClientMachine::on_message(const v1::Receipt& receipt) {
  const bool final = receipt.state() == v1::UPDATE_COUNTED || receipt.state() == v1::UPDATE_DISCARDED;
  auto found = outbox_.find(receipt.task_id());
  if (found == outbox_.end()) {
    if (!final) return;
    for (auto& [id, run] : runs_)
      for (std::size_t index = 0; index < run.tasks.size(); ++index)
        if (run.tasks[index].task.task_id() == receipt.task_id()) return cancel_task(run, index, nullptr);
    return;
  }
  auto& entry = found->second;
  switch (receipt.state()) {
    case v1::UPDATE_STORED: entry.phase = OutboxEntry::Phase::kStored; return;
    case v1::UPDATE_ACCEPTED: entry.phase = OutboxEntry::Phase::kAccepted; return;
    case v1::UPDATE_COUNTED:
    case v1::UPDATE_DISCARDED: break;
    default:
      if (entry.phase == OutboxEntry::Phase::kUploading) return;
      entry.uploaded = false;  // the coordinator says which chunks it still lacks
      if (entry.phase == OutboxEntry::Phase::kWaiting) return offer(entry);
      // It was offered in this session and is not known: again, but never in a tight circle.
      entry.phase = OutboxEntry::Phase::kWaiting;
      entry.retry_at = now_ + 1 + backoff(entry.failures++, options_.backoff_base_ms, options_.backoff_cap_ms);
      return;
  }
  if (entry.phase == OutboxEntry::Phase::kUploading) out_.emplace_back(Abandon{receipt.task_id()});
  if (Run* run = find_run(entry.update.task.run_id()); run != nullptr)
    ++(receipt.state() == v1::UPDATE_COUNTED ? run->counted : run->discarded);
  if (receipt.state() == v1::UPDATE_DISCARDED)
    note(Note::Level::kWarning, "the update of task " + receipt.task_id() + " was discarded: " + receipt.reason());
  const v1::Task& task = entry.update.task;
  out_.emplace_back(ForgetUpdate{task.run_id(), task.task_id(), task.kind(), receipt.state(), receipt.reason()});
  decided_.push_back(receipt.task_id());
  if (decided_.size() > kMaxDecided) decided_.pop_front();
  outbox_.erase(found);
}

}  // namespace skerry::client
