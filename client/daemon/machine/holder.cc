// The holder's wishes: pause, hours, leaving, the program's end.
#include "client/daemon/machine/client_machine.h"

#include "client/daemon/machine/shared.h"

#include <algorithm>
#include <utility>

namespace skerry::client {

void ClientMachine::withdraw(const Error& failure) {
  for (auto& [id, run] : runs_)
    for (std::size_t index = run.tasks.size(); index-- > 0;)
      if (run.tasks[index].phase == Phase::kQueued) cancel_task(run, index, &failure);
}

void ClientMachine::on(const Pause& event) {
  paused_ = true;
  const Error paused = error_of(Code::kUnavailable, "the holder paused this node", true);
  withdraw(paused);
  if (event.now)
    for (auto& [id, run] : runs_) cancel_all(run, paused);
  say_availability();
}

void ClientMachine::on(const Resume&) {
  paused_ = false;
  say_availability();
  if (session_ == Session::kDismissed || (session_ == Session::kConnecting && now_ < connect_at_)) {
    attempts_ = 0;
    reconnect_after(0);
  }
}

void ClientMachine::on(const Availability& event) {
  unavailable_ = event.open ? std::string() : event.reason.empty() ? "closed" : event.reason;
  if (!event.open) withdraw(error_of(Code::kUnavailable, "the holder's policy allows no work now", true));
  say_availability();
}

void ClientMachine::on(const Leave& event) { end_everything(event.reason, true); }

void ClientMachine::on(const Shutdown&) { end_everything("the daemon is ending", false); }

void ClientMachine::end_everything(const std::string& reason, bool leaving) {
  if (exiting_) return;
  const bool open = session_ == Session::kOpen;
  for (auto& [id, run] : runs_) {
    cancel_all(run, error_of(Code::kUnavailable, reason.empty() ? "the holder leaves the federation" : reason, !leaving));
    if (leaving) run.ended = true;
    if (run.trainer != Trainer::kNone) stop_trainer(run, "the daemon is ending");
  }
  exiting_ = true;
  leaving_ = leaving;
  if (open) {
    v1::FromNode message;
    message.mutable_farewell()->set_reason(reason);
    message.mutable_farewell()->set_leaving(leaving);
    send(std::move(message));
  } else if (leaving) {
    note(Note::Level::kWarning, "there is no session: the coordinator could not be told that this node leaves; it will see the node as offline");
  }
  out_.emplace_back(CloseSession{reason});
  session_ = Session::kLeft;
}

void ClientMachine::finish_exit() {
  if (!exiting_ || exit_said_) return;
  for (const auto& [id, run] : runs_) {
    if (run.trainer != Trainer::kNone || !run.storing.empty()) return;
  }
  exit_said_ = true;
  out_.emplace_back(Exit{});
}

}  // namespace skerry::client
