// What a holder sees.
#include "client/daemon/machine/client_machine.h"

#include <algorithm>
#include <utility>

namespace skerry::client {

MachineStatus ClientMachine::status() const {
  MachineStatus status;
  switch (session_) {
    case Session::kIdle: status.session = "idle"; break;
    case Session::kConnecting: status.session = now_ < connect_at_ ? "waiting" : "connecting"; break;
    case Session::kGreeting: status.session = "connecting"; break;
    case Session::kOpen: status.session = "connected"; break;
    case Session::kDismissed: status.session = "dismissed"; break;
    case Session::kLeft: status.session = "left"; break;
  }
  status.detail = detail_;
  status.incarnation = incarnation_;
  status.coordinator = coordinator_;
  status.paused = paused_;
  status.unavailable = unavailable_;
  for (const auto& [id, run] : runs_) {
    MachineStatus::RunStatus entry;
    entry.run_id = id;
    entry.name = run.announcement.name();
    entry.answer = run.consent == Consent::kJudging ? "judging" : run.consent == Consent::kAccepted ? "accepted" : "refused";
    entry.data_set = run.answer.data_set();
    entry.reasons.assign(run.answer.reasons().begin(), run.answer.reasons().end());
    switch (run.trainer) {
      case Trainer::kNone: entry.trainer = now_ < run.not_before ? "backing off" : "none"; break;
      case Trainer::kStarting: entry.trainer = "starting"; break;
      case Trainer::kReady: entry.trainer = "ready"; break;
      case Trainer::kStopping: entry.trainer = "stopping"; break;
    }
    const auto show = [&entry](const ActiveTask& active) {
      MachineStatus::TaskStatus task;
      task.task_id = active.task.task_id();
      task.kind = active.task.kind();
      switch (active.phase) {
        case Phase::kQueued: task.phase = "queued"; break;
        case Phase::kPreparing: task.phase = active.fetched ? "starting" : "fetching"; break;
        case Phase::kRunning: task.phase = "running"; break;
        case Phase::kCancelling: task.phase = "cancelling"; break;
        case Phase::kStoring: task.phase = "storing"; break;
      }
      task.round = active.task.round();
      task.step = active.step;
      task.of = active.of;
      task.loss = active.loss;
      entry.tasks.push_back(std::move(task));
    };
    for (const auto& active : run.storing) show(active);
    for (const auto& active : run.tasks) show(active);
    entry.counted = run.counted;
    entry.discarded = run.discarded;
    status.runs.push_back(std::move(entry));
  }
  for (const auto& [id, entry] : outbox_) {
    const char* phase = "waiting";
    switch (entry.phase) {
      case OutboxEntry::Phase::kWaiting: phase = "waiting"; break;
      case OutboxEntry::Phase::kUploading: phase = "uploading"; break;
      case OutboxEntry::Phase::kOffered: phase = "offered"; break;
      case OutboxEntry::Phase::kStored: phase = "stored"; break;
      case OutboxEntry::Phase::kAccepted: phase = "accepted"; break;
    }
    status.outbox.push_back({id, entry.update.task.run_id(), phase});
  }
  return status;
}

}  // namespace skerry::client
