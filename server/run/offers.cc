// What comes back: which updates may count, and what accepting one changes.
#include <algorithm>
#include <cmath>
#include <utility>

#include "server/run/state.h"
#include "strategies/aggregation/weights.h"
#include "strategies/evaluation.h"
#include "strategies/participation.h"

namespace skerry::server {
namespace {

// Sums, momenta and squares of updates up to this length stay in the range of float32, so that none of them alone can
// stop a reduction.
constexpr double kAbsurdNorm = 1e15;

}  // namespace

using TimerKind = RunMachine::State::TimerKey::Kind;

std::vector<double> RunMachine::State::needed_metrics(const UpdateStored& update) const {
  std::vector<double> values;
  for (const auto& name : setup.needs.metrics)
    if (const auto metric = update.metrics.find(name); metric != update.metrics.end() && std::isfinite(metric->second))
      values.push_back(metric->second);
  return values;
}

std::uint64_t RunMachine::State::steps_of(const Task& task, const UpdateStored& update) const {
  return task.inner_steps > 0 ? std::min(update.steps, task.inner_steps) : update.steps;
}

double RunMachine::State::weight_of(const Task& task, const UpdateStored& update) const {
  return strategies::weight_of({.examples = update.examples,
                                .tokens = update.tokens,
                                .steps = steps_of(task, update),
                                .factor = 1,
                                .node = update.node,
                                .metrics = needed_metrics(update)},
                               aggregation);
}

std::string RunMachine::State::objection(const Task& task, const UpdateStored& update) const {
  for (const auto fragment : lanes[task.lane])
    if ((!setup.needs.partial_updates || update.base_versions.empty()) && update.base_versions.count(fragment) == 0)
      return "the update lacks fragment " + setup.fragments[fragment];
  for (const auto& [fragment, version] : update.base_versions) {
    if (!in_lane(task.lane, fragment)) return "the update holds fragments that its task does not write";
    const std::uint64_t oldest = task.after.empty() ? task.bases[fragment] : 0;
    const std::uint64_t newest = overlapped() ? versions[fragment] : oldest;
    if (version < oldest || version > newest)
      return "fragment " + setup.fragments[fragment] + " was measured against version " + std::to_string(version) +
             ", the task builds on version " + std::to_string(task.bases[fragment]);
  }
  if (!std::isfinite(update.norm) || update.norm < 0) return "the update's norm is not a finite number";
  if (update.norm > kAbsurdNorm)
    return "the update's norm is above 1e15, which no model bears; lower the learning rate or set training.clip_norm";
  if (const double most = setup.spec.limits.maximum_update_norm; most > 0 && update.norm > most)
    return "the update's norm is " + std::to_string(update.norm) + ", limits.maximum_update_norm allows " +
           std::to_string(most);
  if (std::max({update.examples, update.tokens, update.steps}) > kMostCounted)
    return "the update reports " + std::to_string(update.examples) + " examples, " + std::to_string(update.tokens) +
           " tokens and " + std::to_string(update.steps) + " steps; no task has more than 2^53 of them";
  for (const auto& name : setup.needs.metrics)
    if (const auto metric = update.metrics.find(name); metric == update.metrics.end() || !std::isfinite(metric->second))
      return "the update does not report " + name + ", which aggregation.rule " + setup.spec.aggregation.name +
             " needs of every node";
  if (update.examples == 0 || weight_of(task, update) <= 0)
    return "the update weighs nothing: it reports " + std::to_string(update.examples) + " examples, " +
           std::to_string(update.tokens) + " tokens and " + std::to_string(update.steps) + " steps";
  return "";
}

void RunMachine::State::accept(Task& task, const UpdateStored& update, Instant now) {
  Node& node = nodes.at(task.node);
  Exchange* exchange = nullptr;
  if (overlapped())
    for (const auto& [fragment, version] : update.base_versions) task.bases[fragment] = version;
  if (asynchronous()) {
    const std::uint64_t base = versions[lanes[task.lane].front()] + (lane_reducing[task.lane] != 0 ? 1 : 0);
    std::uint64_t oldest = base;
    for (const auto fragment : lanes[task.lane]) oldest = std::min(oldest, task.bases[fragment]);
    task.staleness = base - oldest;
    const auto factor = strategies::staleness_factor(setup.spec.participation, task.staleness);
    std::string reason;
    if (!factor)
      reason = "the update is " + std::to_string(task.staleness) + " exchanges old, " +
               std::to_string(setup.spec.participation.maximum_staleness) + " are allowed";
    else if (is_full(task.lane, 0))
      reason = "exchange " + std::to_string(lane_collecting[task.lane]) + " has all its updates";
    if (!reason.empty()) {
      emit(Discard{task_id(task.serial), task.node, reason});
      ++node.discarded;
      measure(node, task, update.steps, now);
      touch(node);
      const Serial serial = task.serial;
      end_task(serial, reason, false, now);
      answer_lost(node, serial);
      offer_work(node, now);
      return;
    }
    exchange = &collecting(task.lane);
    if (exchange->accepted.empty()) exchange->opened = now;
    task.factor = *factor;
    task.exchange = exchange->number;
    clear_timer({TimerKind::kTask, task.serial, {}});
    task.deadline.reset();
    if (const auto group = groups.find(task.group); group != groups.end()) group->second.arrived = true;
  } else {
    exchange = &exchanges.at(task.exchange);
    exchange->outstanding.erase(task.serial);
    exchange->done.insert(node.name);
  }
  if (overlapped()) {
    supersede(node, *exchange);
    if (!exchange->first_update) exchange->first_update = now;
    touch(*exchange);
  }
  set_awaited(task, false);
  task.accepted = true;
  task.examples = update.examples;
  task.tokens = update.tokens;
  task.steps = steps_of(task, update);
  task.weight = task.factor * weight_of(task, update);
  task.metrics = strategies::merge_metrics({{update.examples, &update.metrics}}, setup.spec.limits.metrics);
  task.needed_metrics = needed_metrics(update);
  if (update.base_versions.size() < lanes[task.lane].size())
    for (const auto& [fragment, version] : update.base_versions) task.carries.push_back(fragment);
  exchange->accepted.insert(task.serial);
  exchange->missing.erase(node.name);
  touch(task);

  measure(node, task, update.steps, now);
  leave_node(task, now);
  node.failures = 0;
  node.attempts = 0;
  node.last_failure.clear();
  node.last_turn = exchange->number;
  if (const auto separation = setup.spec.participation.minimum_separation; separation > 1)
    turns[node.last_turn + separation].insert(node.name);
  node.steps = std::min(node.steps + std::max<std::uint64_t>(1, task.steps), kMostCounted);
  for (const auto& [fragment, version] : update.base_versions) node.fresh[fragment] = false;
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

}  // namespace skerry::server
