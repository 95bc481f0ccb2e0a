// Fragments that are exchanged one after another.
#include "tests/unit/run/world.h"

using namespace skerry;
using namespace skerry::server;
using namespace skerry::server::test;

namespace {

World staggered() {
  World world("[evaluation]\nevery = 0\n[stop]\nrounds = 2\n", {"f0", "f1", "f2"});
  world.setup.spec.exchange.schedule = ExchangeSpec::Schedule::kStaggered;
  world.machine = RunMachine(world.setup);
  return world;
}

std::vector<std::uint64_t> read_by(const AssignTask& task) {
  std::vector<std::uint64_t> fragments;
  for (const auto& read : task.read) fragments.push_back(read.fragment);
  return fragments;
}

}  // namespace

TEST_CASE("exchange e writes fragment e mod P, and a node reads only what changed since it last read") {
  World world = staggered();
  auto task = only<AssignTask>(world.join("a"));
  CHECK(read_by(task) == std::vector<std::uint64_t>{0, 1, 2});  // a joiner reads all
  std::vector<std::uint64_t> written;
  for (std::uint64_t exchange = 1; exchange <= 6; ++exchange) {
    REQUIRE(task.write.size() == 1);
    written.push_back(task.write[0]);
    CHECK(task.exchange == exchange);
    if (exchange > 1) CHECK(read_by(task) == std::vector<std::uint64_t>{(exchange - 2) % 3});
    const auto reduce = only<Reduce>(world.deliver(task));
    REQUIRE(reduce.fragments.size() == 1);
    CHECK(reduce.fragments[0].base_version == (exchange - 1) / 3);
    const auto next = world.tell(Reduced{.exchange = exchange});
    if (exchange < 6)
      task = only<AssignTask>(next);
    else
      CHECK(only<Finish>(next).outcome == "completed");
  }
  CHECK(written == std::vector<std::uint64_t>{0, 1, 2, 0, 1, 2});
  CHECK(world.machine.versions() == std::vector<std::uint64_t>{2, 2, 2});
}

TEST_CASE("a node that comes in later reads every fragment at its own version") {
  World world = staggered();
  const auto task = only<AssignTask>(world.join("a"));
  world.deliver(task);
  world.tell(Reduced{.exchange = 1});
  const auto late = only<AssignTask>(world.join("b"));
  CHECK(late.write == std::vector<FragmentIndex>{1});
  REQUIRE(late.read.size() == 3);
  CHECK(late.read[0].version == 1);
  CHECK(late.read[1].version == 0);
}

TEST_CASE("an update that holds other fragments or bases than its task is discarded") {
  World world = staggered();
  const auto task = only<AssignTask>(world.join("a"));
  UpdateStored update{.task = task.task, .node = "a", .base_versions = {{1, 0}}, .examples = 5, .steps = 10};
  SECTION("another fragment") { CHECK(only<Discard>(world.tell(update)).reason == "the update lacks fragment f0"); }
  SECTION("one fragment too many") {
    update.base_versions = {{0, 0}, {1, 0}};
    CHECK(only<Discard>(world.tell(update)).reason == "the update holds fragments that its task does not write");
  }
  SECTION("another base") {
    update.base_versions = {{0, 7}};
    CHECK(only<Discard>(world.tell(update)).reason ==
          "fragment f0 was measured against version 7, the task builds on version 0");
  }
}
