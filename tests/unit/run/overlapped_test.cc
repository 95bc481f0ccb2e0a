// Nodes that train on while their updates travel.
#include <algorithm>

#include "tests/unit/run/world.h"

using namespace skerry;
using namespace skerry::server;
using namespace skerry::server::test;

namespace {

constexpr const char* kShort = "[evaluation]\nevery = 0\n[stop]\nrounds = 3\n";

/// A run of tasks of 10 steps. `exchange` and `participation` are lines of these sections.
World overlapped(const std::string& exchange, const std::string& participation = "",
                 std::vector<std::string> fragments = {"all"}) {
  World world("[exchange]\n" + exchange + "[participation]\n" + participation + kShort, fragments);
  if (fragments.size() > 1) world.setup.spec.exchange.schedule = ExchangeSpec::Schedule::kStaggered;
  world.machine = RunMachine(world.setup);
  return world;
}

/// What a task merges, as "exchange@step rule", first to last.
std::string merges(const AssignTask& task) {
  std::string out;
  for (const auto& merge : task.merge)
    out += (out.empty() ? "" : ", ") + std::to_string(merge.exchange) + "@" + std::to_string(merge.at_step) + " " +
           merge.rule;
  return out;
}

/// The task of this exchange.
AssignTask of(const std::vector<Command>& commands, std::uint64_t exchange, const std::string& node = "a") {
  for (const auto& task : all<AssignTask>(commands))
    if (task.exchange == exchange && task.node == node && task.kind == TaskKind::kTrain) return task;
  FAIL("no task of exchange " << exchange);
  return {};
}

/// Deliveries as "node exchange:version".
std::vector<std::string> told(const std::vector<Command>& commands) {
  std::vector<std::string> out;
  for (const auto& deliver : all<Deliver>(commands))
    out.push_back(deliver.node + " " + std::to_string(deliver.exchange) + ":" +
                  std::to_string(deliver.versions.front().version));
  return out;
}

using Texts = std::vector<std::string>;

std::vector<Command> offer(World& world, const AssignTask& task, std::uint64_t base) {
  UpdateStored update{.task = task.task, .node = task.node, .examples = 100, .steps = task.steps, .norm = 1};
  for (const auto fragment : task.write) update.base_versions[fragment] = base;
  return world.tell(update);
}

}  // namespace

TEST_CASE("a node has the next task before it is done with this one, and merges in it what came of this one") {
  World world = overlapped("overlap = 4\n");
  auto commands = world.join("a");
  REQUIRE(all<AssignTask>(commands).size() == 2);
  const auto first = of(commands, 1);
  const auto second = of(commands, 2);
  CHECK(first.read.size() == 1);
  CHECK(first.after.empty());
  CHECK(merges(first).empty());
  CHECK(second.read.empty());
  CHECK(second.after == first.task);
  CHECK(merges(second) == "1@4 lerp");
  CHECK(second.merge[0].alpha == 0.5);
  CHECK(second.merge[0].block);
  CHECK(first.first_step == 0);
  CHECK(second.first_step == 10);
  CHECK(second.round == 2);

  commands = offer(world, first, 0);
  CHECK(only<Reduce>(commands).fragments[0].base_version == 0);
  CHECK(told(commands).empty());
  commands = world.tell(Reduced{.exchange = 1});
  CHECK(told(commands) == Texts{"a 1:1"});
  CHECK(world.machine.needed_versions()[0] == std::vector<std::uint64_t>{1});  // until it is merged
  const auto third = only<AssignTask>(commands);
  CHECK(third.exchange == 3);
  CHECK(third.after == second.task);
  CHECK(merges(third) == "2@4 lerp");

  CHECK(only<Reduce>(offer(world, second, 1)).fragments[0].base_version == 1);
  commands = world.tell(Reduced{.exchange = 2});
  CHECK(told(commands) == Texts{"a 2:2"});
  CHECK(all<AssignTask>(commands).empty());  // the third round is the last
  offer(world, third, 2);
  commands = world.tell(Reduced{.exchange = 3});
  CHECK(told(commands).empty());
  CHECK(only<Finish>(commands).outcome == "completed");
}

TEST_CASE("an overlap of a whole round merges at the beginning of the task after the next") {
  World world = overlapped("overlap = 10\nmerge = \"replace\"\n");
  auto commands = world.join("a");
  const auto second = of(commands, 2);
  CHECK(merges(second).empty());
  offer(world, of(commands, 1), 0);
  commands = world.tell(Reduced{.exchange = 1});
  const auto third = only<AssignTask>(commands);
  CHECK(merges(third) == "1@0 replace");
  CHECK(told(commands) == Texts{"a 1:1"});  // said after the task that plans it
  CHECK(all<Reduce>(offer(world, second, 0)).size() == 1);  // sent before the first version was merged
}

TEST_CASE("with fragments in turn each task merges the fragment that was sent with the task before") {
  World world = overlapped("overlap = 2\n", "", {"f0", "f1"});
  auto commands = world.join("a");
  auto task = of(commands, 1);
  auto next = of(commands, 2);
  for (std::uint64_t exchange = 1; exchange <= 5; ++exchange) {
    CHECK(task.write == std::vector<FragmentIndex>{static_cast<FragmentIndex>((exchange - 1) % 2)});
    REQUIRE(next.merge.size() == 1);
    CHECK(next.merge[0].fragment == (exchange - 1) % 2);
    CHECK(next.merge[0].exchange == exchange);
    offer(world, task, (exchange - 1) / 2);
    commands = world.tell(Reduced{.exchange = exchange});
    CHECK(told(commands) == Texts{"a " + std::to_string(exchange) + ":" + std::to_string((exchange + 1) / 2)});
    task = next;
    if (exchange < 5) next = only<AssignTask>(commands);
  }
}

TEST_CASE("the older of two open exchanges is committed first, whichever is complete first") {
  World world = overlapped("overlap = 10\nmerge = \"eager\"\n", "quorum = 2\n");
  const auto waiting = world.join("a");
  CHECK(all<AssignTask>(waiting).empty());
  auto commands = world.join("b");
  const auto a1 = of(commands, 1, "a");
  const auto b1 = of(commands, 1, "b");
  const auto a2 = of(commands, 2, "a");
  const auto b2 = of(commands, 2, "b");
  offer(world, a1, 0);
  offer(world, a2, 0);
  CHECK(all<Reduce>(offer(world, b2, 0)).empty());
  const auto view = world.machine.view();
  REQUIRE(view.exchanges.size() == 2);
  CHECK(view.exchanges[0].state == "collecting");
  CHECK(view.exchanges[0].outstanding == 1);
  CHECK(view.exchanges[1].state == "in line");
  CHECK(view.exchanges[1].accepted == 2);
  CHECK(view.fragments[0].exchange == 1);
  CHECK(only<Reduce>(offer(world, b1, 0)).exchange == 1);
  CHECK(only<Reduce>(world.tell(Reduced{.exchange = 1})).exchange == 2);
}

TEST_CASE("no more than two exchanges are open, however fast a node is") {
  World world = overlapped("overlap = 4\non_late = \"on_arrival\"\n", "quorum = 2\n");
  world.join("a");
  auto commands = world.join("b");
  offer(world, of(commands, 1), 0);
  CHECK(all<AssignTask>(offer(world, of(commands, 2), 0)).empty());
}

TEST_CASE("a late update is discarded, and its node is told what came of the exchange all the same") {
  World world = overlapped("overlap = 4\n", "quorum = 1\ngrace_s = 1\n");
  auto commands = world.join("a");
  const auto a1 = of(commands, 1);
  commands = world.join("b");
  const auto b1 = of(commands, 1, "b");
  const auto b2 = of(commands, 2, "b");
  CHECK(merges(b2) == "1@4 lerp");
  offer(world, a1, 0);
  commands = world.wait(1000);
  CHECK(only<CancelTask>(commands).task == b1.task);
  commands = world.tell(Reduced{.exchange = 1});
  CHECK(told(commands) == Texts{"a 1:1", "b 1:1"});
  CHECK(only<Discard>(offer(world, b1, 0)).reason == "exchange 1 was completed without this update");
  CHECK(of(commands, 3, "b").after == b2.task);
  CHECK(only<Accept>(offer(world, b2, 1)).exchange == 2);
}

TEST_CASE("a void exchange delivers the unchanged version") {
  World world = overlapped("overlap = 4\n", "quorum = 1\nminimum_completion = 1\ndeadline_s = 10\n");
  auto commands = world.join("a");
  const auto a2 = of(commands, 2);
  commands = world.wait(10000);
  CHECK(only<Void>(commands).exchange == 1);
  CHECK(told(commands) == Texts{"a 1:0"});
  CHECK(of(commands, 3).after == a2.task);
  CHECK(only<Reduce>(offer(world, a2, 0)).fragments[0].base_version == 0);
}

TEST_CASE("each exchange has the whole deadline, counted from when no older one is open") {
  World world = overlapped("overlap = 4\n", "quorum = 1\ndeadline_s = 10\nminimum_completion = 1\n");
  auto commands = world.join("a");
  CHECK(of(commands, 1).deadline_ms == 10000);
  CHECK(of(commands, 2).deadline_ms == 0);
  world.wait(9000);
  offer(world, of(commands, 1), 0);
  world.tell(Reduced{.exchange = 1});
  CHECK(all<Void>(world.wait(9000)).empty());
  CHECK(only<Void>(world.wait(1000)).exchange == 2);
}

TEST_CASE("a joiner reads everything and takes what was under way without it as it is") {
  World world = overlapped("overlap = 4\n", "quorum = 1\ngrace_s = 5\n");
  auto commands = world.join("a");
  offer(world, of(commands, 1), 0);  // complete but for the reduction
  commands = world.join("b");
  const auto task = only<AssignTask>(commands);
  CHECK(task.exchange == 2);
  CHECK(task.after.empty());
  CHECK(task.read.size() == 1);
  CHECK(merges(task) == "1@4 replace");
  commands = world.tell(Reduced{.exchange = 1});
  CHECK(told(commands) == Texts{"a 1:1", "b 1:1"});
  CHECK(merges(of(commands, 3, "b")) == "2@4 lerp");
}

TEST_CASE("what was under way when a node joined is merged one task later where the overlap is a whole round") {
  World world = overlapped("overlap = 10\nmerge = \"eager\"\n", "quorum = 1\ngrace_s = 5\n");
  auto commands = world.join("a");
  offer(world, of(commands, 1), 0);
  CHECK(merges(only<AssignTask>(world.join("b"))).empty());
  commands = world.tell(Reduced{.exchange = 1});
  CHECK(merges(of(commands, 3, "b")) == "1@0 replace");
  CHECK(merges(of(commands, 3, "a")) == "1@0 eager");
}

TEST_CASE("a node whose session broke gets the same tasks again and is told again what is over") {
  World world = overlapped("overlap = 4\n");
  auto commands = world.join("a");
  const auto second = of(commands, 2);
  offer(world, of(commands, 1), 0);
  commands = world.tell(Reduced{.exchange = 1});
  const auto third = of(commands, 3);
  world.tell(NodeLeft{.node = "a"});
  const auto check_again = [&](const std::vector<Command>& again) {
    REQUIRE(all<AssignTask>(again).size() == 2);
    CHECK(of(again, 2).task == second.task);
    CHECK(of(again, 2).after == second.after);
    CHECK(of(again, 2).read.empty());
    CHECK(merges(of(again, 2)) == merges(second));
    CHECK(of(again, 3).task == third.task);
    CHECK(told(again) == Texts{"a 1:1"});
  };
  check_again(world.join("a"));
  world.restart();
  check_again(world.join("a"));
  offer(world, second, 1);
  CHECK(told(world.tell(Reduced{.exchange = 2})) == Texts{"a 2:2"});
}

TEST_CASE("a node that is not where its task begins gets it anew, as a joiner does") {
  World world = overlapped("overlap = 4\n", "quorum = 1\n");
  auto commands = world.join("a");
  const auto second = of(commands, 2);
  offer(world, of(commands, 1), 0);
  commands = world.tell(TaskFailed{second.task, "a", not_found("the trainer began anew")});
  const auto again = only<AssignTask>(commands);
  CHECK(again.exchange == 2);
  CHECK(again.read.size() == 1);
  CHECK(again.after.empty());
  CHECK(merges(again) == "1@4 replace");
  CHECK(only<Discard>(offer(world, second, 0)).reason.find("was not where it begins") != std::string::npos);
  CHECK(told(world.tell(Reduced{.exchange = 1})) == Texts{"a 1:1"});
}

TEST_CASE("when a task fails the node's next one is given again after it") {
  World world = overlapped("overlap = 4\n", "quorum = 1\n");
  auto commands = world.join("a");
  const auto first = of(commands, 1);
  const auto second = of(commands, 2);
  commands = world.tell(TaskFailed{first.task, "a", {Code::kUnavailable, "the trainer was killed", true}});
  CHECK(only<CancelTask>(commands).task == second.task);
  const auto again = all<AssignTask>(commands);
  REQUIRE(again.size() == 2);
  CHECK(again[0].exchange == 1);
  CHECK(again[0].after.empty());
  CHECK(again[1].exchange == 2);
  CHECK(again[1].after == again[0].task);
}

TEST_CASE("an update that cannot count does not take the node out of its line") {
  World world = overlapped("overlap = 4\n", "quorum = 1\n");
  world.join("b");
  auto commands = world.join("a");
  const auto second = of(commands, 2);
  commands = world.tell(UpdateInvalid{of(commands, 1).task, "a", "its values are not finite"});
  CHECK(all<Discard>(commands).size() == 1);
  CHECK(all<CancelTask>(commands).empty());
  CHECK(all<AssignTask>(commands).empty());
  CHECK(world.machine.awaits(second.task));
}

TEST_CASE("an exchange that nobody is left for is asked for again, before what comes after it") {
  World world = overlapped("overlap = 4\n", "quorum = 1\ndeadline_s = 0\n");
  auto commands = world.join("a");
  const auto second = of(commands, 2);
  world.tell(UpdateInvalid{of(commands, 1).task, "a", "its values are not finite"});
  commands = world.wait(5000);
  CHECK(only<CancelTask>(commands).task == second.task);
  const auto again = all<AssignTask>(commands);
  REQUIRE(again.size() == 2);
  CHECK(again[0].exchange == 1);
  CHECK(again[0].read.size() == 1);
  CHECK(again[1].exchange == 2);
  CHECK(again[1].after == again[0].task);
  offer(world, again[0], 0);
  CHECK(told(world.tell(Reduced{.exchange = 1})) == Texts{"a 1:1"});
}

TEST_CASE("one of four nodes is killed and replaced every few rounds, and no round waits for longer than reconnect_s") {
  World world("[exchange]\noverlap = 4\n[participation]\nquorum = 2\nreconnect_s = 5\ndeadline_s = 0\n"
              "[evaluation]\nevery = 0\n[stop]\nrounds = 12\n");
  std::map<std::string, std::vector<AssignTask>> work;  // of the nodes that live
  std::uint64_t committed = 0;
  const auto see = [&](const std::vector<Command>& commands) {
    for (const auto& task : all<AssignTask>(commands))
      if (work.count(task.node) != 0) work[task.node].push_back(task);
    for (const auto& cancel : all<CancelTask>(commands))
      for (auto& [node, tasks] : work)
        tasks.erase(std::remove_if(tasks.begin(), tasks.end(), [&](const auto& t) { return t.task == cancel.task; }),
                    tasks.end());
  };
  for (const char* name : {"a", "b", "c", "d"}) {
    work[name];
    see(world.join(name));
  }
  int joined = 0;
  while (!world.machine.finished() && joined < 20) {
    if (committed % 3 == 2) {
      const std::string gone = work.begin()->first;
      work.erase(gone);
      see(world.tell(NodeLeft{.node = gone}));
      const std::string fresh = "n" + std::to_string(joined++);
      work[fresh];
      see(world.join(fresh));
    }
    const std::uint64_t open = committed + 1;
    std::vector<Command> last;
    for (auto& [name, tasks] : work) {
      if (tasks.empty() || tasks.front().exchange != open) continue;
      const auto task = tasks.front();
      tasks.erase(tasks.begin());
      last = offer(world, task, world.machine.versions()[0]);
      see(last);
    }
    if (all<Reduce>(last).empty()) last = world.wait(5000);
    REQUIRE(only<Reduce>(last).inputs.size() >= 2);
    see(world.tell(Reduced{.exchange = open}));
    ++committed;
  }
  CHECK(committed == 12);
}

TEST_CASE("an evaluation that nodes do between two tasks is not given up for the next version") {
  World world("[exchange]\noverlap = 4\n[participation]\nquorum = 1\n[evaluation]\nevery = 1\n[stop]\nrounds = 4\n");
  auto commands = world.join("a", 100, 10);
  offer(world, of(commands, 1), 0);
  const auto second = of(commands, 2);
  commands = world.tell(Reduced{.exchange = 1});
  AssignTask evaluate;
  for (const auto& task : all<AssignTask>(commands))
    if (task.kind == TaskKind::kEvaluate) evaluate = task;
  REQUIRE(evaluate.kind == TaskKind::kEvaluate);
  offer(world, second, 1);
  commands = world.tell(Reduced{.exchange = 2});
  CHECK(all<EvaluationDone>(commands).empty());
  commands = world.report(evaluate, 1.0);
  CHECK(only<EvaluationDone>(commands).versions.at(0) == 1);
  CHECK(only<AssignTask>(commands).read[0].version == 2);  // the one that was due meanwhile
}

// ---- every node on its own clock

TEST_CASE("asynchronous: each update is answered, and what its node has not merged yet stays planned") {
  World world = overlapped("overlap = 4\nmerge = \"replace\"\non_late = \"on_arrival\"\n",
                           "mode = \"asynchronous\"\nbuffer = 2\n");
  auto tasks = all<AssignTask>(world.join("a"));
  REQUIRE(tasks.size() == 2);
  const auto first = tasks[0];
  const auto second = tasks[1];
  CHECK(first.exchange == 1);  // serial numbers
  CHECK(second.exchange == 2);
  CHECK(second.after == first.task);
  CHECK(merges(second) == "1@4 replace");
  const auto third = only<AssignTask>(offer(world, first, 0));
  CHECK(merges(third) == "1@0 replace, 2@4 replace");
  const auto b1 = all<AssignTask>(world.join("b"))[0];
  auto commands = offer(world, b1, 0);
  commands = world.tell(Reduced{.exchange = 1});
  CHECK(told(commands) == Texts{"a 1:1", "b " + std::to_string(b1.exchange) + ":1"});
  const auto fourth = only<AssignTask>(offer(world, second, 0));
  // The first answer has its last chance in this task.
  CHECK(merges(fourth) == "1@0 replace, 2@0 replace, 3@4 replace");
  offer(world, third, 1);
  CHECK(told(world.tell(Reduced{.exchange = 2})) == Texts{"a 3:2"});  // both are in it: the later one is answered
  CHECK(merges(only<AssignTask>(offer(world, fourth, 2))).rfind("3@", 0) == 0);
}

TEST_CASE("asynchronous: what came when its node was done with all its tasks is told again with the next one") {
  World world = overlapped("overlap = 4\non_late = \"on_arrival\"\n", "mode = \"asynchronous\"\nbuffer = 1\n");
  const auto tasks = all<AssignTask>(world.join("a"));
  offer(world, tasks[0], 0);
  // The node has trained both tasks that it has. Their updates travel, and it drops what no task of its plans.
  CHECK(told(world.tell(Reduced{.exchange = 1})) == Texts{"a 1:1"});
  const auto commands = offer(world, tasks[1], 0);
  CHECK(merges(only<AssignTask>(commands)).rfind("1@0", 0) == 0);
  CHECK(told(commands) == Texts{"a 1:1"});
}

TEST_CASE("asynchronous: an update that is too old is answered with the newest version") {
  World world = overlapped("overlap = 4\non_late = \"on_arrival\"\n",
                           "mode = \"asynchronous\"\nbuffer = 1\nmaximum_staleness = 0\n");
  const auto slow = all<AssignTask>(world.join("a"))[0];
  const auto fast = all<AssignTask>(world.join("b"))[0];
  offer(world, fast, 0);
  world.tell(Reduced{.exchange = 1});
  const auto commands = offer(world, slow, 0);
  CHECK(only<Discard>(commands).reason == "the update is 1 exchanges old, 0 are allowed");
  const std::string answer = "a " + std::to_string(slow.exchange) + ":1";
  CHECK(told(commands) == Texts{answer, answer});  // for the task that it has, and for the one that it is given
}

TEST_CASE("asynchronous: staleness is counted from the version that the node merged last") {
  World world = overlapped("overlap = 4\non_late = \"on_arrival\"\n", "mode = \"asynchronous\"\nbuffer = 1\n");
  auto tasks = all<AssignTask>(world.join("a"));
  offer(world, tasks[0], 0);
  world.tell(Reduced{.exchange = 1});
  SECTION("merged in time") { CHECK(only<Reduce>(offer(world, tasks[1], 1)).inputs[0].staleness == 0); }
  SECTION("not yet merged") { CHECK(only<Reduce>(offer(world, tasks[1], 0)).inputs[0].staleness == 1); }
  SECTION("a version that does not exist") {
    CHECK(only<Discard>(offer(world, tasks[1], 2)).reason.find("measured against version 2") != std::string::npos);
  }
}

TEST_CASE("asynchronous: a node's next task is not held up by a reduction") {
  World world = overlapped("overlap = 4\non_late = \"on_arrival\"\n", "mode = \"asynchronous\"\nbuffer = 1\n");
  const auto tasks = all<AssignTask>(world.join("a"));
  CHECK(only<AssignTask>(offer(world, tasks[0], 0)).exchange == 3);
}

TEST_CASE("asynchronous: dylu gives a slow node fewer steps, and merges within them") {
  World world = overlapped("overlap = 8\non_late = \"on_arrival\"\n",
                           "mode = \"asynchronous\"\nbuffer = 1\nwork = \"dylu\"\n");
  auto slow = all<AssignTask>(world.join("a"));
  auto fast = all<AssignTask>(world.join("b"));
  world.now += 1000;  // 100 ms a step
  offer(world, fast[0], 0);
  world.tell(Reduced{.exchange = 1});
  world.now += 3000;  // 400 ms a step
  const auto third = only<AssignTask>(offer(world, slow[0], 0));
  CHECK(third.steps == 2);
  REQUIRE(third.merge.size() == 2);
  CHECK(third.merge.back().at_step == 2);
}

TEST_CASE("asynchronous: a fixed grace window follows the buffer") {
  World world = overlapped("", "mode = \"asynchronous\"\nbuffer = 2\ngrace_s = 3\n");
  const auto a = only<AssignTask>(world.join("a"));
  const auto b = only<AssignTask>(world.join("b"));
  const auto c = only<AssignTask>(world.join("c"));
  world.deliver(a);
  CHECK(all<Reduce>(world.deliver(b)).empty());
  CHECK(all<Reduce>(world.wait(2000)).empty());
  CHECK(all<Reduce>(world.deliver(c)).empty());
  CHECK(only<Reduce>(world.wait(1000)).inputs.size() == 3);
}

TEST_CASE("the adaptive grace window of an overlapped run ends before those who are done have to wait") {
  World world = overlapped("overlap = 8\non_late = \"on_arrival\"\n",
                           "mode = \"asynchronous\"\nbuffer = 1\ngrace = \"adaptive\"\ngrace_safety = 0.5\n");
  const auto a = all<AssignTask>(world.join("a"));
  world.now += 1000;  // 100 ms a step: 800 ms of training on hide the exchange
  CHECK(only<Reduce>(offer(world, a[0], 0)).inputs.size() == 1);  // nobody else works
  world.tell(Reduced{.exchange = 1});
  const auto b = all<AssignTask>(world.join("b"));  // of unknown speed: half of the slack
  world.now += 1000;
  CHECK(all<Reduce>(offer(world, a[1], 1)).empty());
  CHECK(all<Reduce>(world.wait(399)).empty());
  SECTION("it comes in time") {
    CHECK(only<Reduce>(offer(world, b[0], 1)).inputs.size() == 2);
  }
  SECTION("it does not") { CHECK(only<Reduce>(world.wait(1)).inputs.size() == 1); }
}
