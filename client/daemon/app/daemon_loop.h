// How the daemon carries out its machine's commands. Its members are in seven files: daemon.cc (turns, beginning and end),
// daemon_session.cc, daemon_runs.cc (consent and trainers), daemon_fragments.cc (what comes), daemon_updates.cc (what
// goes), daemon_feedback.cc (what encodings lost), daemon_holder.cc.
#pragma once

#include "client/daemon/app/control.h"
#include "client/daemon/app/daemon.h"
#include "client/daemon/app/run_area.h"
#include "client/daemon/egress/client_database.h"
#include "client/daemon/loop/event_loop.h"
#include "client/daemon/policy/policy.h"
#include "client/daemon/session/cargo_client.h"
#include "client/daemon/session/session.h"
#include "client/daemon/update/make_update.h"
#include "common/crypto/keys.h"
#include "common/identity/profile.h"
#include "common/os/clock.h"

#include <nlohmann/json_fwd.hpp>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <variant>
#include <vector>

namespace skerry::client {

inline constexpr std::uint64_t kInlineLimit = 64 * 1024;
inline constexpr const char* kCountedKey = "counted ";  // and a run's id, among the database's words

inline std::int64_t unix_ms() { return SystemClock().unix_ms(); }

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
  void rest_soon();
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
  void execute(FetchMerge& command);
  void execute(MergeFragment& command);
  void execute(ForgetMerge& command);
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
  /// Starts the trainer once the run's tokenizer is here.
  void fetch_tokenizer(const std::shared_ptr<RunArea>& area);
  void trainer_ready(const std::string& run_id, std::map<std::string, std::uint64_t> examples, std::uint64_t resumed_step);
  Result<void> request(RunArea& area, const v1::Task& task);
  Result<void> choose_paths(RunArea& area, const v1::Task& task, TaskPaths& paths);
  Result<void> open_cache(RunArea& area) const;
  Result<void> flush_forgotten();
  void fetch(const std::shared_ptr<RunArea>& area, FetchJob job);
  void fetch_next(const std::shared_ptr<RunArea>& area);
  void abandon(const std::string& name);
  static EmitPaths emit_paths(const RunArea& area, const std::string& task_id, const std::string& fragment);
  Result<void> prepare_emissions(RunArea& area, const std::string& task_id);
  Download downloader(std::shared_ptr<std::atomic<bool>> cancelled);
  Result<UpdateRecipe> recipe_for(RunArea& area, const v1::Task& task) const;
  v1::UpdateBody body_for(const v1::Task& task, const TrainerResult& result, double seconds) const;
  Result<StoredUpdate> signed_update(const v1::Task& task, v1::UpdateBody body, std::vector<PendingUpload> uploads) const;
  void store(const v1::Task& task, Result<StoredUpdate> update, double norm, bool clipped, std::vector<Residual> residuals = {});
  Result<std::shared_ptr<RunFeedback>> feedback_of(const std::string& run_id);
  void with_residuals(const std::shared_ptr<RunFeedback>& feedback, RunFeedback::Work work);
  Result<void> keep_residuals(const std::string& run_id, std::vector<Residual> residuals);
  Result<void> forget_residuals(const std::string& run_id);
  bool give_back_discarded(const ForgetUpdate& command);
  void forget(ForgetUpdate command);
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
  nlohmann::json control(const nlohmann::json& request);
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
  std::vector<std::function<void()>> after_commit_;  // what may begin once the turn's rows are durable
  std::unique_ptr<Session> session_;
  std::uint64_t generation_ = 0;  // of the session; what an older one says is not heard
  std::mutex live_mutex_;
  std::condition_variable live_changed_;
  unsigned live_sessions_ = 0;  // opened and not ended
  bool welcomed_ = false;
  std::uint64_t inline_limit_ = kInlineLimit;
  EventLoop::TimerId connect_timer_ = 0, wake_timer_ = 0, forget_timer_ = 0, renewal_timer_ = 0, rest_timer_ = 0;
  std::unordered_map<std::string, std::shared_ptr<RunArea>> runs_;  // shared with workers
  std::unordered_map<std::string, std::shared_ptr<std::atomic<bool>>> cancelled_;  // by task; shared with workers
  std::unordered_set<std::string> unsent_;  // updates whose row is in the ledger and that did not leave yet
  std::unordered_set<std::string> with_payloads_;  // updates of the outbox that have files there
  std::vector<ForgetUpdate> forgotten_;
  std::unordered_map<std::string, std::shared_ptr<RunFeedback>> feedback_;  // null: the run has none
  std::unordered_map<std::string, std::string> counted_;  // runs with control variates: the latest task that was counted
  std::string known_incarnation_;
  bool known_paused_ = false;
  bool available_ = true;
  std::unique_ptr<ControlServer> control_;
  FileDescriptor signals_, changes_;
  DaemonEnd end_ = DaemonEnd::kStopped;
  bool shutting_down_ = false;
  std::atomic<bool> stopping_workers_{false};
  CargoPool cargo_;
  Workers workers_{3};  // last: its threads end before what they use
};

}  // namespace skerry::client
