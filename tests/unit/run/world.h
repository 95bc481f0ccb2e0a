// A run machine and the few words in which the tests speak to it.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include <catch2/catch.hpp>

#include "server/run/run_machine.h"
#include "strategies/catalogue.h"

namespace skerry::server::test {

/// A run spec whose part after the training section is `more`.
inline RunSpec spec_with(const std::string& more) {
  auto spec = parse_run_spec(R"(name = "test"
[model]
architecture = "linear"
inputs = 4
outputs = 2
[data]
kind = "idx"
schema = { shape = [4], classes = 2 }
[training]
learning_rate = 0.1
steps = 10
)" + more,
                             strategies::spec_catalogue());
  if (!spec.ok()) FAIL(spec.error().message);
  return std::move(spec).value();
}

inline RunSetup setup_with(const std::string& more, std::vector<std::string> fragments = {"all"}) {
  return {.run_id = "r", .task_prefix = "r", .spec = spec_with(more), .fragments = std::move(fragments)};
}

template <typename T>
std::vector<T> all(const std::vector<Command>& commands) {
  std::vector<T> found;
  for (const auto& command : commands)
    if (const auto* known = std::get_if<T>(&command)) found.push_back(*known);
  return found;
}

template <typename T>
T only(const std::vector<Command>& commands) {
  const auto found = all<T>(commands);
  REQUIRE(found.size() == 1);
  return found.front();
}

struct World {
  explicit World(const std::string& more, std::vector<std::string> fragments = {"all"})
      : setup(setup_with(more, std::move(fragments))), machine(setup) {}

  std::vector<Command> tell(const Event& event) {
    auto commands = machine.handle(event, now);
    for (const auto& task : all<AssignTask>(commands)) bases.emplace(task.task, machine.versions());
    return commands;
  }
  std::vector<Command> join(const std::string& node, std::uint64_t examples = 100, std::uint64_t holdout = 0) {
    return tell(NodeJoined{.node = node, .data_set = "d", .examples = examples, .holdout_examples = holdout});
  }
  /// The update of a task, as its trainer and the shell would report it.
  std::vector<Command> deliver(const AssignTask& task, std::uint64_t examples = 100) {
    UpdateStored update{.task = task.task, .node = task.node, .examples = examples, .steps = 10, .norm = 1};
    for (const auto fragment : task.write) update.base_versions[fragment] = bases.at(task.task)[fragment];
    return tell(update);
  }
  std::vector<Command> report(const AssignTask& task, double loss, std::uint64_t examples = 10) {
    return tell(EvaluationReported{task.task, task.node, examples, {{"loss", loss}}});
  }
  std::vector<Command> wait(Instant ms) {
    now += ms;
    return tell(Tick{});
  }
  /// The process ends and another goes on from what was kept.
  std::vector<Command> restart() {
    auto restored = RunMachine::restore(setup, machine.snapshot(now), now + 1000);
    if (!restored.ok()) FAIL(restored.error().message);
    machine = std::move(restored).value();
    now += 1000;
    return tell(Started{});
  }

  Instant now = 1000;
  RunSetup setup;
  RunMachine machine;
  std::map<std::string, std::vector<std::uint64_t>> bases;  ///< by task: the versions when it was given out
};

}  // namespace skerry::server::test
