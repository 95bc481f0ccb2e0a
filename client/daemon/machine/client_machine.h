// The daemon's decisions, without I/O: events in, commands out. The shell around it (client/daemon/app) and the simulation
// carry the commands out and report back with further events. The members are in as many files as there are subjects:
// session, runs (consent), tasks, trainers (who has a slot), overlap (deliveries), outbox, holder, status.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "client/daemon/machine/events.h"
#include "common/base/result.h"
#include "skerry/v1/fleet.pb.h"

namespace skerry::client {

struct ClientMachineOptions {
  std::string software = "skerry-client";
  std::uint64_t seed = 0;                 ///< of the reconnect jitter
  std::uint32_t max_trainers = 1;         ///< trainer processes at once, over all runs
  std::uint64_t max_task_ms = 0;          ///< the holder's limit on one task; 0: none
  std::vector<v1::DataSetSummary> data_sets;
  std::uint32_t threads = 0;
  std::uint64_t memory_bytes = 0;
  bool paused = false;                    ///< as the holder left it before the last exit
  std::vector<StoredUpdate> outbox;       ///< undecided updates of the last life
  std::string previous_incarnation;       ///< of the last life, empty on the first

  std::uint64_t backoff_base_ms = 500;
  std::uint64_t backoff_cap_ms = 60'000;
  std::uint64_t refused_cap_ms = 300'000;   ///< after UNAUTHENTICATED or PERMISSION_DENIED
  std::uint64_t conflict_wait_ms = 600'000; ///< after ABORTED: another machine uses this identity
  std::uint64_t cancel_grace_ms = 10'000;   ///< before a trainer that does not stop is killed
};

/// What a holder sees with `skerry-client status`.
struct MachineStatus {
  std::string session;   ///< "connected", "connecting", "waiting", "dismissed", "left"
  std::string detail;    ///< the last failure, or why it waits
  std::string incarnation;
  std::string coordinator;
  bool paused = false;
  std::string unavailable;  ///< why the holder's hours or limits allow no work now; empty: they do
  struct TaskStatus {
    std::string task_id;
    v1::TaskKind kind = v1::TASK_KIND_UNSPECIFIED;
    std::string phase;  ///< "queued", "fetching", "starting", "running", "cancelling", "storing"
    std::uint64_t round = 0;
    std::uint64_t step = 0;
    std::uint64_t of = 0;
    double loss = 0;
  };
  struct RunStatus {
    std::string run_id;
    std::string name;
    std::string answer;  ///< "judging", "accepted", "refused"
    std::string data_set;
    std::vector<std::string> reasons;
    std::string trainer;  ///< "none", "starting", "ready", "stopping", "backing off"
    std::vector<TaskStatus> tasks;
    std::uint64_t counted = 0;
    std::uint64_t discarded = 0;
  };
  std::vector<RunStatus> runs;
  struct OutboxEntry {
    std::string task_id;
    std::string run_id;
    std::string phase;  ///< "waiting", "uploading", "offered", "stored", "accepted"
  };
  std::vector<OutboxEntry> outbox;
};

/// The daemon as a state machine.
///
/// Promises: an update is sent only after OutboxStored; it is forgotten only after a final receipt (or where its own
/// coordinator can never take it); after each reconnect every undecided update is asked for and offered again where it is
/// unknown; a task runs only for a run whose exact spec the holder accepted; at most `max_trainers` trainers exist; a task
/// that cannot be done is answered by a TaskFailure exactly once while its session lasts; in a run that is judged
/// `one_by_one` no train task begins before the update before it was counted or discarded; in one that is judged
/// `overlapped` the next task begins as soon as the trainer is done with this one, a delivered version is handed to every
/// trainer that works on a task which plans it, and a task outlives a trainer that dies with it. Unexpected events are ignored or
/// answered, never asserted. Not thread-safe.
class ClientMachine {
 public:
  explicit ClientMachine(ClientMachineOptions options);

  /// Takes one event at monotonic `now` (never smaller than before) and returns what to do, in order.
  std::vector<Command> handle(const Event& event, Instant now);

  MachineStatus status() const;
  /// Of the current or the last session; empty before the first Welcome.
  const std::string& incarnation() const { return incarnation_; }
  bool paused() const { return paused_; }

 private:
  enum class Session { kIdle, kConnecting, kGreeting, kOpen, kDismissed, kLeft };
  enum class Consent { kJudging, kAccepted, kRefused };
  enum class Trainer { kNone, kStarting, kReady, kStopping };
  enum class Phase { kQueued, kPreparing, kRunning, kCancelling, kStoring };

  using MergeKey = std::pair<std::uint64_t, std::string>;  ///< exchange and fragment

  struct ActiveTask {
    v1::Task task;
    Phase phase = Phase::kQueued;
    bool fetched = false;
    Instant received = 0;
    std::uint64_t limit_ms = 0;  ///< 0: none; from when no train task of the run is before it
    Instant deadline = 0;    ///< 0: none yet
    Instant kill_at = 0;     ///< of a cancelled one
    std::uint64_t step = 0;
    std::uint64_t of = 0;
    double loss = 0;
    std::uint32_t deaths = 0;     ///< of trainers that worked on it
    std::set<MergeKey> handed;    ///< what its trainer was told
    std::set<MergeKey> merged;    ///< what its trainer has merged
    TrainerResult result;         ///< of one that is stored
  };
  /// A delivered version, for as long as a task at hand plans it.
  struct Merge {
    v1::Delivery delivery;
    bool ready = false;
    std::uint32_t failures = 0;
    Instant retry_at = 0;  ///< 0: not to be fetched again
  };
  struct Run {
    v1::RunAnnouncement announcement;
    v1::RunAnswer answer;
    Consent consent = Consent::kJudging;
    bool one_by_one = false;
    bool overlapped = false;
    Trainer trainer = Trainer::kNone;
    std::uint32_t crashes = 0;    ///< since the last finished task
    Instant not_before = 0;       ///< no restart before
    Instant started_at = 0;       ///< its trainer, asked to start
    Instant ready_at = 0;
    Instant idle_since = 0;       ///< no task at all since then; 0: it has one
    std::deque<ActiveTask> tasks; ///< evaluations first; only the front one is past kQueued
    std::deque<ActiveTask> storing;               ///< done by the trainer; the front one's update is being made
    std::map<MergeKey, Merge> merges;
    std::map<std::string, std::uint64_t> merged;  ///< by fragment: the newest exchange merged in a task that ended
    std::uint64_t counted = 0;
    std::uint64_t discarded = 0;
    bool ended = false;           ///< dropped as soon as its trainer is gone
    Instant stale_at = 0;         ///< dropped then unless the coordinator announces it again; 0: announced in this session
  };
  struct OutboxEntry {
    enum class Phase { kWaiting, kUploading, kOffered, kStored, kAccepted };
    StoredUpdate update;
    bool uploaded = false;
    Phase phase = Phase::kWaiting;
    std::uint64_t serial = 0;    ///< cargo goes in this order, for each run
    bool held = false;           ///< offered, but the cargo of an earlier one goes first
    std::uint32_t failures = 0;  ///< of uploading and offering
    Instant retry_at = 0;
  };

  void on(const Started&);
  void on(const Connected&);
  void on(const Disconnected&);
  void on(const Received&);
  void on(const RunJudged&);
  void on(const TrainerReady&);
  void on(const TrainerProgress&);
  void on(const TrainerDone&);
  void on(const TrainerError&);
  void on(const TrainerCancelled&);
  void on(const TrainerMerged&);
  void on(const TrainerExited&);
  void on(const FetchDone&);
  void on(const FetchFailed&);
  void on(const MergeFetched&);
  void on(const MergeFailed&);
  void on(const OutboxStored&);
  void on(const StoreFailed&);
  void on(const UploadDone&);
  void on(const UploadFailed&);
  void on(const Tick&) {}
  void on(const Pause&);
  void on(const Resume&);
  void on(const Leave&);
  void on(const Shutdown&);
  void on(const Availability&);
  void on(const PolicyChanged&);
  void on(const IdentityRenewed&);

  void on_message(const v1::Welcome&);
  void on_message(const v1::RunAnnouncement&);
  void on_message(const v1::Task&);
  void on_message(const v1::Delivery&);
  void on_message(const v1::CancelTask&);
  void on_message(const v1::Receipt&);
  void on_message(const v1::RunEnded&);
  void on_message(const v1::Goodbye&);

  void hello();
  void say_availability();
  void query_receipts();
  void offer(OutboxEntry& entry);
  void start_front_tasks();
  void run_front(Run& run);
  void store_next(Run& run);
  void hand_out_merges();
  void watch_merges();
  static bool planned(const Run& run, const MergeKey& key);
  bool goes_later(const OutboxEntry& entry) const;
  bool must_wait(const std::string& run_id, const Run& run) const;
  bool claim_trainer(const std::string& run_id, Run& run);
  Instant yields_at(const Run& run, Instant wanted_since) const;
  void watch_session();
  void watch_tasks();
  void set_alarm();
  void retry_uploads();
  void fail_task(const v1::Task& task, const Error& error);
  void cancel_task(Run& run, std::size_t index, const Error* failure);
  void cancel_all(Run& run, const Error& failure);
  void stop_trainer(Run& run, std::string reason);
  void withdraw(const Error& failure);
  void end_everything(const std::string& reason, bool leaving);
  void disconnected(const Error& error);
  void reconnect_after(std::uint64_t delay_ms);
  std::uint64_t backoff(std::uint32_t attempts, std::uint64_t base_ms, std::uint64_t cap_ms);
  void drop_finished_runs();
  void finish_exit();
  void send(v1::FromNode message);
  void note(Note::Level level, std::string text);
  bool may_work() const { return !paused_ && unavailable_.empty() && !exiting_; }
  Run* find_run(const std::string& run_id);
  /// The run whose front task is `task_id`; null where there is none.
  Run* find_front(const std::string& task_id);
  std::uint64_t jitter(std::uint64_t below);

  ClientMachineOptions options_;
  std::vector<Command> out_;
  Instant slot_at_ = 0;  // when a trainer yields its slot to a run that waits for one; 0: none waits
  Instant now_ = 0;
  Session session_ = Session::kIdle;
  std::uint32_t attempts_ = 0;
  std::string detail_;
  std::string incarnation_;
  std::string coordinator_;
  std::uint64_t heartbeat_ms_ = 0;
  Instant next_heartbeat_ = 0;
  Instant last_heard_ = 0;
  Instant welcomed_at_ = 0;
  std::uint64_t heartbeat_token_ = 0;
  Instant connect_at_ = 0;
  std::uint64_t random_state_;
  bool paused_ = false;
  std::string unavailable_;
  bool exiting_ = false;
  bool exit_said_ = false;
  bool leaving_ = false;
  std::map<std::string, Run> runs_;
  std::map<std::string, OutboxEntry> outbox_;
  std::deque<std::string> decided_;  ///< updates whose fate was told in this session, the latest
  std::uint64_t stored_ = 0;  ///< serial of the latest entry of the outbox
  std::deque<v1::TaskFailure> unsent_failures_;  ///< of tasks that failed while no session was open
  Instant alarm_ = 0;                            ///< the last WakeAt; 0: none
};

}  // namespace skerry::client
