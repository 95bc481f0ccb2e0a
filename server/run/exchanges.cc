// The life of an exchange: it opens, its cohort works, it is complete, it is reduced, it is committed.
#include <algorithm>
#include <cmath>
#include <utility>

#include "server/run/state.h"
#include "strategies/evaluation.h"
#include "strategies/exchange.h"
#include "strategies/participation.h"
#include "strategies/presets.h"

namespace skerry::server {
namespace {

constexpr std::uint32_t kAttempts = 3;       // of one node in one exchange
constexpr std::uint32_t kRescues = 5;        // of one exchange whose nodes all failed
constexpr std::uint32_t kAsyncFailures = 8;  // of one node, one after another
constexpr std::size_t kEndedKept = 4096;
constexpr std::int64_t kLongestRetryMs = 60000;
constexpr std::uint64_t kMostCounted = std::uint64_t{1} << 53;  // sums of many such counts do not overflow

/// 1 s, 2 s, 4 s, … up to a minute.
std::int64_t backoff_ms(std::uint32_t failures) {
  return std::min<std::int64_t>(kLongestRetryMs, std::int64_t{1000} << std::min<std::uint32_t>(failures, 6));
}

}  // namespace

using TimerKind = RunMachine::State::TimerKey::Kind;

bool RunMachine::State::eligible(const Node& node) const {
  return node.connected && !node.paused && !node.resting && node.examples >= setup.spec.data.minimum_examples;
}

void RunMachine::State::update_idle(Node& node) {
  if (eligible(node) && node.train_task == 0)
    idle.insert(node.name);
  else
    idle.erase(node.name);
}

std::uint64_t RunMachine::State::exchanges_planned() const { return setup.spec.stop.rounds * lanes.size(); }

bool RunMachine::State::lane_done(std::uint32_t lane) const {
  return versions[lanes[lane].front()] + (lane_reducing[lane] != 0 ? 1 : 0) >= setup.spec.stop.rounds;
}

// ---- opening

/// Synchronous: the next exchange, where enough nodes are ready.
bool RunMachine::State::open_exchange(Instant now) {
  const auto& participation = setup.spec.participation;
  const std::uint64_t needed = begun ? participation.quorum : std::max(participation.start_nodes, participation.quorum);
  if (idle.size() < needed) return false;
  begun = true;
  Exchange& exchange = exchanges[next_exchange];
  exchange.number = next_exchange++;
  exchange.lane = static_cast<std::uint32_t>((exchange.number - 1) % lanes.size());
  exchange.base_version = versions[lanes[exchange.lane].front()];
  const bool everyone = participation.cohort_size == 0 && participation.cohort_fraction >= 1;
  exchange.target = everyone ? SIZE_MAX : strategies::cohort_target(participation, idle.size());
  lane_collecting[exchange.lane] = exchange.number;
  if (participation.deadline_s > 0) {
    exchange.deadline = now + ms(participation.deadline_s);
    set_timer({TimerKind::kDeadline, exchange.number, {}}, *exchange.deadline);
  }
  touch(exchange);
  touch_core();
  if (evaluation_due) open_evaluation(false, now);
  fill(exchange, now);
  return true;
}

/// Asynchronous: the lane's open exchange, opened when it is first needed.
RunMachine::State::Exchange& RunMachine::State::collecting(std::uint32_t lane) {
  if (lane_collecting[lane] == 0) {
    Exchange& exchange = exchanges[next_exchange];
    exchange.number = next_exchange++;
    exchange.lane = lane;
    exchange.base_version = versions[lanes[lane].front()] + (lane_reducing[lane] != 0 ? 1 : 0);
    exchange.target = SIZE_MAX;
    lane_collecting[lane] = exchange.number;
    touch(exchange);
    touch_core();
  }
  return exchanges.at(lane_collecting[lane]);
}

// ---- giving work

/// Synchronous: whether one more node may begin work for the exchange.
bool RunMachine::State::takes_more(const Exchange& exchange, Instant now) const {
  if (exchange.reducing || exchange.outstanding.size() + exchange.accepted.size() >= exchange.target) return false;
  if (exchange.accepted.size() < quorum()) return true;
  if (exchange.grace) return false;
  return !exchange.deadline || 2 * (*exchange.deadline - now) >= ms(setup.spec.participation.deadline_s);
}

std::optional<std::uint32_t> RunMachine::State::lane_with_work(const Node& node) const {
  for (std::size_t i = 0; i < lanes.size(); ++i) {
    const auto lane = static_cast<std::uint32_t>((node.tasks + i) % lanes.size());
    if (!lane_done(lane)) return lane;
  }
  return std::nullopt;
}

void RunMachine::State::offer_work(Node& node, Instant now) {
  if (!accepts_work() || idle.count(node.name) == 0) return;
  if (asynchronous()) {
    if (!begun) return;
    if (const auto lane = lane_with_work(node)) assign_train(node, nullptr, *lane, now);
    return;
  }
  if (exchanges.empty()) return;
  Exchange& exchange = exchanges.begin()->second;
  if (node.worked < exchange.number && takes_more(exchange, now)) assign_train(node, &exchange, exchange.lane, now);
}

/// Synchronous: draws idle nodes until the exchange has its cohort.
void RunMachine::State::fill(Exchange& exchange, Instant now) {
  if (!accepts_work() || !takes_more(exchange, now)) return;
  std::vector<std::pair<std::uint64_t, std::string>> candidates;
  for (const auto& name : idle)
    if (nodes.at(name).worked < exchange.number)
      candidates.emplace_back(
          exchange.target == SIZE_MAX ? 0 : strategies::draw_order(setup.spec.seed, exchange.number, name), name);
  const std::size_t room =
      exchange.target - std::min(exchange.target, exchange.outstanding.size() + exchange.accepted.size());
  if (candidates.size() > room) {
    std::nth_element(candidates.begin(), candidates.begin() + static_cast<std::ptrdiff_t>(room), candidates.end());
    candidates.resize(room);
    std::sort(candidates.begin(), candidates.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  }
  for (const auto& [order, name] : candidates) assign_train(nodes.at(name), &exchange, exchange.lane, now);
}

void RunMachine::State::assign_train(Node& node, Exchange* exchange, std::uint32_t lane, Instant now) {
  Task& task = tasks[next_serial];
  task.serial = next_serial++;
  task.node = node.name;
  task.lane = lane;
  task.round = versions[lanes[lane].front()] + 1;
  task.bases = versions;
  if (exchange != nullptr) {
    task.exchange = exchange->number;
    task.seed = strategies::task_seed(setup.spec.seed, node.name, exchange->number);
    task.first_step = position;
    exchange->outstanding.insert(task.serial);
  } else {
    task.exchange = lane_collecting[lane] != 0 ? lane_collecting[lane] : next_exchange;
    task.seed = strategies::task_seed(setup.spec.seed, node.name, node.tasks + 1);
    // A newcomer begins where the others are on the average.
    task.first_step = node.steps > 0 || workers == 0 ? node.steps : total_steps / workers;
    if (const double limit = setup.spec.participation.deadline_s; limit > 0) {
      task.deadline = now + ms(limit);
      set_timer({TimerKind::kTask, task.serial, {}}, *task.deadline);
    }
  }
  ++node.tasks;
  node.train_task = task.serial;
  set_awaited(task, true);
  update_idle(node);
  touch(node);
  touch_core();

  AssignTask command = describe(task, now);
  for (FragmentIndex fragment = 0; fragment < versions.size(); ++fragment) {
    const auto last = std::exchange(node.last_read[fragment], versions[fragment]);
    const bool fresh = node.fresh[fragment];
    node.fresh[fragment] = true;
    if (fresh && last == versions[fragment]) continue;
    command.read.push_back({fragment, versions[fragment], last});
  }
  emit(std::move(command));
}

/// For a node that came back: everything the task builds on, because nobody knows what it still has.
void RunMachine::State::assign_again(const Task& task, Instant now) {
  AssignTask command = describe(task, now);
  Node& node = nodes.at(task.node);
  for (FragmentIndex fragment = 0; fragment < versions.size(); ++fragment) {
    command.read.push_back({fragment, task.bases[fragment], std::nullopt});
    if (task.kind != TaskKind::kTrain) continue;
    node.last_read[fragment] = task.bases[fragment];
    node.fresh[fragment] = true;
  }
  emit(std::move(command));
}

AssignTask RunMachine::State::describe(const Task& task, Instant now) const {
  AssignTask command;
  command.task = task_id(task.serial);
  command.node = task.node;
  command.kind = task.kind;
  command.round = task.round;
  command.seed = task.seed;
  std::optional<Instant> until = task.deadline;
  if (task.kind == TaskKind::kTrain) {
    command.exchange = task.exchange;
    command.write = lanes[task.lane];
    command.steps = setup.spec.training.steps;
    command.epochs = setup.spec.training.epochs;
    command.first_step = task.first_step;
    if (!asynchronous()) until = exchanges.at(task.exchange).deadline;
  } else {
    command.split = setup.spec.evaluation.split;
    until = evaluation->deadline;
  }
  if (until) command.deadline_ms = std::max<std::int64_t>(1, *until - now);
  return command;
}

// ---- what comes back

std::string RunMachine::State::objection(const Task& task, const UpdateStored& update) const {
  const auto number = [](double value) {
    std::string text = std::to_string(value);
    return text;
  };
  for (const auto fragment : lanes[task.lane]) {
    const auto base = update.base_versions.find(fragment);
    if (base == update.base_versions.end()) return "the update lacks fragment " + setup.fragments[fragment];
    if (base->second != task.bases[fragment])
      return "fragment " + setup.fragments[fragment] + " was measured against version " + std::to_string(base->second) +
             ", the task builds on version " + std::to_string(task.bases[fragment]);
  }
  if (update.base_versions.size() != lanes[task.lane].size())
    return "the update holds fragments that its task does not write";
  if (!std::isfinite(update.norm) || update.norm < 0) return "the update's norm is not a finite number";
  if (const double most = setup.spec.limits.maximum_update_norm; most > 0 && update.norm > most)
    return "the update's norm is " + number(update.norm) + ", limits.maximum_update_norm allows " + number(most);
  if (std::max({update.examples, update.tokens, update.steps}) > kMostCounted)
    return "the update reports " + std::to_string(update.examples) + " examples, " + std::to_string(update.tokens) +
           " tokens and " + std::to_string(update.steps) + " steps; no task has more than 2^53 of them";
  const double weight = strategies::update_weight(setup.spec, update.examples, update.tokens, update.steps);
  if (update.examples == 0 || weight <= 0)
    return "the update weighs nothing: it reports " + std::to_string(update.examples) + " examples, " +
           std::to_string(update.tokens) + " tokens and " + std::to_string(update.steps) + " steps";
  return "";
}

void RunMachine::State::accept(Task& task, const UpdateStored& update, Instant now) {
  Node& node = nodes.at(task.node);
  Exchange* exchange = nullptr;
  if (asynchronous()) {
    const std::uint64_t base = versions[lanes[task.lane].front()] + (lane_reducing[task.lane] != 0 ? 1 : 0);
    task.staleness = base - task.bases[lanes[task.lane].front()];
    const auto factor = strategies::staleness_factor(setup.spec.participation, task.staleness);
    if (!factor) {
      const std::string reason = "the update is " + std::to_string(task.staleness) + " exchanges old, " +
                                 std::to_string(setup.spec.participation.maximum_staleness) + " are allowed";
      emit(Discard{task_id(task.serial), task.node, reason});
      ++node.discarded;
      touch(node);
      end_task(task.serial, reason, false);
      offer_work(node, now);
      return;
    }
    exchange = &collecting(task.lane);
    task.factor = *factor;
    task.exchange = exchange->number;
    clear_timer({TimerKind::kTask, task.serial, {}});
    task.deadline.reset();
  } else {
    exchange = &exchanges.at(task.exchange);
    exchange->outstanding.erase(task.serial);
    node.worked = exchange->number;
  }
  set_awaited(task, false);
  task.accepted = true;
  task.examples = update.examples;
  task.tokens = update.tokens;
  task.steps = update.steps;
  task.weight = task.factor * strategies::update_weight(setup.spec, update.examples, update.tokens, update.steps);
  task.metrics = strategies::merge_metrics({{update.examples, &update.metrics}}, setup.spec.limits.metrics);
  exchange->accepted.insert(task.serial);
  touch(task);

  node.train_task = 0;
  node.failures = 0;
  node.attempts = 0;
  node.last_failure.clear();
  if (node.steps == 0) ++workers;
  // Never more than the task asked for: what one node claims must not move the schedule of others.
  const std::uint64_t asked = setup.spec.training.steps;
  const std::uint64_t done = std::max<std::uint64_t>(1, asked > 0 ? std::min(update.steps, asked) : update.steps);
  node.steps += done;
  total_steps += done;
  for (const auto fragment : lanes[task.lane]) node.fresh[fragment] = false;
  update_idle(node);
  touch(node);
  touch_core();
  emit(Accept{task_id(task.serial), task.node, task.exchange});
  if (asynchronous()) {
    check_lane(task.lane, now);
    offer_work(node, now);
  } else {
    check_complete(exchange->number, now);
  }
}

void RunMachine::State::give_up(Serial serial, const std::string& reason, bool may_try_again, Instant now) {
  const Task task = tasks.at(serial);
  Node& node = nodes.at(task.node);
  end_task(serial, reason, false);
  node.last_failure = reason;
  ++node.failures;
  std::fill(node.fresh.begin(), node.fresh.end(), false);
  std::fill(node.last_read.begin(), node.last_read.end(), std::nullopt);
  if (asynchronous()) {
    node.resting = true;
    node.benched = node.failures > kAsyncFailures;
    if (!node.benched) set_timer({TimerKind::kRetry, 0, node.name}, now + backoff_ms(node.failures - 1));
    update_idle(node);
    if (!node.benched || phase != Phase::kRunning) return;
    for (const auto& [name, other] : nodes)
      if (other.connected && !other.benched) return;
    if (!node.connected) return;
    end_run("failed",
            "every node failed " + std::to_string(node.failures) + " times in a row, last " + node.name + ": " + reason,
            now);
    return;
  }
  Exchange& exchange = exchanges.at(task.exchange);
  ++node.attempts;
  if (!may_try_again || node.attempts >= kAttempts) {
    node.attempts = 0;
    node.worked = exchange.number;
    exchange.failed.insert(node.name);
    touch(exchange);
  }
  update_idle(node);
  offer_work(node, now);
  check_complete(task.exchange, now);
}

void RunMachine::State::set_awaited(Task& task, bool awaited) {
  if (task.awaited == awaited) return;
  task.awaited = awaited;
  touch(task);
  const std::size_t change = awaited ? 1 : static_cast<std::size_t>(-1);
  if (task.kind == TaskKind::kEvaluate)
    evaluation->awaited += change;
  else if (!asynchronous())
    exchanges.at(task.exchange).awaited += change;
}

void RunMachine::State::end_task(Serial serial, const std::string& reason, bool tell_node) {
  Task& task = tasks.at(serial);
  Node& node = nodes.at(task.node);
  set_awaited(task, false);
  if (task.kind == TaskKind::kEvaluate) {
    evaluation->outstanding.erase(serial);
    node.evaluate_task = 0;
  } else {
    if (!asynchronous()) exchanges.at(task.exchange).outstanding.erase(serial);
    clear_timer({TimerKind::kTask, serial, {}});
    node.train_task = 0;
    // The trainer may or may not have taken what the task told it to read.
    std::fill(node.fresh.begin(), node.fresh.end(), false);
  }
  if (tell_node) emit(CancelTask{task_id(serial), task.node, reason});
  Ended end{task.node, reason, {}};
  if (reason.empty())
    for (FragmentIndex fragment = 0; fragment < task.bases.size(); ++fragment)
      end.versions[fragment] = task.bases[fragment];
  remember_end(task, std::move(end));
  touch(task);
  tasks.erase(serial);
  update_idle(node);
}

void RunMachine::State::remember_end(const Task& task, Ended end) {
  ended[task.serial] = std::move(end);
  ended_order.push_back(task.serial);
  if (ended_order.size() <= kEndedKept) return;
  ended.erase(ended_order.front());
  ended_order.pop_front();
}

// ---- completing

/// Synchronous.
void RunMachine::State::check_complete(std::uint64_t number, Instant now) {
  const auto found = exchanges.find(number);
  if (found == exchanges.end() || found->second.reducing || phase != Phase::kRunning) return;
  Exchange& exchange = found->second;
  if (exchange.accepted.size() >= quorum()) {
    const double grace = setup.spec.participation.grace_s;
    if (exchange.awaited == 0 || grace == 0) return begin_reduce(exchange, now);
    if (grace > 0 && !exchange.grace) {
      exchange.grace = now + ms(grace);
      set_timer({TimerKind::kGrace, number, {}}, *exchange.grace);
      touch(exchange);
    }
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
    const auto& node = nodes.at(*here);
    return end_run("failed",
                   "exchange " + std::to_string(number) + " cannot reach its quorum of " + std::to_string(quorum()) +
                       ": " + node.name + " failed again and again: " + node.last_failure,
                   now);
  }
  set_timer(rescue, now + 5 * backoff_ms(exchange.rescues));
}

/// Asynchronous.
void RunMachine::State::check_lane(std::uint32_t lane, Instant now) {
  if (lane_collecting[lane] == 0 || lane_reducing[lane] != 0) return;
  Exchange& exchange = exchanges.at(lane_collecting[lane]);
  if (exchange.accepted.size() >= setup.spec.participation.buffer) begin_reduce(exchange, now);
}

void RunMachine::State::on_deadline(std::uint64_t number, Instant now) {
  const auto found = exchanges.find(number);
  if (found == exchanges.end() || found->second.reducing) return;
  Exchange& exchange = found->second;
  if (exchange.accepted.size() >= quorum()) return begin_reduce(exchange, now);
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
  for (const auto& name : std::exchange(exchange.failed, {}))
    if (auto& node = nodes.at(name); node.worked == exchange.number) node.worked = exchange.number - 1;
  touch(exchange);
  fill(exchange, now);
}

void RunMachine::State::begin_reduce(Exchange& exchange, Instant now) {
  exchange.reducing = true;
  lane_collecting[exchange.lane] = 0;
  lane_reducing[exchange.lane] = exchange.number;
  for (const auto kind : {TimerKind::kDeadline, TimerKind::kGrace, TimerKind::kRescue})
    clear_timer({kind, exchange.number, {}});
  exchange.deadline.reset();
  exchange.grace.reset();
  const std::set<Serial> late = exchange.outstanding;
  for (const auto serial : late) {
    ++nodes.at(tasks.at(serial).node).discarded;
    end_task(serial, "exchange " + std::to_string(exchange.number) + " was completed without this update", true);
  }
  // The last exchange of a lane: nobody's work for it can count any more.
  if (asynchronous() && lane_done(exchange.lane)) {
    std::vector<Serial> needless;
    for (const auto& [name, node] : nodes)
      if (node.train_task != 0 && tasks.at(node.train_task).lane == exchange.lane) needless.push_back(node.train_task);
    for (const auto serial : needless) {
      const std::string name = tasks.at(serial).node;
      end_task(serial, "the run has all its exchanges of this fragment", true);
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
    for (const auto fragment : lanes[task.lane]) input.base_versions[fragment] = task.bases[fragment];
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
  std::uint64_t most_steps = 0;
  for (const Task* task : counted) {
    command.tasks.push_back(task_id(task->serial));
    command.nodes.push_back(task->node);
    command.total_weight += task->weight;
    command.examples += task->examples;
    reports.push_back({task->examples, &task->metrics});
    most_steps = std::max(most_steps, task->steps);
    Node& node = nodes.at(task->node);
    ++node.counted;
    touch(node);
  }
  command.metrics = strategies::merge_metrics(reports, setup.spec.limits.metrics);
  for (const auto fragment : lanes[lane]) {
    command.fragments.push_back({fragment, versions[fragment], versions[fragment] + 1});
    ++versions[fragment];
  }
  position += setup.spec.training.steps > 0 ? setup.spec.training.steps : most_steps;
  std::map<FragmentIndex, std::uint64_t> released;
  for (const auto& step : command.fragments) released[step.fragment] = step.new_version;
  for (const auto serial : exchange.accepted) {
    const Task& task = tasks.at(serial);
    remember_end(task, {task.node, "", released});
    touch(task);
    tasks.erase(serial);
  }
  touch(exchange);
  exchanges.erase(number);
  lane_reducing[lane] = 0;
  last_exchange = number;
  ++exchanges_done;
  const std::uint64_t every = setup.spec.evaluation.every;
  const std::uint64_t round = versions[lanes.back().front()];
  if (every > 0 && lane + 1 == lanes.size() && round % every == 0) evaluation_due = true;
  touch_core();
  emit(std::move(command));
  if (asynchronous()) check_lane(lane, now);
}

}  // namespace skerry::server
