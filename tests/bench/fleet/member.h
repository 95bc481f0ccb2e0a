// One identity of a fleet: the daemon's own state machine and session, with updates made by SyntheticUpdates instead of a
// trainer, and an outbox in memory.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>

#include "client/daemon/loop/event_loop.h"
#include "client/daemon/machine/client_machine.h"
#include "client/daemon/session/cargo_client.h"
#include "client/daemon/session/session.h"
#include "common/config/run_spec.h"
#include "common/crypto/keys.h"
#include "common/identity/profile.h"
#include "common/model/layout.h"
#include "tests/bench/fleet/fleet_log.h"
#include "tests/bench/fleet/synthetic.h"

namespace skerry::bench {

/// A run spec with its model's layout; all members of a fleet share one.
struct KnownRun {
  RunSpec spec;
  ModelLayout layout;
  const Encoding* up = nullptr;
};

/// What the members of a fleet share. Everything belongs to the loop's thread but `workers` and `updates`.
struct FleetShared {
  client::EventLoop& loop;
  client::Workers& workers;  ///< cargo and large updates
  const SyntheticUpdates& updates;
  FleetLog& log;
  std::string directory;       ///< for cargo on its way
  std::uint64_t train_ms = 0;  ///< how long a task pretends to train
  std::function<void()> greeted;  ///< a member's first session stands
  std::uint64_t streams = 0;      ///< opened and not yet ended
  std::map<std::string, std::shared_ptr<const KnownRun>> runs;  // by spec hash; shared with the jobs of workers
};

class Member {
 public:
  /// `shared` outlives this. INVALID_ARGUMENT, NOT_FOUND: the profile's key.
  static Result<std::unique_ptr<Member>> create(FleetShared& shared, Profile profile, std::uint32_t index);
  ~Member();

  void start() { handle(client::Started{}); }
  /// Says farewell; gone() becomes true.
  void stop() { handle(client::Shutdown{}); }
  bool gone() const { return gone_; }

 private:
  Member(FleetShared& shared, Profile profile, PrivateKey key, client::SessionOptions options, std::uint32_t index);

  void handle(client::Event event);
  void carry_out(client::ConnectAfter& command);
  void carry_out(client::CloseSession& command);
  void carry_out(client::Send& command);
  void carry_out(client::JudgeRun& command);
  void carry_out(client::StartTrainer& command);
  void carry_out(client::StopTrainer& command);
  void carry_out(client::TrainerRequest& command);
  void carry_out(client::CancelTask& command);
  void carry_out(client::Fetch& command);
  // A fleet's runs have no overlapped exchange.
  void carry_out(client::FetchMerge&) {}
  void carry_out(client::MergeFragment&) {}
  void carry_out(client::ForgetMerge&) {}
  void carry_out(client::Abandon& command);
  void carry_out(client::StoreUpdate& command);
  void carry_out(client::Upload& command);
  void carry_out(client::ForgetUpdate& command);
  void carry_out(client::DropRun& command);
  void carry_out(client::WakeAt& command);
  void carry_out(client::Note& command);
  void carry_out(client::Exit& command);

  void dial();
  void received(v1::ToNode message);
  void trained(const v1::Task& task);
  /// Runs `job` on a worker, this member's jobs one after another; its answer comes back as an event.
  void later(std::function<client::Event()> job);
  void next_job();

  Result<void> fetch(const v1::Task& task);
  Result<client::StoredUpdate> make_update(const v1::Task& task, const client::TrainerResult& result, const KnownRun& run);
  client::CargoClient& cargo();
  std::string file_of(const std::string& task_id, const std::string& what) const;
  std::shared_ptr<const KnownRun> run_of(const std::string& spec_hash) const;

  FleetShared& shared_;
  const Profile profile_;
  const PrivateKey key_;
  const client::SessionOptions session_options_;
  const std::uint32_t index_;
  client::ClientMachine machine_;
  std::deque<client::Event> events_;
  bool handling_ = false;
  std::unique_ptr<client::Session> session_;
  std::uint64_t session_serial_ = 0;  // events of older sessions are dropped
  bool connected_ = false;
  bool greeted_ = false;
  bool gone_ = false;
  client::EventLoop::TimerId dial_timer_ = 0;
  client::EventLoop::TimerId wake_timer_ = 0;
  std::map<std::string, client::EventLoop::TimerId> training_;  // by task
  std::map<std::string, std::string> task_runs_;                // of updates whose fate is open
  std::set<std::string> files_;                                 // of updates whose fate is open
  std::deque<std::function<client::Event()>> jobs_;
  bool job_running_ = false;
  std::atomic<bool> cancelled_{false};
  std::unique_ptr<client::CargoClient> cargo_;  // used by the running job alone
  // Shared with what other threads post for this member, which may come after its end.
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace skerry::bench
