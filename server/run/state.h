// The run machine's state and its steps. Internal to server/run: events.cc has one handler an event, exchanges.cc the
// life of an exchange, tasks.cc that of a task, merges.cc who merges what while training on, offers.cc what is
// accepted, pace.cc what follows from measured speeds, evaluations.cc the life of an evaluation, rows.cc how all of it
// is kept.
#pragma once

#include <algorithm>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "server/run/run_machine.h"

namespace skerry::server {

struct RunMachine::State {
  static constexpr std::uint64_t kMostCounted = std::uint64_t{1} << 53;  ///< sums of many such counts do not overflow

  using Serial = std::uint64_t;
  using Commands = std::vector<Command>;

  enum class Phase : std::uint8_t { kRunning, kFinalEvaluation, kEnding, kFinished };

  /// Overlapped runs: an exchange whose outcome a node merges.
  struct Merge {
    std::uint64_t exchange = 0;  ///< as in MergeFragment
    std::uint32_t lane = 0;
    bool own = true;                       ///< the node had a task of it
    std::optional<std::uint64_t> version;  ///< of the lane, that the node was told came of it
    std::uint64_t at_step = 0;             ///< a task has it
  };

  struct Node {
    std::string name;
    std::string data_set;
    std::uint64_t examples = 0;
    std::uint64_t holdout_examples = 0;
    bool connected = false;
    bool gone = false;  ///< its holder left for good, or no longer consents
    bool paused = false;
    bool resting = false;  ///< after failures: until its retry timer, or (benched) until it joins again
    bool benched = false;
    std::vector<Serial> train_tasks;  ///< outstanding, in the order given: overlapped runs two, others one
    Serial evaluate_task = 0;         ///< outstanding; 0: none
    std::uint64_t invited = 0;    ///< synchronous: the last exchange it was given a task of
    std::uint64_t last_turn = 0;  ///< the last exchange that has an update of it
    double step_ms = 0;  ///< measured, smoothed: time of an inner step, or of a task where epochs count; 0: unknown
    std::uint32_t attempts = 0;  ///< synchronous: failed tasks since it delivered or gave up
    std::uint32_t failures = 0;  ///< one after another
    std::string last_failure;
    std::uint64_t tasks = 0;  ///< train tasks given
    std::uint64_t steps = 0;  ///< inner steps accepted
    std::uint64_t counted = 0;
    std::uint64_t discarded = 0;
    /// Per fragment: the version read last (nothing: unknown), and whether the trainer still has it as the base of its
    /// next Δ.
    std::vector<std::optional<std::uint64_t>> last_read;
    std::vector<bool> fresh;
    // Overlapped runs: the tasks that each go on from the one before.
    std::string last_task;            ///< id of the latest; empty: the next one reads all
    std::uint64_t last_exchange = 0;  ///< synchronous: of that task
    std::vector<Merge> owed;          ///< what coming tasks are to merge; oldest first
  };

  struct Task {
    Serial serial = 0;
    std::string prefix;  ///< of its id; empty: this machine's own
    std::string node;
    TaskKind kind = TaskKind::kTrain;
    std::uint32_t lane = 0;
    std::uint64_t exchange = 0;  ///< accepted: the one it is part of
    std::uint64_t round = 0;
    std::uint64_t seed = 0;
    std::uint64_t first_step = 0;
    std::uint64_t inner_steps = 0;     ///< asked for; 0: epochs count
    std::vector<std::uint64_t> bases;  ///< per fragment: the version it builds on or measures
    std::string after;                 ///< overlapped: the task it goes on from; empty: it reads all
    std::vector<Merge> merges;         ///< overlapped; oldest first
    Instant assigned = 0;              ///< outstanding: since when its node can work on it
    bool interrupted = false;          ///< it was given again: its time says nothing about its node's speed
    std::uint64_t group = 0;           ///< fedcompass: with whom it is to arrive; 0: none
    bool accepted = false;
    bool awaited = false;             ///< outstanding, and its node is here or expected back
    std::optional<Instant> deadline;  ///< asynchronous
    // What its update reported, once accepted.
    std::uint64_t examples = 0;
    std::uint64_t tokens = 0;
    std::uint64_t steps = 0;
    std::uint64_t staleness = 0;
    double factor = 1;
    double weight = 0;
    std::map<std::string, double> metrics;
    std::vector<double> needed_metrics;  ///< those of Needs::metrics, in that order
    std::vector<FragmentIndex> carries;  ///< fewer fragments than the lane has; empty: all of them
  };

  struct Exchange {
    std::uint64_t number = 0;
    std::uint32_t lane = 0;
    std::uint64_t base_version = 0;  ///< of every fragment of the lane
    bool reducing = false;
    std::size_t goal = 0;           ///< synchronous: updates that are enough, whoever else was invited
    std::size_t target = 0;         ///< nodes it may have, required ones besides
    std::size_t invited = 0;        ///< synchronous: nodes that were given a task
    std::uint64_t nodes = 0;        ///< reducing: nodes that consented
    bool due = false;               ///< fedcompass: a group whose updates it has is complete
    Instant opened = 0;  ///< synchronous: since when no older one is open; asynchronous: its first update came
    std::optional<Instant> first_update;  ///< overlapped: when it came
    std::set<std::string> missing;        ///< required nodes whose update is not in
    std::set<std::string> done;           ///< synchronous: nodes that delivered to it or gave it up
    std::set<Serial> outstanding;   ///< synchronous
    std::set<Serial> accepted;
    std::size_t awaited = 0;       ///< of `outstanding`
    std::set<std::string> failed;  ///< nodes that gave up
    std::uint32_t rescues = 0;     ///< how often the failed ones were asked again
    std::uint32_t reduce_failures = 0;
    std::optional<Instant> deadline;
    std::optional<Instant> grace;
  };

  /// FedCompass: nodes whose tasks are to end at the same time. Its number is the serial of its first task.
  struct Group {
    Instant expected = 0;
    Instant latest = 0;  ///< it is not waited for longer
    double fastest_ms = 0;
    std::size_t awaited = 0;  ///< tasks
    bool arrived = false;     ///< some of its updates are in
  };

  struct Evaluation {
    std::uint64_t exchange = 0;
    std::vector<std::uint64_t> versions;
    std::set<Serial> outstanding;
    std::size_t awaited = 0;
    std::map<std::string, NodeMetrics> reports;  ///< by node
    bool final = false;
    std::optional<Instant> deadline;
  };

  struct Ended {
    std::string node;
    std::string reason;                               ///< why it did not count; empty: it did,
    std::map<FragmentIndex, std::uint64_t> versions;  ///< in these versions
  };

  struct TimerKey {
    enum class Kind : std::uint8_t {
      kDeadline,
      kGrace,
      kRescue,
      kReduce,
      kEvaluation,
      kTask,
      kReconnect,
      kRetry,
      kGroup
    };
    Kind kind = Kind::kDeadline;
    std::uint64_t id = 0;  ///< exchange, task or group
    std::string node;
    auto operator<=>(const TimerKey&) const = default;
  };

  explicit State(RunSetup given);
  void continue_run();

  // ---- events.cc
  void on(const Started&, Instant now);
  void on(const NodeJoined& event, Instant now);
  void on(const NodeLeft& event, Instant now);
  void on(const NodePaused& event, Instant now);
  void on(const UpdateStored& event, Instant now);
  void on(const UpdateInvalid& event, Instant now);
  void on(const TaskFailed& event, Instant now);
  void on(const EvaluationReported& event, Instant now);
  void on(const Reduced& event, Instant now);
  void on(const Tick&, Instant now);
  void on(const OperatorPause& event, Instant now);
  void on(const OperatorResume&, Instant now);
  void on(const OperatorStop& event, Instant now);

  /// What follows from any event: the run ends, an evaluation or an exchange opens.
  void advance(Instant now);
  void fire(const TimerKey& key, Instant now);

  /// The outstanding or accepted task that `node` speaks of; otherwise the answer is given here.
  Task* find_task(const std::string& id, const std::string& node, TaskKind kind);
  void forgive(Node& node);
  static std::vector<Serial> outstanding_of(const Node& node);
  std::vector<std::uint64_t> exchanges_of(const Node& node) const;
  void mark_away(Node& node, Instant now, bool for_good);
  void lose_member(const std::vector<std::uint64_t>& numbers, Instant now);

  // ---- exchanges.cc
  bool may_open() const;
  bool open_exchange(Instant now);
  Exchange& new_exchange(std::uint32_t lane);
  Exchange& collecting(std::uint32_t lane);
  std::uint64_t first_collecting(std::uint32_t lane) const;
  /// Synchronous: no older exchange is open, so that this one's clock begins.
  void take_turn(Exchange& exchange, Instant now);
  /// Whether those who are late are not waited for any longer. If they are, the grace window's timer is set.
  bool grace_is_over(Exchange& exchange, Instant now);
  /// Enough updates are in, and those of all required nodes.
  bool satisfied(const Exchange& exchange) const;
  void check_complete(std::uint64_t number, Instant now);
  void check_lane(std::uint32_t lane, Instant now);
  bool has_enough(const Exchange& exchange) const;
  void on_deadline(std::uint64_t number, Instant now);
  void ask_failed_again(Exchange& exchange, Instant now);
  void begin_reduce(Exchange& exchange, Instant now, const std::string& why = "");
  void ask_reduce(const Exchange& exchange);
  void commit(std::uint64_t number, Instant now);
  void close_void(std::uint64_t number, Instant now);
  /// Everything about a lane's round that does not depend on how it ended.
  void round_done(std::uint32_t lane);
  std::uint64_t exchanges_planned() const;
  /// Rounds of a lane that are over, void ones too.
  std::uint64_t rounds_done(std::uint32_t lane) const;
  bool lane_done(std::uint32_t lane) const;
  bool in_lane(std::uint32_t lane, FragmentIndex fragment) const;

  // ---- tasks.cc
  bool eligible(const Node& node) const;
  void update_idle(Node& node);
  /// The exchange that work given now is for, as far as turns are concerned.
  std::uint64_t turn() const;
  bool has_turn(const Node& node) const;
  /// Nodes whose turn has come are idle again.
  void wake_turns(Instant now);
  std::optional<std::uint32_t> lane_with_work(const Node& node) const;
  bool is_full(std::uint32_t lane, std::size_t on_the_way) const;
  bool waits_for_others(std::uint32_t lane, const Node& node) const;
  bool takes_more(const Exchange& exchange, Instant now) const;
  bool has_room_for(const Exchange& exchange, const Node& node, Instant now) const;
  /// Gives an idle node work where there is some for it.
  void offer_work(Node& node, Instant now);
  void fill(Exchange& exchange, Instant now);
  /// Asynchronous: work is not offered to whoever is ready, but drawn for by fill_slots.
  bool draws_turns() const;
  /// Asynchronous: draws idle nodes until participation.concurrency of them train.
  void fill_slots(Instant now);
  void assign_train(Node& node, Exchange* exchange, std::uint32_t lane, Instant now);
  bool works_for(const Node& node, const Exchange& exchange) const;
  void assign_again(Task& task, Instant now);
  /// Asynchronous: where a newcomer begins, which is where the others are.
  std::uint64_t usual_steps() const;
  AssignTask describe(const Task& task, Instant now) const;
  /// The task ends without an update that counts, and its node has failed at it.
  void give_up(Serial serial, const std::string& reason, bool may_try_again, Instant now);
  void set_awaited(Task& task, bool awaited);
  /// The node's first outstanding task, which it can work on from now on.
  void start_clock(const Node& node, Instant now);
  void leave_node(const Task& task, Instant now);
  /// Takes an outstanding task out of everything. Remembers the reason for late offers; empty: its report counted.
  void end_task(Serial serial, const std::string& reason, bool tell_node, Instant now);
  /// Remembers how a task ended, for offers that come late.
  void remember_end(const Task& task, Ended end);

  // ---- merges.cc
  /// What a new task of an overlapped run goes on from, and what it merges. `exchange`: synchronous.
  void plan_merges(Node& node, Task& task, const Exchange* exchange);
  std::vector<MergeFragment> merges_of(const Task& task) const;
  /// Overlapped: a task failed. Those after it cannot go on from it, and the node's next one reads all.
  void break_line(Node& node, Serial failed, Instant now);
  /// The node's trainer is not where its task goes on from.
  void line_lost(Serial serial, const std::string& reason, Instant now);
  /// Before another update of the node is accepted into the exchange.
  void supersede(Node& node, const Exchange& exchange);
  bool is_over(const Merge& merge) const;
  void deliver(Node& node, Merge merge);
  /// What of this task's merges is over; unless `again`, only what its node may not have heard of yet.
  void deliver_known(const Task& task, bool again);
  /// `exchange`, which is over, where a task of the node merges it.
  void deliver_planned(Node& node, std::uint64_t exchange);
  /// Asynchronous: the update of this task will never count. Its node merges the newest version instead, unless the
  /// answer to an earlier one is still to come.
  void answer_lost(Node& node, Serial serial);
  /// Synchronous: those who merge it are told, and the next one may be complete.
  void exchange_over(std::uint64_t number, Instant now);

  // ---- offers.cc
  /// Why this update must not count; empty: it may.
  std::string objection(const Task& task, const UpdateStored& update) const;
  void accept(Task& task, const UpdateStored& update, Instant now);
  /// Inner steps that it may count for: what it says, never more than its task asked for.
  std::uint64_t steps_of(const Task& task, const UpdateStored& update) const;
  double weight_of(const Task& task, const UpdateStored& update) const;
  std::vector<double> needed_metrics(const UpdateStored& update) const;

  // ---- pace.cc
  void measure(Node& node, const Task& task, std::uint64_t steps, Instant now);
  void forget_speed(const Node& node);
  void know_speed(const Node& node);
  /// Inner steps for the node's next task; may put the task into a group.
  std::uint64_t steps_for(const Node& node, Task& task, Instant now);
  std::int64_t slack(const Exchange& exchange, Instant now) const;
  /// When the adaptive grace window of an exchange ends that has just got an update.
  Instant grace_end(const Exchange& exchange, Instant now) const;
  void group_changed(std::uint64_t group);
  void on_group_late(std::uint64_t group);

  // ---- evaluations.cc
  void open_due_evaluation(Instant now);
  void open_evaluation(bool is_final, Instant now);
  void assign_evaluate(Node& node, Instant now);
  void check_evaluation(Instant now);
  void close_evaluation(Instant now);
  /// The run ends now, or as soon as what is being reduced is counted.
  void end_run(const std::string& outcome, const std::string& reason, Instant now);
  void discard_exchange(std::uint64_t number, const std::string& reason);
  void finish_if_ending(Instant now);
  // ---- timers
  void set_timer(const TimerKey& key, Instant at);
  void clear_timer(const TimerKey& key);

  // ---- rows.cc
  MachineRows all_rows(Instant now) const;
  MachineRows changed_rows(Instant now);
  Result<void> load(const MachineRows& rows, Instant now);
  void forget_changes();
  void touch_core() { core_changed = true; }
  void touch(const Node& node) { changed_nodes.insert(node.name); }
  void touch(const Task& task) { changed_tasks.insert(task.serial); }
  void touch(const Exchange& exchange) { changed_exchanges.insert(exchange.number); }
  void touch_evaluation() { evaluation_changed = true; }

  std::string task_id(Serial serial) const;
  std::optional<Serial> serial_of(const std::string& id) const;
  /// The middle one (of two, the smaller), which no single claim moves far; 0 where there are none.
  static std::uint64_t median(std::vector<std::uint64_t> values) {
    if (values.empty()) return 0;
    const auto middle = values.begin() + static_cast<std::ptrdiff_t>((values.size() - 1) / 2);
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
  }
  void emit(Command command) { out.push_back(std::move(command)); }
  bool asynchronous() const { return setup.spec.participation.mode == ParticipationSpec::Mode::kAsynchronous; }
  bool overlapped() const { return setup.spec.exchange.overlap > 0; }
  /// Train tasks that a node has; synchronous: exchanges that are open.
  std::size_t at_once() const { return overlapped() ? 2 : 1; }
  bool accepts_work() const { return phase == Phase::kRunning && !paused; }
  std::size_t quorum() const { return static_cast<std::size_t>(setup.spec.participation.quorum); }
  static std::int64_t ms(double seconds) { return static_cast<std::int64_t>(seconds * 1000.0 + 0.5); }

  RunSetup setup;
  std::vector<std::vector<FragmentIndex>> lanes;  ///< exchanged fragments, then their control twins
  std::vector<bool> measured;                     ///< per fragment: an evaluation reads it
  std::vector<std::string> required;              ///< nodes, by name
  strategies::Part aggregation;

  // Kept in the row "core".
  Phase phase = Phase::kRunning;
  bool paused = false;
  std::string pause_reason;
  std::string outcome;  ///< of the run's end, or of the end that is near
  std::string outcome_reason;
  Serial next_serial = 1;
  std::uint64_t next_exchange = 1;
  std::uint64_t exchanges_done = 0;
  std::uint64_t last_exchange = 0;  ///< committed last
  std::vector<std::uint64_t> versions;
  std::vector<std::uint64_t> lane_voids;  ///< rounds per lane that were void
  std::map<std::uint64_t, Group> groups;
  std::uint64_t position = 0;  ///< synchronous: inner steps of the run so far
  bool begun = false;          ///< start_nodes were there once
  bool evaluation_due = false;

  // Kept in rows of their own.
  std::map<std::string, Node> nodes;
  std::map<Serial, Task> tasks;
  std::map<std::uint64_t, Exchange> exchanges;
  std::optional<Evaluation> evaluation;

  // Not kept: derived, or forgotten by a restart on purpose.
  std::set<std::string> idle;                            ///< eligible nodes without a train task
  std::map<std::uint64_t, std::set<std::string>> turns;  ///< by exchange: nodes that may take part again from it on
  std::size_t consenting = 0;                            ///< nodes that are not gone
  std::size_t training = 0;                              ///< train tasks that are awaited
  std::multiset<double> speeds;                          ///< Node::step_ms of the nodes that are here, where known
  std::vector<std::uint64_t> lane_collecting;            ///< exchange per lane, the oldest; 0: none
  std::vector<std::uint64_t> lane_reducing;              ///< exchange per lane; 0: none
  std::unordered_map<Serial, Ended> ended;               ///< how tasks ended; the latest kEndedKept
  std::deque<Serial> ended_order;
  std::map<TimerKey, Instant> timers;
  std::set<std::pair<Instant, TimerKey>> timer_order;
  std::optional<Instant> announced_wake;
  Commands out;

  bool core_changed = true;
  bool evaluation_changed = false;
  std::set<std::string> changed_nodes;
  std::set<Serial> changed_tasks;
  std::set<std::uint64_t> changed_exchanges;
  std::set<std::string> changed_reports;  ///< by node
};

}  // namespace skerry::server
