#include "server/run/run_machine.h"

#include <algorithm>
#include <utility>

#include "server/run/state.h"

namespace skerry::server {

RunMachine::RunMachine(RunSetup setup) : state_(std::make_unique<State>(std::move(setup))) {}
RunMachine::RunMachine(RunMachine&&) noexcept = default;
RunMachine& RunMachine::operator=(RunMachine&&) noexcept = default;
RunMachine::~RunMachine() = default;

Result<RunMachine> RunMachine::restore(RunSetup setup, const MachineRows& rows, Instant now) {
  RunMachine machine(std::move(setup));
  SKERRY_TRY(machine.state_->load(rows, now));
  return machine;
}

std::vector<Command> RunMachine::handle(const Event& event, Instant now) {
  State& state = *state_;
  std::visit([&](const auto& known) { state.on(known, now); }, event);
  state.advance(now);
  if (!state.timer_order.empty()) {
    const Instant next = state.timer_order.begin()->first;
    if (state.announced_wake != next) {
      state.announced_wake = next;
      state.emit(WakeAt{next});
    }
  }
  return std::exchange(state.out, {});
}

MachineRows RunMachine::snapshot(Instant now) const { return state_->all_rows(now); }
MachineRows RunMachine::take_changes(Instant now) { return state_->changed_rows(now); }
const RunSetup& RunMachine::setup() const { return state_->setup; }
bool RunMachine::finished() const { return state_->phase == State::Phase::kFinished; }
std::vector<std::uint64_t> RunMachine::versions() const { return state_->versions; }

bool RunMachine::awaits(const std::string& task) const {
  const auto serial = state_->serial_of(task);
  const auto found = serial ? state_->tasks.find(*serial) : state_->tasks.end();
  return found != state_->tasks.end() && !found->second.accepted;
}

std::vector<std::vector<std::uint64_t>> RunMachine::needed_versions() const {
  std::vector<std::vector<std::uint64_t>> needed(state_->versions.size());
  for (const auto& [serial, task] : state_->tasks) {
    for (const auto& merge : task.merges)
      for (const auto fragment : state_->lanes[merge.lane])
        if (merge.version && !task.accepted) needed[fragment].push_back(*merge.version);
    if (task.accepted ? !state_->setup.needs.rebased : !task.after.empty()) continue;
    for (std::size_t fragment = 0; fragment < needed.size(); ++fragment)
      needed[fragment].push_back(task.bases[fragment]);
  }
  for (auto& of_fragment : needed) {
    std::sort(of_fragment.begin(), of_fragment.end());
    of_fragment.erase(std::unique(of_fragment.begin(), of_fragment.end()), of_fragment.end());
  }
  return needed;
}

RunStatus RunMachine::status() const {
  const State& state = *state_;
  if (state.phase == State::Phase::kFinished) return {state.outcome, state.outcome_reason};
  if (state.paused) return {"paused", state.pause_reason};
  if (state.phase == State::Phase::kFinalEvaluation) return {"running", "evaluating the last version"};
  if (!state.exchanges.empty() || !state.tasks.empty()) {
    for (const auto& name : state.required)
      if (const auto node = state.nodes.find(name); node == state.nodes.end() || !node->second.connected)
        return {"running", "waiting for " + name + ", without which nothing is committed"};
    return {"running", ""};
  }
  const auto& participation = state.setup.spec.participation;
  const auto needed = state.asynchronous() ? participation.start_nodes
                      : state.begun        ? participation.quorum
                                           : std::max(participation.start_nodes, participation.quorum);
  std::string reason = std::to_string(state.idle.size()) + " of " + std::to_string(needed) + " nodes are ready";
  for (const auto& name : state.required)
    if (state.idle.count(name) == 0) reason += ", " + name + " is missing";
  std::size_t resting = 0;
  for (const auto& [exchange, names] : state.turns) resting += names.size();
  if (resting > 0) reason += ", " + std::to_string(resting) + " wait for their turn (participation.minimum_separation)";
  return {"waiting", std::move(reason)};
}

RunView RunMachine::view() const {
  const State& state = *state_;
  const auto& spec = state.setup.spec;
  RunView view{status()};
  view.rounds = spec.stop.rounds;
  view.round = spec.stop.rounds;
  for (std::uint32_t lane = 0; lane < state.lanes.size(); ++lane) {
    view.round = std::min(view.round, state.rounds_done(lane));
    const std::uint64_t open =
        state.lane_collecting[lane] != 0 ? state.lane_collecting[lane] : state.lane_reducing[lane];
    for (const auto fragment : state.lanes[lane]) {
      FragmentView of{state.setup.fragments[fragment], state.versions[fragment]};
      of.exchange = open;
      of.quorum =
          static_cast<std::uint32_t>(state.asynchronous() ? spec.participation.buffer : spec.participation.quorum);
      if (open != 0) {
        const auto& exchange = state.exchanges.at(open);
        of.accepted = static_cast<std::uint32_t>(exchange.accepted.size());
        of.outstanding = static_cast<std::uint32_t>(exchange.outstanding.size());
      }
      view.fragments.push_back(std::move(of));
    }
  }
  std::sort(view.fragments.begin(), view.fragments.end(), [&](const auto& a, const auto& b) {
    const auto& names = state.setup.fragments;
    return std::find(names.begin(), names.end(), a.fragment) < std::find(names.begin(), names.end(), b.fragment);
  });

  for (const auto& [number, exchange] : state.exchanges) {
    const bool in_line = !state.asynchronous() && number != state.exchanges.begin()->first;
    ExchangeView of{number, {}, exchange.reducing ? "reducing" : in_line ? "in line" : "collecting"};
    for (const auto fragment : state.lanes[exchange.lane]) of.fragments.push_back(state.setup.fragments[fragment]);
    of.accepted = static_cast<std::uint32_t>(exchange.accepted.size());
    of.outstanding = static_cast<std::uint32_t>(exchange.outstanding.size());
    view.exchanges.push_back(std::move(of));
  }
  for (const auto& [name, node] : state.nodes) {
    NodeView of;
    of.node = name;
    of.detail = node.last_failure;
    of.data_set = node.data_set;
    of.examples = node.examples;
    of.counted = node.counted;
    of.discarded = node.discarded;
    if (!node.connected) {
      of.state = "offline";
    } else if (node.evaluate_task != 0) {
      of.state = "evaluating";
    } else if (!node.train_tasks.empty()) {
      of.state = "training";
    } else if (node.paused) {
      of.state = "paused";
    } else {
      of.state = "waiting";
      if (node.examples < spec.data.minimum_examples)
        of.detail = "it has " + std::to_string(node.examples) + " examples, data.minimum_examples is " +
                    std::to_string(spec.data.minimum_examples);
      else if (!state.has_turn(node))
        of.detail = "it took part in exchange " + std::to_string(node.last_turn) + " and may again in exchange " +
                    std::to_string(node.last_turn + spec.participation.minimum_separation);
    }
    view.nodes.push_back(std::move(of));
  }
  return view;
}

}  // namespace skerry::server
