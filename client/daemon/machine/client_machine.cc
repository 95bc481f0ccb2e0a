#include "client/daemon/machine/client_machine.h"

#include "client/daemon/machine/shared.h"

#include <algorithm>
#include <utility>

namespace skerry::client {

ClientMachine::ClientMachine(ClientMachineOptions options)
    : options_(std::move(options)),
      incarnation_(options_.previous_incarnation),
      random_state_(options_.seed),
      paused_(options_.paused) {
  for (auto& update : options_.outbox) {
    const std::string id = update.task.task_id();
    outbox_[id] = {.update = std::move(update), .serial = ++stored_};
  }
  options_.outbox.clear();
}

std::vector<Command> ClientMachine::handle(const Event& event, Instant now) {
  out_.clear();
  slot_at_ = 0;
  now_ = std::max(now_, now);
  std::visit([this](const auto& happened) { on(happened); }, event);
  watch_session();
  watch_tasks();
  watch_merges();
  start_front_tasks();
  hand_out_merges();
  retry_uploads();
  drop_finished_runs();
  finish_exit();
  set_alarm();
  return std::move(out_);
}

void ClientMachine::set_alarm() {
  Instant next = 0;
  const auto consider = [&next](Instant at) {
    if (at != 0 && (next == 0 || at < next)) next = at;
  };
  if (session_ == Session::kOpen && heartbeat_ms_ > 0) {
    consider(next_heartbeat_);
    consider(last_heard_ + 3 * heartbeat_ms_);
  }
  if (session_ == Session::kGreeting) consider(last_heard_ + kGreetingMs);
  consider(slot_at_);
  for (const auto& [id, run] : runs_) {
    if (session_ == Session::kOpen) consider(run.stale_at);
    if (!run.tasks.empty() && run.trainer == Trainer::kNone && now_ < run.not_before) consider(run.not_before);
    for (const auto& active : run.tasks) {
      consider(active.phase == Phase::kCancelling ? active.kill_at : active.deadline);
    }
    for (const auto& [key, merge] : run.merges) consider(merge.retry_at);
  }
  if (session_ == Session::kOpen)
    for (const auto& [id, entry] : outbox_) consider(entry.retry_at);
  if (next == alarm_) return;
  alarm_ = next;
  if (next != 0) out_.emplace_back(WakeAt{next});
}

void ClientMachine::send(v1::FromNode message) {
  if (session_ == Session::kOpen) out_.emplace_back(Send{std::move(message)});
}

void ClientMachine::note(Note::Level level, std::string text) { out_.emplace_back(Note{level, std::move(text)}); }

ClientMachine::Run* ClientMachine::find_run(const std::string& run_id) {
  auto found = runs_.find(run_id);
  return found == runs_.end() ? nullptr : &found->second;
}

ClientMachine::Run* ClientMachine::find_front(const std::string& task_id) {
  for (auto& [id, run] : runs_)
    if (!run.tasks.empty() && run.tasks.front().task.task_id() == task_id) return &run;
  return nullptr;
}

}  // namespace skerry::client
