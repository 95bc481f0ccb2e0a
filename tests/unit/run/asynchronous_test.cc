// Every node on its own clock.
#include "tests/unit/run/world.h"

using namespace skerry;
using namespace skerry::server;
using namespace skerry::server::test;

namespace {

const std::string kBufferOf2 =
    "[participation]\nmode = \"asynchronous\"\nbuffer = 2\nmaximum_staleness = 1\n[evaluation]\nevery = 0\n";

}  // namespace

TEST_CASE("a node gets its next task as soon as its update is accepted, and reads the written fragment anew") {
  World world(kBufferOf2);
  const auto first = only<AssignTask>(world.join("a"));
  const auto answer = world.deliver(first);
  CHECK(all<Accept>(answer).size() == 1);
  const auto second = only<AssignTask>(answer);
  CHECK(second.read.size() == 1);  // its Δ must not hold the first one's again
  CHECK(second.first_step == 10);
  CHECK(second.seed != first.seed);
}

TEST_CASE("a node whose update completes an exchange waits for the version that holds it") {
  World world("[participation]\nmode = \"asynchronous\"\nbuffer = 1\n[evaluation]\nevery = 0\n");
  CHECK(all<AssignTask>(world.deliver(only<AssignTask>(world.join("a")))).empty());
  const auto second = only<AssignTask>(world.tell(Reduced{.exchange = 1}));
  CHECK(second.read.front().version == 1);
  CHECK(only<Reduce>(world.deliver(second)).inputs.front().staleness == 0);
}

TEST_CASE("an exchange is committed with every buffer of updates, while others train on") {
  World world(kBufferOf2);
  const auto a = only<AssignTask>(world.join("a"));
  const auto b = only<AssignTask>(world.join("b"));
  const auto c = only<AssignTask>(world.join("c"));
  world.deliver(a);
  const auto reduce = only<Reduce>(world.deliver(b));
  CHECK(reduce.inputs.size() == 2);
  CHECK(only<Accept>(world.deliver(c)).exchange == 2);  // into the next one, while the first is reduced
  CHECK(only<Count>(world.tell(Reduced{.exchange = 1})).exchange == 1);
  CHECK(world.machine.versions()[0] == 1);
}

TEST_CASE("a stale update counts less, and not at all beyond the maximum") {
  World world(kBufferOf2);
  const auto slow = only<AssignTask>(world.join("slow"));
  const auto slower = only<AssignTask>(world.join("slower"));
  auto fast = only<AssignTask>(world.join("fast"));
  fast = only<AssignTask>(world.deliver(fast));
  world.deliver(fast);
  fast = only<AssignTask>(world.tell(Reduced{.exchange = 1}));
  world.deliver(slow);
  const auto reduce = only<Reduce>(world.deliver(fast));
  REQUIRE(reduce.inputs.size() == 2);
  CHECK(reduce.inputs[1].node == "slow");
  CHECK(reduce.inputs[1].staleness == 1);
  CHECK(reduce.inputs[1].weight == Approx(100 / std::sqrt(2.0)));
  world.tell(Reduced{.exchange = 2});
  const auto answer = only<Discard>(world.deliver(slower));
  CHECK(answer.reason == "the update is 2 exchanges old, 1 are allowed");
}

TEST_CASE("a task over its deadline is cancelled and its node gets another after a while") {
  World world("[participation]\nmode = \"asynchronous\"\ndeadline_s = 10\n[evaluation]\nevery = 0\n");
  const auto task = only<AssignTask>(world.join("a"));
  CHECK(task.deadline_ms == 10000);
  CHECK(only<CancelTask>(world.wait(10000)).task == task.task);
  CHECK(only<Discard>(world.deliver(task)).reason == "the task's deadline has passed");
  CHECK(only<AssignTask>(world.wait(1000)).task != task.task);
}

TEST_CASE("the run ends after its rounds and cancels work that can no longer count") {
  World world("[participation]\nmode = \"asynchronous\"\nbuffer = 1\n[stop]\nrounds = 1\n[evaluation]\nevery = 0\n");
  const auto a = only<AssignTask>(world.join("a"));
  const auto b = only<AssignTask>(world.join("b"));
  const auto last = world.deliver(a);
  CHECK(only<CancelTask>(last).task == b.task);
  CHECK(all<AssignTask>(last).empty());
  CHECK(only<Finish>(world.tell(Reduced{.exchange = 1})).outcome == "completed");
}

TEST_CASE("training does not wait for an evaluation") {
  World world("[participation]\nmode = \"asynchronous\"\nbuffer = 1\n");
  world.deliver(only<AssignTask>(world.join("a", 100, 10)));
  const auto tasks = all<AssignTask>(world.tell(Reduced{.exchange = 1}));
  REQUIRE(tasks.size() == 2);
  CHECK(tasks[0].kind == TaskKind::kTrain);
  CHECK(tasks[1].kind == TaskKind::kEvaluate);
  CHECK(all<Accept>(world.deliver(tasks[0])).size() == 1);
}

TEST_CASE("nodes that fail without end are left out, and when all are the run has failed") {
  World world("[participation]\nmode = \"asynchronous\"\n[evaluation]\nevery = 0\n");
  auto task = only<AssignTask>(world.join("a"));
  std::vector<Command> commands;
  for (int i = 0; i < 20 && !world.machine.finished(); ++i) {
    commands = world.tell(TaskFailed{task.task, "a", failed_precondition("the loss is not finite")});
    if (!world.machine.finished()) task = only<AssignTask>(world.wait(60000));
  }
  CHECK(only<Finish>(commands).outcome == "failed");
}

TEST_CASE("asynchronous fragments have exchanges of their own") {
  World world(kBufferOf2 + "[stop]\nrounds = 1\n", {"f0", "f1"});
  world.setup.spec.exchange.schedule = ExchangeSpec::Schedule::kStaggered;
  world.machine = RunMachine(world.setup);
  auto a = only<AssignTask>(world.join("a"));
  auto b = only<AssignTask>(world.join("b"));
  CHECK(a.write == std::vector<FragmentIndex>{0});
  a = only<AssignTask>(world.deliver(a));
  CHECK(a.write == std::vector<FragmentIndex>{1});
  auto answer = world.deliver(b);
  const auto first = only<Reduce>(answer);
  CHECK(first.fragments[0].fragment == 0);
  b = only<AssignTask>(answer);
  CHECK(b.write == std::vector<FragmentIndex>{1});
  world.deliver(a);
  const auto second = only<Reduce>(world.deliver(b));
  CHECK(second.fragments[0].fragment == 1);
  world.tell(Reduced{.exchange = second.exchange});
  CHECK(only<Finish>(world.tell(Reduced{.exchange = first.exchange})).outcome == "completed");
}
