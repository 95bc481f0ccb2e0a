// One handler an event. What an event does not change it leaves alone; what it does not expect it answers.
#include <algorithm>
#include <charconv>
#include <utility>

#include "server/run/state.h"
#include "strategies/evaluation.h"
#include "strategies/exchange.h"
#include "strategies/participation.h"

namespace skerry::server {

using TimerKind = RunMachine::State::TimerKey::Kind;

RunMachine::State::State(RunSetup given) : setup(std::move(given)) {
  setup.roles.resize(setup.fragments.size(), FragmentRole::kExchanged);
  std::vector<FragmentIndex> exchanged;
  std::vector<FragmentIndex> twins;
  for (FragmentIndex fragment = 0; fragment < setup.roles.size(); ++fragment) {
    if (setup.roles[fragment] == FragmentRole::kExchanged) exchanged.push_back(fragment);
    if (setup.roles[fragment] == FragmentRole::kControl) twins.push_back(fragment);
    measured.push_back(setup.roles[fragment] != FragmentRole::kControl);
  }
  for (const auto& places : strategies::lanes(setup.spec.exchange, static_cast<std::uint32_t>(exchanged.size()))) {
    std::vector<FragmentIndex> lane;
    for (const auto place : places) lane.push_back(exchanged[place]);
    for (const auto place : places)
      if (place < twins.size()) lane.push_back(twins[place]);
    lanes.push_back(std::move(lane));
  }
  aggregation = {setup.spec.aggregation.name, setup.spec.aggregation.parameters};
  required = strategies::required_nodes(setup.spec.participation, setup.needs);
  versions.assign(setup.fragments.size(), 0);
  lane_voids.assign(lanes.size(), 0);
  lane_collecting.assign(lanes.size(), 0);
  lane_reducing.assign(lanes.size(), 0);
  if (!setup.start_versions.empty()) continue_run();
}

// Numbers of exchanges, and so seeds and draws, and the place in the schedule go on where the other run's stood.
void RunMachine::State::continue_run() {
  versions = setup.start_versions;
  for (std::uint32_t lane = 0; lane < lanes.size(); ++lane)
    lane_voids[lane] = setup.spec.start.round - versions[lanes[lane].front()];
  exchanges_done = last_exchange = setup.spec.start.round * lanes.size();
  next_exchange = exchanges_done + 1;
  position = exchanges_done * setup.spec.training.steps;
}

std::string RunMachine::State::task_id(Serial serial) const {
  const auto known = tasks.find(serial);
  const bool earlier = known != tasks.end() && !known->second.prefix.empty();
  return (earlier ? known->second.prefix : setup.task_prefix) + "." + std::to_string(serial);
}

std::optional<RunMachine::State::Serial> RunMachine::State::serial_of(const std::string& id) const {
  const std::size_t dot = id.rfind('.');
  if (dot == std::string::npos) return std::nullopt;
  Serial serial = 0;
  const auto end = std::from_chars(id.data() + dot + 1, id.data() + id.size(), serial);
  if (end.ec != std::errc() || end.ptr != id.data() + id.size() || task_id(serial) != id) return std::nullopt;
  return serial;
}

// ---- coming and going

void RunMachine::State::on(const Started&, Instant) {
  for (const auto& [number, exchange] : exchanges)
    if (exchange.reducing) ask_reduce(exchange);
}

void RunMachine::State::on(const NodeJoined& event, Instant now) {
  Node& node = nodes[event.node];
  if (node.name.empty()) {
    node.name = event.node;
    node.last_read.assign(versions.size(), std::nullopt);
    node.fresh.assign(versions.size(), false);
    node.gone = true;
    touch(node);
  }
  if (std::exchange(node.gone, false)) {
    ++consenting;
    touch(node);
  }
  const bool arrives = event.new_session || !node.connected;
  if (arrives && node.connected) mark_away(node, now, false);
  node.data_set = event.data_set;
  node.examples = event.examples;
  node.holdout_examples = event.holdout_examples;
  node.paused = event.paused;
  if (!std::exchange(node.connected, true)) know_speed(node);
  if (phase == Phase::kFinished || phase == Phase::kEnding) return;
  if (arrives) {
    clear_timer({TimerKind::kReconnect, 0, node.name});
    clear_timer({TimerKind::kRetry, 0, node.name});
    node.resting = node.benched = false;
    node.failures = node.attempts = 0;
    for (const auto serial : outstanding_of(node)) {
      Task& task = tasks.at(serial);
      set_awaited(task, true);
      assign_again(task, now);
    }
    forgive(node);
  }
  update_idle(node);
  if (evaluation && evaluation->final) assign_evaluate(node, now);
  offer_work(node, now);
}

/// Synchronous: a node that gave up in an open exchange may try again, since something about it has changed.
void RunMachine::State::forgive(Node& node) {
  if (asynchronous()) return;
  for (auto& [number, exchange] : exchanges)
    if (exchange.failed.erase(node.name) != 0) exchange.done.erase(node.name);
}

/// The evaluation first, then the train tasks in the order in which they were given.
std::vector<RunMachine::State::Serial> RunMachine::State::outstanding_of(const Node& node) {
  std::vector<Serial> serials;
  if (node.evaluate_task != 0) serials.push_back(node.evaluate_task);
  serials.insert(serials.end(), node.train_tasks.begin(), node.train_tasks.end());
  return serials;
}

void RunMachine::State::on(const NodeLeft& event, Instant now) {
  const auto found = nodes.find(event.node);
  if (found == nodes.end() || (!found->second.connected && !event.for_good)) return;
  mark_away(found->second, now, event.for_good);
}

void RunMachine::State::mark_away(Node& node, Instant now, bool for_good) {
  forget_speed(node);
  node.connected = false;
  if (for_good && !std::exchange(node.gone, true)) {
    --consenting;
    touch(node);
  }
  std::fill(node.fresh.begin(), node.fresh.end(), false);
  std::fill(node.last_read.begin(), node.last_read.end(), std::nullopt);
  update_idle(node);
  clear_timer({TimerKind::kRetry, 0, node.name});
  if (for_good) node.last_task.clear();
  const std::vector<Serial> outstanding = outstanding_of(node);
  if (outstanding.empty()) return;
  if (!for_good)
    return set_timer({TimerKind::kReconnect, 0, node.name}, now + ms(setup.spec.participation.reconnect_s));

  clear_timer({TimerKind::kReconnect, 0, node.name});
  const std::vector<std::uint64_t> lost = exchanges_of(node);
  for (const auto serial : outstanding) end_task(serial, "its node left the run", false, now);
  check_evaluation(now);
  lose_member(lost, now);
}

std::vector<std::uint64_t> RunMachine::State::exchanges_of(const Node& node) const {
  std::vector<std::uint64_t> numbers;
  for (const auto serial : node.train_tasks) numbers.push_back(tasks.at(serial).exchange);
  return numbers;
}

/// Synchronous: one who worked for these exchanges is not awaited any more.
void RunMachine::State::lose_member(const std::vector<std::uint64_t>& numbers, Instant now) {
  if (asynchronous()) return;
  for (const auto number : numbers) {
    // A drawn cohort gets another member; where everyone works already, nobody is left to ask.
    if (const auto open = exchanges.find(number); open != exchanges.end() && open->second.target != SIZE_MAX)
      fill(open->second, now);
    check_complete(number, now);
  }
}

void RunMachine::State::on(const NodePaused& event, Instant now) {
  const auto found = nodes.find(event.node);
  if (found == nodes.end() || found->second.paused == event.paused) return;
  found->second.paused = event.paused;
  if (!event.paused) forgive(found->second);
  update_idle(found->second);
  offer_work(found->second, now);
  if (evaluation && evaluation->final) assign_evaluate(found->second, now);
}

// ---- results

RunMachine::State::Task* RunMachine::State::find_task(const std::string& id, const std::string& node, TaskKind kind) {
  const auto serial = serial_of(id);
  if (!serial) {
    emit(AskStore{id, node, "this run gives out no tasks of this name", /*record=*/false});
    return nullptr;
  }
  // Not a Discard: that would decide a task which another node may get one day.
  if (*serial == 0 || *serial >= next_serial) {
    emit(Refuse{id, node, "the task has not been given out yet"});
    return nullptr;
  }
  if (const auto found = tasks.find(*serial); found != tasks.end()) {
    if (found->second.node == node && found->second.kind == kind) return &found->second;
    emit(Refuse{id, node,
                found->second.node == node ? "the task is of another kind" : "the task belongs to another node"});
    return nullptr;
  }
  const auto found = ended.find(*serial);
  if (found == ended.end())
    emit(AskStore{id, node, "the task ended before its update came"});
  else if (found->second.node != node)
    emit(Refuse{id, node, "the task belonged to another node"});
  else if (found->second.reason.empty())
    emit(CountReport{id, node, found->second.versions});
  else
    emit(Discard{id, node, found->second.reason});
  return nullptr;
}

void RunMachine::State::on(const UpdateStored& event, Instant now) {
  Task* task = find_task(event.task, event.node, TaskKind::kTrain);
  if (task == nullptr) return;
  if (task->accepted) return emit(Accept{event.task, event.node, task->exchange});
  const std::string why_not = objection(*task, event);
  if (why_not.empty()) return accept(*task, event, now);
  on(UpdateInvalid{event.task, event.node, why_not}, now);
}

void RunMachine::State::on(const UpdateInvalid& event, Instant now) {
  Task* task = find_task(event.task, event.node, TaskKind::kTrain);
  if (task == nullptr) return;
  if (task->accepted) return emit(Accept{event.task, event.node, task->exchange});
  Node& node = nodes.at(task->node);
  ++node.discarded;
  touch(node);
  emit(Discard{event.task, event.node, event.reason});
  const Serial serial = task->serial;
  give_up(serial, event.reason, false, now);
  answer_lost(node, serial);
}

void RunMachine::State::on(const TaskFailed& event, Instant now) {
  const auto serial = serial_of(event.task);
  const auto found = serial ? tasks.find(*serial) : tasks.end();
  if (found == tasks.end() || found->second.node != event.node || found->second.accepted) return;
  const std::string reason =
      event.error.message.empty() ? std::string(code_name(event.error.code)) : event.error.message;
  if (found->second.kind == TaskKind::kEvaluate) {
    nodes.at(event.node).last_failure = reason;
    end_task(*serial, "the node gave up: " + reason, false, now);
    return check_evaluation(now);
  }
  if (event.error.code == Code::kNotFound && !found->second.after.empty()) return line_lost(*serial, reason, now);
  break_line(nodes.at(event.node), *serial, now);
  give_up(*serial, reason,
          event.error.retryable || event.error.code == Code::kNotFound || event.error.code == Code::kAborted, now);
}

void RunMachine::State::on(const EvaluationReported& event, Instant now) {
  const Task* task = find_task(event.task, event.node, TaskKind::kEvaluate);
  if (task == nullptr) return;
  const Serial serial = task->serial;
  if (event.examples == 0 || event.examples > kMostCounted) {
    const std::string reason = event.examples == 0 ? "the report measured no examples"
                                                   : "the report measured " + std::to_string(event.examples) +
                                                         " examples; nobody has more than 2^53 of them";
    emit(Discard{event.task, event.node, reason});
    end_task(serial, reason, false, now);
    return check_evaluation(now);
  }
  evaluation->reports[event.node] = {
      event.node, event.examples,
      strategies::merge_metrics({{event.examples, &event.metrics}}, setup.spec.limits.metrics)};
  changed_reports.insert(event.node);
  CountReport answer{event.task, event.node, {}};
  for (FragmentIndex fragment = 0; fragment < task->bases.size(); ++fragment)
    answer.versions[fragment] = task->bases[fragment];
  emit(std::move(answer));
  end_task(serial, "", false, now);
  check_evaluation(now);
}

void RunMachine::State::on(const Reduced& event, Instant now) {
  const auto found = exchanges.find(event.exchange);
  if (found == exchanges.end() || !found->second.reducing) return;
  Exchange& exchange = found->second;
  if (!event.error) {
    clear_timer({TimerKind::kReduce, exchange.number, {}});
    commit(event.exchange, now);
    return finish_if_ending(now);
  }
  const std::string reason =
      "exchange " + std::to_string(event.exchange) + " could not be reduced: " + event.error->message;
  if (event.error->retryable && phase != Phase::kEnding) {
    const std::int64_t wait = std::int64_t{1000} << std::min<std::uint32_t>(exchange.reduce_failures, 6);
    ++exchange.reduce_failures;
    return set_timer({TimerKind::kReduce, exchange.number, {}}, now + std::min<std::int64_t>(wait, 60000));
  }
  discard_exchange(event.exchange, reason);
  end_run("failed", reason, now);
  finish_if_ending(now);
}

// ---- time and people

void RunMachine::State::on(const Tick&, Instant now) {
  // What a timer sets anew lies in the future, so that this ends.
  while (!timer_order.empty() && timer_order.begin()->first <= now) {
    const TimerKey key = timer_order.begin()->second;
    clear_timer(key);
    fire(key, now);
  }
}

void RunMachine::State::fire(const TimerKey& key, Instant now) {
  switch (key.kind) {
    case TimerKind::kDeadline:
      return on_deadline(key.id, now);
    case TimerKind::kGrace:
      if (const auto open = exchanges.find(key.id); open != exchanges.end() && !open->second.reducing)
        begin_reduce(open->second, now);
      return;
    case TimerKind::kRescue:
      if (const auto open = exchanges.find(key.id); open != exchanges.end() && !open->second.reducing) {
        ++open->second.rescues;
        ask_failed_again(open->second, now);
        check_complete(key.id, now);
      }
      return;
    case TimerKind::kReduce:
      if (const auto open = exchanges.find(key.id); open != exchanges.end()) ask_reduce(open->second);
      return;
    case TimerKind::kEvaluation:
      if (evaluation) close_evaluation(now);
      return;
    case TimerKind::kGroup:
      return on_group_late(key.id);
    case TimerKind::kTask:
      if (const auto found = tasks.find(key.id); found != tasks.end()) {
        const std::string reason = "the task's deadline has passed";
        emit(CancelTask{task_id(key.id), found->second.node, reason});
        break_line(nodes.at(found->second.node), key.id, now);
        if (nodes.at(found->second.node).connected)
          give_up(key.id, reason, true, now);
        else
          end_task(key.id, reason, false, now);
      }
      return;
    case TimerKind::kReconnect: {
      Node& node = nodes.at(key.node);
      for (const auto serial : outstanding_of(node)) set_awaited(tasks.at(serial), false);
      check_evaluation(now);
      return lose_member(exchanges_of(node), now);
    }
    case TimerKind::kRetry: {
      Node& node = nodes.at(key.node);
      node.resting = false;
      update_idle(node);
      return offer_work(node, now);
    }
  }
}

void RunMachine::State::on(const OperatorPause& event, Instant) {
  if (phase == Phase::kFinished || phase == Phase::kEnding) return;
  paused = true;
  pause_reason = event.reason;
  touch_core();
}

void RunMachine::State::on(const OperatorResume&, Instant now) {
  if (!paused || phase == Phase::kFinished) return;
  paused = false;
  pause_reason.clear();
  touch_core();
  if (evaluation)
    for (auto& [name, node] : nodes) assign_evaluate(node, now);
  if (asynchronous()) {
    const std::set<std::string> waiting = idle;
    for (const auto& name : waiting) offer_work(nodes.at(name), now);
  } else if (!exchanges.empty()) {
    const std::uint64_t number = exchanges.begin()->first;
    for (auto& [each, exchange] : exchanges) fill(exchange, now);
    check_complete(number, now);
  }
}

void RunMachine::State::on(const OperatorStop& event, Instant now) {
  end_run("stopped", event.reason.empty() ? "stopped by an operator" : event.reason, now);
}

void RunMachine::State::advance(Instant now) {
  if (phase == Phase::kRunning && exchanges_done == exchanges_planned()) {
    if (setup.spec.evaluation.every == 0)
      return end_run("completed", "all " + std::to_string(setup.spec.stop.rounds) + " rounds are done", now);
    if (paused) return;
    if (evaluation) close_evaluation(now);
    if (phase != Phase::kRunning) return;
    phase = Phase::kFinalEvaluation;
    open_evaluation(true, now);
    return check_evaluation(now);
  }
  wake_turns(now);
  if (!accepts_work()) return;
  if (asynchronous()) {
    if (!begun && idle.size() >= setup.spec.participation.start_nodes) {
      begun = true;
      touch_core();
      const std::set<std::string> waiting = idle;
      for (const auto& name : waiting) offer_work(nodes.at(name), now);
    }
    // A group may have lost the last one that it waited for.
    if (setup.spec.participation.work == ParticipationSpec::Work::kFedCompass) check_lane(0, now);
    fill_slots(now);
    open_due_evaluation(now);
  } else {
    if (!exchanges.empty()) open_due_evaluation(now);
    while (may_open() && open_exchange(now)) {
    }
  }
}

// ---- timers

void RunMachine::State::set_timer(const TimerKey& key, Instant at) {
  clear_timer(key);
  timers[key] = at;
  timer_order.emplace(at, key);
}

void RunMachine::State::clear_timer(const TimerKey& key) {
  const auto found = timers.find(key);
  if (found == timers.end()) return;
  timer_order.erase({found->second, key});
  timers.erase(found);
}

}  // namespace skerry::server
