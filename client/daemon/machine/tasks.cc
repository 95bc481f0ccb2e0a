// Tasks: from the coordinator's wish to the trainer's answer.
#include "client/daemon/machine/client_machine.h"

#include "client/daemon/machine/shared.h"

#include <algorithm>
#include <utility>

namespace skerry::client {
namespace {

constexpr std::size_t kMaxTasksPerRun = 64;
constexpr std::size_t kMaxUnsentFailures = 256;

bool overlaps(const v1::Task& a, const v1::Task& b) {
  for (const auto& fragment : a.write())
    for (const auto& other : b.write())
      if (fragment == other) return true;
  return false;
}

}  // namespace

void ClientMachine::on_message(const v1::Task& task) {
  // A task is repeated under its id after each reconnect: with a fresh ticket, and in the name of the new session.
  if (auto stored = outbox_.find(task.task_id()); stored != outbox_.end()) {
    stored->second.update.task.set_ticket(task.ticket());
    if (stored->second.phase == OutboxEntry::Phase::kWaiting) offer(stored->second);
    return;
  }
  // A repetition that was under way while its update was decided. Trained again, the update would carry on twice what depends
  // on it: a residual, a control variate.
  if (std::find(decided_.begin(), decided_.end(), task.task_id()) != decided_.end()) return;
  Run* run = find_run(task.run_id());
  if (run != nullptr)
    for (auto* list : {&run->tasks, &run->storing})
      for (auto& known : *list)
        if (known.task.task_id() == task.task_id() && known.phase != Phase::kCancelling) {
          known.task.set_ticket(task.ticket());
          known.task.set_incarnation(task.incarnation());
          return;
        }
  if (task.incarnation() != incarnation_)
    return fail_task(task, error_of(Code::kAborted, "the task belongs to session " + task.incarnation() +
                                                        ", this node's session is " + incarnation_));
  if (run == nullptr || run->ended)
    return fail_task(task, error_of(Code::kFailedPrecondition, "run " + task.run_id() + " was not announced to this node"));
  if (task.spec_hash() != run->announcement.spec_hash())
    return fail_task(task, error_of(Code::kPermissionDenied, "the task names spec " + task.spec_hash() + ", the holder was asked about " +
                                                                 run->announcement.spec_hash()));
  if (run->consent == Consent::kRefused)
    return fail_task(task, error_of(Code::kPermissionDenied, "the holder's policy does not allow this run"));
  if (task.kind() != v1::TASK_TRAIN && task.kind() != v1::TASK_EVALUATE)
    return fail_task(task, error_of(Code::kUnimplemented, "this daemon knows no task of kind " + std::to_string(task.kind())));
  if (!may_work())
    return fail_task(task, error_of(Code::kUnavailable, exiting_ ? "the daemon is ending"
                                                        : paused_ ? "the holder paused this node"
                                                                  : "the holder's policy allows no work now", true));
  if (run->tasks.size() >= kMaxTasksPerRun)
    return fail_task(task, resource_exhausted("this node already has " + std::to_string(kMaxTasksPerRun) + " tasks of the run"));

  // A coordinator that hands out the same work in a new session has given up the old session's task.
  if (task.kind() == v1::TASK_TRAIN) {
    for (std::size_t index = run->tasks.size(); index-- > 0;) {
      const auto& old = run->tasks[index].task;
      if (old.kind() == v1::TASK_TRAIN && old.incarnation() != task.incarnation() && old.exchange() <= task.exchange() &&
          overlaps(old, task)) {
        cancel_task(*run, index, nullptr);
      } else if (old.kind() == v1::TASK_TRAIN && run->overlapped && old.exchange() > task.exchange()) {
        // It goes on from the end of this one, or waits for what only this one's update brings about.
        const Error order = error_of(Code::kNotFound, "an earlier task, " + task.task_id() + ", came after it");
        cancel_task(*run, index, &order);
      }
    }
  }

  ActiveTask active;
  active.task = task;
  active.received = now_;
  std::uint64_t limit = task.deadline_ms();
  if (options_.max_task_ms > 0) limit = limit == 0 ? options_.max_task_ms : std::min(limit, options_.max_task_ms);
  active.limit_ms = limit;
  const bool first = std::none_of(run->tasks.begin(), run->tasks.end(), [](const ActiveTask& other) {
    return other.task.kind() == v1::TASK_TRAIN;
  });
  if (limit != 0 && (first || !run->overlapped)) active.deadline = now_ + limit;
  auto position = run->tasks.end();
  if (task.kind() == v1::TASK_EVALUATE)
    position = std::find_if(run->tasks.begin(), run->tasks.end(), [](const ActiveTask& other) {
      return other.phase == Phase::kQueued && other.task.kind() == v1::TASK_TRAIN;
    });
  run->tasks.insert(position, std::move(active));
}

void ClientMachine::on_message(const v1::CancelTask& cancel) {
  for (auto& [id, run] : runs_)
    for (std::size_t index = 0; index < run.tasks.size(); ++index)
      if (run.tasks[index].task.task_id() == cancel.task_id()) {
        note(Note::Level::kInfo, "task " + cancel.task_id() + " is cancelled: " + cancel.reason());
        return cancel_task(run, index, nullptr);
      }
}

void ClientMachine::on(const FetchDone& event) {
  Run* run = find_front(event.task_id);
  if (run != nullptr && run->tasks.front().phase == Phase::kPreparing) run->tasks.front().fetched = true;
}

void ClientMachine::on(const FetchFailed& event) {
  Run* run = find_front(event.task_id);
  if (run == nullptr || run->tasks.front().phase != Phase::kPreparing) return;
  const auto front = std::move(run->tasks.front());
  run->tasks.pop_front();
  fail_task(front.task, event.error);
}

void ClientMachine::on(const TrainerProgress& event) {
  Run* run = find_front(event.task_id);
  if (run == nullptr || run->tasks.front().phase != Phase::kRunning) return;
  auto& front = run->tasks.front();
  front.step = event.step;
  front.of = event.of;
  front.loss = event.loss;
  v1::FromNode message;
  auto* progress = message.mutable_progress();
  progress->set_task_id(event.task_id);
  progress->set_step(event.step);
  progress->set_of(event.of);
  progress->set_loss(event.loss);
  send(std::move(message));
}

void ClientMachine::on(const TrainerDone& event) {
  Run* run = find_front(event.task_id);
  if (run == nullptr) return;
  auto& front = run->tasks.front();
  if (front.phase == Phase::kCancelling) {
    run->tasks.pop_front();
    return;
  }
  if (front.phase != Phase::kRunning) return;
  run->crashes = 0;
  for (const auto& [exchange, fragment] : front.merged) run->merged[fragment] = std::max(run->merged[fragment], exchange);
  front.phase = Phase::kStoring;
  front.result = event.result;
  run->storing.push_back(std::move(front));
  run->tasks.pop_front();
  if (run->storing.size() == 1) store_next(*run);
}

void ClientMachine::store_next(Run& run) {
  if (!run.storing.empty()) out_.emplace_back(StoreUpdate{run.storing.front().task, run.storing.front().result});
}

void ClientMachine::on(const TrainerError& event) {
  Run* run = find_front(event.task_id);
  if (run == nullptr) return;
  const auto front = std::move(run->tasks.front());
  run->tasks.pop_front();
  if (front.phase != Phase::kCancelling) fail_task(front.task, event.error);
}

void ClientMachine::on(const TrainerCancelled& event) {
  Run* run = find_front(event.task_id);
  if (run == nullptr) return;
  const auto front = std::move(run->tasks.front());
  run->tasks.pop_front();
  if (front.phase != Phase::kCancelling) fail_task(front.task, error_of(Code::kCancelled, "the trainer stopped by itself", true));
}

void ClientMachine::watch_tasks() {
  for (auto& [id, run] : runs_) {
    if (!run.tasks.empty() || !run.storing.empty()) run.idle_since = 0;
    else if (run.idle_since == 0) run.idle_since = now_;
    for (std::size_t index = run.tasks.size(); index-- > 0;) {
      auto& active = run.tasks[index];
      if (index == 0 && active.deadline == 0 && active.limit_ms != 0) active.deadline = now_ + active.limit_ms;
      if (active.phase == Phase::kCancelling && active.kill_at != 0 && now_ >= active.kill_at) {
        active.kill_at = 0;
        if (run.trainer != Trainer::kStopping) stop_trainer(run, "it did not stop when told to");
      } else if (active.deadline != 0 && now_ >= active.deadline && active.phase != Phase::kCancelling) {
        const Error late = error_of(Code::kDeadlineExceeded, "the task was not done " + std::to_string(now_ - active.received) +
                                                                 " ms after it was given");
        cancel_task(run, index, &late);
      }
    }
  }
}

void ClientMachine::cancel_task(Run& run, std::size_t index, const Error* failure) {
  auto& active = run.tasks[index];
  if (active.phase == Phase::kCancelling) return;
  const v1::Task task = active.task;
  if (active.phase == Phase::kRunning) {
    active.phase = Phase::kCancelling;
    active.kill_at = now_ + options_.cancel_grace_ms;
    out_.emplace_back(CancelTask{task.run_id(), task.task_id()});
  } else {
    if (active.phase == Phase::kPreparing && !active.fetched) out_.emplace_back(Abandon{task.task_id()});
    run.tasks.erase(run.tasks.begin() + static_cast<std::ptrdiff_t>(index));
  }
  if (failure != nullptr) fail_task(task, *failure);
}

void ClientMachine::cancel_all(Run& run, const Error& failure) {
  for (std::size_t index = run.tasks.size(); index-- > 0;) cancel_task(run, index, &failure);
}

void ClientMachine::fail_task(const v1::Task& task, const Error& error) {
  v1::FromNode message;
  auto* failure = message.mutable_failure();
  failure->set_task_id(task.task_id());
  failure->set_code(static_cast<int>(error.code));
  failure->set_message(error.message);
  failure->set_retryable(error.retryable);
  note(Note::Level::kWarning, "task " + task.task_id() + " failed: " + to_string(error));
  if (session_ == Session::kOpen) return send(std::move(message));
  if (unsent_failures_.size() >= kMaxUnsentFailures) unsent_failures_.pop_front();
  unsent_failures_.push_back(std::move(*failure));
}

}  // namespace skerry::client
