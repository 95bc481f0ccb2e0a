// The life of a task: who is given one, what it says, how it ends.
#include <algorithm>
#include <utility>

#include "server/run/state.h"
#include "strategies/participation.h"

namespace skerry::server {
namespace {

constexpr std::uint32_t kAttempts = 3;       // of one node in one exchange
constexpr std::uint32_t kAsyncFailures = 8;  // of one node, one after another
constexpr std::size_t kEndedKept = 4096;
constexpr std::uint32_t kLongestRetryShift = 6;  // 1 s, 2 s, 4 s, … up to a minute
constexpr std::int64_t kLongestRetryMs = 60000;

}  // namespace

using TimerKind = RunMachine::State::TimerKey::Kind;

// ---- who is idle

bool RunMachine::State::eligible(const Node& node) const {
  return node.connected && !node.paused && !node.resting && node.examples >= setup.spec.data.minimum_examples &&
         has_turn(node);
}

void RunMachine::State::update_idle(Node& node) {
  if (eligible(node) && node.train_tasks.size() < at_once())
    idle.insert(node.name);
  else
    idle.erase(node.name);
}

std::uint64_t RunMachine::State::turn() const {
  if (!asynchronous()) return exchanges.empty() ? next_exchange : exchanges.begin()->first;
  std::uint64_t first = next_exchange;
  for (const auto collecting : lane_collecting)
    if (collecting != 0) first = std::min(first, collecting);
  return first;
}

bool RunMachine::State::has_turn(const Node& node) const {
  const std::uint64_t separation = setup.spec.participation.minimum_separation;
  return separation <= 1 || node.last_turn == 0 || turn() >= node.last_turn + separation;
}

void RunMachine::State::wake_turns(Instant now) {
  while (!turns.empty() && turns.begin()->first <= turn()) {
    const auto woken = turns.extract(turns.begin());
    for (const auto& name : woken.mapped()) {
      update_idle(nodes.at(name));
      offer_work(nodes.at(name), now);
    }
  }
}

// ---- giving work

/// Synchronous: whether one more node may begin work for the exchange.
bool RunMachine::State::takes_more(const Exchange& exchange, Instant now) const {
  if (exchange.reducing || exchange.awaited + exchange.accepted.size() >= exchange.target) return false;
  if (!satisfied(exchange)) return true;
  if (exchange.grace) return false;
  return !exchange.deadline || 2 * (*exchange.deadline - now) >= ms(setup.spec.participation.deadline_s);
}

bool RunMachine::State::works_for(const Node& node, const Exchange& exchange) const {
  return std::any_of(node.train_tasks.begin(), node.train_tasks.end(),
                     [&](Serial serial) { return tasks.at(serial).exchange == exchange.number; });
}

/// Synchronous: a required node is always taken.
bool RunMachine::State::has_room_for(const Exchange& exchange, const Node& node, Instant now) const {
  if (exchange.done.count(node.name) != 0 || works_for(node, exchange)) return false;
  return takes_more(exchange, now) || (!exchange.reducing && exchange.missing.count(node.name) != 0);
}

/// Asynchronous. A lane that is being reduced gives no work: in a moment there is a newer version to begin from. Who
/// trains on while its update travels does not wait for that.
std::optional<std::uint32_t> RunMachine::State::lane_with_work(const Node& node) const {
  for (std::size_t i = 0; i < lanes.size(); ++i) {
    const auto lane = static_cast<std::uint32_t>((node.tasks + i) % lanes.size());
    if (lane_done(lane)) continue;
    const bool soon_newer = lane_reducing[lane] != 0 && !overlapped();
    if (soon_newer || is_full(lane, training) || waits_for_others(lane, node)) return std::nullopt;
    return lane;
  }
  return std::nullopt;
}

/// Asynchronous: an exchange that lacks nothing but required nodes does not pile up updates of others.
bool RunMachine::State::waits_for_others(std::uint32_t lane, const Node& node) const {
  if (required.empty() || lane_collecting[lane] == 0) return false;
  const Exchange& exchange = exchanges.at(lane_collecting[lane]);
  return has_enough(exchange) && exchange.missing.count(node.name) == 0;
}

/// Asynchronous: where nodes must wait for their turns, an exchange gets no more updates than it needs. Those who came
/// in excess would be missing in the next one.
bool RunMachine::State::is_full(std::uint32_t lane, std::size_t on_the_way) const {
  if (setup.spec.participation.minimum_separation <= 1) return false;
  const std::size_t accepted = lane_collecting[lane] != 0 ? exchanges.at(lane_collecting[lane]).accepted.size() : 0;
  return accepted + on_the_way >= setup.spec.participation.buffer;
}

void RunMachine::State::offer_work(Node& node, Instant now) {
  if (!accepts_work()) return;
  if (asynchronous()) {
    if (!begun || draws_turns()) return;
    while (idle.count(node.name) != 0) {
      const auto lane = lane_with_work(node);
      if (!lane) return;
      assign_train(node, nullptr, *lane, now);
    }
    return;
  }
  for (auto& [number, exchange] : exchanges)
    if (idle.count(node.name) != 0 && has_room_for(exchange, node, now))
      assign_train(node, &exchange, exchange.lane, now);
}

/// Synchronous: draws idle nodes until the exchange has its cohort.
void RunMachine::State::fill(Exchange& exchange, Instant now) {
  if (!accepts_work()) return;
  const bool drawn = exchange.target != SIZE_MAX;
  std::vector<std::pair<std::uint64_t, std::string>> candidates;
  std::size_t needed = 0;
  for (const auto& name : idle) {
    if (!has_room_for(exchange, nodes.at(name), now)) continue;
    const bool missing = exchange.missing.count(name) != 0;
    needed += missing ? 1 : 0;
    // Above 0, which is for those that must be there.
    const std::uint64_t order = drawn ? strategies::draw_order(setup.spec.seed, exchange.number, name) | 1 : 0;
    candidates.emplace_back(missing ? 0 : order, name);
  }
  const std::size_t at_work = exchange.awaited + exchange.accepted.size();
  const std::size_t room = std::max(needed, exchange.target - std::min(exchange.target, at_work));
  if (candidates.size() > room) {
    std::nth_element(candidates.begin(), candidates.begin() + static_cast<std::ptrdiff_t>(room), candidates.end());
    candidates.resize(room);
    std::sort(candidates.begin(), candidates.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  }
  for (const auto& [order, name] : candidates) {
    assign_train(nodes.at(name), &exchange, exchange.lane, now);
    if (overlapped()) offer_work(nodes.at(name), now);
  }
}

bool RunMachine::State::draws_turns() const {
  return setup.spec.participation.concurrency > 0 || setup.spec.participation.minimum_separation > 1;
}

void RunMachine::State::fill_slots(Instant now) {
  const std::uint64_t slots = setup.spec.participation.concurrency;
  if (!draws_turns() || !begun || !accepts_work()) return;
  while (slots == 0 || training < slots) {
    std::pair<std::uint64_t, Node*> first{0, nullptr};
    for (const auto& name : idle) {
      Node& node = nodes.at(name);
      if (!lane_with_work(node)) continue;
      const bool needed = std::binary_search(required.begin(), required.end(), name);
      const std::uint64_t order = needed ? 0 : strategies::draw_order(setup.spec.seed, next_serial, name) | 1;
      if (first.second == nullptr || order < first.first) first = {order, &node};
    }
    if (first.second == nullptr) return;
    assign_train(*first.second, nullptr, *lane_with_work(*first.second), now);
  }
}

void RunMachine::State::assign_train(Node& node, Exchange* exchange, std::uint32_t lane, Instant now) {
  // Work is done in the order of exchanges: what the node has of a later one is given again after this.
  if (exchange != nullptr)
    for (const auto serial : std::vector<Serial>(node.train_tasks))
      if (tasks.at(serial).exchange > exchange->number)
        end_task(serial, "an earlier task is asked for again", true, now);
  Task& task = tasks[next_serial];
  task.serial = next_serial++;
  task.node = node.name;
  task.lane = lane;
  task.round = rounds_done(lane) + 1;
  task.bases = versions;
  task.inner_steps = steps_for(node, task, now);
  if (exchange != nullptr) {
    task.exchange = exchange->number;
    task.seed = strategies::task_seed(setup.spec.seed, node.name, exchange->number);
    task.first_step = position;
    for (auto earlier = exchanges.begin(); earlier->first < exchange->number; ++earlier) {
      task.round += earlier->second.lane == lane ? 1 : 0;
      task.first_step += setup.spec.training.steps;
    }
    exchange->outstanding.insert(task.serial);
    if (node.invited < exchange->number) {
      node.invited = exchange->number;
      ++exchange->invited;
      touch(*exchange);
    }
  } else {
    task.exchange = lane_collecting[lane] != 0 ? lane_collecting[lane] : next_exchange;
    task.seed = strategies::task_seed(setup.spec.seed, node.name, node.tasks + 1);
    task.first_step = node.steps > 0 ? node.steps : usual_steps();
    for (const auto serial : node.train_tasks) task.first_step += tasks.at(serial).inner_steps;
  }
  if (overlapped()) plan_merges(node, task, exchange);
  ++node.tasks;
  node.train_tasks.push_back(task.serial);
  if (node.train_tasks.size() == 1) start_clock(node, now);
  set_awaited(task, true);
  update_idle(node);
  touch(node);
  touch_core();

  AssignTask command = describe(task, now);
  for (FragmentIndex fragment = 0; fragment < versions.size() && task.after.empty(); ++fragment) {
    const auto last = std::exchange(node.last_read[fragment], versions[fragment]);
    const bool fresh = node.fresh[fragment];
    node.fresh[fragment] = !overlapped();
    if (fresh && last == versions[fragment]) continue;
    command.read.push_back({fragment, versions[fragment], last});
  }
  emit(std::move(command));
  deliver_known(task, /*again=*/false);
}

void RunMachine::State::start_clock(const Node& node, Instant now) {
  Task& task = tasks.at(node.train_tasks.front());
  task.assigned = now;
  touch(task);
  if (const double limit = setup.spec.participation.deadline_s; asynchronous() && limit > 0) {
    task.deadline = now + ms(limit);
    set_timer({TimerKind::kTask, task.serial, {}}, *task.deadline);
  }
}

std::uint64_t RunMachine::State::usual_steps() const {
  std::vector<std::uint64_t> steps;
  for (const auto& [name, node] : nodes)
    if (node.steps > 0) steps.push_back(node.steps);
  return median(std::move(steps));
}

/// For a node that came back: everything the task builds on, because nobody knows what it still has. A task that goes
/// on from another one is the same again.
void RunMachine::State::assign_again(Task& task, Instant now) {
  task.interrupted = true;
  touch(task);
  AssignTask command = describe(task, now);
  Node& node = nodes.at(task.node);
  for (FragmentIndex fragment = 0; fragment < versions.size() && task.after.empty(); ++fragment) {
    if (task.kind == TaskKind::kEvaluate && !measured[fragment]) continue;
    command.read.push_back({fragment, task.bases[fragment], std::nullopt});
    if (task.kind != TaskKind::kTrain) continue;
    node.last_read[fragment] = task.bases[fragment];
    node.fresh[fragment] = !overlapped();
  }
  emit(std::move(command));
  deliver_known(task, /*again=*/true);
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
    command.exchange = overlapped() && asynchronous() ? task.serial : task.exchange;
    command.write = lanes[task.lane];
    command.steps = task.inner_steps;
    command.epochs = setup.spec.training.epochs;
    command.first_step = setup.spec.training.first_step + task.first_step;
    command.merge = merges_of(task);
    command.after = task.after;
    if (!asynchronous()) until = exchanges.at(task.exchange).deadline;
  } else {
    command.split = setup.spec.evaluation.split;
    until = evaluation->deadline;
  }
  if (until) command.deadline_ms = std::max<std::int64_t>(1, *until - now);
  return command;
}

// ---- how a task ends

void RunMachine::State::give_up(Serial serial, const std::string& reason, bool may_try_again, Instant now) {
  const Task task = tasks.at(serial);
  Node& node = nodes.at(task.node);
  end_task(serial, reason, false, now);
  node.last_failure = reason;
  ++node.failures;
  std::fill(node.fresh.begin(), node.fresh.end(), false);
  std::fill(node.last_read.begin(), node.last_read.end(), std::nullopt);
  if (asynchronous()) {
    node.resting = true;
    node.benched = node.failures > kAsyncFailures;
    const std::int64_t wait = std::int64_t{1000} << std::min(node.failures - 1, kLongestRetryShift);
    if (!node.benched) set_timer({TimerKind::kRetry, 0, node.name}, now + std::min(kLongestRetryMs, wait));
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
    exchange.done.insert(node.name);
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
  if (task.kind == TaskKind::kEvaluate) {
    evaluation->awaited += change;
  } else if (!asynchronous()) {
    exchanges.at(task.exchange).awaited += change;
  } else {
    training += change;
    const auto group = groups.find(task.group);
    if (group == groups.end()) {
      task.group = 0;
    } else {
      group->second.awaited += change;
      group_changed(task.group);
    }
  }
}

/// The task is not the node's any more; the next one it has is what it works on.
void RunMachine::State::leave_node(const Task& task, Instant now) {
  Node& node = nodes.at(task.node);
  const bool first = node.train_tasks.front() == task.serial;
  node.train_tasks.erase(std::find(node.train_tasks.begin(), node.train_tasks.end(), task.serial));
  if (first && !node.train_tasks.empty()) start_clock(node, now);
}

void RunMachine::State::end_task(Serial serial, const std::string& reason, bool tell_node, Instant now) {
  Task& task = tasks.at(serial);
  Node& node = nodes.at(task.node);
  set_awaited(task, false);
  if (task.kind == TaskKind::kEvaluate) {
    evaluation->outstanding.erase(serial);
    node.evaluate_task = 0;
  } else {
    if (!asynchronous()) exchanges.at(task.exchange).outstanding.erase(serial);
    clear_timer({TimerKind::kTask, serial, {}});
    leave_node(task, now);
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

}  // namespace skerry::server
