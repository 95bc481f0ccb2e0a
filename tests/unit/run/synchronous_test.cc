// Rounds that all nodes share.
#include "tests/unit/run/world.h"

using namespace skerry;
using namespace skerry::server;
using namespace skerry::server::test;

TEST_CASE("a round waits for its quorum, reduces when all are in and releases the next version") {
  World world("[participation]\nquorum = 2\n[evaluation]\nevery = 0\n");
  CHECK(all<AssignTask>(world.join("a")).empty());
  CHECK(world.machine.view().status == "waiting");
  const auto tasks = all<AssignTask>(world.join("b"));
  REQUIRE(tasks.size() == 2);
  CHECK(tasks[0].node == "a");
  CHECK(tasks[0].exchange == 1);
  CHECK(tasks[0].steps == 10);
  CHECK(tasks[0].first_step == 0);
  REQUIRE(tasks[0].read.size() == 1);
  CHECK(tasks[0].read[0].version == 0);
  CHECK(only<Accept>(world.deliver(tasks[1])).exchange == 1);

  const auto reduce = only<Reduce>(world.deliver(tasks[0], 300));
  CHECK(reduce.exchange == 1);
  REQUIRE(reduce.inputs.size() == 2);
  CHECK(reduce.inputs[0].node == "a");  // by node, not by arrival
  CHECK(reduce.inputs[0].weight == 300);
  CHECK(reduce.inputs[1].node == "b");
  CHECK(world.machine.versions() == std::vector<std::uint64_t>{0});

  const auto next = world.tell(Reduced{.exchange = 1});
  const auto count = only<Count>(next);
  CHECK(count.total_weight == 400);
  CHECK(count.tasks == std::vector<std::string>{tasks[0].task, tasks[1].task});
  CHECK(count.fragments[0].new_version == 1);
  CHECK(world.machine.versions() == std::vector<std::uint64_t>{1});
  const auto second = all<AssignTask>(next);
  REQUIRE(second.size() == 2);
  CHECK(second[0].exchange == 2);
  CHECK(second[0].first_step == 10);
  REQUIRE(second[0].read.size() == 1);
  CHECK(second[0].read[0].version == 1);
  CHECK(second[0].read[0].previous == 0);
  CHECK(second[0].seed != tasks[0].seed);
}

TEST_CASE("after the planned rounds the run is completed and nothing more is asked") {
  World world("[stop]\nrounds = 2\n[evaluation]\nevery = 0\n");
  auto task = only<AssignTask>(world.join("a"));
  world.deliver(task);
  task = only<AssignTask>(world.tell(Reduced{.exchange = 1}));
  world.deliver(task);
  const auto last = world.tell(Reduced{.exchange = 2});
  CHECK(all<AssignTask>(last).empty());
  CHECK(only<Finish>(last).outcome == "completed");
  CHECK(world.machine.finished());
  CHECK(all<AssignTask>(world.join("b")).empty());
  CHECK(all<Finish>(world.tell(OperatorStop{})).empty());
  CHECK(world.machine.view().status == "completed");
}

TEST_CASE("the grace window begins with the quorum and ends the exchange without the others") {
  World world("[participation]\nquorum = 2\nstart_nodes = 3\ngrace_s = 5\n[evaluation]\nevery = 0\n");
  world.join("a");
  world.join("b");
  const auto tasks = all<AssignTask>(world.join("c"));
  REQUIRE(tasks.size() == 3);
  world.deliver(tasks[0]);
  CHECK(only<WakeAt>(world.deliver(tasks[1])).at == world.now + 5000);
  CHECK(all<Reduce>(world.wait(4999)).empty());
  const auto end = world.wait(1);
  CHECK(only<Reduce>(end).inputs.size() == 2);
  CHECK(only<CancelTask>(end).node == "c");
}

TEST_CASE("an update that arrives after the commit is discarded and its client is told why") {
  World world("[participation]\nquorum = 1\nstart_nodes = 2\ngrace_s = 0\n[evaluation]\nevery = 0\n");
  world.join("a");
  const auto tasks = all<AssignTask>(world.join("b"));
  world.deliver(tasks[0]);
  world.tell(Reduced{.exchange = 1});
  const auto answer = only<Discard>(world.deliver(tasks[1]));
  CHECK(answer.reason == "exchange 1 was completed without this update");
  CHECK(only<Discard>(world.deliver(tasks[1])).reason == answer.reason);
}

TEST_CASE("at the deadline an exchange with its quorum is committed, below it the deadline begins again") {
  World world("[participation]\nquorum = 2\ndeadline_s = 60\n[evaluation]\nevery = 0\n");
  world.join("a");
  const auto tasks = all<AssignTask>(world.join("b"));
  CHECK(tasks[0].deadline_ms == 60000);
  world.deliver(tasks[0]);
  const auto again = world.wait(60000);
  CHECK(all<Reduce>(again).empty());
  CHECK(only<AssignTask>(again).task == tasks[1].task);  // asked again, under the same id
  CHECK(only<AssignTask>(again).deadline_ms == 60000);

  const auto joined = all<AssignTask>(world.join("c"));
  REQUIRE(joined.size() == 1);
  world.deliver(joined[0]);
  CHECK(only<Reduce>(world.wait(60000)).inputs.size() == 2);
}

TEST_CASE("a node that joins in the middle works for the open exchange while time remains") {
  World world("[participation]\ndeadline_s = 100\n[evaluation]\nevery = 0\n");
  const auto first = only<AssignTask>(world.join("a"));
  world.wait(40000);
  const auto middle = only<AssignTask>(world.join("b"));
  CHECK(middle.exchange == 1);
  CHECK(middle.deadline_ms == 60000);
  world.deliver(first);  // the quorum is there from now on
  world.wait(20000);
  CHECK(all<AssignTask>(world.join("c")).empty());
  CHECK(only<Reduce>(world.deliver(middle)).inputs.size() == 2);
}

TEST_CASE("a node that went away is waited for, and its task is given again under the same id when it returns") {
  World world("[participation]\nreconnect_s = 30\n[evaluation]\nevery = 0\n");
  const auto a = only<AssignTask>(world.join("a"));
  const auto b = only<AssignTask>(world.join("b"));
  world.deliver(a);
  world.tell(NodeLeft{.node = "b"});
  CHECK(all<Reduce>(world.wait(29000)).empty());
  const auto again = only<AssignTask>(world.join("b"));
  CHECK(again.task == b.task);
  CHECK(again.seed == b.seed);
  REQUIRE(again.read.size() == 1);
  CHECK_FALSE(again.read[0].previous.has_value());
  CHECK(only<Reduce>(world.deliver(b)).inputs.size() == 2);
}

TEST_CASE("a node that stays away is no longer waited for") {
  World world("[participation]\nreconnect_s = 30\n[evaluation]\nevery = 0\n");
  const auto a = only<AssignTask>(world.join("a"));
  world.join("b");
  world.deliver(a);
  world.tell(NodeLeft{.node = "b"});
  CHECK(only<Reduce>(world.wait(30000)).inputs.size() == 1);
}

TEST_CASE("a holder that leaves for good frees the exchange at once") {
  World world("[evaluation]\nevery = 0\n");
  const auto a = only<AssignTask>(world.join("a"));
  world.join("b");
  world.deliver(a);
  CHECK(only<Reduce>(world.tell(NodeLeft{.node = "b", .for_good = true})).inputs.size() == 1);
}

TEST_CASE("a cohort is drawn from the ready nodes, anew for each exchange, and a lost member is replaced") {
  World world("[participation]\ncohort_size = 3\nquorum = 3\nstart_nodes = 10\n[evaluation]\nevery = 0\n");
  std::vector<AssignTask> tasks;
  for (int i = 0; i < 10; ++i) tasks = all<AssignTask>(world.join("n" + std::to_string(i)));
  REQUIRE(tasks.size() == 3);
  const auto replaced = only<AssignTask>(world.tell(NodeLeft{.node = tasks[0].node, .for_good = true}));
  CHECK(replaced.node != tasks[0].node);
  for (const auto& task : {replaced, tasks[1], tasks[2]}) world.deliver(task);
  const auto second = all<AssignTask>(world.tell(Reduced{.exchange = 1}));
  REQUIRE(second.size() == 3);
  const bool same =
      second[0].node == tasks[0].node && second[1].node == tasks[1].node && second[2].node == tasks[2].node;
  CHECK_FALSE(same);
}

TEST_CASE("a paused node finishes its task and gets no other until it resumes") {
  World world("[evaluation]\nevery = 0\n");
  const auto task = only<AssignTask>(world.join("a"));
  world.tell(NodePaused{"a", true});
  world.deliver(task);
  CHECK(all<AssignTask>(world.tell(Reduced{.exchange = 1})).empty());
  CHECK(only<AssignTask>(world.tell(NodePaused{"a", false})).exchange == 2);
}

TEST_CASE("a holder with too few examples gets no task and is told apart in the view") {
  World strict("");
  strict.setup.spec.data.minimum_examples = 50;
  strict.machine = RunMachine(strict.setup);
  CHECK(all<AssignTask>(strict.join("small", 49)).empty());
  CHECK(strict.machine.view().nodes.front().detail == "it has 49 examples, data.minimum_examples is 50");
  CHECK(all<AssignTask>(strict.join("small", 50)).size() == 1);
}

TEST_CASE("a task that fails is tried again, then left out; when all have failed they are asked again later") {
  World world("[evaluation]\nevery = 0\n");
  auto task = only<AssignTask>(world.join("a"));
  for (int attempt = 0; attempt < 2; ++attempt)
    task = only<AssignTask>(world.tell(TaskFailed{task.task, "a", unavailable("no memory")}));
  CHECK(all<AssignTask>(world.tell(TaskFailed{task.task, "a", unavailable("no memory")})).empty());
  task = only<AssignTask>(world.wait(5000));
  CHECK(only<Accept>(world.deliver(task)).exchange == 1);
}

TEST_CASE("an exchange whose nodes fail again and again ends the run with their reason") {
  World world("[participation]\ndeadline_s = 0\n[evaluation]\nevery = 0\n");
  auto task = only<AssignTask>(world.join("a"));
  std::vector<Command> commands;
  for (int i = 0; i < 20 && !world.machine.finished(); ++i) {
    commands = world.tell(TaskFailed{task.task, "a", failed_precondition("the loss is not finite")});
    if (all<Finish>(commands).empty()) task = only<AssignTask>(world.wait(400000));
  }
  CHECK(only<Finish>(commands).outcome == "failed");
  CHECK(only<Finish>(commands).reason.find("the loss is not finite") != std::string::npos);
}

TEST_CASE("a reduction that failed for a passing reason is asked again, another reason ends the run") {
  World world("[evaluation]\nevery = 0\n");
  const auto task = only<AssignTask>(world.join("a"));
  world.deliver(task);
  CHECK(all<Reduce>(world.tell(Reduced{1, unavailable("the disk is full")})).empty());
  CHECK(only<Reduce>(world.wait(1000)).inputs.size() == 1);
  const auto end = world.tell(Reduced{1, invalid_argument("the outer gradient is not finite")});
  CHECK(only<Finish>(end).outcome == "failed");
  CHECK(only<Discard>(end).task == task.task);
  CHECK(world.machine.versions() == std::vector<std::uint64_t>{0});
}

TEST_CASE("a paused run gives no task but accepts and commits what is under way") {
  World world("[evaluation]\nevery = 0\n");
  const auto task = only<AssignTask>(world.join("a"));
  world.tell(OperatorPause{"maintenance"});
  CHECK(world.machine.view().status == "paused");
  CHECK(all<AssignTask>(world.join("b")).empty());
  CHECK(all<Reduce>(world.deliver(task)).size() == 1);
  CHECK(all<AssignTask>(world.tell(Reduced{.exchange = 1})).empty());
  CHECK(all<AssignTask>(world.tell(OperatorResume{})).size() == 2);
}

TEST_CASE("a stopped run discards what was accepted, unless it is being reduced") {
  World world("[participation]\nquorum = 2\n[evaluation]\nevery = 0\n");
  world.join("a");
  const auto tasks = all<AssignTask>(world.join("b"));
  world.deliver(tasks[0]);
  const auto stopped = world.tell(OperatorStop{"enough"});
  CHECK(only<Discard>(stopped).task == tasks[0].task);
  CHECK(only<CancelTask>(stopped).task == tasks[1].task);
  CHECK(only<Finish>(stopped).outcome == "stopped");
  CHECK(only<Discard>(world.deliver(tasks[1])).reason == "the run has ended: enough");

  World reducing("[evaluation]\nevery = 0\n");
  const auto task = only<AssignTask>(reducing.join("a"));
  reducing.deliver(task);
  CHECK(all<Finish>(reducing.tell(OperatorStop{})).empty());
  const auto end = reducing.tell(Reduced{.exchange = 1});
  CHECK(only<Count>(end).tasks.size() == 1);
  CHECK(only<Finish>(end).outcome == "stopped");
}

TEST_CASE("holders evaluate the new version first and then train the next round") {
  World world("[evaluation]\nevery = 2\n[stop]\nrounds = 3\n");
  auto task = only<AssignTask>(world.join("a", 100, 20));
  world.deliver(task);
  task = only<AssignTask>(world.tell(Reduced{.exchange = 1}));  // version 1 is not measured
  world.deliver(task);
  const auto both = all<AssignTask>(world.tell(Reduced{.exchange = 2}));
  REQUIRE(both.size() == 2);
  CHECK(both[0].kind == TaskKind::kEvaluate);
  CHECK(both[0].split == "holdout");
  CHECK(both[0].read.size() == 1);
  CHECK(both[1].kind == TaskKind::kTrain);
  const auto measured = world.report(both[0], 0.5);
  CHECK(only<CountReport>(measured).versions.at(0) == 2);
  CHECK(only<EvaluationDone>(measured).metrics.at("loss") == 0.5);
  world.deliver(both[1]);
  const auto last = only<AssignTask>(world.tell(Reduced{.exchange = 3}));  // the last version always is
  CHECK(last.kind == TaskKind::kEvaluate);
  const auto end = world.report(last, 0.25);
  CHECK(only<EvaluationDone>(end).versions.at(0) == 3);
  CHECK(only<Finish>(end).outcome == "completed");
}

TEST_CASE("evaluations merge by examples and need their minimum of reports") {
  World world("[evaluation]\nminimum = 2\ndeadline_s = 60\n[stop]\nrounds = 1\n[participation]\nquorum = 2\n");
  world.join("a", 100, 30);
  const auto tasks = all<AssignTask>(world.join("b", 100, 10));
  world.deliver(tasks[0]);
  world.deliver(tasks[1]);
  const auto evaluate = all<AssignTask>(world.tell(Reduced{.exchange = 1}));
  REQUIRE(evaluate.size() == 2);
  world.report(evaluate[0], 1.0, 30);
  SECTION("both report") {
    const auto done = only<EvaluationDone>(world.report(evaluate[1], 5.0, 10));
    CHECK(done.metrics.at("loss") == 2.0);
    CHECK(done.reports.size() == 2);
  }
  SECTION("one does not until the deadline") {
    const auto end = world.wait(60000);
    CHECK(only<EvaluationDone>(end).metrics.empty());
    CHECK(only<EvaluationDone>(end).reports.size() == 1);
    CHECK(only<Finish>(end).outcome == "completed");
    CHECK(only<Discard>(world.report(evaluate[1], 5.0)).reason == "the evaluation was closed without this report");
  }
}

TEST_CASE("a metric that reaches its target ends the run early") {
  World world("[stop]\nrounds = 100\nmetric = \"loss\"\ncomparison = \"at_most\"\nvalue = 0.3\n");
  const auto task = only<AssignTask>(world.join("a", 100, 10));
  world.deliver(task);
  const auto both = all<AssignTask>(world.tell(Reduced{.exchange = 1}));
  const auto end = world.report(both[0], 0.2);
  CHECK(only<Finish>(end).outcome == "completed");
  CHECK(only<CancelTask>(end).task == both[1].task);
}
