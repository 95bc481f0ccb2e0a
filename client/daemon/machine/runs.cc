// Runs: announcements, the holder's consent, their ends.
#include "client/daemon/machine/client_machine.h"

#include "client/daemon/machine/shared.h"

#include <algorithm>
#include <utility>

namespace skerry::client {
namespace {

constexpr std::size_t kMaxRuns = 1024;

}  // namespace

void ClientMachine::on_message(const v1::RunAnnouncement& announcement) {
  if (exiting_) return;
  if (runs_.size() >= kMaxRuns && !runs_.contains(announcement.run_id()))
    return note(Note::Level::kWarning, "run " + announcement.run_id() + " is ignored: this node already knows " + std::to_string(kMaxRuns));
  Run& run = runs_[announcement.run_id()];
  if (run.announcement.spec_hash() != announcement.spec_hash()) {
    cancel_all(run, error_of(Code::kFailedPrecondition, "the run's spec changed"));
    run.consent = Consent::kJudging;
    run.answer.Clear();
    if (run.trainer != Trainer::kNone) stop_trainer(run, "the run's spec changed");
  }
  run.announcement = announcement;
  run.ended = false;
  run.stale_at = 0;
  out_.emplace_back(JudgeRun{announcement});
}

void ClientMachine::on(const RunJudged& event) {
  Run* run = find_run(event.answer.run_id());
  if (run == nullptr || run->ended || run->announcement.spec_hash() != event.answer.spec_hash()) return;
  const bool same = run->consent != Consent::kJudging && run->answer.accepted() == event.answer.accepted();
  const bool moved = run->answer.data_set() != event.answer.data_set() && run->consent == Consent::kAccepted;
  run->answer = event.answer;
  run->consent = event.answer.accepted() ? Consent::kAccepted : Consent::kRefused;
  run->one_by_one = event.one_by_one;
  run->overlapped = event.overlapped;
  if (run->consent == Consent::kRefused) {
    cancel_all(*run, error_of(Code::kPermissionDenied, "the holder's policy does not allow this run"));
    if (run->trainer != Trainer::kNone) stop_trainer(*run, "the run is refused by policy");
  } else if (moved && run->trainer != Trainer::kNone) {
    cancel_all(*run, error_of(Code::kAborted, "the holder matched this run with another data set", true));
    stop_trainer(*run, "the run is matched with another data set");
  }
  if (!same) {
    std::string text = "run " + event.answer.run_id() + " (" + run->announcement.name() + ") is ";
    text += event.answer.accepted() ? "accepted with data set " + event.answer.data_set() : "refused";
    for (const auto& reason : event.answer.reasons()) text += "; " + reason;
    note(Note::Level::kInfo, std::move(text));
  }
  v1::FromNode message;
  *message.mutable_run_answer() = event.answer;
  send(std::move(message));
}

void ClientMachine::on(const PolicyChanged& event) {
  options_.max_trainers = event.max_trainers;
  options_.max_task_ms = event.max_task_ms;
  options_.threads = event.threads;
  options_.memory_bytes = event.memory_bytes;
  const bool same_data = event.data_sets.size() == options_.data_sets.size() &&
                         std::equal(event.data_sets.begin(), event.data_sets.end(), options_.data_sets.begin(),
                                    [](const auto& a, const auto& b) {
                                      return a.name() == b.name() && a.kind() == b.kind() && a.schema_json() == b.schema_json() &&
                                             std::equal(a.examples().begin(), a.examples().end(), b.examples().begin(),
                                                        b.examples().end(), [&](const auto& x, const auto&) {
                                                          return b.examples().contains(x.first) &&
                                                                 b.examples().at(x.first) == x.second;
                                                        });
                                    });
  options_.data_sets = event.data_sets;
  for (auto& [id, run] : runs_)
    if (!run.ended) out_.emplace_back(JudgeRun{run.announcement});
  // Data sets are told in Hello alone, so a new catalogue is worth a new session; running tasks live through it.
  if (!same_data && (session_ == Session::kOpen || session_ == Session::kGreeting)) {
    out_.emplace_back(CloseSession{"the data-set catalogue changed"});
    for (auto& [id, entry] : outbox_)
      if (entry.phase != OutboxEntry::Phase::kUploading) entry.phase = OutboxEntry::Phase::kWaiting;
    reconnect_after(0);
  }
}

void ClientMachine::on_message(const v1::RunEnded& ended) {
  Run* run = find_run(ended.run_id());
  if (run == nullptr) return;
  note(Note::Level::kInfo, "run " + ended.run_id() + " " + ended.outcome() +
                               (ended.reason().empty() ? std::string() : ": " + ended.reason()));
  while (!run->tasks.empty() && run->tasks.back().phase == Phase::kQueued) run->tasks.pop_back();
  if (!run->tasks.empty()) cancel_task(*run, 0, nullptr);
  run->ended = true;
  if (run->trainer != Trainer::kNone) stop_trainer(*run, "the run " + ended.outcome());
}

void ClientMachine::drop_finished_runs() {
  for (auto it = runs_.begin(); it != runs_.end();) {
    Run& run = it->second;
    if (run.stale_at != 0 && now_ >= run.stale_at && session_ == Session::kOpen && run.tasks.empty() && run.storing.empty() &&
        !run.ended) {
      run.ended = true;
      stop_trainer(run, "the coordinator does not know the run any more");
    }
    if (!run.ended || run.trainer != Trainer::kNone || !run.tasks.empty() || !run.storing.empty()) {
      ++it;
      continue;
    }
    out_.emplace_back(DropRun{it->first});
    it = runs_.erase(it);
  }
}

}  // namespace skerry::client
