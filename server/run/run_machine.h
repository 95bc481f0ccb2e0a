// The run machine: everything that a run decides, without input or output. Events in, commands out; docs/run-machine.md
// explains the exchange's and the update's life with pictures.
#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "common/base/result.h"
#include "common/config/run_spec.h"
#include "common/model/layout.h"
#include "strategies/aggregation/rule.h"

namespace skerry::server {

/// Milliseconds on the coordinator's monotonic clock. Only differences mean something; it never goes back within a
/// process.
using Instant = std::int64_t;

/// Index into RunSetup::fragments.
using FragmentIndex = std::uint32_t;

enum class TaskKind : std::uint8_t { kTrain = 1, kEvaluate = 2 };  // numbers of skerry.v1.TaskKind

/// What never changes while a run lives.
struct RunSetup {
  std::string run_id;
  /// Task ids are `<task_prefix>.<serial>`. Unique among all runs and epochs of a coordinator: the run's id with the
  /// epoch, because after a restored backup the serial numbers may have gone back. Tasks given out under an earlier
  /// prefix keep their ids.
  std::string task_prefix;
  RunSpec spec;
  std::vector<std::string> fragments;  ///< names in the order of the model's layout; never empty
  /// Parallel to `fragments`; empty: all are exchanged. The i-th control fragment is the twin of the i-th exchanged one
  /// and goes with it; frozen fragments belong to no exchange and stay at version 0.
  std::vector<FragmentRole> roles = {};
  strategies::Needs needs = {};  ///< of the run's aggregation rule
  /// A new run that continues another one (spec.start): the versions that were there after start.round, parallel to
  /// `fragments`. Empty: 0.
  std::vector<std::uint64_t> start_versions = {};
};

// ---------------------------------------------------------------------------------------------------------------------
// Events
// ---------------------------------------------------------------------------------------------------------------------

/// Send this once, first, to a new or restored machine. A restored one answers with the Reduce commands that were under
/// way when its process ended.
struct Started {};

/// A node is connected and its holder has consented to this run. Send it again whenever one of these facts changed or
/// the node opened a new session; a session that opened is `new_session`. Its outstanding tasks are then assigned
/// again, under the same ids (see AssignTask).
struct NodeJoined {
  std::string node;
  std::string data_set;
  std::uint64_t examples = 0;          ///< of the split that is trained on
  std::uint64_t holdout_examples = 0;  ///< of the split that is evaluated
  bool paused = false;                 ///< connected, but takes no new task
  bool new_session = true;
};

/// A node's session ended, or (`for_good`) its holder left or no longer consents. Tasks of a node that may come back
/// are waited for during participation.reconnect_s and accepted as long as their exchange is open.
struct NodeLeft {
  std::string node;
  bool for_good = false;
};

struct NodePaused {
  std::string node;
  bool paused = false;
};

/// An update's payload lies in the spool; the shell has checked its bytes, encoding, shape, finiteness and signature
/// and that `node` is who sent it. Answered by exactly one of Accept, CountReport, Discard, Refuse, AskStore.
struct UpdateStored {
  std::string task;
  std::string node;
  /// One for each fragment the task writes; with Needs::partial_updates for some of them.
  std::map<FragmentIndex, std::uint64_t> base_versions;
  std::uint64_t examples = 0;
  std::uint64_t tokens = 0;
  std::uint64_t steps = 0;
  double norm = 0;  ///< L2 norm over all its fragments
  std::map<std::string, double> metrics;
};

/// The update of this task can never count, for a reason the shell found (wrong shape, not finite, bad signature of its
/// rightful owner …). The task ends; answered by Discard with this reason.
struct UpdateInvalid {
  std::string task;
  std::string node;
  std::string reason;
};

/// The daemon gave up a task. NOT_FOUND means that it lacks a fragment the task builds on: the next task reads them
/// all.
struct TaskFailed {
  std::string task;
  std::string node;
  Error error;
};

/// The answer to an evaluate task; the shell has verified `node`. Metrics are means over `examples`. Answered by
/// exactly one of CountReport, Discard, Refuse, AskStore.
struct EvaluationReported {
  std::string task;
  std::string node;
  std::uint64_t examples = 0;
  std::map<std::string, double> metrics;
};

/// The reduction asked for by Reduce ended. Without `error`, every fragment's new version is written and durable, to be
/// released in the transaction that persists this event's commands.
struct Reduced {
  std::uint64_t exchange = 0;
  std::optional<Error> error;  ///< retryable: asked again, later and later; otherwise the run fails
};

/// Time passed: send it when a WakeAt's instant has come (an early or needless one is harmless).
struct Tick {};

struct OperatorPause {
  std::string reason;
};
struct OperatorResume {};
struct OperatorStop {
  std::string reason;
};

using Event = std::variant<Started, NodeJoined, NodeLeft, NodePaused, UpdateStored, UpdateInvalid, TaskFailed,
                           EvaluationReported, Reduced, Tick, OperatorPause, OperatorResume, OperatorStop>;

// ---------------------------------------------------------------------------------------------------------------------
// Commands
// ---------------------------------------------------------------------------------------------------------------------

struct ReadFragment {
  FragmentIndex fragment = 0;
  std::uint64_t version = 0;
  /// The version this node read last, where it may still have it: if it is version - 1, the encoded step is enough.
  std::optional<std::uint64_t> previous;
};

/// Overlapped exchange: a fragment's version to merge while the task is under way; a Deliver says which one it is.
struct MergeFragment {
  FragmentIndex fragment = 0;
  std::uint64_t exchange = 0;  ///< of the Deliver, and of the task whose update it answers (AssignTask::exchange)
  std::uint64_t at_step = 0;   ///< of the task, not before; below `steps` where it blocks
  std::string rule;            ///< exchange.merge; "replace" for an exchange that the node had no task of
  double alpha = 0;
  bool block = false;          ///< exchange.on_late: the node waits at at_step, or merges at the next step after it came
};

/// Give a task to a node. A node that already has a task of this id goes on with it or offers its update again; one
/// that does not know it starts it. A node may have an evaluate and a train task at once, in overlapped runs two train
/// tasks; it works in the order given.
struct AssignTask {
  std::string task;
  std::string node;
  TaskKind kind = TaskKind::kTrain;
  /// Train: the exchange that was open; evaluate: 0. In an overlapped asynchronous run the task's serial number.
  std::uint64_t exchange = 0;
  std::uint64_t round = 0;     ///< how many exchanges of this fragment came before, plus 1
  std::vector<ReadFragment> read;
  std::vector<FragmentIndex> write;  ///< train
  std::uint64_t steps = 0;           ///< inner steps, by the node's speed where the run says so; 0: `epochs` counts
  double epochs = 0;
  std::uint64_t seed = 0;  ///< below 2^53
  std::uint64_t first_step = 0;
  std::int64_t deadline_ms = 0;  ///< from now; 0: none
  std::string split;             ///< evaluate
  // Overlapped train tasks.
  std::vector<MergeFragment> merge;  ///< by exchange: the order in which they are merged
  /// The node's train task that this one goes on from; where its trainer is anywhere else, the task fails with
  /// NOT_FOUND. Empty: it reads all.
  std::string after;
};

/// Overlapped exchange: `exchange` is over, and these are its fragments' versions, unchanged where it was void or the
/// node's update was discarded. Said after the AssignTask that plans the merge or when the exchange ends, whichever is
/// later; again when the node joins again.
struct Deliver {
  std::string node;
  std::uint64_t exchange = 0;  ///< as in MergeFragment
  std::vector<ReadFragment> versions;
};

/// The node may drop this task: its result is not wanted any more.
struct CancelTask {
  std::string task;
  std::string node;
  std::string reason;
};

/// The update is part of `exchange`: from now on (once persisted) it will be counted or discarded. A repeated offer of
/// an accepted update gets this answer again.
struct Accept {
  std::string task;
  std::string node;
  std::uint64_t exchange = 0;
};

/// COUNTED, final: a report is part of its evaluation at once; an update that is offered again was counted lately.
struct CountReport {
  std::string task;
  std::string node;
  std::map<FragmentIndex, std::uint64_t> versions;  ///< a report: what was measured; an update: what contains it
};

/// Final: the update of this task never counts. Sent as the answer to an offer, also to a repeated one (the shell
/// records the decision once and tells it again), and for accepted updates of an exchange that will not be committed.
struct Discard {
  std::string task;
  std::string node;
  std::string reason;
};

/// Not an answer about the task, only to this caller: the task is not its own. Nothing is recorded.
struct Refuse {
  std::string task;
  std::string node;
  std::string reason;
};

/// The task was decided by an earlier process or so long ago that only the store knows how: answer from there. Where
/// the store has no decision about it either, answer DISCARDED with `otherwise`, and record that if `record`. A name
/// that this run never gave out is not recorded: it may be another run's task, or made up as often as a node likes.
struct AskStore {
  std::string task;
  std::string node;
  std::string otherwise;
  bool record = true;
};

struct ReduceInput {
  std::string task;
  std::string node;
  std::uint64_t examples = 0;  ///< these four are strategies::Contribution
  std::uint64_t tokens = 0;
  std::uint64_t steps = 0;
  double factor = 1;            ///< discount for staleness, in (0, 1]
  double weight = 0;            ///< > 0: examples (or tokens, steps, 1) times the factor; for people and receipts
  std::uint64_t staleness = 0;  ///< exchanges of the fragment between its base and this exchange's base
  std::vector<double> metrics;  ///< what it reported of Needs::metrics, in that order
  std::map<FragmentIndex, std::uint64_t> base_versions;  ///< of the fragments it carries
};

struct FragmentStep {
  FragmentIndex fragment = 0;
  std::uint64_t base_version = 0;
  std::uint64_t new_version = 0;  ///< base_version + 1
};

/// Aggregate these updates and take one outer step on each fragment, then send Reduced. Repeated after a restart or a
/// retryable error with the same arguments, so that the result must depend on them alone. Inputs are ordered by node,
/// then by task serial: never by arrival.
struct Reduce {
  std::uint64_t exchange = 0;
  std::vector<FragmentStep> fragments;
  std::vector<ReduceInput> inputs;
  std::uint64_t nodes = 0;  ///< that consented to the run when the exchange was completed
};

/// The exchange is committed: the fragments' new versions are released and these tasks are COUNTED in them.
struct Count {
  std::uint64_t exchange = 0;
  std::vector<FragmentStep> fragments;
  std::vector<std::string> tasks;  ///< as in Reduce, same order
  std::vector<std::string> nodes;  ///< of `tasks`
  double total_weight = 0;         ///< sum of the inputs' weights, in their order
  std::uint64_t examples = 0;
  std::map<std::string, double> metrics;  ///< means over examples of what the updates reported
};

/// The exchange was closed with the model unchanged: too few of those it had invited returned until its deadline. The
/// updates it had are discarded by commands before this one; as a round it counts.
struct Void {
  std::uint64_t exchange = 0;
  std::string reason;
};

struct NodeMetrics {
  std::string node;
  std::uint64_t examples = 0;
  std::map<std::string, double> metrics;
};

/// An evaluation closed.
struct EvaluationDone {
  std::uint64_t exchange = 0;                       ///< the last one committed before it opened; 0: initial model
  std::map<FragmentIndex, std::uint64_t> versions;  ///< what was measured
  std::vector<NodeMetrics> reports;                 ///< by node
  std::uint64_t examples = 0;
  std::map<std::string, double> metrics;  ///< means over examples; empty below evaluation.minimum reports
};

/// The run is over. No command follows but answers to late offers.
struct Finish {
  std::string outcome;  ///< "completed", "stopped", "failed"
  std::string reason;
};

/// Send Tick at this instant. Replaces the WakeAt before it; sent only when it changed.
struct WakeAt {
  Instant at = 0;
};

using Command = std::variant<AssignTask, Deliver, CancelTask, Accept, CountReport, Discard, Refuse, AskStore, Reduce,
                             Count, Void, EvaluationDone, Finish, WakeAt>;

// ---------------------------------------------------------------------------------------------------------------------
// What people see
// ---------------------------------------------------------------------------------------------------------------------

struct FragmentView {
  std::string fragment;
  std::uint64_t version = 0;
  std::uint64_t exchange = 0;  ///< the open one; 0: none
  std::uint32_t accepted = 0;
  std::uint32_t quorum = 0;
  std::uint32_t outstanding = 0;
};

/// An exchange that is open. One that waits for an older one has its place in the line, and its clock does not run yet.
struct ExchangeView {
  std::uint64_t exchange = 0;
  std::vector<std::string> fragments;
  std::string state;  ///< "collecting", "reducing", "in line"
  std::uint32_t accepted = 0;
  std::uint32_t outstanding = 0;  ///< synchronous
};

struct NodeView {
  std::string node;
  std::string state;   ///< "training", "evaluating", "waiting", "paused", "offline"
  std::string detail;  ///< the last failure, or why it gets no task
  std::string data_set;
  std::uint64_t examples = 0;
  std::uint64_t counted = 0;  ///< updates
  std::uint64_t discarded = 0;
};

struct RunStatus {
  std::string status;         ///< "waiting", "running", "paused", "completed", "stopped", "failed"
  std::string status_reason;  ///< what it waits for, or why it ended
};

struct RunView : RunStatus {
  std::uint64_t round = 0;   ///< exchanges of the slowest fragment, void ones too
  std::uint64_t rounds = 0;  ///< planned
  std::vector<FragmentView> fragments;
  std::vector<ExchangeView> exchanges;  ///< by number
  std::vector<NodeView> nodes;          ///< by name
};

// ---------------------------------------------------------------------------------------------------------------------
// The machine
// ---------------------------------------------------------------------------------------------------------------------

/// A machine's state as small rows, key → JSON text (canonical), so that a commit writes only what an event touched.
/// The keys are the machine's own; none is longer than 300 bytes.
using MachineRows = std::map<std::string, std::string>;

/// One run. Not thread-safe; a value that is cheap to move. `handle` costs time in what changes, not in how many nodes
/// there are; opening an exchange costs time in its cohort.
///
/// The contract with the shell, for each event or batch of events:
///   1. call handle() for each, collecting the commands in order;
///   2. in one transaction persist take_changes() and what Accept, CountReport, Discard, Count, EvaluationDone and
///   Finish say;
///   3. then act on the commands. A process that ends between 2 and 3 loses nothing: AssignTask is repeated when its
///   node
///      joins again, Reduce by Started, and receipts are asked for by their clients.
/// Before UpdateStored the shell may answer a repeated offer from its own table of decided tasks.
class RunMachine {
 public:
  /// A new run at version 0 of every fragment.
  explicit RunMachine(RunSetup setup);

  /// The machine that persisted `rows` (all that snapshot() gave, or the union of all take_changes()). All nodes are
  /// away until they join again; what remained of each deadline when it was persisted begins at `now`. DATA_LOSS where
  /// the rows are not a machine's, FAILED_PRECONDITION where they are of another run or spec.
  static Result<RunMachine> restore(RunSetup setup, const MachineRows& rows, Instant now);

  RunMachine(RunMachine&&) noexcept;
  RunMachine& operator=(RunMachine&&) noexcept;
  ~RunMachine();

  /// One event happened at `now`. Every event has an answer in every state; none is an error.
  std::vector<Command> handle(const Event& event, Instant now);

  /// All rows.
  MachineRows snapshot(Instant now) const;

  /// The rows that changed since the last call (since construction or restore at first); an empty text means that the
  /// row is gone. Call it in the transaction that persists the commands.
  MachineRows take_changes(Instant now);

  /// Costs nothing.
  RunStatus status() const;

  /// Costs time in how many nodes there are: for people, not for every event.
  RunView view() const;
  const RunSetup& setup() const;

  /// "completed", "stopped" or "failed" were reached.
  bool finished() const;

  /// By fragment index. What is released; never goes back.
  std::vector<std::uint64_t> versions() const;

  /// Whether this task's update may still be offered and accepted: it was given out, and neither was its update
  /// accepted nor its end decided.
  bool awaits(const std::string& task) const;

  /// Fragment versions that the store must keep (ascending, by fragment): what an outstanding task may still have to
  /// read or merge, and with Needs::rebased what an accepted update was measured against.
  std::vector<std::vector<std::uint64_t>> needed_versions() const;

  struct State;  ///< its inside, for the sources of this directory alone

 private:
  std::unique_ptr<State> state_;
};

}  // namespace skerry::server
