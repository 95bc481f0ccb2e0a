#include "client/daemon/machine/client_machine.h"

#include <algorithm>
#include <utility>

namespace skerry::client {
namespace {

constexpr std::size_t kMaxRuns = 1024;
constexpr std::size_t kMaxTasksPerRun = 64;
constexpr std::uint64_t kLeastHeartbeatMs = 100;
constexpr std::size_t kMaxUnsentFailures = 256;
constexpr std::uint64_t kSettledSessionMs = 10'000;    // a session that lasted this long ends a row of failures
constexpr std::uint64_t kReannounceWithinMs = 60'000;  // a run that is not announced again within this time is over
constexpr std::uint64_t kTrainerBackoffBaseMs = 1'000;
constexpr std::uint64_t kTrainerBackoffCapMs = 60'000;
constexpr std::uint64_t kRefusedBaseMs = 5'000;
constexpr std::uint64_t kGreetingMs = 30'000;  // until the welcome
// While another run waits for its slot, a ready trainer without work is kept for as long as its start took, and one that
// goes from task to task for ten times that: then at most a tenth or so of the time goes into starts.
constexpr std::uint64_t kIdleCapMs = 2'000;
constexpr std::uint64_t kSliceStarts = 10;

Error error_of(Code code, std::string message, bool retryable = false) { return {code, std::move(message), retryable}; }

bool overlaps(const v1::Task& a, const v1::Task& b) {
  for (const auto& fragment : a.write())
    for (const auto& other : b.write())
      if (fragment == other) return true;
  return false;
}

}  // namespace

ClientMachine::ClientMachine(ClientMachineOptions options)
    : options_(std::move(options)),
      incarnation_(options_.previous_incarnation),
      random_state_(options_.seed),
      paused_(options_.paused) {
  for (auto& update : options_.outbox) {
    const std::string id = update.task.task_id();
    outbox_[id].update = std::move(update);
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
  start_front_tasks();
  retry_uploads();
  drop_finished_runs();
  finish_exit();
  set_alarm();
  return std::move(out_);
}

// ---- the session ----

void ClientMachine::on(const Started&) {
  if (session_ == Session::kIdle) reconnect_after(0);
}

void ClientMachine::on(const Connected&) {
  if (session_ != Session::kConnecting) {
    out_.emplace_back(CloseSession{"the session is not wanted any more"});
    return;
  }
  session_ = Session::kGreeting;
  last_heard_ = now_;
  hello();
}

void ClientMachine::hello() {
  v1::FromNode message;
  auto* hello = message.mutable_hello();
  hello->set_protocol_version(1);
  hello->set_software(options_.software);
  hello->set_previous_incarnation(incarnation_);
  for (const auto& data_set : options_.data_sets) *hello->add_data_sets() = data_set;
  hello->set_threads(options_.threads);
  hello->set_memory_bytes(options_.memory_bytes);
  hello->set_paused(!may_work());
  out_.emplace_back(Send{std::move(message)});
}

void ClientMachine::on(const Disconnected& event) {
  if (session_ == Session::kIdle || session_ == Session::kDismissed || session_ == Session::kLeft) return;
  disconnected(event.error);
}

void ClientMachine::disconnected(const Error& error) {
  const bool settled = session_ == Session::kOpen && now_ - welcomed_at_ >= kSettledSessionMs;
  if (settled) attempts_ = 0;
  detail_ = to_string(error);
  for (auto& [id, entry] : outbox_)
    if (entry.phase != OutboxEntry::Phase::kUploading) entry.phase = OutboxEntry::Phase::kWaiting;
  if (exiting_) {
    session_ = Session::kLeft;
    return;
  }
  std::uint64_t delay = 0;
  switch (error.code) {
    case Code::kAborted:
      note(Note::Level::kError,
           "another machine opened a session with this node's identity; if it is not yours, ask the operator to revoke this "
           "node and join again with a new token. Next attempt in " +
               std::to_string(options_.conflict_wait_ms / 1000) + " s at most");
      delay = options_.conflict_wait_ms / 2 + jitter(options_.conflict_wait_ms / 2);
      break;
    case Code::kUnauthenticated:
    case Code::kPermissionDenied:
    case Code::kFailedPrecondition:
      delay = backoff(attempts_, kRefusedBaseMs, options_.refused_cap_ms);
      break;
    default: delay = backoff(attempts_, options_.backoff_base_ms, options_.backoff_cap_ms);
  }
  ++attempts_;
  note(Note::Level::kWarning, "no session with the coordinator: " + detail_ + "; next attempt in " + std::to_string(delay) + " ms");
  reconnect_after(delay);
}

void ClientMachine::reconnect_after(std::uint64_t delay_ms) {
  session_ = Session::kConnecting;
  connect_at_ = now_ + delay_ms;
  out_.emplace_back(ConnectAfter{delay_ms});
}

std::uint64_t ClientMachine::backoff(std::uint32_t attempts, std::uint64_t base_ms, std::uint64_t cap_ms) {
  const std::uint64_t ceiling = attempts >= 20 ? cap_ms : std::min(cap_ms, base_ms << attempts);
  return jitter(ceiling);
}

void ClientMachine::on(const IdentityRenewed&) {
  if (session_ == Session::kConnecting || session_ == Session::kDismissed) {
    attempts_ = 0;
    reconnect_after(0);
  }
}

void ClientMachine::on(const Received& event) {
  if (session_ != Session::kGreeting && session_ != Session::kOpen) return;
  last_heard_ = now_;
  const auto& message = event.message;
  if (session_ == Session::kGreeting && !message.has_welcome() && !message.has_goodbye()) {
    out_.emplace_back(CloseSession{"the coordinator spoke before its welcome"});
    disconnected(error_of(Code::kFailedPrecondition, "the coordinator spoke before its welcome; is it a Skerry coordinator?"));
    return;
  }
  switch (message.message_case()) {
    case v1::ToNode::kWelcome: on_message(message.welcome()); break;
    case v1::ToNode::kRun: on_message(message.run()); break;
    case v1::ToNode::kTask: on_message(message.task()); break;
    case v1::ToNode::kCancel: on_message(message.cancel()); break;
    case v1::ToNode::kReceipt: on_message(message.receipt()); break;
    case v1::ToNode::kRunEnded: on_message(message.run_ended()); break;
    case v1::ToNode::kGoodbye: on_message(message.goodbye()); break;
    case v1::ToNode::kDelivery:
    case v1::ToNode::kHeartbeat:
    case v1::ToNode::MESSAGE_NOT_SET: break;
  }
}

void ClientMachine::on_message(const v1::Welcome& welcome) {
  if (session_ != Session::kGreeting) return;
  session_ = Session::kOpen;
  welcomed_at_ = now_;
  detail_.clear();
  incarnation_ = welcome.incarnation();
  coordinator_ = welcome.coordinator();
  heartbeat_ms_ = welcome.heartbeat_ms() == 0 ? 0 : std::max<std::uint64_t>(welcome.heartbeat_ms(), kLeastHeartbeatMs);
  next_heartbeat_ = now_ + heartbeat_ms_ / 2;
  note(Note::Level::kInfo, "connected to " + coordinator_);
  for (auto& [id, run] : runs_) run.stale_at = now_ + kReannounceWithinMs;
  if (!may_work()) say_availability();  // what changed while the welcome was under way
  while (!unsent_failures_.empty()) {
    v1::FromNode message;
    *message.mutable_failure() = std::move(unsent_failures_.front());
    unsent_failures_.pop_front();
    send(std::move(message));
  }
  query_receipts();
}

void ClientMachine::on_message(const v1::Goodbye& goodbye) {
  if (goodbye.retry_after_ms() > 0) {
    out_.emplace_back(CloseSession{"the coordinator said goodbye"});
    detail_ = "the coordinator said goodbye: " + goodbye.reason();
    note(Note::Level::kInfo, detail_);
    for (auto& [id, entry] : outbox_)
      if (entry.phase != OutboxEntry::Phase::kUploading) entry.phase = OutboxEntry::Phase::kWaiting;
    if (exiting_) session_ = Session::kLeft;
    else reconnect_after(goodbye.retry_after_ms() + jitter(goodbye.retry_after_ms() / 2));
    return;
  }
  out_.emplace_back(CloseSession{"the coordinator said goodbye"});
  session_ = exiting_ ? Session::kLeft : Session::kDismissed;
  detail_ = "the coordinator ended the session for good: " + goodbye.reason();
  note(Note::Level::kError, detail_ + "; `skerry-client resume` tries again");
}

void ClientMachine::watch_session() {
  const bool open = session_ == Session::kOpen;
  if (!(open && heartbeat_ms_ > 0) && session_ != Session::kGreeting) return;
  if (open && now_ >= next_heartbeat_) {
    v1::FromNode message;
    message.mutable_heartbeat()->set_token(++heartbeat_token_);
    message.mutable_heartbeat()->set_paused(!may_work());
    send(std::move(message));
    next_heartbeat_ = now_ + heartbeat_ms_ / 2;
  }
  if (now_ - last_heard_ >= (open ? 3 * heartbeat_ms_ : kGreetingMs)) {
    const std::string reason = "the coordinator was silent for " + std::to_string(now_ - last_heard_) + " ms";
    out_.emplace_back(CloseSession{reason});
    disconnected(unavailable(reason));
  }
}

void ClientMachine::say_availability() {
  if (session_ != Session::kOpen) return;
  v1::FromNode message;
  message.mutable_heartbeat()->set_token(++heartbeat_token_);
  message.mutable_heartbeat()->set_paused(!may_work());
  send(std::move(message));
}

// ---- consent ----

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

// ---- tasks ----

void ClientMachine::on_message(const v1::Task& task) {
  // A task is repeated under its id after each reconnect: with a fresh ticket, and in the name of the new session.
  if (auto stored = outbox_.find(task.task_id()); stored != outbox_.end()) {
    stored->second.update.task.set_ticket(task.ticket());
    if (stored->second.phase == OutboxEntry::Phase::kWaiting) offer(stored->second);
    return;
  }
  Run* run = find_run(task.run_id());
  if (run != nullptr)
    for (auto& known : run->tasks)
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
          overlaps(old, task))
        cancel_task(*run, index, nullptr);
    }
  }

  ActiveTask active;
  active.task = task;
  active.received = now_;
  std::uint64_t limit = task.deadline_ms();
  if (options_.max_task_ms > 0) limit = limit == 0 ? options_.max_task_ms : std::min(limit, options_.max_task_ms);
  active.deadline = limit == 0 ? 0 : now_ + limit;
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

void ClientMachine::start_front_tasks() {
  if (!may_work() && !exiting_) {
    // Work that has begun goes on while the node is paused.
    for (auto& [id, run] : runs_) {
      if (run.tasks.empty()) continue;
      auto& front = run.tasks.front();
      if (front.phase == Phase::kPreparing && front.fetched && run.trainer == Trainer::kReady) {
        front.phase = Phase::kRunning;
        out_.emplace_back(TrainerRequest{front.task});
      }
    }
    return;
  }
  if (exiting_) return;
  std::vector<std::pair<const std::string*, Run*>> waiting;
  for (auto& [id, run] : runs_)
    if (!run.tasks.empty() && run.consent == Consent::kAccepted && !run.ended) waiting.emplace_back(&id, &run);
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
    if (front.phase == Phase::kPreparing && front.fetched && run->trainer == Trainer::kReady) {
      front.phase = Phase::kRunning;
      out_.emplace_back(TrainerRequest{front.task});
    }
  }
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
  front.phase = Phase::kStoring;
  out_.emplace_back(StoreUpdate{front.task, event.result});
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
  if (phase == Phase::kQueued || phase == Phase::kStoring) return;
  const auto front = std::move(run->tasks.front());
  run->tasks.pop_front();
  if (phase == Phase::kPreparing && !front.fetched) out_.emplace_back(Abandon{front.task.task_id()});
  if (phase != Phase::kCancelling) fail_task(front.task, event.error);
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

void ClientMachine::watch_tasks() {
  for (auto& [id, run] : runs_) {
    if (!run.tasks.empty()) run.idle_since = 0;
    else if (run.idle_since == 0) run.idle_since = now_;
    for (std::size_t index = run.tasks.size(); index-- > 0;) {
      auto& active = run.tasks[index];
      if (active.phase == Phase::kCancelling && active.kill_at != 0 && now_ >= active.kill_at) {
        active.kill_at = 0;
        if (run.trainer != Trainer::kStopping) stop_trainer(run, "it did not stop when told to");
      } else if (active.deadline != 0 && now_ >= active.deadline && active.phase != Phase::kStoring &&
                 active.phase != Phase::kCancelling) {
        const Error late = error_of(Code::kDeadlineExceeded, "the task was not done " + std::to_string(now_ - active.received) +
                                                                 " ms after it was given");
        cancel_task(run, index, &late);
      }
    }
  }
}

void ClientMachine::cancel_task(Run& run, std::size_t index, const Error* failure) {
  auto& active = run.tasks[index];
  if (active.phase == Phase::kStoring || active.phase == Phase::kCancelling) return;
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

void ClientMachine::stop_trainer(Run& run, std::string reason) {
  if (run.trainer == Trainer::kNone || run.trainer == Trainer::kStopping) return;
  run.trainer = Trainer::kStopping;
  out_.emplace_back(StopTrainer{run.announcement.run_id(), std::move(reason)});
}

// ---- the outbox ----

void ClientMachine::on(const OutboxStored& event) {
  const std::string& id = event.update.task.task_id();
  if (Run* run = find_front(id); run != nullptr && run->tasks.front().phase == Phase::kStoring) run->tasks.pop_front();
  auto& entry = outbox_[id];
  entry.update = event.update;
  offer(entry);
}

void ClientMachine::on(const StoreFailed& event) {
  Run* run = find_front(event.task_id);
  if (run == nullptr || run->tasks.front().phase != Phase::kStoring) return;
  const auto front = std::move(run->tasks.front());
  run->tasks.pop_front();
  fail_task(front.task, event.error);
}

void ClientMachine::offer(OutboxEntry& entry) {
  if (session_ != Session::kOpen || entry.phase == OutboxEntry::Phase::kUploading) return;
  entry.retry_at = 0;
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
    if (entry.phase == OutboxEntry::Phase::kWaiting && entry.retry_at != 0 && now_ >= entry.retry_at) offer(entry);
}

void ClientMachine::query_receipts() {
  v1::FromNode message;
  auto* query = message.mutable_receipt_query();
  for (const auto& [id, entry] : outbox_) query->add_task_ids(id);
  // Tasks of the last session are asked for too: those that can never count are not worth finishing.
  for (const auto& [id, run] : runs_)
    for (const auto& active : run.tasks) query->add_task_ids(active.task.task_id());
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
  outbox_.erase(found);
}

// ---- the holder's wishes ----

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
    if (run.trainer != Trainer::kNone) return;
    if (!run.tasks.empty() && run.tasks.front().phase == Phase::kStoring) return;
  }
  exit_said_ = true;
  out_.emplace_back(Exit{});
}

void ClientMachine::drop_finished_runs() {
  for (auto it = runs_.begin(); it != runs_.end();) {
    Run& run = it->second;
    if (run.stale_at != 0 && now_ >= run.stale_at && session_ == Session::kOpen && run.tasks.empty() && !run.ended) {
      run.ended = true;
      stop_trainer(run, "the coordinator does not know the run any more");
    }
    if (!run.ended || run.trainer != Trainer::kNone || !run.tasks.empty()) {
      ++it;
      continue;
    }
    out_.emplace_back(DropRun{it->first});
    it = runs_.erase(it);
  }
}

// ---- small parts ----

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
      if (active.phase == Phase::kCancelling) consider(active.kill_at);
      else if (active.phase != Phase::kStoring) consider(active.deadline);
    }
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

// SplitMix64: good enough to spread reconnects, and the same on every machine.
std::uint64_t ClientMachine::jitter(std::uint64_t below) {
  if (below == 0) return 0;
  random_state_ += 0x9E3779B97F4A7C15ULL;
  std::uint64_t z = random_state_;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
  return (z ^ (z >> 31)) % below;
}

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
    for (const auto& active : run.tasks) {
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
    }
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
