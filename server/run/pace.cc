// What follows from measured speeds: the work of a task, groups that arrive together, how long stragglers are worth
// waiting for. All times are of the coordinator's own clock, from a task's assignment to its update's arrival.
#include <algorithm>
#include <utility>

#include "server/run/state.h"
#include "strategies/participation.h"

namespace skerry::server {

using TimerKind = RunMachine::State::TimerKey::Kind;
using Work = ParticipationSpec::Work;

/// A task that asks for epochs is one piece of work.
static std::uint64_t pieces(std::uint64_t inner_steps) { return std::max<std::uint64_t>(1, inner_steps); }

void RunMachine::State::forget_speed(const Node& node) {
  if (node.connected && node.step_ms > 0) speeds.erase(speeds.find(node.step_ms));
}

void RunMachine::State::know_speed(const Node& node) {
  if (node.connected && node.step_ms > 0) speeds.insert(node.step_ms);
}

/// `steps` is what the node says that it did. More than was asked does not make it faster.
void RunMachine::State::measure(Node& node, const Task& task, std::uint64_t steps, Instant now) {
  if (task.interrupted) return;
  const std::uint64_t done = task.inner_steps > 0 ? std::clamp<std::uint64_t>(steps, 1, task.inner_steps) : 1;
  const double step_ms = static_cast<double>(std::max<Instant>(1, now - task.assigned)) / static_cast<double>(done);
  forget_speed(node);
  node.step_ms = node.step_ms > 0 ? (node.step_ms + step_ms) / 2 : step_ms;
  know_speed(node);
  touch(node);
}

std::uint64_t RunMachine::State::steps_for(const Node& node, Task& task, Instant now) {
  const auto& participation = setup.spec.participation;
  const std::uint64_t most = setup.spec.training.steps;
  if (participation.work == Work::kEqual) return most;
  if (participation.work == Work::kDylu)
    return node.step_ms > 0 ? strategies::dylu_steps(participation, most, node.step_ms, *speeds.begin()) : most;

  if (node.step_ms <= 0) return participation.minimum_steps;  // to be measured first
  std::vector<std::uint64_t> numbers;
  std::vector<strategies::ArrivalGroup> known;
  for (const auto& [number, group] : groups) {
    numbers.push_back(number);
    known.push_back({group.expected, group.fastest_ms});
  }
  const auto placement = strategies::fedcompass_steps(participation, most, node.step_ms, now, known);
  task.group = placement.group ? numbers[*placement.group] : task.serial;
  Group& group = groups[task.group];
  if (!placement.group) {
    const double expected = static_cast<double>(placement.steps) * node.step_ms;
    group.expected = now + static_cast<Instant>(expected);
    group.latest = now + static_cast<Instant>(participation.group_patience * expected) + 1;
    group.fastest_ms = node.step_ms;
    set_timer({TimerKind::kGroup, task.group, {}}, group.latest);
  }
  group.fastest_ms = std::min(group.fastest_ms, node.step_ms);
  return placement.steps;
}

/// A group without anybody to wait for is complete.
void RunMachine::State::group_changed(std::uint64_t number) {
  touch_core();
  const auto found = groups.find(number);
  if (found->second.awaited > 0) return;
  if (found->second.arrived && lane_collecting.front() != 0) {
    Exchange& exchange = exchanges.at(lane_collecting.front());
    exchange.due = true;
    touch(exchange);
  }
  clear_timer({TimerKind::kGroup, number, {}});
  groups.erase(found);
}

/// Whoever of the group is not there yet comes when it comes.
void RunMachine::State::on_group_late(std::uint64_t number) {
  for (auto& [serial, task] : tasks) {
    if (task.group != number || task.accepted) continue;
    task.group = 0;
    touch(task);
  }
  groups.at(number).awaited = 0;
  group_changed(number);
}

/// What may be spent on waiting without holding anybody up: as long again as the needed updates took, or in overlapped
/// runs until the first of those who sent theirs has to stop for its merge.
Instant RunMachine::State::slack(const Exchange& exchange, Instant now) const {
  if (!overlapped()) return now - exchange.opened;
  double fastest_ms = 0;
  for (const auto serial : exchange.accepted)
    if (const double step_ms = nodes.at(tasks.at(serial).node).step_ms; step_ms > 0)
      fastest_ms = fastest_ms > 0 ? std::min(fastest_ms, step_ms) : step_ms;
  const auto hidden = static_cast<Instant>(static_cast<double>(setup.spec.exchange.overlap) * fastest_ms);
  return std::max<Instant>(0, hidden - (now - exchange.first_update.value_or(now)));
}

Instant RunMachine::State::grace_end(const Exchange& exchange, Instant now) const {
  std::vector<std::optional<std::int64_t>> remaining;
  const auto add = [&](const Task& task) {
    const Node& node = nodes.at(task.node);
    if (!task.awaited || node.train_tasks.front() != task.serial) return;  // a task that has not begun comes too late
    std::optional<std::int64_t> left;
    if (!task.interrupted && node.step_ms > 0)
      left = task.assigned + static_cast<Instant>(node.step_ms * static_cast<double>(pieces(task.inner_steps))) - now;
    remaining.push_back(left);
  };
  if (asynchronous()) {
    for (const auto& [serial, task] : tasks)
      if (!task.accepted && task.kind == TaskKind::kTrain && task.lane == exchange.lane) add(task);
  } else {
    for (const auto serial : exchange.outstanding) add(tasks.at(serial));
  }
  return now + strategies::adaptive_grace_ms(setup.spec.participation, slack(exchange, now), remaining);
}

}  // namespace skerry::server
