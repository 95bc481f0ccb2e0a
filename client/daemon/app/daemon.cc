#include "client/daemon/app/daemon.h"

#include <signal.h>  // NOLINT(modernize-deprecated-headers): sigset_t and friends
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/signalfd.h>
#include <time.h>  // NOLINT(modernize-deprecated-headers): localtime_r
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <unordered_map>
#include <utility>

#include <nlohmann/json.hpp>

#include "client/daemon/app/control.h"
#include "client/daemon/app/run_area.h"
#include "client/daemon/app/status.h"
#include "client/daemon/egress/client_database.h"
#include "client/daemon/loop/event_loop.h"
#include "client/daemon/policy/judge.h"
#include "client/daemon/session/cargo_client.h"
#include "client/daemon/session/session.h"
#include "client/daemon/supervise/sandbox.h"
#include "client/daemon/update/make_update.h"
#include "common/crypto/keys.h"
#include "common/crypto/random.h"
#include "common/crypto/sha256.h"
#include "common/identity/enrol.h"
#include "common/os/clock.h"
#include "common/os/files.h"
#include "common/os/random.h"

namespace skerry::client {
namespace {

using nlohmann::json;

constexpr std::uint64_t kInlineLimit = 64 * 1024;
constexpr std::uint64_t kSmallElements = 64 * 1024;     // work on fragments up to this size is done on the loop itself
constexpr std::uint64_t kProgressMs = 500;
constexpr std::uint64_t kCheckpointEveryMs = 2'000;
constexpr std::uint64_t kForgetWithinMs = 1'000;
constexpr std::uint64_t kAvailabilityEveryMs = 30'000;
constexpr std::uint64_t kShutdownMs = 4'000;
constexpr std::uint64_t kLeaveMs = 15'000;
constexpr std::int64_t kDayMs = 24ll * 3600 * 1000;
constexpr std::int64_t kClockToleranceMs = 120'000;
constexpr std::uint64_t kMaxSpecBytes = 1 << 20;
constexpr std::string_view kSignaturePrefix{"skerry update v1\0", 17};


std::int64_t unix_ms() { return SystemClock().unix_ms(); }

std::uint64_t random_seed() {
  std::uint64_t seed = 0;
  SystemRandom().fill(std::as_writable_bytes(std::span(&seed, 1)));
  return seed;
}

v1::DataSetSummary summary_of(const DataSet& set) {
  v1::DataSetSummary summary;
  summary.set_name(set.name);
  summary.set_kind(set.kind);
  summary.set_schema_json(set.schema_json);
  for (const auto& [split, count] : set.examples()) (*summary.mutable_examples())[split] = count;
  return summary;
}

/// The profile with only those roots that the policy trusts: no other certificate can stand for the coordinator.
Result<Profile> pinned(Profile profile, const Policy& policy, const std::string& policy_path, std::string& fingerprint) {
  SKERRY_ASSIGN(const auto certificates, parse_chain(profile.ca_pem));
  SKERRY_ASSIGN(const TrustAnchors anchors, TrustAnchors::from_pem(profile.ca_pem));
  std::vector<Certificate> kept;
  fingerprint.clear();
  std::string offered;
  for (const auto& root : anchors.roots()) {
    offered += (offered.empty() ? "" : ", ") + root.thumbprint();
    if (std::find(policy.coordinators.begin(), policy.coordinators.end(), root.thumbprint()) == policy.coordinators.end()) continue;
    kept.push_back(root);
    if (fingerprint.empty()) fingerprint = root.thumbprint();
  }
  if (kept.empty())
    return permission_denied("the policy does not trust this coordinator: its root certificate is " + offered + ", coordinators in " + policy_path +
                             " lists others");
  for (const auto& intermediate : anchors.intermediates()) kept.push_back(intermediate);
  profile.ca_pem = chain_pem(kept);
  return profile;
}

std::uint64_t renewal_retry_ms(const Profile& profile) {
  const std::int64_t life = profile.expires_ms - profile.not_before_ms;
  return static_cast<std::uint64_t>(std::clamp<std::int64_t>(life / 50, 1'000, 300'000));
}

class DaemonLoop final : public Daemon {
 public:
  DaemonLoop(DaemonOptions options, HomeLock lock, std::unique_ptr<EventLoop> loop, ClientDatabase database, PrivateKey key)
      : options_(std::move(options)),
        home_(options_.home),
        lock_(std::move(lock)),
        loop_(std::move(loop)),
        database_(std::move(database)),
        key_(std::move(key)) {}

  ~DaemonLoop() override {
    stopping_workers_ = true;
    for (auto& [id, flag] : cancelled_) *flag = true;
  }

  Result<void> begin();
  DaemonEnd run() override;

 private:
  // Events and commands.
  void feed(Event event);
  void drain();
  void end_turn();
  void fail_for_good(const Error& error);

  void execute(ConnectAfter& command);
  void execute(CloseSession& command) { outgoing_.emplace_back(std::move(command)); }
  void execute(Send& command);
  void execute(JudgeRun& command);
  void execute(StartTrainer& command);
  void execute(StopTrainer& command);
  void execute(TrainerRequest& command);
  void execute(CancelTask& command);
  void execute(Fetch& command);
  void execute(Abandon& command);
  void execute(StoreUpdate& command);
  void execute(Upload& command);
  void execute(ForgetUpdate& command);
  void execute(DropRun& command);
  void execute(WakeAt& command);
  void execute(Note& command) { log(command.level, command.text); }
  void execute(Exit& command);

  // The session.
  void connect();
  void received(v1::ToNode message);
  void session_ended(Error error);

  // Runs and tasks.
  v1::RunAnswer answer_to(const v1::RunAnnouncement& run);
  Result<void> start_trainer(RunArea& area);
  void trainer_ready(const std::string& run_id, std::map<std::string, std::uint64_t> examples, std::uint64_t resumed_step);
  Result<void> request(RunArea& area, const v1::Task& task);
  void fetch(v1::Task task);
  bool fetch_here(RunArea& area, const v1::Task& task);
  Download downloader(std::shared_ptr<std::atomic<bool>> cancelled) const;
  Result<UpdateRecipe> recipe_for(RunArea& area, const v1::Task& task) const;
  v1::UpdateBody body_for(const v1::Task& task, const TrainerResult& result, double seconds) const;
  Result<StoredUpdate> signed_update(const v1::Task& task, v1::UpdateBody body, std::vector<PendingUpload> uploads) const;
  void store(const v1::Task& task, Result<StoredUpdate> update, double norm, bool clipped);
  Result<void> append_row(const v1::FromNode& message);
  Error told(const Error& error) const;
  void forget_now();
  void remove_payloads(const std::string& task_id);
  std::shared_ptr<RunArea> area_of(const std::string& run_id) const;
  std::shared_ptr<std::atomic<bool>> cancel_flag(const std::string& task_id);

  // The holder's side.
  Result<void> load_policy_and_catalogue();
  void reload(const char* why);
  PolicyChanged policy_event() const;
  void watch_availability();
  void schedule_renewal();
  void renew_certificate();
  json control(const json& request);
  void shut_down(bool leaving, std::string reason);

  DaemonOptions options_;
  Home home_;
  HomeLock lock_;
  std::unique_ptr<EventLoop> loop_;
  ClientDatabase database_;
  PrivateKey key_;
  std::shared_ptr<const Profile> profile_;  // shared with workers that outlive a renewal
  std::shared_ptr<const Profile> stored_profile_;  // with every root of ca.crt
  std::string ca_fingerprint_;
  std::string policy_trouble_;
  Policy policy_;
  Catalogue catalogue_;
  std::unique_ptr<ClientMachine> machine_;
  std::deque<Event> events_;
  bool draining_ = false;
  std::vector<std::variant<v1::FromNode, CloseSession>> outgoing_;
  std::unique_ptr<Session> session_;
  std::uint64_t generation_ = 0;  // of the session; what an older one says is not heard
  std::mutex live_mutex_;
  std::condition_variable live_changed_;
  unsigned live_sessions_ = 0;  // opened and not ended
  bool welcomed_ = false;
  std::uint64_t inline_limit_ = kInlineLimit;
  EventLoop::TimerId connect_timer_ = 0, wake_timer_ = 0, forget_timer_ = 0, renewal_timer_ = 0;
  std::unordered_map<std::string, std::shared_ptr<RunArea>> runs_;  // shared with workers
  std::unordered_map<std::string, std::shared_ptr<std::atomic<bool>>> cancelled_;  // by task; shared with workers
  std::unordered_map<std::string, double> task_seconds_;
  std::string just_stored_;  // its ledger row is in the open transaction
  std::vector<std::string> forgotten_;
  std::string known_incarnation_;
  bool known_paused_ = false;
  bool available_ = true;
  std::unique_ptr<ControlServer> control_;
  FileDescriptor signals_, changes_;
  DaemonEnd end_ = DaemonEnd::kStopped;
  bool shutting_down_ = false;
  std::atomic<bool> stopping_workers_{false};
  Workers workers_{3};  // last: its threads end before what they use
};

// ---- events and commands ----

void DaemonLoop::feed(Event event) {
  events_.push_back(std::move(event));
  drain();
}

void DaemonLoop::drain() {
  if (draining_) return;
  draining_ = true;
  while (!events_.empty()) {
    const Event event = std::move(events_.front());
    events_.pop_front();
    auto commands = machine_->handle(event, EventLoop::now_ms());
    for (auto& command : commands) std::visit([this](auto& what) { execute(what); }, command);
  }
  draining_ = false;
}

// What a turn wrote becomes durable in one commit; only then does anything leave.
void DaemonLoop::end_turn() {
  if (machine_->incarnation() != known_incarnation_ || machine_->paused() != known_paused_) {
    known_incarnation_ = machine_->incarnation();
    known_paused_ = machine_->paused();
    const auto remember = [&]() -> Result<void> {
      SKERRY_TRY(database_.begin());
      SKERRY_TRY(database_.set_value("incarnation", known_incarnation_));
      return database_.set_value("paused", known_paused_ ? "1" : "");
    };
    if (auto done = remember(); !done.ok()) return fail_for_good(done.error());
  }
  if (database_.in_transaction()) {
    if (auto done = database_.commit(); !done.ok()) return fail_for_good(done.error());
  }
  just_stored_.clear();
  auto outgoing = std::move(outgoing_);
  outgoing_.clear();
  for (auto& item : outgoing) {
    if (session_ == nullptr) break;
    if (auto* message = std::get_if<v1::FromNode>(&item)) {
      session_->send(std::move(*message));
    } else {
      session_->close();
      session_.reset();
      ++generation_;
    }
  }
}

void DaemonLoop::fail_for_good(const Error& error) {
  log(Note::Level::kError, "the daemon cannot keep its records and ends; nothing is lost: " + to_string(error));
  database_.rollback();
  outgoing_.clear();
  end_ = DaemonEnd::kFailed;
  loop_->stop();
}

void DaemonLoop::execute(WakeAt& command) {
  loop_->cancel(wake_timer_);
  const auto now = EventLoop::now_ms();
  wake_timer_ = loop_->after(command.at > now ? command.at - now : 0, [this] { feed(Tick{}); });
}

void DaemonLoop::execute(Exit&) {
  if (end_ == DaemonEnd::kStopped && options_.leave) end_ = DaemonEnd::kLeft;
  // The turn's end sends the farewell; then the stream gets a moment to carry it out.
  loop_->after(session_ != nullptr ? 150 : 0, [this] { loop_->stop(); });
}

// ---- the session ----

void DaemonLoop::execute(ConnectAfter& command) {
  loop_->cancel(connect_timer_);
  connect_timer_ = loop_->after(command.delay_ms, [this] { connect(); });
}

void DaemonLoop::connect() {
  const std::uint64_t generation = ++generation_;
  session_.reset();
  welcomed_ = false;
  auto session = session_options(*profile_, options_.proxy);
  if (!session.ok()) return feed(Disconnected{std::move(session).error()});
  {
    std::lock_guard lock(live_mutex_);
    ++live_sessions_;
  }
  session_ = Session::open(*session, {.received =
                                          [this, generation](v1::ToNode message) {
                                            loop_->post([this, generation, message = std::move(message)]() mutable {
                                              if (generation == generation_) received(std::move(message));
                                            });
                                          },
                                      .ended =
                                          [this, generation](Error error, SessionRemains remains) {
                                            loop_->post([this, generation, error = std::move(error), remains = std::move(remains)]() mutable {
                                              if (generation == generation_) session_ended(std::move(error));
                                            });
                                            std::lock_guard lock(live_mutex_);
                                            --live_sessions_;
                                            live_changed_.notify_all();
                                          }});
  cleanse(session->key_pem);
  feed(Connected{});
}

void DaemonLoop::received(v1::ToNode message) {
  if (message.has_welcome()) {
    welcomed_ = true;
    const auto& welcome = message.welcome();
    inline_limit_ = welcome.inline_limit() > 0 ? std::min(welcome.inline_limit(), kInlineLimit) : kInlineLimit;
    const std::int64_t off = unix_ms() - static_cast<std::int64_t>(welcome.server_time_ms());
    if (welcome.server_time_ms() > 0 && std::abs(off) > kClockToleranceMs)
      log(Note::Level::kWarning, "this machine's clock is " + format_duration(std::abs(off)) + (off > 0 ? " ahead of" : " behind") +
                                     " the coordinator's; certificates may be refused, set the clock");
  }
  // Names from outside become file names here; others are not ours to work with.
  const bool bad_run = message.has_run() && (!safe_name(message.run().run_id()) || message.run().spec_json().size() > kMaxSpecBytes);
  const bool bad_task = message.has_task() && (!safe_name(message.task().task_id()) || !safe_name(message.task().run_id()));
  if (bad_run || bad_task) return log(Note::Level::kError, "the coordinator sent a run or task with an impossible name; it is ignored");
  const bool first = message.has_welcome();
  feed(Received{std::move(message)});
  if (first && options_.leave && !shutting_down_) shut_down(true, options_.leave_reason);
}

void DaemonLoop::session_ended(Error error) {
  session_.reset();
  const bool explained = error.code == Code::kAborted || error.code == Code::kPermissionDenied || error.code == Code::kFailedPrecondition ||
                         error.code == Code::kResourceExhausted;
  if (welcomed_ || explained || shutting_down_) return feed(Disconnected{std::move(error)});
  // TLS says little of why; the coordinator's HTTP side says it in words.
  workers_.run([this, error = std::move(error), profile = profile_, generation = generation_]() mutable {
    EnrolOptions options;
    options.proxy = options_.proxy;
    options.cancelled = &stopping_workers_;
    if (auto checked = check_identity(*profile, options); !checked.ok()) {
      if (checked.error().code == Code::kUnauthenticated || error.code == Code::kUnavailable) error = std::move(checked).error();
    }
    loop_->post([this, error = std::move(error), generation]() mutable {
      if (generation == generation_) feed(Disconnected{std::move(error)});
    });
  });
}

void DaemonLoop::execute(Send& command) {
  auto& message = command.message;
  // A loss is a measurement of private data: it leaves only where the policy lets it.
  if (message.has_progress() && !fits_any(policy_.metrics, "train_loss") && !fits_any(policy_.metrics, "loss"))
    message.mutable_progress()->clear_loss();
  if (auto done = append_row(message); !done.ok()) return fail_for_good(done.error());
  outgoing_.emplace_back(std::move(message));
}

Result<void> DaemonLoop::append_row(const v1::FromNode& message) {
  EgressRow row;
  std::string payload;
  switch (message.message_case()) {
    case v1::FromNode::kHello: {
      row.kind = "data-summary";
      for (const auto& set : message.hello().data_sets()) row.detail += (row.detail.empty() ? "" : ", ") + set.name();
      payload = message.hello().SerializeAsString();
      break;
    }
    case v1::FromNode::kRunAnswer:
      row.kind = "run-answer";
      row.run = message.run_answer().run_id();
      row.detail = message.run_answer().accepted() ? "accepted with " + message.run_answer().data_set() : "refused";
      payload = message.run_answer().SerializeAsString();
      break;
    case v1::FromNode::kProgress:
      row.kind = "progress";
      row.task = message.progress().task_id();
      row.detail = "step " + std::to_string(message.progress().step()) + " of " + std::to_string(message.progress().of());
      payload = message.progress().SerializeAsString();
      break;
    case v1::FromNode::kFailure:
      row.kind = "error";
      row.task = message.failure().task_id();
      row.detail = message.failure().message();
      payload = message.failure().SerializeAsString();
      break;
    case v1::FromNode::kFarewell:
      row.kind = "farewell";
      row.detail = message.farewell().reason();
      payload = message.farewell().SerializeAsString();
      break;
    case v1::FromNode::kUpdate: {
      // The first time, its row was made together with the update itself.
      v1::UpdateBody body;
      if (!body.ParseFromString(message.update().body())) return internal_error("an update of the outbox is damaged");
      if (body.task_id() == just_stored_) return {};
      row.kind = "update-again";
      row.run = body.run_id();
      row.task = body.task_id();
      row.exchange = body.exchange();
      payload = message.update().body();
      break;
    }
    case v1::FromNode::kHeartbeat:
    case v1::FromNode::kReceiptQuery:
    case v1::FromNode::MESSAGE_NOT_SET: return {};  // ids and a sign of life, nothing of the holder's
  }
  row.time_ms = unix_ms();
  row.bytes = payload.size();
  row.sha256 = sha256_hex(payload);
  SKERRY_TRY(database_.begin());
  return database_.append(std::move(row));
}

// ---- consent ----

void DaemonLoop::execute(JudgeRun& command) {
  const auto answer = answer_to(command.run);
  if (!command.run.run_id().starts_with("dry-run-")) {
    const auto remember = [&]() -> Result<void> {
      SKERRY_TRY(database_.begin());
      return database_.remember_run(command.run, answer, unix_ms());
    };
    if (auto done = remember(); !done.ok()) return fail_for_good(done.error());
  }
  feed(RunJudged{answer});
}

v1::RunAnswer DaemonLoop::answer_to(const v1::RunAnnouncement& run) {
  v1::RunAnswer answer;
  answer.set_run_id(run.run_id());
  answer.set_spec_hash(run.spec_hash());
  auto& area = runs_[run.run_id()];
  if (area == nullptr || area->announcement.spec_hash() != run.spec_hash()) area = std::make_shared<RunArea>();
  area->announcement = run;
  const auto refuse = [&](std::string reason) {
    log(Note::Level::kWarning, "run " + run.run_id() + " is refused: " + reason);
    answer.add_reasons(policy_.error_messages == Policy::Telling::kFull ? std::move(reason) : "the run spec is not accepted by this daemon");
    return answer;
  };
  if (sha256_hex(run.spec_json()) != run.spec_hash()) return refuse("its spec is not the one that its hash names");
  if (!area->spec) {
    auto spec = parse_resolved_spec(run.spec_json());
    if (!spec.ok()) return refuse(spec.error().message);
    area->spec = *std::move(spec);
  }
  const Verdict verdict = judge(policy_, *area->spec, catalogue_.sets(), ca_fingerprint_);
  area->data_set.reset();
  if (!verdict.allowed()) {
    for (auto& reason : verdict.reasons(policy_.error_messages)) answer.add_reasons(std::move(reason));
    for (auto& reason : verdict.reasons(Policy::Telling::kFull)) log(Note::Level::kInfo, "run " + run.run_id() + " is refused: " + reason);
    return answer;
  }
  area->data_set = *catalogue_.find(verdict.data_set);
  answer.set_accepted(true);
  answer.set_data_set(verdict.data_set);
  for (const auto& [split, count] : verdict.examples) (*answer.mutable_examples())[split] = count;
  return answer;
}

/// What a coordinator may hear of an error of the holder's side.
Error DaemonLoop::told(const Error& error) const {
  switch (policy_.error_messages) {
    case Policy::Telling::kFull: return error;
    case Policy::Telling::kCode: return {error.code, "the holder's policy tells the code alone", error.retryable};
    case Policy::Telling::kNone: break;
  }
  // A coordinator must know that fragments are missing; that says nothing of the data.
  const Code code = error.code == Code::kNotFound ? Code::kNotFound : Code::kUnknown;
  return {code, "the task failed; the holder's policy tells no more", error.retryable};
}

// ---- trainers ----

std::shared_ptr<RunArea> DaemonLoop::area_of(const std::string& run_id) const {
  const auto found = runs_.find(run_id);
  return found == runs_.end() ? nullptr : found->second;
}

void DaemonLoop::execute(StartTrainer& command) {
  const auto area = area_of(command.run_id);
  auto started = area == nullptr ? Result<void>(internal_error("run " + command.run_id + " is not known")) : start_trainer(*area);
  if (started.ok()) return;
  log(Note::Level::kError, "the trainer of run " + command.run_id + " cannot start: " + to_string(started.error()));
  feed(TrainerExited{command.run_id, told(started.error())});
}

Result<void> DaemonLoop::start_trainer(RunArea& area) {
  const std::string& run_id = area.announcement.run_id();
  if (!area.spec || !area.data_set) return failed_precondition("the run was not accepted");
  area.work_dir = home_.work(run_id, policy_.work_dir);
  const std::string state_dir = home_.state(run_id);
  const std::string cache_dir = home_.cache(run_id, policy_.work_dir);
  for (const auto& directory : {area.work_dir, state_dir, cache_dir}) SKERRY_TRY(make_directories(directory));

  SandboxPlan plan;
  plan.bubblewrap = policy_.sandbox == Policy::Sandbox::kBubblewrap;
  plan.command = policy_.trainer.empty() ? std::vector{options_.program_directory + "/skerry-trainer"} : policy_.trainer;
  plan.read_only = policy_.read_only;
  // A trainer outside /usr brings its own directory; a script named as an argument brings its own.
  for (const auto& word : plan.command)
    if (word.starts_with('/') && !word.starts_with("/usr/") && path_exists(word)) plan.read_only.push_back(parent_directory(word));
  plan.read_only.push_back(area.data_set->path);
  if (!area.data_set->indices.empty()) plan.read_only.push_back(area.data_set->indices);
  plan.read_only.push_back(cache_dir);
  plan.read_write = {area.work_dir, state_dir};
  plan.devices = policy_.devices;
  plan.working_directory = area.work_dir;
  plan.policy_path = home_.policy();

  OpenRequest open;
  open.run_id = run_id;
  open.work_dir = area.work_dir;
  open.state_dir = state_dir;
  open.threads = policy_.threads;
  open.seed = area.spec->seed;
  open.model_json = area.spec->model_json;
  open.training_json = area.spec->training_json;
  open.data_kind = area.data_set->kind;
  open.data_schema_json = area.data_set->schema_json;
  open.data_path = area.data_set->path;
  open.data_splits_json = area.data_set->splits_json();
  open.data_indices = area.data_set->indices;

  TrainerLaunch launch;
  SKERRY_ASSIGN(launch.command, sandbox_command(plan));
  launch.sandboxed = plan.bubblewrap;
  launch.policy_path = home_.policy();
  launch.open_line = open_line(open);
  launch.log_path = home_.trainer_log(run_id);
  launch.memory_bytes = policy_.memory_mb * 1'000'000;

  TrainerEvents events;
  events.ready = [this, run_id](std::map<std::string, std::uint64_t> examples, std::uint64_t step) {
    trainer_ready(run_id, std::move(examples), step);
  };
  events.progress = [this, run_id](TrainerProgress progress) {
    progress.run_id = run_id;
    feed(std::move(progress));
  };
  events.done = [this, run_id](TrainerDone done) {
    done.run_id = run_id;
    if (const auto running = area_of(run_id); running != nullptr)
      done.result.seconds = static_cast<double>(EventLoop::now_ms() - running->task_started_ms) / 1000.0;
    feed(std::move(done));
  };
  events.error = [this, run_id](TrainerError error) {
    error.run_id = run_id;
    log(Note::Level::kWarning, "trainer of run " + run_id + ": " + to_string(error.error));
    error.error = told(error.error);
    feed(std::move(error));
  };
  events.cancelled = [this, run_id](TrainerCancelled cancelled) {
    cancelled.run_id = run_id;
    feed(std::move(cancelled));
  };
  events.note = [](Note::Level level, std::string text) { log(level, text); };
  events.exited = [this, run_id](Error error) {
    log(error.code == Code::kCancelled ? Note::Level::kInfo : Note::Level::kWarning, "run " + run_id + ": " + error.message);
    if (const auto ended = area_of(run_id); ended != nullptr && ended->trainer != nullptr) {
      // The process object is in the middle of this call.
      loop_->post([gone = std::shared_ptr<TrainerProcess>(std::move(ended->trainer))]() mutable { gone.reset(); });
    }
    feed(TrainerExited{run_id, told(error)});
  };
  SKERRY_ASSIGN(area.trainer, TrainerProcess::start(*loop_, std::move(launch), std::move(events)));
  return {};
}

void DaemonLoop::trainer_ready(const std::string& run_id, std::map<std::string, std::uint64_t> examples, std::uint64_t resumed_step) {
  const auto area = area_of(run_id);
  if (area == nullptr) return;
  area->needs_everything = resumed_step == 0;
  area->last_checkpoint_ms = 0;
  // A trainer that sees other counts than the catalogue may read other data; the holder wants to know.
  const auto known = area->data_set ? area->data_set->examples(area->spec ? model_context(*area->spec) : 0) : examples;
  for (const auto& [split, count] : examples)
    if (const auto found = known.find(split); found != known.end() && found->second != count)
      log(Note::Level::kWarning, "run " + run_id + ": the trainer counts " + std::to_string(count) + " examples in split \"" + split +
                                     "\", the catalogue " + std::to_string(found->second) + "; `skerry-client data check` looks again");
  feed(TrainerReady{run_id});
}

void DaemonLoop::execute(StopTrainer& command) {
  const auto area = area_of(command.run_id);
  if (area == nullptr || area->trainer == nullptr) {
    feed(TrainerExited{command.run_id, {Code::kCancelled, command.reason, true}});
    return;
  }
  area->trainer->send(R"({"type":"checkpoint"})");
  area->trainer->stop(command.reason);
}

void DaemonLoop::execute(CancelTask& command) {
  const auto area = area_of(command.run_id);
  if (area != nullptr && area->trainer != nullptr) area->trainer->send(cancel_line(command.task_id));
}

void DaemonLoop::execute(TrainerRequest& command) {
  const auto area = area_of(command.task.run_id());
  auto requested = area == nullptr || area->trainer == nullptr ? Result<void>(Error{Code::kAborted, "the trainer is gone", true})
                                                               : request(*area, command.task);
  if (!requested.ok()) feed(TrainerError{command.task.run_id(), command.task.task_id(), told(requested.error())});
}

Result<void> DaemonLoop::request(RunArea& area, const v1::Task& task) {
  std::map<std::string, ReadPath> read;
  for (const auto& wanted : task.read()) {
    const auto* entry = area.cache ? area.cache->find(wanted.fragment(), wanted.version()) : nullptr;
    if (entry == nullptr) return not_found("fragment " + wanted.fragment() + " version " + std::to_string(wanted.version()) + " is not here");
    read[wanted.fragment()] = {entry->path, wanted.version()};
  }
  std::map<std::string, std::string> write;
  if (task.kind() == v1::TASK_TRAIN) {
    for (const auto& wanted : task.read()) area.bases[wanted.fragment()] = wanted.version();
    if (area.needs_everything) {
      for (const auto& [fragment, version] : area.bases)
        if (const auto* entry = area.cache->find(fragment, version); entry != nullptr) read[fragment] = {entry->path, version};
      for (const auto& fragment : area.cache->layout().fragments)
        if (!read.contains(fragment.name))
          return not_found("this node no longer has fragment " + fragment.name + ": its trainer started anew");
    }
    for (const auto& fragment : task.write()) {
      if (!area.bases.contains(fragment)) return not_found("this node no longer has the base of fragment " + fragment);
      if (!safe_name(fragment) || area.cache->layout().find_fragment(fragment) == nullptr)
        return invalid_argument("the model has no fragment \"" + fragment + "\"");
      write[fragment] = area.work_dir + "/" + fragment + "-out.safetensors";
    }
    area.needs_everything = false;
  }
  const auto now = EventLoop::now_ms();
  area.task_started_ms = now;
  bool checkpoint = true;
  if (area.last_checkpoint_ms != 0 && now - area.last_checkpoint_ms < kCheckpointEveryMs) checkpoint = false;
  if (task.kind() == v1::TASK_TRAIN && checkpoint) area.last_checkpoint_ms = now;
  area.trainer->send(task_line(task, read, write, kProgressMs, checkpoint));
  return {};
}

// ---- fragments ----

Download DaemonLoop::downloader(std::shared_ptr<std::atomic<bool>> cancelled) const {
  // One client, so one connection, for all fragments of a task.
  auto client = std::make_shared<CargoClient>(*profile_, options_.proxy, cancelled.get());
  const std::uint64_t limit = policy_.disk_mb * 1'000'000;
  return [client, cancelled, limit, home = home_](const std::string& id, std::uint64_t size, const std::string& path) -> Result<void> {
    const std::uint64_t used = directory_bytes(home.runs()) + directory_bytes(home.outbox());
    if (used + size > limit)
      return Error{Code::kResourceExhausted, std::to_string(size) + " bytes more would exceed limits.disk_mb in " + home.policy() + " (" +
                                                 std::to_string(used / 1'000'000) + " MB are used)", true};
    return client->download(id, size, path);
  };
}

std::shared_ptr<std::atomic<bool>> DaemonLoop::cancel_flag(const std::string& task_id) {
  auto flag = std::make_shared<std::atomic<bool>>(false);
  cancelled_[task_id] = flag;
  return flag;
}

void DaemonLoop::execute(Abandon& command) {
  for (auto& [id, area] : runs_)
    if (area->waiting && area->waiting->task_id() == command.task_id) area->waiting.reset();
  const auto found = cancelled_.find(command.task_id);
  if (found == cancelled_.end()) return;
  *found->second = true;
  cancelled_.erase(found);
}

/// Small fragments whose bytes came along need no worker.
bool DaemonLoop::fetch_here(RunArea& area, const v1::Task& task) {
  for (const auto& wanted : task.read()) {
    const auto* known = area.cache->find(wanted.fragment(), wanted.version());
    if (known != nullptr && known->content_id == wanted.whole().content_id()) continue;
    const bool comes_along = !wanted.whole().inline_data().empty() || !wanted.step().inline_data().empty();
    if (!comes_along || wanted.whole().size() > 4 * kSmallElements + 65536) return false;
  }
  const Download none = [](const std::string&, std::uint64_t, const std::string&) -> Result<void> {
    return unavailable("the bytes did not come along");
  };
  for (const auto& wanted : task.read()) {
    auto brought = area.cache->bring(wanted, none);
    if (brought.ok()) continue;
    if (brought.error().code == Code::kUnavailable) return false;
    log(Note::Level::kError, "task " + task.task_id() + ": " + to_string(brought.error()));
    feed(FetchFailed{task.task_id(), told(brought.error())});
    return true;
  }
  feed(FetchDone{task.task_id()});
  return true;
}

void DaemonLoop::execute(Fetch& command) { fetch(std::move(command.task)); }

void DaemonLoop::fetch(v1::Task task) {
  const auto area = area_of(task.run_id());
  if (area != nullptr && area->fetching) {
    area->waiting = std::move(task);
    return;
  }
  const auto ready = [&]() -> Result<void> {
    if (area == nullptr || !area->spec) return internal_error("the run is not known");
    if (!area->cache) {
      SKERRY_ASSIGN(ModelLayout layout, build_layout(json::parse(area->spec->model_json)));
      SKERRY_ASSIGN(FragmentCache cache, FragmentCache::open(home_.cache(area->announcement.run_id(), policy_.work_dir), std::move(layout)));
      area->cache.emplace(std::move(cache));
    }
    return {};
  };
  if (auto done = ready(); !done.ok()) return feed(FetchFailed{task.task_id(), told(done.error())});
  area->cache->trim(area->bases);
  if (fetch_here(*area, task)) return;
  const auto flag = cancel_flag(task.task_id());
  area->fetching = true;
  workers_.run([this, area, task = std::move(task), flag, download = downloader(flag)] {
    Result<void> result;
    for (const auto& wanted : task.read()) {
      result = area->cache->bring(wanted, download);
      if (!result.ok()) break;
    }
    loop_->post([this, area, task_id = task.task_id(), result, flag] {
      area->fetching = false;
      if (area->waiting) {
        v1::Task next = std::move(*area->waiting);
        area->waiting.reset();
        fetch(std::move(next));
      }
      if (*flag) return;
      cancelled_.erase(task_id);
      if (result.ok()) return feed(FetchDone{task_id});
      log(Note::Level::kWarning, "task " + task_id + ": " + to_string(result.error()));
      feed(FetchFailed{task_id, told(result.error())});
    });
  });
}

// ---- updates ----

Result<UpdateRecipe> DaemonLoop::recipe_for(RunArea& area, const v1::Task& task) const {
  UpdateRecipe recipe;
  recipe.layout = &area.cache->layout();
  SKERRY_ASSIGN(recipe.encoding, find_encoding(area.spec->exchange.up));
  for (const auto& fragment : task.write()) {
    const auto base = area.bases.find(fragment);
    const auto* entry = base == area.bases.end() ? nullptr : area.cache->find(fragment, base->second);
    if (entry == nullptr) return not_found("the base of fragment " + fragment + " is gone");
    recipe.fragments.push_back({fragment, base->second, entry->file.get(), area.work_dir + "/" + fragment + "-out.safetensors"});
  }
  recipe.maximum_norm = policy_.maximum_update_norm;
  recipe.seed = task.seed();
  recipe.inline_limit = inline_limit_;
  recipe.maximum_bytes = task.max_update_bytes();
  recipe.file_prefix = home_.outbox() + "/" + task.task_id();
  return recipe;
}

v1::UpdateBody DaemonLoop::body_for(const v1::Task& task, const TrainerResult& result, double seconds) const {
  v1::UpdateBody body;
  body.set_task_id(task.task_id());
  body.set_run_id(task.run_id());
  body.set_spec_hash(task.spec_hash());
  body.set_node(profile_->name);
  body.set_kind(task.kind());
  body.set_exchange(task.exchange());
  body.set_examples(result.examples);
  body.set_tokens(result.tokens);
  body.set_steps(result.steps);
  body.set_seconds(seconds);
  const auto area = area_of(task.run_id());
  for (const auto& [name, value] : result.metrics) {
    if (!fits_any(policy_.metrics, name) || !std::isfinite(value)) continue;
    // Names that the run does not collect are of no use to anyone there.
    if (area != nullptr && area->spec && !area->spec->limits.metrics.empty() &&
        std::find(area->spec->limits.metrics.begin(), area->spec->limits.metrics.end(), name) == area->spec->limits.metrics.end())
      continue;
    auto* metric = body.add_metrics();
    metric->set_name(name);
    metric->set_value(value);
  }
  return body;
}

Result<StoredUpdate> DaemonLoop::signed_update(const v1::Task& task, v1::UpdateBody body, std::vector<PendingUpload> uploads) const {
  StoredUpdate update;
  update.task = task;
  // What was read is not needed again; the outbox keeps small.
  update.task.clear_read();
  update.uploads = std::move(uploads);
  if (!body.SerializeToString(update.message.mutable_body())) return internal_error("the update cannot be written");
  SKERRY_ASSIGN(std::string signature, key_.sign(std::string(kSignaturePrefix) + update.message.body()));
  update.message.set_signature(std::move(signature));
  return update;
}

void DaemonLoop::execute(StoreUpdate& command) {
  const v1::Task& task = command.task;
  const auto area = area_of(task.run_id());
  if (area == nullptr || !area->spec) return store(task, internal_error("the run is not known"), 0, false);
  v1::UpdateBody body = body_for(task, command.result, command.result.seconds);
  if (task.kind() != v1::TASK_TRAIN) return store(task, signed_update(task, std::move(body), {}), 0, false);
  if (!area->cache) return store(task, not_found("the bases of the update are gone"), 0, false);
  auto recipe = recipe_for(*area, task);
  if (!recipe.ok()) return store(task, std::move(recipe).error(), 0, false);

  const auto finish = [this](const v1::Task& of, v1::UpdateBody with, Result<MadeUpdate> made) -> Result<StoredUpdate> {
    if (!made.ok()) return std::move(made).error();
    for (auto& fragment : made->fragments) *with.add_fragments() = std::move(fragment);
    return signed_update(of, std::move(with), std::move(made->uploads));
  };
  std::uint64_t elements = 0;
  for (const auto& fragment : recipe->fragments) elements += fragment.base->elements();
  if (elements <= kSmallElements) {
    auto made = make_update(*recipe);
    const double norm = made.ok() ? made->norm : 0;
    const bool clipped = made.ok() && made->clipped;
    return store(task, finish(task, std::move(body), std::move(made)), norm, clipped);
  }
  workers_.run([this, area, task, body = std::move(body), recipe = *std::move(recipe), finish]() mutable {
    auto made = make_update(recipe);
    const double norm = made.ok() ? made->norm : 0;
    const bool clipped = made.ok() && made->clipped;
    auto update = finish(task, std::move(body), std::move(made));
    loop_->post([this, task, update = std::move(update), norm, clipped]() mutable { store(task, std::move(update), norm, clipped); });
  });
}

void DaemonLoop::store(const v1::Task& task, Result<StoredUpdate> update, double norm, bool clipped) {
  if (!update.ok()) {
    log(Note::Level::kError, "task " + task.task_id() + " gives no update: " + to_string(update.error()));
    return feed(StoreFailed{task.task_id(), told(update.error())});
  }
  EgressRow row;
  row.time_ms = unix_ms();
  row.kind = task.kind() == v1::TASK_TRAIN ? "update" : "evaluation";
  row.run = task.run_id();
  row.task = task.task_id();
  row.exchange = task.exchange();
  row.bytes = update->message.body().size();
  for (const auto& upload : update->uploads) row.bytes += upload.size;
  row.sha256 = sha256_hex(update->message.body());
  row.norm = norm;
  for (const auto& fragment : task.write()) row.detail += (row.detail.empty() ? "" : ", ") + fragment;
  if (clipped) row.detail += " clipped";
  const auto write = [&]() -> Result<void> {
    SKERRY_TRY(database_.begin());
    for (const auto& id : forgotten_) SKERRY_TRY(database_.remove_update(id));
    SKERRY_TRY(database_.append(std::move(row)));
    return database_.put_update(*update, unix_ms());
  };
  if (auto done = write(); !done.ok()) return fail_for_good(done.error());
  forgotten_.clear();
  just_stored_ = task.task_id();
  feed(OutboxStored{*std::move(update)});
  if (policy_.rounds_a_day > 0 && task.kind() == v1::TASK_TRAIN) loop_->post([this] { watch_availability(); });
}

void DaemonLoop::execute(Upload& command) {
  const std::string task_id = command.update.task.task_id();
  const auto flag = cancel_flag(task_id);
  workers_.run([this, update = std::move(command.update), task_id, flag, profile = profile_] {
    CargoClient client(*profile, options_.proxy, flag.get());
    Result<void> result;
    for (const auto& upload : update.uploads) {
      result = client.upload(payload_path(home_.outbox() + "/" + task_id, upload.content_id), upload.content_id, upload.size,
                             update.task.ticket());
      if (!result.ok()) break;
    }
    loop_->post([this, task_id, result, flag] {
      if (*flag) return;
      cancelled_.erase(task_id);
      if (result.ok()) return feed(UploadDone{task_id});
      feed(UploadFailed{task_id, result.error()});
    });
  });
}

void DaemonLoop::execute(ForgetUpdate& command) {
  forgotten_.push_back(command.task_id);
  remove_payloads(command.task_id);
  if (forget_timer_ != 0) return;
  // A row that outlives its update for a moment only costs a question after a crash.
  forget_timer_ = loop_->after(kForgetWithinMs, [this] { forget_now(); });
}

void DaemonLoop::forget_now() {
  forget_timer_ = 0;
  if (forgotten_.empty()) return;
  const auto write = [&]() -> Result<void> {
    SKERRY_TRY(database_.begin());
    for (const auto& id : forgotten_) SKERRY_TRY(database_.remove_update(id));
    return {};
  };
  if (auto done = write(); !done.ok()) return fail_for_good(done.error());
  forgotten_.clear();
}

void DaemonLoop::remove_payloads(const std::string& task_id) {
  const auto names = list_directory(home_.outbox());
  if (!names.ok()) return;
  for (const auto& entry : *names)
    if (entry.name.starts_with(task_id + ".b2-")) (void)remove_file(join_path(home_.outbox(), entry.name));
}

void DaemonLoop::execute(DropRun& command) {
  const auto area = area_of(command.run_id);
  runs_.erase(command.run_id);
  if (area == nullptr) return;
  // The last model stays for `skerry-client model fetch`.
  if (area->cache && !area->fetching) area->cache->trim({});
  for (const auto& directory : {home_.work(command.run_id, policy_.work_dir), home_.state(command.run_id)}) (void)remove_tree(directory);
}

// ---- the holder's side ----

Result<void> DaemonLoop::load_policy_and_catalogue() {
  SKERRY_ASSIGN(Policy policy, load_policy(home_.policy()));
  SKERRY_ASSIGN(Catalogue catalogue, Catalogue::load(home_.catalogue()));
  std::string fingerprint;
  SKERRY_ASSIGN(Profile profile, pinned(*stored_profile_, policy, home_.policy(), fingerprint));
  policy_ = std::move(policy);
  catalogue_ = std::move(catalogue);
  profile_ = std::make_shared<const Profile>(std::move(profile));
  ca_fingerprint_ = std::move(fingerprint);
  return {};
}

PolicyChanged DaemonLoop::policy_event() const {
  PolicyChanged event;
  event.max_trainers = policy_.trainers;
  event.max_task_ms = policy_.task_seconds * 1000;
  event.threads = policy_.threads;
  event.memory_bytes = policy_.memory_mb * 1'000'000;
  for (const auto& set : catalogue_.sets()) event.data_sets.push_back(summary_of(set));
  return event;
}

void DaemonLoop::reload(const char* why) {
  auto loaded = load_policy_and_catalogue();
  if (!loaded.ok()) {
    policy_trouble_ = to_string(loaded.error());
    log(Note::Level::kError, "the changed policy or catalogue is not used, the one before stays in force: " + policy_trouble_);
    // A coordinator that is no longer trusted is left at once.
    if (loaded.error().code == Code::kPermissionDenied) shut_down(false, "the policy no longer trusts this coordinator");
    return;
  }
  policy_trouble_.clear();
  log(Note::Level::kInfo, std::string("policy and catalogue loaded: ") + why);
  feed(policy_event());
  watch_availability();
}

void DaemonLoop::watch_availability() {
  Availability now;
  const time_t seconds = static_cast<time_t>(unix_ms() / 1000);
  tm local{};
  ::localtime_r(&seconds, &local);
  if (!policy_.hours.open_at(local.tm_wday, local.tm_hour * 60 + local.tm_min)) {
    now.open = false;
    now.reason = "outside the policy's hours";
  } else if (policy_.rounds_a_day > 0) {
    const auto used = database_.updates_since(unix_ms() - kDayMs);
    if (used.ok() && *used >= policy_.rounds_a_day) {
      now.open = false;
      now.reason = "limits.rounds_a_day is used up (" + std::to_string(*used) + " in the last 24 hours)";
    }
  }
  if (now.open == available_) return;
  available_ = now.open;
  log(Note::Level::kInfo, now.open ? "work is allowed again" : "no new work: " + now.reason);
  feed(std::move(now));
}

void DaemonLoop::schedule_renewal() {
  loop_->cancel(renewal_timer_);
  // At most an hour ahead: a machine that slept, or whose clock was set, looks again soon.
  const auto delay = std::min<std::uint64_t>(renewal_delay_ms(profile_->not_before_ms, profile_->expires_ms, unix_ms()), 3'600'000);
  renewal_timer_ = loop_->after(delay, [this] {
    if (renewal_due(*profile_, unix_ms())) renew_certificate();
    else schedule_renewal();
  });
}

void DaemonLoop::renew_certificate() {
  workers_.run([this, trusted = profile_] {
    EnrolOptions options;
    options.proxy = options_.proxy;
    options.cancelled = &stopping_workers_;
    // The signing request leaves this machine: it goes into the ledger like everything else.
    options.send = [this](const HttpOptions& http, const HttpRequest& request) -> Result<HttpResponse> {
      if (request.method == "POST")
        loop_->post([this, bytes = request.body.size(), digest = sha256_hex(request.body)] {
          EgressRow row;
          row.time_ms = unix_ms();
          row.kind = "signing-request";
          row.bytes = bytes;
          row.sha256 = digest;
          const auto write = [&]() -> Result<void> {
            SKERRY_TRY(database_.begin());
            return database_.append(std::move(row));
          };
          if (auto done = write(); !done.ok()) fail_for_good(done.error());
        });
      return HttpClient(http).send(request);
    };
    auto renewed = renew(*trusted, options);
    loop_->post([this, renewed = std::move(renewed)] {
      if (!renewed.ok()) {
        log(Note::Level::kWarning, "the certificate could not be renewed: " + to_string(renewed.error()));
        renewal_timer_ = loop_->after(renewal_retry_ms(*profile_), [this] { renew_certificate(); });
        return;
      }
      stored_profile_ = std::make_shared<const Profile>(*renewed);
      std::string fingerprint;
      auto profile = pinned(*stored_profile_, policy_, home_.policy(), fingerprint);
      if (!profile.ok()) return fail_for_good(profile.error());
      profile_ = std::make_shared<const Profile>(*std::move(profile));
      log(Note::Level::kInfo, "the certificate was renewed; it ends on " + format_utc(profile_->expires_ms));
      feed(IdentityRenewed{});
      schedule_renewal();
    });
  });
}

void DaemonLoop::shut_down(bool leaving, std::string reason) {
  if (shutting_down_) return;
  shutting_down_ = true;
  if (leaving) options_.leave = true;
  log(Note::Level::kInfo, leaving ? "leaving the federation" : "ending: " + reason);
  if (leaving) feed(Leave{std::move(reason)});
  else feed(Shutdown{});
  loop_->after(kShutdownMs, [this] { loop_->stop(); });
}

json DaemonLoop::control(const json& request) {
  const std::string command = request.is_object() ? request.value("command", "") : "";
  if (command == "status") {
    json status = status_json(machine_->status());
    status["pid"] = ::getpid();
    status["coordinator_address"] = profile_->address;
    status["federation"] = profile_->federation;
    status["node"] = profile_->name;
    status["certificate_expires"] = format_utc(profile_->expires_ms);
    status["policy"] = policy_trouble_.empty() ? "in force" : "not used: " + policy_trouble_;
    return status;
  }
  if (command == "pause") {
    feed(Pause{request.value("now", false)});
    return {{"ok", true}, {"message", "paused; `skerry-client resume` goes on"}};
  }
  if (command == "resume") {
    feed(Resume{});
    return {{"ok", true}, {"message", "resumed"}};
  }
  if (command == "leave") {
    const bool connected = machine_->status().session == "connected";
    shut_down(true, request.value("reason", ""));
    return {{"ok", connected},
            {"message", connected ? "left; the daemon ends" : "the daemon ends, but the coordinator could not be told: there is no session"}};
  }
  return {{"ok", false}, {"message", "unknown command; known: status, pause, resume, leave"}};
}

// ---- beginning and end ----

Result<void> DaemonLoop::begin() {
  SKERRY_ASSIGN(Profile profile, load_profile(home_.path));
  stored_profile_ = std::make_shared<const Profile>(std::move(profile));
  SKERRY_TRY(load_policy_and_catalogue());
  SKERRY_TRY(make_directories(home_.outbox()));
  SKERRY_TRY(make_directories(home_.runs()));
  if (options_.proxy.empty()) {
    SKERRY_ASSIGN(options_.proxy, database_.value("proxy"));
  }

  const PolicyChanged policy = policy_event();
  ClientMachineOptions machine;
  machine.software = "skerry-client " SKERRY_VERSION;
  machine.seed = random_seed();
  machine.max_trainers = policy.max_trainers;
  machine.max_task_ms = policy.max_task_ms;
  machine.threads = policy.threads;
  machine.memory_bytes = policy.memory_bytes;
  machine.data_sets = policy.data_sets;
  SKERRY_ASSIGN(machine.outbox, database_.load_outbox());
  SKERRY_ASSIGN(machine.previous_incarnation, database_.value("incarnation"));
  SKERRY_ASSIGN(const std::string paused, database_.value("paused"));
  machine.paused = !paused.empty();
  known_incarnation_ = machine.previous_incarnation;
  known_paused_ = machine.paused;

  // Payloads whose update was never stored are of no use to anyone.
  SKERRY_ASSIGN(const auto payloads, list_directory(home_.outbox()));
  for (const auto& entry : payloads) {
    const bool wanted = std::any_of(machine.outbox.begin(), machine.outbox.end(), [&](const StoredUpdate& update) {
      return std::any_of(update.uploads.begin(), update.uploads.end(), [&](const PendingUpload& upload) {
        return entry.name == update.task.task_id() + "." + upload.content_id;
      });
    });
    if (!wanted) SKERRY_TRY(remove_file(join_path(home_.outbox(), entry.name)));
  }
  machine_ = std::make_unique<ClientMachine>(std::move(machine));

  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&signals, signal);
  ::pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  ::signal(SIGPIPE, SIG_IGN);
  signals_ = FileDescriptor(::signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!signals_) return file_error(errno, "open", "a signal descriptor");
  SKERRY_TRY(loop_->watch(signals_.get(), EPOLLIN, [this](std::uint32_t) {
    signalfd_siginfo info{};
    while (::read(signals_.get(), &info, sizeof info) == static_cast<ssize_t>(sizeof info)) {
      if (info.ssi_signo == SIGHUP) reload("SIGHUP");
      else shut_down(false, "a signal");
    }
  }));

  changes_ = FileDescriptor(::inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
  if (changes_ && ::inotify_add_watch(changes_.get(), home_.path.c_str(), IN_CLOSE_WRITE | IN_MOVED_TO) >= 0) {
    SKERRY_TRY(loop_->watch(changes_.get(), EPOLLIN, [this](std::uint32_t) {
      alignas(inotify_event) char buffer[4096];
      bool ours = false;
      for (ssize_t got; (got = ::read(changes_.get(), buffer, sizeof buffer)) > 0;) {
        for (ssize_t at = 0; at < got;) {
          const auto* event = reinterpret_cast<const inotify_event*>(buffer + at);
          const std::string_view name = event->len > 0 ? std::string_view(event->name) : std::string_view();
          ours = ours || name == "policy.toml" || name == "catalogue.json";
          at += static_cast<ssize_t>(sizeof(inotify_event) + event->len);
        }
      }
      if (ours) reload("a file changed");
    }));
  } else {
    log(Note::Level::kWarning, "changes of policy.toml cannot be watched here; send SIGHUP after a change");
  }

  SKERRY_ASSIGN(control_, ControlServer::listen(*loop_, home_.socket(), [this](const json& request) {
    try {
      return control(request);
    } catch (const json::exception& error) {
      return json{{"ok", false}, {"message", std::string("the request is not understood: ") + error.what()}};
    }
  }));
  loop_->set_turn_end([this] { end_turn(); });
  return {};
}

DaemonEnd DaemonLoop::run() {
  log(Note::Level::kInfo, "node " + profile_->name + " of federation " + profile_->federation + ", coordinator " + profile_->address + ": ready");
  const std::function<void()> look = [this, &look] {
    watch_availability();
    loop_->after(kAvailabilityEveryMs, look);
  };
  loop_->post([this, &look] {
    look();
    schedule_renewal();
    feed(Started{});
  });
  if (options_.leave)
    loop_->after(kLeaveMs, [this] {
      if (shutting_down_) return;
      end_ = DaemonEnd::kNotReached;
      loop_->stop();
    });
  loop_->run();
  stopping_workers_ = true;
  for (auto& [id, flag] : cancelled_) *flag = true;
  if (session_ != nullptr) session_->close(200);
  {
    // gRPC's threads still call back until each stream has ended.
    std::unique_lock lock(live_mutex_);
    if (!live_changed_.wait_for(lock, std::chrono::seconds(3), [this] { return live_sessions_ == 0; })) {
      (void)database_.commit();
      ::_exit(1);
    }
  }
  session_.reset();
  (void)database_.commit();
  control_.reset();
  for (auto& [id, area] : runs_) area->trainer.reset();
  log(Note::Level::kInfo, "ended");
  return end_;
}

}  // namespace

Result<std::string> root_fingerprint(const std::string& ca_pem) {
  SKERRY_ASSIGN(const TrustAnchors anchors, TrustAnchors::from_pem(ca_pem));
  return anchors.roots().front().thumbprint();
}

std::uint64_t renewal_delay_ms(std::int64_t not_before_ms, std::int64_t expires_ms, std::int64_t now_ms) {
  const std::int64_t due = not_before_ms + (expires_ms - not_before_ms) / 3 * 2;
  return due <= now_ms ? 0 : static_cast<std::uint64_t>(due - now_ms) + 1;
}

Result<std::unique_ptr<Daemon>> Daemon::create(DaemonOptions options) {
  if (!has_profile(options.home.path))
    return not_found("there is no node in " + options.home.path + "; join a federation first: `skerry-client join TOKEN`");
  SKERRY_ASSIGN(HomeLock lock, HomeLock::acquire(options.home.path));
  SKERRY_ASSIGN(auto loop, EventLoop::create());
  SKERRY_ASSIGN(ClientDatabase database, ClientDatabase::open(options.home.path));
  SKERRY_ASSIGN(PrivateKey key, PrivateKey::load(options.home.path + "/key.pem"));
  auto daemon = std::make_unique<DaemonLoop>(std::move(options), std::move(lock), std::move(loop), std::move(database), std::move(key));
  SKERRY_TRY(daemon->begin());
  return std::unique_ptr<Daemon>(std::move(daemon));
}

}  // namespace skerry::client
