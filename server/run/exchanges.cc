// The life of an exchange: it opens, it is complete, it is reduced, it is committed or void.
#include <algorithm>
#include <utility>

#include "server/run/state.h"
#include "strategies/evaluation.h"
#include "strategies/participation.h"

namespace skerry::server {
namespace {

constexpr std::uint32_t kRescues = 5;  // of one exchange whose nodes all failed
constexpr std::int64_t kFirstRescueMs = 5000;

}  // namespace

using TimerKind = RunMachine::State::TimerKey::Kind;

std::uint64_t RunMachine::State::exchanges_planned() const { return setup.spec.stop.rounds * lanes.size(); }

std::uint64_t RunMachine::State::rounds_done(std::uint32_t lane) const {
  return versions[lanes[lane].front()] + lane_voids[lane];
}

bool RunMachine::State::lane_done(std::uint32_t lane) const {
  return rounds_done(lane) + (lane_reducing[lane] != 0 ? 1 : 0) >= setup.spec.stop.rounds;
}

bool RunMachine::State::in_lane(std::uint32_t lane, FragmentIndex fragment) const {
  return std::find(lanes[lane].begin(), lanes[lane].end(), fragment) != lanes[lane].end();
}

// ---- opening

RunMachine::State::Exchange& RunMachine::State::new_exchange(std::uint32_t lane) {
  Exchange& exchange = exchanges[next_exchange];
  exchange.number = next_exchange++;
  exchange.lane = lane;
  exchange.base_version = versions[lanes[lane].front()] + (lane_reducing[lane] != 0 ? 1 : 0);
  exchange.goal = exchange.target = SIZE_MAX;
  exchange.missing.insert(required.begin(), required.end());
  lane_collecting[lane] = first_collecting(lane);
  touch(exchange);
  touch_core();
  return exchange;
}

std::uint64_t RunMachine::State::first_collecting(std::uint32_t lane) const {
  for (const auto& [number, exchange] : exchanges)
    if (exchange.lane == lane && !exchange.reducing) return number;
  return 0;
}

/// Synchronous.
bool RunMachine::State::may_open() const {
  return exchanges.size() < at_once() && exchanges_done + exchanges.size() < exchanges_planned();
}

/// Synchronous: the next exchange, where enough nodes are ready.
bool RunMachine::State::open_exchange(Instant now) {
  const auto& participation = setup.spec.participation;
  const std::uint64_t needed = begun ? participation.quorum : std::max(participation.start_nodes, participation.quorum);
  if (idle.size() < needed || !std::includes(idle.begin(), idle.end(), required.begin(), required.end())) return false;
  begun = true;
  Exchange& exchange = new_exchange(static_cast<std::uint32_t>((next_exchange - 1) % lanes.size()));
  if (participation.cohort_size > 0 || participation.cohort_fraction < 1) {
    exchange.goal = std::max(required.size(), strategies::cohort_target(participation, idle.size()));
    exchange.target = strategies::invited_for(participation, exchange.goal);
  }
  if (exchanges.size() == 1) take_turn(exchange, now);
  open_due_evaluation(now);
  fill(exchange, now);
  return true;
}

void RunMachine::State::take_turn(Exchange& exchange, Instant now) {
  exchange.opened = now;
  touch(exchange);
  if (setup.spec.participation.deadline_s == 0) return;
  exchange.deadline = now + ms(setup.spec.participation.deadline_s);
  set_timer({TimerKind::kDeadline, exchange.number, {}}, *exchange.deadline);
}

/// Asynchronous: the lane's open exchange, opened when it is first needed.
RunMachine::State::Exchange& RunMachine::State::collecting(std::uint32_t lane) {
  return lane_collecting[lane] == 0 ? new_exchange(lane) : exchanges.at(lane_collecting[lane]);
}

// ---- completing

bool RunMachine::State::satisfied(const Exchange& exchange) const {
  return exchange.missing.empty() &&
         exchange.accepted.size() >= strategies::needed_for(setup.spec.participation, exchange.invited);
}

bool RunMachine::State::grace_is_over(Exchange& exchange, Instant now) {
  const auto& participation = setup.spec.participation;
  if (!participation.adaptive_grace && exchange.grace) return false;
  const Instant end = participation.adaptive_grace ? grace_end(exchange, now) : now + ms(participation.grace_s);
  if (end <= now) return true;
  if (exchange.grace && *exchange.grace <= end) return false;
  exchange.grace = end;
  set_timer({TimerKind::kGrace, exchange.number, {}}, end);
  touch(exchange);
  return false;
}

/// Synchronous. Exchanges end in the order in which they were opened.
void RunMachine::State::check_complete(std::uint64_t number, Instant now) {
  const auto found = exchanges.find(number);
  if (found == exchanges.end() || found != exchanges.begin() || found->second.reducing || phase != Phase::kRunning)
    return;
  Exchange& exchange = found->second;
  const auto& participation = setup.spec.participation;
  if (satisfied(exchange)) {
    if (exchange.awaited == 0) return begin_reduce(exchange, now);
    if (exchange.accepted.size() >= exchange.goal) return begin_reduce(exchange, now, ": the goal was reached");
    if (!participation.adaptive_grace && participation.grace_s < 0) return;
    if (grace_is_over(exchange, now)) begin_reduce(exchange, now);
    return;
  }
  if (exchange.awaited > 0) return;
  fill(exchange, now);
  if (exchange.awaited > 0 || paused) return;
  // Nobody works, and those who are here have failed: ask them again, later and later.
  const auto here = std::find_if(exchange.failed.begin(), exchange.failed.end(),
                                 [this](const std::string& name) { return idle.count(name) != 0; });
  const TimerKey rescue{TimerKind::kRescue, number, {}};
  if (here == exchange.failed.end() || timers.count(rescue) != 0) return;
  if (exchange.rescues >= kRescues) {
    if (participation.minimum_completion > 0) return;  // at its deadline it is void
    const auto& node = nodes.at(*here);
    return end_run("failed",
                   "exchange " + std::to_string(number) + " cannot reach its quorum of " + std::to_string(quorum()) +
                       ": " + node.name + " failed again and again: " + node.last_failure,
                   now);
  }
  set_timer(rescue, now + (kFirstRescueMs << exchange.rescues));
}

/// Asynchronous.
void RunMachine::State::check_lane(std::uint32_t lane, Instant now) {
  if (lane_collecting[lane] == 0 || lane_reducing[lane] != 0) return;
  Exchange& exchange = exchanges.at(lane_collecting[lane]);
  if (!exchange.missing.empty() || !has_enough(exchange)) return;
  const auto& participation = setup.spec.participation;
  const bool waits = participation.adaptive_grace || participation.grace_s > 0;
  if (!waits || grace_is_over(exchange, now)) begin_reduce(exchange, now);
}

/// Asynchronous: whether only required nodes may be missing. A FedCompass exchange without anybody at work expects no
/// group.
bool RunMachine::State::has_enough(const Exchange& exchange) const {
  if (setup.spec.participation.work != ParticipationSpec::Work::kFedCompass)
    return exchange.accepted.size() >= setup.spec.participation.buffer;
  return !exchange.accepted.empty() && (exchange.due || training == 0);
}

void RunMachine::State::on_deadline(std::uint64_t number, Instant now) {
  const auto found = exchanges.find(number);
  if (found == exchanges.end() || found->second.reducing) return;
  Exchange& exchange = found->second;
  if (satisfied(exchange)) return begin_reduce(exchange, now);
  if (setup.spec.participation.minimum_completion > 0 && accepts_work()) return close_void(number, now);
  exchange.deadline = now + ms(setup.spec.participation.deadline_s);
  set_timer({TimerKind::kDeadline, number, {}}, *exchange.deadline);
  touch(exchange);
  if (!accepts_work()) return;
  // Whoever is here is asked again: a task that got lost on its way is found again by this.
  for (const auto serial : exchange.outstanding)
    if (nodes.at(tasks.at(serial).node).connected) assign_again(tasks.at(serial), now);
  ask_failed_again(exchange, now);
}

void RunMachine::State::ask_failed_again(Exchange& exchange, Instant now) {
  for (const auto& name : std::exchange(exchange.failed, {})) exchange.done.erase(name);
  touch(exchange);
  fill(exchange, now);
}

/// Synchronous: too few of the invited returned. The model stays as it is, and the round counts.
void RunMachine::State::close_void(std::uint64_t number, Instant now) {
  Exchange& exchange = exchanges.at(number);
  const std::uint32_t lane = exchange.lane;
  std::string reason = "exchange " + std::to_string(number) + " is void: " + std::to_string(exchange.accepted.size()) +
                       " of " + std::to_string(exchange.invited) + " invited nodes returned, " +
                       std::to_string(strategies::needed_for(setup.spec.participation, exchange.invited)) +
                       " were needed";
  if (!exchange.missing.empty()) reason += ", " + *exchange.missing.begin() + " among them";
  const std::set<Serial> late = exchange.outstanding;
  for (const auto serial : late) {
    ++nodes.at(tasks.at(serial).node).discarded;
    end_task(serial, reason, true, now);
  }
  discard_exchange(number, reason);
  ++lane_voids[lane];
  position += setup.spec.training.steps;
  emit(Void{number, reason});
  round_done(lane);
  exchange_over(number, now);
}

void RunMachine::State::round_done(std::uint32_t lane) {
  ++exchanges_done;
  const std::uint64_t every = setup.spec.evaluation.every;
  if (every > 0 && lane + 1 == lanes.size() && rounds_done(lane) % every == 0) evaluation_due = true;
  touch_core();
}

// ---- reducing

/// `why` follows on the reason that those are told who were not waited for.
void RunMachine::State::begin_reduce(Exchange& exchange, Instant now, const std::string& why) {
  exchange.reducing = true;
  exchange.nodes = consenting;
  if (!asynchronous()) exchange.base_version = versions[lanes[exchange.lane].front()];
  lane_collecting[exchange.lane] = first_collecting(exchange.lane);
  lane_reducing[exchange.lane] = exchange.number;
  for (const auto kind : {TimerKind::kDeadline, TimerKind::kGrace, TimerKind::kRescue})
    clear_timer({kind, exchange.number, {}});
  exchange.deadline.reset();
  exchange.grace.reset();
  const std::set<Serial> late = exchange.outstanding;
  for (const auto serial : late) {
    ++nodes.at(tasks.at(serial).node).discarded;
    end_task(serial, "exchange " + std::to_string(exchange.number) + " was completed without this update" + why, true,
             now);
  }
  // The last exchange of a lane: nobody's work for it can count any more.
  if (asynchronous() && lane_done(exchange.lane)) {
    std::vector<Serial> needless;
    for (const auto& [name, node] : nodes)
      for (const auto serial : node.train_tasks)
        if (tasks.at(serial).lane == exchange.lane) needless.push_back(serial);
    for (const auto serial : needless) {
      const std::string name = tasks.at(serial).node;
      end_task(serial, "the run has all its exchanges of this fragment", true, now);
      offer_work(nodes.at(name), now);
    }
  }
  touch(exchange);
  touch_core();
  ask_reduce(exchange);
}

void RunMachine::State::ask_reduce(const Exchange& exchange) {
  Reduce command;
  command.exchange = exchange.number;
  command.nodes = exchange.nodes;
  for (const auto fragment : lanes[exchange.lane])
    command.fragments.push_back({fragment, exchange.base_version, exchange.base_version + 1});
  for (const auto serial : exchange.accepted) {
    const Task& task = tasks.at(serial);
    ReduceInput input;
    input.task = task_id(serial);
    input.node = task.node;
    input.examples = task.examples;
    input.tokens = task.tokens;
    input.steps = task.steps;
    input.factor = task.factor;
    input.weight = task.weight;
    input.staleness = task.staleness;
    input.metrics = task.needed_metrics;
    for (const auto fragment : task.carries.empty() ? lanes[task.lane] : task.carries)
      input.base_versions[fragment] = task.bases[fragment];
    command.inputs.push_back(std::move(input));
  }
  // `accepted` is in the order of serials, which a stable sort keeps within a node.
  std::stable_sort(command.inputs.begin(), command.inputs.end(),
                   [](const ReduceInput& a, const ReduceInput& b) { return a.node < b.node; });
  emit(std::move(command));
}

void RunMachine::State::commit(std::uint64_t number, Instant now) {
  Exchange& exchange = exchanges.at(number);
  const std::uint32_t lane = exchange.lane;
  std::vector<const Task*> counted;
  for (const auto serial : exchange.accepted) counted.push_back(&tasks.at(serial));
  std::stable_sort(counted.begin(), counted.end(), [](const Task* a, const Task* b) { return a->node < b->node; });

  Count command;
  command.exchange = number;
  std::vector<strategies::Measured> reports;
  std::vector<std::uint64_t> steps_done;
  for (const Task* task : counted) {
    command.tasks.push_back(task_id(task->serial));
    command.nodes.push_back(task->node);
    command.total_weight += task->weight;
    command.examples += task->examples;
    reports.push_back({task->examples, &task->metrics});
    steps_done.push_back(task->steps);
    Node& node = nodes.at(task->node);
    ++node.counted;
    touch(node);
  }
  command.metrics = strategies::merge_metrics(reports, setup.spec.limits.metrics);
  for (const auto fragment : lanes[lane]) {
    command.fragments.push_back({fragment, versions[fragment], versions[fragment] + 1});
    ++versions[fragment];
  }
  position += setup.spec.training.steps > 0 ? setup.spec.training.steps : median(std::move(steps_done));
  std::map<FragmentIndex, std::uint64_t> released;
  for (const auto& step : command.fragments) released[step.fragment] = step.new_version;
  std::map<std::string, Serial> latest;  // of each node
  for (const auto serial : exchange.accepted) {
    const Task& task = tasks.at(serial);
    latest[task.node] = serial;
    remember_end(task, {task.node, "", released});
    touch(task);
    tasks.erase(serial);
  }
  touch(exchange);
  exchanges.erase(number);
  lane_reducing[lane] = 0;
  last_exchange = number;
  round_done(lane);
  emit(std::move(command));
  if (!asynchronous()) return exchange_over(number, now);
  for (const auto& [name, serial] : latest) deliver_planned(nodes.at(name), serial);
  check_lane(lane, now);
  // Those who waited for the new version.
  const std::set<std::string> waiting = idle;
  for (const auto& name : waiting) offer_work(nodes.at(name), now);
}

}  // namespace skerry::server
