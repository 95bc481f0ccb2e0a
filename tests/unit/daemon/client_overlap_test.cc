// Runs whose exchange overlaps with training: two train tasks, deliveries, merges.
#include <catch2/catch.hpp>

#include "tests/unit/daemon/client_world.h"

using namespace skerry;
using namespace skerry::client;

namespace {

/// Run r, accepted, overlapped; task n writes fragment f<n mod 2>, is meant for exchange n and merges exchange n − 1.
class Overlap : public test::World {
 public:
  explicit Overlap(ClientMachineOptions options = {}) : World(std::move(options)) {
    start();
    announce("r", true, false, true);
  }

  static std::string fragment(std::uint64_t exchange) { return "f" + std::to_string(exchange % 2); }

  v1::Task segment(std::uint64_t number) const {
    v1::Task made = task("r", "t-" + std::to_string(number));
    made.set_exchange(number);
    made.clear_write();
    made.add_write(fragment(number));
    if (number > 1) {
      made.clear_read();
      made.set_after("t-" + std::to_string(number - 1));
      auto* plan = made.add_merge();
      plan->set_fragment(fragment(number - 1));
      plan->set_exchange(number - 1);
      plan->set_at_step(5);
      plan->set_block(true);
    }
    return made;
  }
  void give_segment(std::uint64_t number) { give(segment(number)); }

  /// Tasks 1 and 2 are here, the trainer works on the first.
  void begin() {
    give_segment(1);
    give_segment(2);
    feed(FetchDone{"t-1"});
    feed(TrainerReady{"r"});
    REQUIRE(running() == "t-1");
  }
  const std::vector<Command>& deliver(std::uint64_t exchange, std::uint64_t version = 1, const std::string& id = "b2-1") {
    v1::ToNode message;
    auto& delivery = *message.mutable_delivery();
    delivery.set_run_id("r");
    delivery.set_exchange(exchange);
    delivery.mutable_version()->set_fragment(fragment(exchange));
    delivery.mutable_version()->set_version(version);
    delivery.mutable_version()->mutable_whole()->set_content_id(id);
    return receive(std::move(message));
  }
  const std::vector<Command>& fetched(std::uint64_t exchange) { return feed(MergeFetched{"r", exchange, fragment(exchange)}); }
  void merged(std::uint64_t number) { feed(TrainerMerged{"r", "t-" + std::to_string(number), number - 1, fragment(number - 1)}); }
  const std::vector<Command>& done(std::uint64_t number) { return feed(TrainerDone{"r", "t-" + std::to_string(number), {}}); }
  const std::vector<Command>& stored(std::uint64_t number, std::vector<PendingUpload> uploads = {}) {
    StoredUpdate update;
    update.task = segment(number);
    update.uploads = std::move(uploads);
    return feed(OutboxStored{update});
  }
  std::string running() const {
    const auto requests = all<TrainerRequest>();
    return requests.empty() ? "" : requests.back().task.task_id();
  }
  std::string storing() const {
    const auto stores = all<StoreUpdate>();
    return stores.empty() ? "" : stores.back().task.task_id();
  }
};

}  // namespace

TEST_CASE("the next task begins as soon as the trainer is done with this one, while its update is stored") {
  Overlap world;
  world.begin();
  world.done(1);
  CHECK(world.storing() == "t-1");
  CHECK(world.running() == "t-2");
}

TEST_CASE("without overlap a task waits until the update before it is stored") {
  test::World world;
  world.start();
  world.announce("r");
  world.begin_work("r", "t-1");
  world.give(world.task("r", "t-2"));
  world.feed(TrainerDone{"r", "t-1", {}});
  CHECK(world.none<Fetch>());
  StoredUpdate update;
  update.task = world.task("r", "t-1");
  world.feed(OutboxStored{update});
  CHECK(world.all<Fetch>().size() == 1);
}

TEST_CASE("updates of a run are made one at a time, and training stops where the disk cannot follow") {
  Overlap world;
  world.begin();
  world.give_segment(3);
  world.done(1);
  world.done(2);
  CHECK(world.none<StoreUpdate>());
  CHECK(world.running().empty());
  world.stored(1);
  CHECK(world.storing() == "t-2");
  CHECK(world.running() == "t-3");
}

TEST_CASE("a delivered version is fetched, handed to the task that plans it, and forgotten when that has ended") {
  Overlap world;
  world.begin();
  world.done(1);
  world.deliver(1);
  REQUIRE(world.all<FetchMerge>().size() == 1);
  CHECK(world.all<FetchMerge>()[0].delivery.exchange() == 1);
  world.fetched(1);
  REQUIRE(world.all<MergeFragment>().size() == 1);
  CHECK(world.all<MergeFragment>()[0].fragment == "f1");
  world.merged(2);
  CHECK(world.none<ForgetMerge>());  // a trainer that dies now needs it again
  world.done(2);
  CHECK(world.all<ForgetMerge>().size() == 1);
}

TEST_CASE("a delivery for the next task waits until the trainer has that task") {
  Overlap world;
  world.begin();
  world.deliver(1);
  world.fetched(1);
  CHECK(world.none<MergeFragment>());
  world.done(1);
  CHECK(world.running() == "t-2");
  REQUIRE(world.all<MergeFragment>().size() == 1);
  CHECK(std::holds_alternative<MergeFragment>(world.commands.back()));  // after the task itself
}

TEST_CASE("a delivery that comes twice, late, or for a task that is gone does nothing") {
  Overlap world;
  world.begin();
  world.deliver(1);
  world.deliver(1);
  CHECK(world.none<FetchMerge>());
  world.fetched(1);
  world.done(1);
  world.merged(2);
  world.done(2);
  world.deliver(1);
  CHECK(world.none<FetchMerge>());
  world.deliver(7);
  CHECK(world.none<FetchMerge>());
}

TEST_CASE("an exchange that one task has merged is not handed to the next that names it, too") {
  Overlap world;
  world.begin();
  world.done(1);
  world.deliver(1);
  world.fetched(1);
  world.merged(2);
  world.stored(1);
  v1::Task third = world.segment(3);
  *third.add_merge() = world.segment(2).merge(0);
  world.give(third);
  world.done(2);
  CHECK(world.running() == "t-3");
  CHECK(world.none<MergeFragment>());
  CHECK(world.all<ForgetMerge>().size() == 1);
  world.deliver(1);
  CHECK(world.none<FetchMerge>());
}

TEST_CASE("a merge on arrival that did not come in time is handed to the next task that names it") {
  Overlap world;
  world.begin();
  v1::Task third = world.segment(3);
  *third.add_merge() = world.segment(2).merge(0);
  world.give(third);
  world.done(1);
  world.stored(1);
  world.deliver(1);
  world.fetched(1);
  world.done(2);  // it was handed over, and not merged
  CHECK(world.running() == "t-3");
  CHECK(world.all<MergeFragment>().size() == 1);
}

TEST_CASE("a newer version in the place of one that the trainer has been handed is not fetched") {
  Overlap world;
  world.begin();
  world.done(1);
  world.deliver(1);
  world.fetched(1);
  REQUIRE(world.all<MergeFragment>().size() == 1);
  world.deliver(1, 2, "b2-2");
  CHECK(world.none<FetchMerge>());
}

TEST_CASE("a version that cannot be fetched for a while is fetched again") {
  Overlap world;
  world.begin();
  world.deliver(1);
  world.feed(MergeFailed{"r", 1, "f1", unavailable("the link broke")});
  CHECK(world.failures().empty());
  REQUIRE(world.all<WakeAt>().size() == 1);
  world.now = world.all<WakeAt>()[0].at;
  world.feed(Tick{});
  CHECK(world.all<FetchMerge>().size() == 1);
}

TEST_CASE("a version that cannot be had fails the tasks that need it, and no other") {
  Overlap world;
  world.begin();
  world.deliver(1);
  world.feed(MergeFailed{"r", 1, "f1", not_found("it is not kept any more")});
  REQUIRE(world.failures().size() == 1);
  CHECK(world.failures()[0].task_id() == "t-2");
  CHECK(world.failures()[0].retryable());
  CHECK(world.none<CancelTask>());
  CHECK(world.all<ForgetMerge>().size() == 1);
}

TEST_CASE("a trainer that dies with a task is opened again and gets the task and its merges again") {
  Overlap world;
  world.begin();
  world.done(1);
  world.deliver(1);
  world.fetched(1);
  world.merged(2);
  world.feed(TrainerExited{"r", {Code::kAborted, "the trainer was killed", true}});
  CHECK(world.failures().empty());
  world.now += 2'000;
  world.feed(Tick{});
  REQUIRE(world.all<StartTrainer>().size() == 1);
  world.feed(TrainerReady{"r"});
  CHECK(world.running() == "t-2");
  CHECK(world.all<MergeFragment>().size() == 1);
}

TEST_CASE("a task that three trainers died with is given back") {
  Overlap world;
  world.begin();
  for (int life = 1; life <= 3; ++life) {
    world.feed(TrainerExited{"r", {Code::kAborted, "the trainer was killed", true}});
    if (life == 3) break;
    CHECK(world.failures().empty());
    world.now += 5'000;
    world.feed(Tick{});
    world.feed(TrainerReady{"r"});
  }
  REQUIRE(world.failures().size() == 1);
  CHECK(world.failures()[0].task_id() == "t-1");
}

TEST_CASE("deliveries are heard again after a reconnect, and both tasks go on") {
  Overlap world;
  world.begin();
  world.feed(Disconnected{unavailable("gone")});
  world.connect("i-2");
  world.announce("r", true, false, true);
  world.give_segment(1);
  world.give_segment(2);
  CHECK(world.failures().empty());
  CHECK(world.none<CancelTask>());
  world.deliver(1);
  CHECK(world.all<FetchMerge>().size() == 1);
  world.done(1);
  CHECK(world.running() == "t-2");
}

TEST_CASE("a task that comes after one that goes on from it fails that one") {
  Overlap world;
  world.give_segment(1);
  world.give_segment(3);
  world.give_segment(2);
  REQUIRE(world.failures().size() == 1);
  CHECK(world.failures()[0].task_id() == "t-3");
  CHECK(world.failures()[0].code() == static_cast<int>(Code::kNotFound));
}

TEST_CASE("a cancelled task makes room for the next; its merges stay for those who plan them") {
  Overlap world;
  world.begin();
  v1::ToNode cancel;
  cancel.mutable_cancel()->set_task_id("t-1");
  world.receive(cancel);
  CHECK(world.all<CancelTask>().size() == 1);
  world.deliver(1);
  CHECK(world.all<FetchMerge>().size() == 1);
  world.feed(TrainerCancelled{"r", "t-1"});
  CHECK(world.running() == "t-2");
}

TEST_CASE("a pause gives back the task that has not begun and lets the other end") {
  Overlap world;
  world.begin();
  world.feed(Pause{});
  REQUIRE(world.failures().size() == 1);
  CHECK(world.failures()[0].task_id() == "t-2");
  world.done(1);
  CHECK(world.storing() == "t-1");
}

TEST_CASE("a policy that refuses the run ends its tasks and forgets its deliveries") {
  Overlap world;
  world.begin();
  world.deliver(1);
  v1::RunAnswer answer;
  answer.set_run_id("r");
  answer.set_spec_hash("hash-r");
  world.feed(RunJudged{answer, false, true});
  CHECK(world.failures().size() == 2);
  CHECK(world.all<ForgetMerge>().size() == 1);
  CHECK(world.all<StopTrainer>().size() == 1);
}

TEST_CASE("a task's time begins when the one before it has ended") {
  ClientMachineOptions options;
  options.max_task_ms = 10'000;
  Overlap world(options);
  world.begin();
  world.now += 9'000;
  world.done(1);
  world.stored(1);
  world.now += 9'000;
  world.feed(Tick{});
  CHECK(world.none<CancelTask>());
  world.now += 1'001;
  world.feed(Tick{});
  CHECK(world.all<CancelTask>().size() == 1);
}

TEST_CASE("cargo goes in the order in which the updates were stored") {
  Overlap world;
  world.begin();
  world.done(1);
  world.stored(1, {{"b2-a", 100'000}});
  CHECK(world.all<Upload>().size() == 1);
  world.done(2);
  world.stored(2, {{"b2-b", 100'000}});
  CHECK(world.none<Upload>());
  world.feed(UploadDone{"t-1"});
  REQUIRE(world.all<Upload>().size() == 1);
  CHECK(world.all<Upload>()[0].update.task.task_id() == "t-2");
}

TEST_CASE("cargo that does not get through holds up no later update") {
  Overlap world;
  world.begin();
  world.done(1);
  world.stored(1, {{"b2-a", 100'000}});
  world.done(2);
  world.stored(2, {{"b2-b", 100'000}});
  CHECK(world.none<Upload>());
  world.feed(UploadFailed{"t-1", unavailable("the coordinator takes no upload of it")});
  REQUIRE(world.all<Upload>().size() == 1);
  CHECK(world.all<Upload>()[0].update.task.task_id() == "t-2");
}

TEST_CASE("the program ends only when the updates that are being made are stored") {
  Overlap world;
  world.begin();
  world.done(1);
  world.feed(Shutdown{});
  world.feed(TrainerExited{"r", {Code::kCancelled, "ended", true}});
  CHECK(world.none<Exit>());
  world.stored(1);
  CHECK(world.all<Exit>().size() == 1);
}
