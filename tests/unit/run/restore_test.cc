// What is kept, and going on from it.
#include <algorithm>

#include "tests/unit/run/world.h"

using namespace skerry;
using namespace skerry::server;
using namespace skerry::server::test;

namespace {

/// A store that keeps rows as the shell does.
void keep(MachineRows& store, const MachineRows& changes) {
  for (const auto& [key, text] : changes) {
    if (text.empty())
      store.erase(key);
    else
      store[key] = text;
  }
}

}  // namespace

TEST_CASE("a restored machine goes on from the accepted updates") {
  World world("[participation]\nquorum = 2\n[evaluation]\nevery = 0\n");
  world.join("a");
  const auto tasks = all<AssignTask>(world.join("b"));
  world.deliver(tasks[0], 300);
  CHECK(all<Reduce>(world.restart()).empty());
  CHECK(only<Accept>(world.deliver(tasks[0], 300)).exchange == 1);
  CHECK(all<AssignTask>(world.join("a")).empty());  // it has delivered
  const auto again = only<AssignTask>(world.join("b"));
  CHECK(again.task == tasks[1].task);
  const auto reduce = only<Reduce>(world.deliver(tasks[1]));
  REQUIRE(reduce.inputs.size() == 2);
  CHECK(reduce.inputs[0].weight == 300);
}

TEST_CASE("an update from an outbox is accepted after a restart before its node has joined") {
  World world("[evaluation]\nevery = 0\n");
  const auto task = only<AssignTask>(world.join("a"));
  world.restart();
  CHECK(only<Accept>(world.deliver(task)).exchange == 1);
}

TEST_CASE("a reduction under way is asked for again with the same arguments") {
  World world("[evaluation]\nevery = 0\n");
  const auto task = only<AssignTask>(world.join("a"));
  const auto before = only<Reduce>(world.deliver(task));
  const auto after = only<Reduce>(world.restart());
  CHECK(after.exchange == before.exchange);
  CHECK(after.inputs[0].task == before.inputs[0].task);
  CHECK(after.inputs[0].weight == before.inputs[0].weight);
  CHECK(after.fragments[0].base_version == before.fragments[0].base_version);
  CHECK(only<Count>(world.tell(Reduced{.exchange = 1})).tasks.size() == 1);
}

TEST_CASE("what remained of a deadline begins at the restart") {
  World world("[participation]\nquorum = 1\ndeadline_s = 60\nreconnect_s = 3600\n[evaluation]\nevery = 0\n");
  const auto a = only<AssignTask>(world.join("a"));
  world.join("b");
  world.wait(20000);
  world.deliver(a);
  world.restart();
  CHECK(all<Reduce>(world.wait(39999)).empty());
  CHECK(only<Reduce>(world.wait(1)).inputs.size() == 1);
}

TEST_CASE("task ids, exchanges and versions go on where they were") {
  World world("[evaluation]\nevery = 0\n");
  const auto task = only<AssignTask>(world.join("a"));
  world.deliver(task);
  const auto second = only<AssignTask>(world.tell(Reduced{.exchange = 1}));
  world.restart();
  CHECK(world.machine.versions()[0] == 1);
  CHECK(only<AssignTask>(world.join("a")).task == second.task);
  world.deliver(second);
  const auto third = only<AssignTask>(world.tell(Reduced{.exchange = 2}));
  CHECK(third.exchange == 3);
  CHECK(third.task != second.task);
  CHECK(third.first_step == 20);
}

TEST_CASE("the changes of each event together are the snapshot") {
  World world("[participation]\nquorum = 2\nmode = \"asynchronous\"\nbuffer = 2\ndeadline_s = 0\n[stop]\nrounds = 3\n");
  MachineRows store;
  std::vector<AssignTask> open;
  std::vector<std::uint64_t> reductions;
  std::vector<Command> commands = world.join("a", 100, 10);
  for (int step = 0; step < 40 && !world.machine.finished(); ++step) {
    keep(store, world.machine.take_changes(world.now));
    REQUIRE(store == world.machine.snapshot(world.now));
    for (const auto& task : all<AssignTask>(commands)) open.push_back(task);
    for (const auto& reduce : all<Reduce>(commands)) reductions.push_back(reduce.exchange);
    if (step == 3) {
      commands = world.join("b", 50, 5);
    } else if (!reductions.empty()) {
      commands = world.tell(Reduced{.exchange = reductions.back()});
      reductions.pop_back();
    } else {
      REQUIRE_FALSE(open.empty());
      const AssignTask task = open.front();
      open.erase(open.begin());
      UpdateStored update{.task = task.task, .node = task.node, .examples = 5, .steps = 10, .metrics = {{"loss", 0.1}}};
      if (task.kind == TaskKind::kEvaluate) {
        commands = world.report(task, 0.1);
      } else {
        update.base_versions[0] = task.round - 1;
        commands = world.tell(update);
      }
    }
  }
  CHECK(world.machine.finished());
  CHECK(store.size() > 1);
}

TEST_CASE("what an update or a report changes does not grow with the number of nodes") {
  const auto largest_change = [](int nodes) {
    World world("[participation]\nquorum = " + std::to_string(nodes) + "\n");
    std::vector<Command> commands;
    for (int i = 0; i < nodes; ++i) commands = world.join("node-" + std::to_string(1000 + i), 100, 10);
    std::size_t most = 0;
    const auto measure = [&] {
      std::size_t bytes = 0;
      for (const auto& [key, text] : world.machine.take_changes(world.now)) bytes += key.size() + text.size();
      most = std::max(most, bytes);
    };
    const auto trains = all<AssignTask>(commands);
    world.machine.take_changes(world.now);
    for (std::size_t i = 0; i + 1 < trains.size(); ++i) {
      world.deliver(trains[i]);
      measure();
    }
    world.deliver(trains.back());
    const auto next = all<AssignTask>(world.tell(Reduced{.exchange = 1}));
    world.machine.take_changes(world.now);
    std::size_t reports = 0;
    for (const auto& task : next)
      if (task.kind == TaskKind::kEvaluate && ++reports < static_cast<std::size_t>(nodes)) {
        world.report(task, 0.5);
        measure();
      }
    return most;
  };
  CHECK(largest_change(200) < 1.2 * static_cast<double>(largest_change(10)));
}

TEST_CASE("a machine is restored only from its own rows") {
  World world("[evaluation]\nevery = 0\n");
  world.join("a");
  const auto rows = world.machine.snapshot(world.now);
  auto other = world.setup;
  other.run_id = "q";
  CHECK(RunMachine::restore(other, rows, 0).error().code == Code::kFailedPrecondition);
  CHECK(RunMachine::restore(world.setup, {}, 0).error().code == Code::kDataLoss);
  auto broken = rows;
  broken["t/1"] = "{";
  CHECK(RunMachine::restore(world.setup, broken, 0).error().code == Code::kDataLoss);
  broken = rows;
  broken.erase("x/1");
  CHECK(RunMachine::restore(world.setup, broken, 0).error().code == Code::kDataLoss);
  broken = rows;
  broken.erase("n/a");
  CHECK(RunMachine::restore(world.setup, broken, 0).error().code == Code::kDataLoss);
}

TEST_CASE("a finished machine stays finished") {
  World world("[evaluation]\nevery = 0\n");
  world.join("a");
  world.tell(OperatorStop{"enough"});
  CHECK(world.restart().empty());
  CHECK(world.machine.finished());
  CHECK(world.machine.view().status_reason == "enough");
  CHECK(all<AssignTask>(world.join("a")).empty());
}

TEST_CASE("an evaluation goes on after a restart with the reports it had") {
  World world("[participation]\nquorum = 2\n[stop]\nrounds = 1\n");
  world.join("a", 100, 10);
  const auto tasks = all<AssignTask>(world.join("b", 100, 10));
  world.deliver(tasks[0]);
  world.deliver(tasks[1]);
  const auto evaluate = all<AssignTask>(world.tell(Reduced{.exchange = 1}));
  world.report(evaluate[0], 1.0);
  world.restart();
  CHECK(all<AssignTask>(world.join("a", 100, 10)).empty());
  CHECK(only<AssignTask>(world.join("b", 100, 10)).task == evaluate[1].task);
  CHECK(only<EvaluationDone>(world.report(evaluate[1], 3.0)).metrics.at("loss") == 2.0);
  CHECK(world.machine.finished());
}

TEST_CASE("after a restored backup known tasks keep their ids, and new ones cannot be mistaken for lost ones") {
  World world("[participation]\nquorum = 2\n[evaluation]\nevery = 0\n");
  world.join("a");
  const auto tasks = all<AssignTask>(world.join("b"));
  REQUIRE(tasks.size() == 2);
  world.deliver(tasks[0]);
  auto setup = world.setup;
  setup.task_prefix = "r.epoch2";
  world.machine = RunMachine::restore(setup, world.machine.snapshot(world.now), world.now).value();
  world.tell(Started{});
  world.join(tasks[0].node);
  CHECK(only<AssignTask>(world.join(tasks[1].node)).task == tasks[1].task);
  CHECK(only<Accept>(world.deliver(tasks[0])).task == tasks[0].task);
  const auto inputs = only<Reduce>(world.deliver(tasks[1])).inputs;
  REQUIRE(inputs.size() == 2);
  CHECK(inputs[0].task == tasks[0].task);
  CHECK(inputs[1].task == tasks[1].task);
  const auto next = all<AssignTask>(world.tell(Reduced{.exchange = 1}));
  REQUIRE(next.size() == 2);
  CHECK(next[0].task == "r.epoch2.3");
}
