// Trainers: who has a slot, and which task they are given.
#include "client/daemon/machine/client_machine.h"

#include <algorithm>
#include <utility>

namespace skerry::client {
namespace {

constexpr std::uint64_t kTrainerBackoffBaseMs = 1'000;
constexpr std::uint64_t kTrainerBackoffCapMs = 60'000;
// While another run waits for its slot, a ready trainer without work is kept for as long as its start took, and one that
// goes from task to task for ten times that: then at most a tenth or so of the time goes into starts.
constexpr std::uint64_t kIdleCapMs = 2'000;
constexpr std::uint64_t kSliceStarts = 10;
constexpr std::size_t kMaxStoring = 2;    // updates on their way to the disk beside a task: more would only fill it
constexpr std::uint32_t kMaxDeaths = 3;  // of trainers with one task, before the task is given back

}  // namespace

void ClientMachine::start_front_tasks() {
  if (!may_work() && !exiting_) {
    // Work that has begun goes on while the node is paused.
    for (auto& [id, run] : runs_) {
      if (run.tasks.empty()) continue;
      auto& front = run.tasks.front();
      if (front.phase == Phase::kPreparing && front.fetched && run.trainer == Trainer::kReady) run_front(run);
    }
    return;
  }
  if (exiting_) return;
  std::vector<std::pair<const std::string*, Run*>> waiting;
  for (auto& [id, run] : runs_)
    if (!run.tasks.empty() && run.storing.size() < (run.overlapped ? kMaxStoring : 1) &&
        run.consent == Consent::kAccepted && !run.ended)
      waiting.emplace_back(&id, &run);
  std::stable_sort(waiting.begin(), waiting.end(), [](const auto& a, const auto& b) {
    return a.second->tasks.front().received < b.second->tasks.front().received;
  });
  for (auto& [id, run] : waiting) {
    auto& front = run->tasks.front();
    if (front.phase == Phase::kQueued && !must_wait(*id, *run) && claim_trainer(*id, *run)) {
      front.phase = Phase::kPreparing;
      front.fetched = front.task.read().empty();
      if (!front.fetched) out_.emplace_back(Fetch{front.task});
    }
    // A trainer that ended while the task was being prepared is started again.
    if (front.phase == Phase::kPreparing && run->trainer == Trainer::kNone) (void)claim_trainer(*id, *run);
    if (front.phase == Phase::kPreparing && front.fetched && run->trainer == Trainer::kReady) run_front(*run);
  }
}

void ClientMachine::run_front(Run& run) {
  auto& front = run.tasks.front();
  front.phase = Phase::kRunning;
  front.handed.clear();
  front.merged.clear();
  out_.emplace_back(TrainerRequest{front.task});
}

bool ClientMachine::must_wait(const std::string& run_id, const Run& run) const {
  if (!run.one_by_one || run.tasks.front().task.kind() != v1::TASK_TRAIN) return false;
  return std::any_of(outbox_.begin(), outbox_.end(), [&](const auto& entry) {
    const v1::Task& task = entry.second.update.task;
    return task.run_id() == run_id && task.kind() == v1::TASK_TRAIN;
  });
}

bool ClientMachine::claim_trainer(const std::string& run_id, Run& run) {
  if (run.trainer == Trainer::kReady || run.trainer == Trainer::kStarting) return true;
  if (run.trainer == Trainer::kStopping || now_ < run.not_before) return false;
  std::uint32_t alive = 0;
  Run* first = nullptr;  // to yield
  Instant first_at = 0;
  bool stopping = false;
  for (auto& [id, other] : runs_) {
    if (other.trainer == Trainer::kNone) continue;
    ++alive;
    stopping = stopping || other.trainer == Trainer::kStopping;
    const Instant at = yields_at(other, run.tasks.front().received);
    if (at == 0 || (first != nullptr && at >= first_at)) continue;
    first = &other;
    first_at = at;
  }
  if (alive < std::max<std::uint32_t>(options_.max_trainers, 1)) {
    run.trainer = Trainer::kStarting;
    run.started_at = now_;
    out_.emplace_back(StartTrainer{run_id});
    return true;
  }
  if (first == nullptr || stopping) return false;
  if (now_ >= first_at)
    stop_trainer(*first, "another run needs the holder's trainer slot");
  else if (slot_at_ == 0 || first_at < slot_at_)
    slot_at_ = first_at;
  return false;
}

/// When the run's trainer makes room for a run that has waited since `wanted_since`; 0: not while it is like this.
Instant ClientMachine::yields_at(const Run& run, Instant wanted_since) const {
  if (run.trainer != Trainer::kReady) return 0;
  const std::uint64_t start = run.ready_at - run.started_at;
  if (!run.storing.empty()) return 0;
  if (run.tasks.empty()) return std::max<Instant>(1, run.idle_since + std::min(start, kIdleCapMs));
  const ActiveTask& front = run.tasks.front();
  if (front.phase != Phase::kQueued || front.received <= wanted_since) return 0;
  return std::max<Instant>(1, run.ready_at + kSliceStarts * start);
}

void ClientMachine::on(const TrainerReady& event) {
  Run* run = find_run(event.run_id);
  if (run == nullptr || run->trainer != Trainer::kStarting) return;
  run->trainer = Trainer::kReady;
  run->ready_at = now_;
}

void ClientMachine::on(const TrainerExited& event) {
  Run* run = find_run(event.run_id);
  if (run == nullptr) return;
  const bool asked = run->trainer == Trainer::kStopping;
  run->trainer = Trainer::kNone;
  if (!asked) {
    run->not_before = now_ + backoff(run->crashes, kTrainerBackoffBaseMs, kTrainerBackoffCapMs);
    ++run->crashes;
    note(Note::Level::kError, "the trainer of run " + event.run_id + " is gone: " + to_string(event.error));
  }
  if (run->tasks.empty()) return;
  const Phase phase = run->tasks.front().phase;
  if (phase == Phase::kQueued) return;
  if (run->overlapped && phase != Phase::kCancelling && !asked && event.error.retryable &&
      ++run->tasks.front().deaths < kMaxDeaths) {
    // The next trainer goes on from its checkpoint, with the same result; the tasks after this one depend on it.
    run->tasks.front().phase = Phase::kPreparing;
    return;
  }
  const auto front = std::move(run->tasks.front());
  run->tasks.pop_front();
  if (phase == Phase::kPreparing && !front.fetched) out_.emplace_back(Abandon{front.task.task_id()});
  if (phase != Phase::kCancelling) fail_task(front.task, event.error);
}

void ClientMachine::stop_trainer(Run& run, std::string reason) {
  if (run.trainer == Trainer::kNone || run.trainer == Trainer::kStopping) return;
  run.trainer = Trainer::kStopping;
  out_.emplace_back(StopTrainer{run.announcement.run_id(), std::move(reason)});
}

}  // namespace skerry::client
