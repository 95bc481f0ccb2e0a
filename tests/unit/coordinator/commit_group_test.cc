#include "server/coordinator/commit_group.h"

#include <catch2/catch.hpp>

#include <memory>

#include "common/os/random.h"
#include "server/store/store.h"
#include "tests/support/manual_clock.h"
#include "tests/support/temp_dir.h"

namespace skerry::server {
namespace {

struct World {
  test::TempDir home;
  test::ManualClock clock;
  SystemRandom random;
  Store store = Store::open(home.path(), random, {.now_ms = 1}).value();
  std::unique_ptr<CargoStore> cargo = CargoStore::open(home.path()).value();
  CommitGroup group{store, *cargo, clock};

  World() {
    RunRecord run;
    run.run_id = "r-1";
    run.name = "first";
    run.status = "running";
    group.batch().put_run(run);
    REQUIRE(group.settle() == 0);
  }

  void accept(const std::string& task, std::vector<std::string>& told) {
    UpdateRecord update;
    update.task_id = task;
    update.run_id = "r-1";
    update.node = "alder";
    update.exchange = 1;
    update.body = "body of " + task;
    group.accept(update, 5, [task, &told](const std::string& chain) { told.push_back(task + " " + chain); });
  }
};

}  // namespace

TEST_CASE("an acceptance waits for company, and nobody is told before it is durable") {
  World world;
  std::vector<std::string> told;
  const std::uint64_t commits = world.group.commits();
  world.accept("t-1", told);
  CHECK(world.group.settle() == CommitGroup::kLingerMs);
  world.clock.advance_ms(3);
  world.accept("t-2", told);
  CHECK(world.group.settle() == CommitGroup::kLingerMs - 3);
  CHECK(told.empty());
  CHECK_FALSE(world.store.task("t-1").value().has_value());

  world.clock.advance_ms(7);
  CHECK(world.group.settle() == 0);
  CHECK(world.group.commits() == commits + 1);
  REQUIRE(told.size() == 2);
  CHECK(told[1] == "t-2 " + world.store.chain_head());
  CHECK(world.store.task("t-1").value()->state == UpdateState::kAccepted);
}

TEST_CASE("what is urgent takes the waiting acceptances along in one commit") {
  World world;
  std::vector<std::string> told;
  const std::uint64_t commits = world.group.commits();
  world.accept("t-1", told);
  world.group.batch().set_run_status("r-1", "paused", "by hand", 0);
  CHECK(world.group.settle() == 0);
  CHECK(world.group.commits() == commits + 1);
  CHECK(told.size() == 1);
  CHECK(world.store.run("r-1").value()->status == "paused");
}

TEST_CASE("an action that asks for more is followed by another commit before the core waits") {
  World world;
  std::vector<std::string> told;
  world.group.after([&] { world.group.batch().set_run_status("r-1", "stopped", "", 9); });
  CHECK(world.group.settle() == 0);
  CHECK(world.store.run("r-1").value()->status == "stopped");
}

TEST_CASE("contributions are asked for once, right before the commit") {
  World world;
  int asked = 0;
  for (int i = 0; i < 3; ++i)
    world.group.before(
        "run r-1",
        [&](Batch& batch) {
          ++asked;
          batch.machine_rows("r-1", {{"key", std::to_string(asked)}});
        },
        /*urgent=*/false);
  CHECK(asked == 0);
  world.clock.advance_ms(CommitGroup::kLingerMs);
  CHECK(world.group.settle() == 0);
  CHECK(asked == 1);
  CHECK(world.store.machine_rows("r-1").value().at("key") == "1");
}

TEST_CASE("at the end what waits is committed and told, and what would follow lets go of its callers") {
  World world;
  std::vector<std::string> told;
  world.accept("t-1", told);
  auto caller = std::make_shared<int>(0);
  world.group.after([caller, &world] { world.group.after([caller] {}); });
  world.group.finish();
  CHECK(told.size() == 1);
  CHECK(world.store.task("t-1").value()->state == UpdateState::kAccepted);
  CHECK(caller.use_count() == 1);
}

TEST_CASE("updates are counted by the kind of their reason, whatever its numbers and quotations are") {
  CHECK(kind_of_reason("exchange 17 was completed without this update") == "exchange # was completed without this update");
  CHECK(kind_of_reason("its norm is 3.25, the run allows 1.5") == "its norm is #, the run allows #");
  CHECK(kind_of_reason("fragment 'x\n9': the model has no fragment of this name") == "fragment '…': the model has no fragment of this name");
  CHECK(kind_of_reason("the holder's policy") == "the holder's policy");
}

TEST_CASE("of an update that is accepted and counted in one commit only the end is told, and both are recorded") {
  World world;
  std::vector<std::string> told;
  const std::uint64_t receipts = world.store.chain_length();
  world.accept("t-1", told);
  world.accept("t-2", told);
  world.group.count("t-1", "r-1", "alder", 1, 1, 6, [&told](const std::string& chain) { told.push_back("counted " + chain); });
  world.clock.advance_ms(CommitGroup::kLingerMs);
  CHECK(world.group.settle() == 0);
  REQUIRE(told.size() == 2);
  CHECK(told[0].starts_with("t-2 "));
  CHECK(told[1] == "counted " + world.store.chain_head());
  CHECK(world.store.chain_length() == receipts + 3);
}

}  // namespace skerry::server
