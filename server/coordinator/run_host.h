// One run's shell: feeds its RunMachine with events, makes the commands durable and carries them out.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "common/base/result.h"
#include "server/aggregate/engine.h"
#include "server/coordinator/commit_group.h"
#include "server/coordinator/core_loop.h"
#include "server/coordinator/run_plan.h"
#include "server/coordinator/run_reduction.h"
#include "server/metrics/metrics.h"
#include "server/run/run_machine.h"
#include "skerry/v1/control.pb.h"
#include "skerry/v1/fleet.pb.h"
#include "strategies/noise_scale.h"

namespace skerry::server {

/// A node's live session, as far as a run needs it.
struct NodeSession {
  std::string incarnation;
  std::string thumbprint;  ///< of its certificate
};

class RunHost;

/// What every run of a coordinator shares. All of it outlives the runs.
struct RunServices {
  const Clock& clock;
  Store& store;
  CargoStore& cargo;
  CommitGroup& commit;
  CoreLoop& core;
  CoreLoop& bulk;  ///< a thread for what takes long: reductions, checking large updates
  AggregationEngine& engine;
  Metrics& metrics;
  std::string ticket_key;
  /// Sends to a node if it is connected.
  std::function<void(const std::string& node, v1::ToNode message)> send;
  /// Nothing where it is not connected.
  std::function<std::optional<NodeSession>(const std::string& node)> session_of;
  /// The run's state changed: status, versions, metrics.
  std::function<void(const std::string& run_id)> changed;
  /// There is a new version, or an older one about to be sent to nodes again.
  std::function<void(const RunHost& run)> released;
  /// What a node said was refused. Nobody needs a node that does little else.
  std::function<void(const std::string& node)> misbehaved;
  strategies::RuleCatalogue rules = {};  ///< that runs may name
  bool own_updates = false;  ///< made in this process, their payloads in memory: see check_payloads
};

/// What a run's record says of it; its rounds are left to the caller.
v1::RunSummary summary_of(const RunRecord& record);

/// Used by the core's thread alone.
class RunHost {
 public:
  /// A new run; `initial` are its versions 0. Its rows become durable with the services' next commit.
  static std::unique_ptr<RunHost> create(RunServices& services, RunRecord record, RunPlan plan,
                                         std::vector<VersionRecord> initial);

  /// A run of the store, as it was when its process ended. DATA_LOSS where its rows do not fit together.
  static Result<std::unique_ptr<RunHost>> restore(RunServices& services, RunRecord record);

  /// Begins or goes on; call it once.
  void start() { handle(Started{}); }

  const RunRecord& record() const { return record_; }
  const RunPlan& plan() const { return plan_; }
  bool finished() const { return machine_.finished(); }
  v1::RunAnnouncement announcement() const;

  /// One event of the machine, and all that follows from it.
  void handle(Event event);

  /// An update whose signature is right. Its payload is checked here or, where it is cargo, on the bulk thread.
  void offered(const std::string& node, v1::UpdateBody body, v1::SignedUpdate message);

  /// A node sent something for `task` that is no update: its task ends by it, another's does not.
  void invalid(const std::string& task, const std::string& node, const Error& why);

  /// The coordinator failed at checking an update, for want of disk space perhaps. No answer about the task, and no fault of the node's.
  void unchecked(UpdateStored event, const Error& why);

  /// A node gave up a task.
  void failed(const std::string& node, const std::string& task, Error error);

  /// Whether bytes may be uploaded for this task.
  bool awaits_upload(const std::string& task) const { return machine_.awaits(task); }
  /// Whether what was uploaded for this task is still of use.
  bool needs_spool(const std::string& task) const { return machine_.awaits(task) || accepted_.contains(task); }

  void progressed(const std::string& node, const v1::Progress& progress);

  /// So many bytes of this run crossed the wire, from and to this node.
  void carried(const std::string& node, std::uint64_t bytes_up, std::uint64_t bytes_down);

  /// A node's holder does not let it take part, for this reason; an empty one takes it back.
  void refused(const std::string& node, const std::string& reason);

  /// Content ids that members may download.
  std::vector<std::string> readable_cargo() const;

  v1::RunSummary summary() const;
  v1::RunDetail detail() const;

 private:
  struct Offer {  // an update between its arrival and the machine's answer
    UpdateRecord record;
    std::shared_ptr<const AcceptedUpdate> update;
    UpdateStored event;
  };

  RunHost(RunServices& services, RunRecord record, RunPlan plan, RunMachine machine);

  v1::RunSummary summary_from(const RunView& view) const;

  void carry_out(const AssignTask& command);
  void carry_out(const Deliver& command);
  void carry_out(const CancelTask& command);
  void carry_out(const Accept& command);
  void carry_out(const CountReport& command);
  void carry_out(const Discard& command);
  void carry_out(const Refuse& command);
  void carry_out(const AskStore& command);
  void carry_out(const Reduce& command);
  void carry_out(const Count& command);
  void carry_out(const Void& command);
  void carry_out(const EvaluationDone& command);
  void carry_out(const Finish& command);
  void carry_out(const WakeAt& command);

  void reported(const std::string& node, const v1::UpdateBody& body, const v1::SignedUpdate& message);
  void check_cargo(Offer offer);
  void admit(Offer offer);
  void wake();
  void tell_decision(const std::string& node, const TaskRecord& decision);
  void reduced(std::uint64_t exchange, Result<std::vector<Reduction>> outcome);
  Result<void> restore_figures(const std::vector<VersionRecord>& versions);
  bool better(double judged) const;
  /// Whether a version is kept whatever is the best: one of every keep_every, or where the run began.
  bool stays(const VersionRecord& version) const;
  /// run_figures.cc: what the updates of an exchange tell of noise, and its metrics.
  void add_norms(const ReduceStatistics& statistics, std::map<std::string, double>& metrics);
  void spread_of(const Reduce& command);
  void restore_noise(const std::string& fragment, const std::map<std::string, double>& metrics);
  void add_noise(const Count& command, const std::vector<Reduction>& reductions, std::map<std::string, double>& metrics);
  const std::string& judged_metric() const;
  void send_receipt(const std::string& node, const TaskRecord& decision);
  v1::Task task_message(const AssignTask& command, const NodeSession& session);
  v1::FragmentVersion fragment_version(const ReadFragment& read);
  const VersionRecord* version(std::uint32_t fragment, std::uint64_t number);
  void remember(VersionRecord record);
  void flush(Batch& batch);
  Instant now() const { return static_cast<Instant>(services_.clock.monotonic_ms()); }
  std::int64_t unix_now() const { return static_cast<std::int64_t>(services_.clock.unix_ms()); }

  struct Figures {
    Counter& accepted;
    Counter& discarded;
    Counter& counted;
    Counter& exchanges;
    Counter& voids;
    Histogram& reduce_seconds;
  };
  static Figures figures_of(const std::string& run_id, Metrics& metrics);

  RunServices& services_;
  RunRecord record_;
  RunPlan plan_;
  RunMachine machine_;
  Figures figures_;

  std::deque<Event> events_;  // waiting for the one that is being handled
  bool handling_ = false;
  std::map<std::string, Offer> offers_;              // by task: being checked, or the machine is being asked
  std::map<std::string, UpdateRecord> reports_;      // by task: evaluations the machine is being asked about
  std::set<std::string> deciding_;                   // tasks whose decision is not durable yet
  AcceptedUpdates accepted_;                         // until their decision is durable
  std::map<std::uint64_t, std::vector<Reduction>> reductions_;  // by exchange: done, not released
  std::vector<std::map<std::uint64_t, VersionRecord>> versions_;  // by fragment, the newest few, by number
  std::optional<Instant> wake_at_;                    // when the machine wants a Tick
  std::set<Instant> wakes_;                           // when the core will look

  struct TaskProgress {
    std::uint64_t step = 0;
    std::uint64_t of = 0;
    double loss = 0;
  };
  std::map<std::string, TaskProgress> progress_;        // by node
  std::map<std::string, std::string> refusals_;         // by node
  std::map<std::string, double> latest_metrics_;
  std::map<std::string, std::uint64_t> discarded_;      // by kind of reason
  std::optional<double> best_;                          // of the metric that evaluations are judged by
  std::map<std::string, double> norms_;                         // of accepted updates, by task
  std::map<std::uint64_t, strategies::UpdateSpread> spreads_;   // by exchange: being reduced
  std::map<std::string, strategies::NoiseEstimate> noise_;      // smoothed, by the exchange's first fragment
  std::map<std::uint32_t, std::uint64_t> kept_;         // fragment → the version that was best, which stays
  std::map<std::string, std::pair<std::uint64_t, std::uint64_t>> traffic_;  // by node: up, down; not yet stored
  std::set<std::uint32_t> to_prune_;  // fragments with a new version
  std::uint64_t traffic_stored_ms_ = 0;
  std::uint64_t released_ms_ = 0;
  double seconds_per_round_ = 0;
};

}  // namespace skerry::server
