// Who takes part, for how long, and what becomes of those who are not needed.
#include "tests/unit/run/world.h"

#include <algorithm>
#include <set>

using namespace skerry;
using namespace skerry::server;
using namespace skerry::server::test;

namespace {

const std::string kNoEvaluation = "[evaluation]\nevery = 0\n";

/// The tasks of the exchange that opens when the last of so many nodes joins.
std::vector<AssignTask> join_all(World& world, int nodes) {
  std::vector<AssignTask> tasks;
  for (int i = 0; i < nodes; ++i)
    for (auto& task : all<AssignTask>(world.join("n" + std::to_string(i)))) tasks.push_back(std::move(task));
  return tasks;
}

}  // namespace

// ---- over-selection

TEST_CASE("more nodes are invited than the cohort needs, and the exchange is committed when the goal is reached") {
  World world("[participation]\ncohort_size = 4\nover_selection = 1.3\nstart_nodes = 10\n" + kNoEvaluation);
  const auto tasks = join_all(world, 10);
  REQUIRE(tasks.size() == 6);  // 4 × 1.3 = 5.2, rounded up
  for (int i = 0; i < 3; ++i) CHECK(all<Reduce>(world.deliver(tasks[i])).empty());
  const auto last = world.deliver(tasks[3]);
  CHECK(only<Reduce>(last).inputs.size() == 4);
  const auto cancelled = all<CancelTask>(last);
  REQUIRE(cancelled.size() == 2);
  CHECK(cancelled[0].reason == "exchange 1 was completed without this update: the goal was reached");
}

TEST_CASE("a node that was over-selected and delivers too late is told that the goal was reached") {
  World world("[participation]\ncohort_size = 1\nover_selection = 2\nstart_nodes = 2\n" + kNoEvaluation);
  const auto tasks = join_all(world, 2);
  world.deliver(tasks[0]);
  world.tell(Reduced{.exchange = 1});
  CHECK(only<Discard>(world.deliver(tasks[1])).reason ==
        "exchange 1 was completed without this update: the goal was reached");
}

TEST_CASE("the goal and who was invited survive a restart") {
  World world("[participation]\ncohort_size = 2\nover_selection = 1.5\nstart_nodes = 3\n" + kNoEvaluation);
  const auto tasks = join_all(world, 3);
  world.deliver(tasks[0]);
  world.restart();
  for (const auto& task : tasks) world.join(task.node);
  CHECK(only<Reduce>(world.deliver(tasks[1])).inputs.size() == 2);
}

TEST_CASE("a member of a drawn cohort that does not come back is replaced, and may deliver all the same") {
  World world("[participation]\ncohort_size = 2\nquorum = 2\nstart_nodes = 3\nreconnect_s = 30\n" + kNoEvaluation);
  const auto tasks = join_all(world, 3);
  REQUIRE(tasks.size() == 2);
  world.tell(NodeLeft{tasks[0].node});
  const auto replaced = only<AssignTask>(world.wait(30000));
  CHECK(replaced.exchange == 1);
  CHECK(replaced.node != tasks[0].node);
  CHECK(only<AssignTask>(world.join(tasks[0].node)).task == tasks[0].task);
  CHECK(all<Reduce>(world.deliver(tasks[0])).empty());
  CHECK(only<Reduce>(world.deliver(replaced)).inputs.size() == 2);
}

TEST_CASE("a run does not stop for a cohort that has vanished as a whole") {
  World world("[participation]\ncohort_size = 1\nstart_nodes = 2\nreconnect_s = 30\n" + kNoEvaluation);
  const auto first = only<AssignTask>([&] {
    world.join("a");
    return world.join("b");
  }());
  world.tell(NodeLeft{first.node});
  CHECK(only<Reduce>(world.deliver(only<AssignTask>(world.wait(30000)))).inputs.size() == 1);
}

// ---- completion rates

TEST_CASE("an exchange to which too few of the invited returned is void: its updates are discarded, the round counts") {
  World world("[participation]\nminimum_completion = 0.6\nstart_nodes = 4\ndeadline_s = 60\n[stop]\nrounds = 2\n" +
              kNoEvaluation);
  const auto tasks = join_all(world, 4);
  world.deliver(tasks[0]);
  world.deliver(tasks[1]);
  const auto end = world.wait(60000);
  const std::string reason = "exchange 1 is void: 2 of 4 invited nodes returned, 3 were needed";
  CHECK(only<Void>(end).reason == reason);
  const auto discarded = all<Discard>(end);
  REQUIRE(discarded.size() == 2);
  CHECK(discarded[0].reason == reason);
  CHECK(all<CancelTask>(end).size() == 2);
  CHECK(world.machine.versions() == std::vector<std::uint64_t>{0});
  CHECK(world.machine.view().round == 1);
  CHECK(only<Discard>(world.deliver(tasks[2])).reason == reason);
  const auto next = all<AssignTask>(end);
  REQUIRE(next.size() == 4);
  CHECK(next[0].round == 2);
  CHECK(next[0].read.front().version == 0);
  CHECK(next[0].first_step == 10);
}

TEST_CASE("a run whose last round is void is completed with the model that it had") {
  World world("[participation]\nminimum_completion = 1\ndeadline_s = 60\nstart_nodes = 2\n[stop]\nrounds = 1\n" +
              kNoEvaluation);
  join_all(world, 2);
  CHECK(only<Finish>(world.wait(60000)).outcome == "completed");
  CHECK(world.machine.versions() == std::vector<std::uint64_t>{0});
}

TEST_CASE("no exchange becomes void while an operator has paused the run") {
  World world("[participation]\nminimum_completion = 1\ndeadline_s = 60\nstart_nodes = 2\n" + kNoEvaluation);
  const auto tasks = join_all(world, 2);
  world.tell(OperatorPause{});
  CHECK(all<Void>(world.wait(60000)).empty());
  world.tell(OperatorResume{});
  world.deliver(tasks[0]);
  CHECK(only<Reduce>(world.deliver(tasks[1])).inputs.size() == 2);
}

TEST_CASE("with enough of the invited an exchange is committed at its deadline") {
  World world("[participation]\nminimum_completion = 0.5\nstart_nodes = 4\ndeadline_s = 60\n" + kNoEvaluation);
  const auto tasks = join_all(world, 4);
  world.deliver(tasks[0]);
  world.deliver(tasks[1]);
  CHECK(only<Reduce>(world.wait(60000)).inputs.size() == 2);
}

TEST_CASE("void rounds survive a restart") {
  World world("[participation]\nminimum_completion = 1\ndeadline_s = 60\nstart_nodes = 2\n[stop]\nrounds = 2\n" +
              kNoEvaluation);
  join_all(world, 2);
  world.wait(60000);
  world.restart();
  CHECK(world.machine.view().round == 1);
}

// ---- adaptive grace

TEST_CASE("the adaptive grace window lasts as long as a node of known speed should need") {
  World world("[participation]\nquorum = 1\nstart_nodes = 2\ngrace = \"adaptive\"\ngrace_safety = 2\n" + kNoEvaluation);
  auto tasks = join_all(world, 2);
  world.wait(8000);
  world.deliver(tasks[0]);
  world.wait(4000);
  world.deliver(tasks[1]);  // n1 takes 12 s
  tasks = all<AssignTask>(world.tell(Reduced{.exchange = 1}));
  world.wait(8000);
  CHECK(only<WakeAt>(world.deliver(tasks[0])).at == world.now + 5000);  // 4 s remain, and a quarter
  CHECK(only<Reduce>(world.wait(5000)).inputs.size() == 1);
}

TEST_CASE("a node that cannot come within the adaptive grace window is not waited for") {
  World world("[participation]\nquorum = 1\nstart_nodes = 2\ngrace = \"adaptive\"\n" + kNoEvaluation);
  auto tasks = join_all(world, 2);
  world.wait(1000);
  CHECK(only<WakeAt>(world.deliver(tasks[0])).at == world.now + 500);  // nothing is known: half of what the quorum took
  world.deliver(tasks[1]);
  // n1 is ten times as slow from now on, as far as anybody knows.
  tasks = all<AssignTask>(world.tell(Reduced{.exchange = 1}));
  world.wait(1000);
  world.deliver(tasks[0]);
  world.wait(100);
  world.deliver(tasks[1]);
  tasks = all<AssignTask>(world.tell(Reduced{.exchange = 2}));
  world.wait(100);
  CHECK(only<Reduce>(world.deliver(tasks[0])).inputs.size() == 1);
}

TEST_CASE("the adaptive grace window is never longer than grace_s") {
  World world("[participation]\nquorum = 1\nstart_nodes = 2\ngrace = \"adaptive\"\ngrace_s = 3\ngrace_safety = 10\n" +
              kNoEvaluation);
  const auto tasks = join_all(world, 2);
  world.wait(60000);
  CHECK(only<WakeAt>(world.deliver(tasks[0])).at == world.now + 3000);
}

// ---- required nodes

TEST_CASE("nothing is committed without a required node, which is invited to every exchange") {
  World world("[participation]\nrequired_nodes = [\"z\"]\ncohort_size = 1\nquorum = 1\n" + kNoEvaluation);
  CHECK(all<AssignTask>(world.join("a")).empty());
  CHECK(world.machine.status().status_reason == "1 of 1 nodes are ready, z is missing");
  const auto tasks = all<AssignTask>(world.join("z"));
  REQUIRE(tasks.size() == 1);
  CHECK(tasks[0].node == "z");
  CHECK(only<Reduce>(world.deliver(tasks[0])).inputs.size() == 1);
}

TEST_CASE("at the deadline an exchange without its required node goes on") {
  World world("[participation]\nrequired_nodes = [\"z\"]\ndeadline_s = 60\nstart_nodes = 2\n" + kNoEvaluation);
  world.join("a");
  const auto tasks = all<AssignTask>(world.join("z"));
  REQUIRE(tasks.size() == 2);
  world.deliver(tasks[0]);
  CHECK(all<Reduce>(world.wait(60000)).empty());
  CHECK(only<Reduce>(world.deliver(tasks[1])).inputs.size() == 2);
}

TEST_CASE("the nodes that the aggregation rule needs are required too, also where every node has its own clock") {
  auto setup = setup_with("[participation]\nmode = \"asynchronous\"\nbuffer = 1\nstart_nodes = 2\n" + kNoEvaluation);
  setup.needs.nodes = {"trusted"};
  World world("");
  world.setup = setup;
  world.machine = RunMachine(setup);
  world.join("a");
  const auto tasks = all<AssignTask>(world.join("trusted"));
  REQUIRE(tasks.size() == 2);
  CHECK(all<Reduce>(world.deliver(tasks[0])).empty());
  CHECK(only<Reduce>(world.deliver(tasks[1])).inputs.size() == 2);
}

TEST_CASE("while a required node is away, the others do not pile up updates") {
  World world("[participation]\nmode = \"asynchronous\"\nbuffer = 2\nrequired_nodes = [\"z\"]\n" + kNoEvaluation);
  auto task = only<AssignTask>(world.join("a"));
  task = only<AssignTask>(world.deliver(task));
  CHECK(all<AssignTask>(world.deliver(task)).empty());
  const auto last = world.deliver(only<AssignTask>(world.join("z")));
  CHECK(only<Reduce>(last).inputs.size() == 3);
  CHECK(all<AssignTask>(world.tell(Reduced{.exchange = 1})).size() == 2);
}

TEST_CASE("an open exchange says which required node it waits for") {
  World world("[participation]\nrequired_nodes = [\"z\"]\n" + kNoEvaluation);
  world.join("z");
  CHECK(world.machine.status().status_reason == "");
  world.tell(NodeLeft{.node = "z", .for_good = true});
  CHECK(world.machine.status().status_reason == "waiting for z, without which nothing is committed");
}

// ---- turns

TEST_CASE("a node's participations are as many exchanges apart as the run says") {
  World world("[participation]\ncohort_size = 1\nminimum_separation = 3\nstart_nodes = 3\n" + kNoEvaluation);
  auto task = only<AssignTask>([&] {
    world.join("a");
    world.join("b");
    return world.join("c");
  }());
  std::vector<std::string> turns;
  for (std::uint64_t exchange = 1; exchange <= 6; ++exchange) {
    turns.push_back(task.node);
    world.deliver(task);
    if (exchange == 2) {  // who must wait is remembered
      world.restart();
      for (const char* node : {"a", "b", "c"}) world.join(node);
    }
    task = only<AssignTask>(world.tell(Reduced{.exchange = exchange}));
  }
  for (std::size_t i = 0; i + 2 < turns.size(); ++i)
    CHECK(std::set<std::string>(turns.begin() + static_cast<std::ptrdiff_t>(i),
                                turns.begin() + static_cast<std::ptrdiff_t>(i) + 3)
              .size() == 3);
}

TEST_CASE("a node that waits for its turn says so") {
  World world("[participation]\nmode = \"asynchronous\"\nbuffer = 2\nminimum_separation = 2\n" + kNoEvaluation);
  const auto a = only<AssignTask>(world.join("a"));
  CHECK(all<AssignTask>(world.deliver(a)).empty());
  CHECK(world.machine.view().nodes[0].detail == "it took part in exchange 1 and may again in exchange 3");
}

TEST_CASE("a run with too few nodes for their turns says what it waits for") {
  World world("[participation]\ncohort_size = 1\nminimum_separation = 2\n" + kNoEvaluation);
  world.deliver(only<AssignTask>(world.join("a")));
  world.tell(Reduced{.exchange = 1});
  CHECK(world.machine.status().status_reason ==
        "0 of 1 nodes are ready, 1 wait for their turn (participation.minimum_separation)");
}

// ---- concurrency

TEST_CASE("no more nodes train at once than the run says, and whoever is ready is drawn") {
  World world("[participation]\nmode = \"asynchronous\"\nbuffer = 100\nconcurrency = 2\nstart_nodes = 20\n" +
              kNoEvaluation);
  auto tasks = join_all(world, 20);
  REQUIRE(tasks.size() == 2);
  std::map<std::string, int> turns;
  for (int i = 0; i < 60; ++i) {
    const auto next = only<AssignTask>(world.deliver(tasks[0]));
    ++turns[next.node];
    tasks = {tasks[1], next};
  }
  CHECK(turns.size() > 15);  // of 20, in 60 draws
}

TEST_CASE("a slot is free again when its node stays away") {
  World world("[participation]\nmode = \"asynchronous\"\nconcurrency = 1\nreconnect_s = 30\nstart_nodes = 2\n" +
              kNoEvaluation);
  world.join("a");
  const auto task = only<AssignTask>(world.join("b"));
  CHECK(all<AssignTask>(world.tell(NodeLeft{.node = task.node})).empty());
  CHECK(only<AssignTask>(world.wait(30000)).node != task.node);
}

// ---- work by speed

TEST_CASE("DyLU gives a node that is half as fast half of the steps") {
  World world("[participation]\nwork = \"dylu\"\nstart_nodes = 2\n" + kNoEvaluation);
  auto tasks = join_all(world, 2);
  CHECK(tasks[0].steps == 10);  // nothing is known yet
  world.wait(1000);
  world.deliver(tasks[0]);
  world.wait(1000);
  world.deliver(tasks[1]);
  tasks = all<AssignTask>(world.tell(Reduced{.exchange = 1}));
  CHECK(tasks[0].steps == 10);
  CHECK(tasks[1].steps == 5);
}

TEST_CASE("speeds survive a restart, and a task given again is not measured") {
  World world("[participation]\nwork = \"dylu\"\nstart_nodes = 2\n" + kNoEvaluation);
  auto tasks = join_all(world, 2);
  world.wait(1000);
  world.deliver(tasks[0]);
  world.wait(1000);
  world.deliver(tasks[1]);
  world.tell(Reduced{.exchange = 1});
  world.restart();
  const auto again = only<AssignTask>(world.join("n0"));
  const auto other = only<AssignTask>(world.join("n1"));
  CHECK(other.steps == 5);
  world.wait(500000);
  world.deliver(again);
  world.deliver(other);
  tasks = all<AssignTask>(world.tell(Reduced{.exchange = 2}));
  CHECK(tasks[0].steps == 10);
  CHECK(tasks[1].steps == 5);
}

TEST_CASE("FedCompass measures a newcomer with few steps and then lets it arrive with a group there is") {
  World world("[participation]\nmode = \"asynchronous\"\nwork = \"fedcompass\"\nminimum_steps = 2\nstart_nodes = 2\n" +
              kNoEvaluation);
  auto tasks = join_all(world, 2);
  CHECK(tasks[0].steps == 2);
  world.wait(200);
  UpdateStored two{.task = tasks[0].task, .node = "n0", .base_versions = {{0, 0}}, .examples = 1, .steps = 2};
  const auto fast = only<AssignTask>(world.tell(two));  // 100 ms a step: the first group, of 1000 ms
  CHECK(fast.steps == 10);
  world.wait(200);
  two.task = tasks[1].task;
  two.node = "n1";
  const auto slow = only<AssignTask>(world.tell(two));  // 200 ms a step, 800 ms left
  CHECK(slow.steps == 4);
  world.wait(800);
  world.deliver(fast);
  UpdateStored four{.task = slow.task, .node = "n1", .base_versions = {{0, 0}}, .examples = 1, .steps = 4};
  CHECK(only<Reduce>(world.tell(four)).inputs.size() == 4);  // when its group is complete
}

TEST_CASE("a FedCompass group is not waited for without end") {
  World world(
      "[participation]\nmode = \"asynchronous\"\nwork = \"fedcompass\"\nminimum_steps = 2\nstart_nodes = 2\n"
      "group_patience = 1.5\n" +
      kNoEvaluation);
  const auto tasks = join_all(world, 2);
  world.wait(200);
  UpdateStored two{.task = tasks[0].task, .node = "n0", .base_versions = {{0, 0}}, .examples = 1, .steps = 2};
  const auto fast = only<AssignTask>(world.tell(two));
  two.task = tasks[1].task;
  two.node = "n1";
  const auto late = only<AssignTask>(world.tell(two));
  CHECK(late.steps == 10);
  world.wait(1000);
  CHECK(all<Reduce>(world.deliver(fast)).empty());
  CHECK(all<Reduce>(world.wait(499)).empty());
  world.restart();
  world.join("n0");
  world.join("n1");
  CHECK(only<Reduce>(world.wait(2)).inputs.size() == 3);
}

// ---- what the rule needs

TEST_CASE("an update that lacks a metric which the rule needs is discarded with that reason") {
  auto setup = setup_with(kNoEvaluation + "[limits]\nmetrics = [\"start_loss\"]\n");
  setup.needs.metrics = {"start_loss"};
  World world("");
  world.setup = setup;
  world.machine = RunMachine(setup);
  const auto task = only<AssignTask>(world.join("a"));
  CHECK(only<Discard>(world.deliver(task)).reason ==
        "the update does not report start_loss, which aggregation.rule weighted_mean needs of every node");
}

TEST_CASE("the rule gets the metrics it needs and how many nodes consented, also after a restart") {
  auto setup = setup_with(kNoEvaluation +
                          "[participation]\ncohort_size = 1\nstart_nodes = 3\n[limits]\nmetrics = [\"start_loss\"]\n");
  setup.needs.metrics = {"start_loss"};
  World world("");
  world.setup = setup;
  world.machine = RunMachine(setup);
  const auto task = join_all(world, 3).front();
  UpdateStored update{.task = task.task, .node = task.node, .base_versions = {{0, 0}}, .examples = 1, .steps = 10};
  update.metrics = {{"start_loss", 2.5}};
  auto reduce = only<Reduce>(world.tell(update));
  CHECK(reduce.inputs[0].metrics == std::vector<double>{2.5});
  CHECK(reduce.nodes == 3);
  for (const char* node : {"n0", "n1", "n2"}) world.tell(NodeLeft{.node = node, .for_good = true});
  reduce = only<Reduce>(world.restart());
  CHECK(reduce.inputs[0].metrics == std::vector<double>{2.5});
  CHECK(reduce.nodes == 3);
}

TEST_CASE("where the rule takes them, an update may carry some of its task's fragments, but not none") {
  auto setup = setup_with(kNoEvaluation + "[participation]\nstart_nodes = 2\n", {"f0", "f1"});
  setup.needs.partial_updates = true;
  World world("", {"f0", "f1"});
  world.setup = setup;
  world.machine = RunMachine(setup);
  world.join("a");
  const auto tasks = all<AssignTask>(world.join("b"));
  UpdateStored update{.task = tasks[0].task, .node = "a", .base_versions = {{1, 0}}, .examples = 1, .steps = 10};
  CHECK(all<Accept>(world.tell(update)).size() == 1);
  world.restart();
  world.join("a");
  world.join("b");
  update = {.task = tasks[1].task, .node = "b", .base_versions = {}, .examples = 1, .steps = 10};
  const auto end = world.tell(update);
  CHECK(only<Discard>(end).reason == "the update lacks fragment f0");
  const auto reduce = only<Reduce>(end);
  CHECK(reduce.fragments.size() == 2);
  CHECK(reduce.inputs[0].base_versions == std::map<FragmentIndex, std::uint64_t>{{1, 0}});
}

TEST_CASE("versions that an accepted update was measured against are kept where the rule rebases updates") {
  auto setup = setup_with("[participation]\nmode = \"asynchronous\"\nbuffer = 2\n" + kNoEvaluation);
  setup.needs.rebased = true;
  World world("");
  world.setup = setup;
  world.machine = RunMachine(setup);
  const auto slow = only<AssignTask>(world.join("slow"));
  auto task = only<AssignTask>(world.join("a"));
  for (std::uint64_t exchange = 1; exchange <= 3; ++exchange) {
    task = only<AssignTask>(world.deliver(task));
    world.deliver(task);
    task = only<AssignTask>(world.tell(Reduced{.exchange = exchange}));
  }
  world.deliver(slow);
  CHECK(world.machine.needed_versions()[0] == std::vector<std::uint64_t>{0, 3});
  CHECK(only<Reduce>(world.deliver(task)).inputs[1].base_versions.at(0) == 0);
}

// ---- fragments with a role

TEST_CASE("control fragments go with their twins, frozen ones stay, and evaluations measure no control") {
  auto setup = setup_with("", {"f0", "f0-control", "frozen"});
  setup.roles = {FragmentRole::kExchanged, FragmentRole::kControl, FragmentRole::kFrozen};
  World world("");
  world.setup = setup;
  world.machine = RunMachine(setup);
  const auto task = only<AssignTask>(world.join("a", 100, 10));
  CHECK(task.write == std::vector<FragmentIndex>{0, 1});
  CHECK(task.read.size() == 3);
  CHECK(only<Reduce>(world.deliver(task)).fragments.size() == 2);
  const auto next = all<AssignTask>(world.tell(Reduced{.exchange = 1}));
  CHECK(world.machine.versions() == std::vector<std::uint64_t>{1, 1, 0});
  REQUIRE(next.size() == 2);
  CHECK(next[0].kind == TaskKind::kEvaluate);
  CHECK(next[0].read.size() == 2);  // the frozen one, too
  CHECK(next[1].read.size() == 2);  // not the frozen one, which it has
}

TEST_CASE("a node that claims more steps than its task asked for counts what was asked") {
  World world("[aggregation]\nweights = \"steps\"\n" + kNoEvaluation);
  const auto task = only<AssignTask>(world.join("a"));
  UpdateStored update{.task = task.task, .node = "a", .base_versions = {{0, 0}}, .examples = 1, .steps = 1'000'000};
  const auto reduce = only<Reduce>(world.tell(update));
  CHECK(reduce.inputs[0].steps == 10);
  CHECK(reduce.inputs[0].weight == 10);
}

TEST_CASE("one node's claim does not end everybody's schedule where epochs count") {
  World world("");
  world.setup.spec = spec_with("[participation]\nstart_nodes = 3\n" + kNoEvaluation);
  world.setup.spec.training.steps = 0;
  world.machine = RunMachine(world.setup);
  const auto tasks = join_all(world, 3);
  std::uint64_t steps[] = {7, std::uint64_t{1} << 53, 8};
  for (std::size_t i = 0; i < 3; ++i)
    world.tell(UpdateStored{
        .task = tasks[i].task, .node = tasks[i].node, .base_versions = {{0, 0}}, .examples = 1, .steps = steps[i]});
  CHECK(all<AssignTask>(world.tell(Reduced{.exchange = 1}))[0].first_step == 8);
}
