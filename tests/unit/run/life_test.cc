// An update's life, and answers to what nobody should have sent.
#include <cmath>
#include <limits>

#include "tests/unit/run/world.h"

using namespace skerry;
using namespace skerry::server;
using namespace skerry::server::test;

namespace {

UpdateStored update_of(const AssignTask& task) {
  return {.task = task.task, .node = task.node, .base_versions = {{0, 0}}, .examples = 10, .steps = 10, .norm = 1};
}

}  // namespace

TEST_CASE("an accepted update that is offered again is accepted again and counted once") {
  World world("[participation]\nquorum = 2\n[evaluation]\nevery = 0\n");
  world.join("a");
  const auto tasks = all<AssignTask>(world.join("b"));
  world.deliver(tasks[0]);
  CHECK(only<Accept>(world.deliver(tasks[0])).exchange == 1);
  CHECK(only<Reduce>(world.deliver(tasks[1])).inputs.size() == 2);
  CHECK(only<Accept>(world.deliver(tasks[1])).exchange == 1);
  world.tell(Reduced{.exchange = 1});
  CHECK(only<CountReport>(world.deliver(tasks[0])).versions.at(0) == 1);
  world.restart();
  CHECK(only<AskStore>(world.deliver(tasks[0])).task == tasks[0].task);
  CHECK(all<Count>(world.tell(Reduced{.exchange = 1})).empty());
}

TEST_CASE("another node's task is refused without harm to its owner") {
  World world("[evaluation]\nevery = 0\n");
  const auto task = only<AssignTask>(world.join("a"));
  auto stolen = update_of(task);
  stolen.node = "thief";
  CHECK(only<Refuse>(world.tell(stolen)).reason == "the task belongs to another node");
  CHECK(world.tell(TaskFailed{task.task, "thief", unavailable("x")}).empty());
  CHECK(only<Accept>(world.deliver(task)).task == task.task);
}

TEST_CASE("a task that this run never gave out leaves no record: it may be another run's, or may still come") {
  World world("[evaluation]\nevery = 0\n");
  world.join("a");
  for (const char* foreign : {"r.old.1", "", "r.01", "other.1"})
    CHECK_FALSE(only<AskStore>(world.tell(UpdateStored{.task = foreign, .node = "a"})).record);
  CHECK(all<Refuse>(world.tell(UpdateStored{.task = "r.99", .node = "a"})).size() == 1);
}

TEST_CASE("a task is awaited until its update is accepted or its end decided") {
  World world("[participation]\nquorum = 2\n[evaluation]\nevery = 0\n");
  world.join("a");
  const auto tasks = all<AssignTask>(world.join("b"));
  REQUIRE(tasks.size() == 2);
  CHECK(world.machine.awaits(tasks[0].task));
  world.deliver(tasks[0]);
  CHECK_FALSE(world.machine.awaits(tasks[0].task));
  world.tell(UpdateInvalid{tasks[1].task, tasks[1].node, "not finite"});
  CHECK_FALSE(world.machine.awaits(tasks[1].task));
  CHECK_FALSE(world.machine.awaits("r.99"));
  CHECK_FALSE(world.machine.awaits("other.1"));
}

TEST_CASE("counts beyond reason are discarded, and claimed steps move nobody's schedule beyond what was asked") {
  const std::string spec = "[participation]\nmode = \"asynchronous\"\nbuffer = 1\n[evaluation]\nevery = 0\n";
  World world(spec);
  auto update = update_of(only<AssignTask>(world.join("a")));
  update.steps = std::uint64_t{1} << 60;
  CHECK(only<Discard>(world.tell(update)).reason.find("no task has more than 2^53") != std::string::npos);

  World other(spec);
  update = update_of(only<AssignTask>(other.join("a")));
  update.steps = 1'000'000;
  CHECK(all<Accept>(other.tell(update)).size() == 1);
  other.tell(Reduced{.exchange = 1});
  CHECK(only<AssignTask>(other.join("b")).first_step == 10);
}

TEST_CASE("an update that weighs nothing, is too large or not finite is discarded with the numbers") {
  World world("[evaluation]\nevery = 0\n[limits]\nmaximum_update_norm = 5\n");
  const auto task = only<AssignTask>(world.join("a"));
  auto update = update_of(task);
  SECTION("no examples") {
    update.examples = 0;
    CHECK(only<Discard>(world.tell(update)).reason.find("weighs nothing: it reports 0 examples") != std::string::npos);
  }
  SECTION("large") {
    update.norm = 6;
    CHECK(only<Discard>(world.tell(update)).reason.find("limits.maximum_update_norm allows 5") != std::string::npos);
  }
  SECTION("not finite") {
    update.norm = std::numeric_limits<double>::infinity();
    CHECK(all<Discard>(world.tell(update)).size() == 1);
  }
  SECTION("found by the shell") {
    CHECK(only<Discard>(world.tell(UpdateInvalid{task.task, "a", "bad signature"})).reason == "bad signature");
  }
  CHECK(world.machine.view().nodes.front().discarded == 1);
}

TEST_CASE("an update of absurd length is discarded whatever the run allows, and one of a great length is not") {
  World world("[evaluation]\nevery = 0\n");
  auto update = update_of(only<AssignTask>(world.join("a")));
  update.norm = 1e38;
  const auto answer = world.tell(update);
  CHECK(only<Discard>(answer).reason.find("above 1e15") != std::string::npos);
  World other("[evaluation]\nevery = 0\n");
  update = update_of(only<AssignTask>(other.join("a")));
  update.norm = 1e14;
  CHECK(all<Discard>(other.tell(update)).empty());
}

TEST_CASE("metrics that the spec does not name or that are not finite do not reach anybody") {
  World world("[evaluation]\nevery = 0\n");
  auto update = update_of(only<AssignTask>(world.join("a")));
  update.metrics = {{"loss", 2.0}, {"salary", 3.0}, {"accuracy", std::nan("")}};
  world.tell(update);
  CHECK(only<Count>(world.tell(Reduced{.exchange = 1})).metrics == std::map<std::string, double>{{"loss", 2.0}});
}

TEST_CASE("events out of place change nothing") {
  World world("[evaluation]\nevery = 0\n");
  CHECK(world.tell(Reduced{.exchange = 5}).empty());
  CHECK(world.tell(NodeLeft{.node = "nobody"}).empty());
  CHECK(world.tell(NodePaused{"nobody", true}).empty());
  CHECK(world.tell(TaskFailed{"r.7", "nobody", unavailable("x")}).empty());
  CHECK(world.tell(OperatorResume{}).empty());
  CHECK(world.tell(Tick{}).empty());
  CHECK_FALSE(only<AskStore>(world.tell(EvaluationReported{.task = "x.1", .node = "a"})).record);
}

TEST_CASE("a report of more examples than anybody can have is discarded") {
  World world("");
  world.deliver(only<AssignTask>(world.join("a", 100, 10)));
  const auto tasks = all<AssignTask>(world.tell(Reduced{.exchange = 1}));
  const auto answer = only<Discard>(world.report(tasks[0], 0.5, ~std::uint64_t{0}));
  CHECK(answer.reason == "the report measured 18446744073709551615 examples; nobody has more than 2^53 of them");
}
