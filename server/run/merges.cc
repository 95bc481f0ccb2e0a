// Overlapped exchange: a node trains on while its update travels, and merges what came of it some steps later. Here is
// decided what each task goes on from, what it merges at which step, and when the node is told.
#include <algorithm>
#include <utility>

#include "server/run/state.h"

namespace skerry::server {

// ---- planning

void RunMachine::State::plan_merges(Node& node, Task& task, const Exchange* exchange) {
  const ExchangeSpec& spec = setup.spec.exchange;
  const bool goes_on =
      !node.last_task.empty() && (exchange == nullptr || node.last_exchange + 1 == exchange->number);
  if (goes_on) {
    task.after = node.last_task;
  } else {
    // It reads everything now, and what is under way without it when that is over.
    node.owed.clear();
    for (auto open = exchanges.begin(); exchange != nullptr && open->first < exchange->number; ++open)
      node.owed.push_back({.exchange = open->first, .lane = open->second.lane, .own = false});
  }
  std::vector<Merge> later;
  for (std::size_t i = 0; i < node.owed.size(); ++i) {
    Merge merge = node.owed[i];
    const bool just_sent = i + 1 == node.owed.size();
    if (just_sent && spec.overlap >= setup.spec.training.steps) {
      later.push_back(merge);  // a whole task on: the next one begins with it
      continue;
    }
    // What is merged on arrival may not have come yet when the task ends, and is planned once more.
    if (!spec.block && !merge.version) later.push_back(merge);
    merge.at_step = just_sent ? std::min(spec.overlap, task.inner_steps) : 0;
    task.merges.push_back(merge);
  }
  node.owed = std::move(later);
  node.owed.push_back({.exchange = asynchronous() ? task.serial : task.exchange, .lane = task.lane});
  node.last_task = task_id(task.serial);
  node.last_exchange = task.exchange;
}

std::vector<MergeFragment> RunMachine::State::merges_of(const Task& task) const {
  const ExchangeSpec& spec = setup.spec.exchange;
  std::vector<MergeFragment> plans;
  for (const auto& merge : task.merges)
    for (const auto fragment : lanes[merge.lane])
      plans.push_back({.fragment = fragment,
                       .exchange = merge.exchange,
                       .at_step = merge.at_step,
                       .rule = merge.own ? spec.merge : "replace",
                       .alpha = merge.own ? spec.alpha : 0,
                       .block = spec.block});
  return plans;
}

void RunMachine::State::break_line(Node& node, Serial failed, Instant now) {
  if (!overlapped()) return;
  for (const auto serial : std::vector<Serial>(node.train_tasks))
    if (serial > failed) end_task(serial, "the task before it failed", true, now);
  node.last_task.clear();
  touch(node);
}

void RunMachine::State::line_lost(Serial serial, const std::string& reason, Instant now) {
  const Task task = tasks.at(serial);
  Node& node = nodes.at(task.node);
  break_line(node, serial, now);
  end_task(serial, "its node's trainer was not where it begins: " + reason, false, now);
  offer_work(node, now);
  if (!asynchronous()) check_complete(task.exchange, now);
}

/// An exchange that has two updates of a node answers the later one.
void RunMachine::State::supersede(Node& node, const Exchange& exchange) {
  if (!asynchronous()) return;
  const auto answered_later = [&](const Merge& merge) { return exchange.accepted.count(merge.exchange) != 0; };
  node.owed.erase(std::remove_if(node.owed.begin(), node.owed.end(), answered_later), node.owed.end());
}

// ---- telling

bool RunMachine::State::is_over(const Merge& merge) const {
  return asynchronous() ? tasks.count(merge.exchange) == 0 : exchanges.count(merge.exchange) == 0;
}

void RunMachine::State::deliver(Node& node, Merge merge) {
  // Told again, an exchange is what it was the first time, as long as that version is kept.
  const std::uint64_t current = versions[lanes[merge.lane].front()];
  if (asynchronous() || !merge.version || *merge.version + 1 < current) merge.version = current;
  // A later update may have overtaken this one and been answered before: what is newer now goes into its place.
  std::uint64_t place = merge.exchange;
  for (const auto serial : node.train_tasks)
    for (const auto& planned : tasks.at(serial).merges)
      if (asynchronous() && planned.lane == merge.lane && planned.version) place = std::max(place, planned.exchange);

  Deliver command{node.name, place, {}};
  for (const auto fragment : lanes[merge.lane])
    command.versions.push_back(
        {fragment, *merge.version, std::exchange(node.last_read[fragment], *merge.version)});
  emit(std::move(command));
  const auto mark = [&](std::vector<Merge>& merges) {
    for (auto& each : merges)
      if (each.exchange == merge.exchange || each.exchange == place) each.version = merge.version;
  };
  mark(node.owed);
  touch(node);
  for (const auto serial : node.train_tasks) {
    mark(tasks.at(serial).merges);
    touch(tasks.at(serial));
  }
}

void RunMachine::State::deliver_known(const Task& task, bool again) {
  // What is merged on arrival may have come when the node was done with the task that planned it and had none after it.
  const bool perhaps_missed = !setup.spec.exchange.block;
  for (const Merge& merge : std::vector<Merge>(task.merges))
    if (is_over(merge) && (again || perhaps_missed || !merge.version)) deliver(nodes.at(task.node), merge);
}

void RunMachine::State::deliver_planned(Node& node, std::uint64_t exchange) {
  for (const auto serial : node.train_tasks)
    for (const Merge& merge : tasks.at(serial).merges)
      if (merge.exchange == exchange) return deliver(node, merge);
}

void RunMachine::State::answer_lost(Node& node, Serial serial) {
  if (!overlapped() || !asynchronous()) return;
  const auto lost = std::find_if(node.owed.begin(), node.owed.end(),
                                 [serial](const Merge& merge) { return merge.exchange == serial; });
  if (lost == node.owed.end()) return;
  const bool earlier_waits = std::any_of(node.owed.begin(), lost, [&](const Merge& merge) {
    return merge.lane == lost->lane && !merge.version;
  });
  if (!earlier_waits) return deliver_planned(node, serial);
  node.owed.erase(lost);
  touch(node);
}

void RunMachine::State::exchange_over(std::uint64_t number, Instant now) {
  if (!overlapped() || exchanges.empty()) return;
  std::vector<Serial> at_work;
  for (const auto& [later, exchange] : exchanges)
    at_work.insert(at_work.end(), exchange.outstanding.begin(), exchange.outstanding.end());
  for (const auto serial : at_work) deliver_planned(nodes.at(tasks.at(serial).node), number);
  if (phase != Phase::kRunning) return;
  take_turn(exchanges.begin()->second, now);
  check_complete(exchanges.begin()->first, now);
}

}  // namespace skerry::server
