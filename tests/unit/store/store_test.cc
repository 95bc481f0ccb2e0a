#include <sys/wait.h>
#include <unistd.h>

#include <cmath>

#include "tests/unit/store/store_fixture.h"

using namespace skerry;
using namespace skerry::server;

TEST_CASE("what was committed is there after a restart, and the epoch is the same") {
  StoreFixture world;
  std::string epoch = world.store->epoch();
  CHECK(epoch.substr(0, 2) == "1-");
  Batch batch;
  batch.put_run(a_run());
  batch.machine_rows("r-1", {{"state", "{\"open\":1}"}, {"gone", "x"}});
  batch.add_traffic("r-1", "ada", 10, 20);
  batch.add_traffic("r-1", "ada", 1, 2);
  batch.audit({7, "operator/eve", "run.submit", "r-1", "digits"});
  world.commit(batch);
  Batch change;
  change.set_run_status("r-1", "completed", "all rounds done", 9000);
  change.machine_rows("r-1", {{"gone", ""}});
  world.commit(change);
  world.reopen();
  CHECK(world.store->epoch() == epoch);
  auto run = world.store->run("r-1");
  REQUIRE(run.ok());
  REQUIRE(run->has_value());
  CHECK((*run)->status == "completed");
  CHECK((*run)->status_reason == "all rounds done");
  CHECK((*run)->ended_ms == 9000);
  CHECK((*run)->bytes_up == 11);
  CHECK((*run)->bytes_down == 22);
  CHECK(world.store->runs()->size() == 1);
  CHECK(*world.store->machine_rows("r-1") == std::map<std::string, std::string>{{"state", "{\"open\":1}"}});
  CHECK(world.store->audit_log(1)->front().action == "run.submit");
}

TEST_CASE("an accepted update is kept whole until it is counted; then its receipt and signature stay") {
  StoreFixture world;
  UpdateRecord update = an_update("r-1.1");
  update.spooled = {{"whole", content_id(std::string_view("x")), 1}};
  Batch batch;
  batch.accept(update, 100);
  auto report = world.commit(batch);
  REQUIRE(report.chains.size() == 1);
  CHECK(report.chains[0] == world.store->chain_head());
  world.reopen();
  auto updates = world.store->accepted_updates("r-1");
  REQUIRE(updates->size() == 1);
  CHECK(updates->front().body == update.body);
  CHECK(updates->front().weight == 2.5);
  REQUIRE(updates->front().spooled.size() == 1);
  CHECK(updates->front().spooled[0].fragment == "whole");
  CHECK((*world.store->task("r-1.1"))->state == UpdateState::kAccepted);

  Batch counted;
  counted.count("r-1.1", "r-1", "ada", 1, 4, 200);
  report = world.commit(counted);
  CHECK(report.decided_tasks == std::vector<std::string>{"r-1.1"});
  CHECK(world.store->accepted_updates("r-1")->empty());
  auto task = world.store->task("r-1.1");
  CHECK((*task)->state == UpdateState::kCounted);
  CHECK((*task)->version == 4);
  CHECK((*task)->chain == report.chains[0]);
  auto kept = world.store->update("r-1.1");
  CHECK((*kept)->body.empty());
  CHECK((*kept)->signature == "signature");
  CHECK((*kept)->body_sha256.size() == 64);
  CHECK(world.store->counted_by_node("r-1")->at("ada") == 1);
}

TEST_CASE("an update is discarded with its reason, whether it was stored before or not") {
  StoreFixture world;
  Batch batch;
  batch.accept(an_update("r-1.1"), 100);
  batch.discard("r-1.1", "r-1", "ada", 1, "the run was stopped", 200);
  batch.discard("r-1.2", "r-1", "bob", 1, "exchange 1 was already committed", 200);
  world.commit(batch);
  CHECK((*world.store->task("r-1.1"))->reason == "the run was stopped");
  auto unknown = world.store->task("r-1.2");
  REQUIRE(unknown->has_value());
  CHECK((*unknown)->state == UpdateState::kDiscarded);
  CHECK((*unknown)->node == "bob");
  CHECK_FALSE(world.store->task("r-1.3")->has_value());
  CHECK(world.store->discarded_by_reason("r-1")->size() == 2);
}

TEST_CASE("no task is decided twice, and a batch that tries leaves nothing behind") {
  StoreFixture world;
  Batch first;
  first.accept(an_update("r-1.1"), 100);
  first.count("r-1.1", "r-1", "ada", 1, 1, 100);
  world.commit(first);
  std::string head = world.store->chain_head();
  Batch again;
  again.discard("r-1.9", "r-1", "ada", 1, "late", 100);
  again.count("r-1.1", "r-1", "ada", 2, 2, 100);
  auto refused = world.store->commit(again);
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().code == Code::kFailedPrecondition);
  CHECK_THAT(refused.error().message, Catch::Contains("r-1.1"));
  CHECK(world.store->chain_head() == head);
  CHECK_FALSE(world.store->task("r-1.9")->has_value());
  Batch accepted_again;
  accepted_again.accept(an_update("r-1.1"), 100);
  CHECK(world.store->commit(accepted_again).error().code == Code::kAlreadyExists);
  Batch discarded;
  discarded.discard("r-1.1", "r-1", "ada", 1, "late", 100);
  CHECK(world.store->commit(discarded).error().code == Code::kAlreadyExists);
  Batch never_accepted;
  never_accepted.count("r-1.7", "r-1", "ada", 1, 1, 100);
  CHECK(world.store->commit(never_accepted).error().code == Code::kFailedPrecondition);
}

TEST_CASE("a version is released once, with its bytes, its state and the chain's head") {
  StoreFixture world;
  exchange(world, 1);
  auto version = world.store->latest_version("r-1", "whole");
  REQUIRE(version->has_value());
  CHECK((*version)->version == 1);
  CHECK((*version)->whole.bytes == "model 1");
  CHECK((*version)->state_bytes == "state 1");
  CHECK((*version)->chain == world.store->chain_head());
  CHECK((*version)->counted_digest.size() == 64);
  Batch again;
  again.release(a_version(1));
  CHECK(world.store->commit(again).error().code == Code::kAlreadyExists);
  CHECK_FALSE(world.store->latest_version("r-1", "other")->has_value());
}

TEST_CASE("the chain goes on without a gap across restarts") {
  StoreFixture world;
  exchange(world, 1);
  world.reopen();
  exchange(world, 2);
  auto receipts = world.store->receipts(1, 100);
  REQUIRE(receipts->size() == 10);
  for (std::size_t i = 0; i < receipts->size(); ++i) CHECK((*receipts)[i].sequence == i + 1);
  CHECK((*receipts)[4].kind == "RELEASED");
  CHECK((*receipts)[9].hash == world.store->chain_head());
  CHECK(world.store->chain_length() == 10);
  CHECK(world.store->receipts(9, 1)->size() == 1);
}

TEST_CASE("pruning keeps the newest, the kept and the needed, and says which files nobody needs any more") {
  StoreFixture world;
  std::vector<std::string> ids;
  for (std::uint64_t version = 0; version <= 5; ++version) {
    VersionRecord record = a_version(version);
    auto id = world.cargo->put_bytes(as_bytes_of("cargo " + std::to_string(version)));
    ids.push_back(*id);
    record.whole = {*id, 7, ""};
    record.state_bytes.clear();
    record.state_name = "state-" + std::to_string(version);
    Batch batch;
    batch.release(record);
    if (version == 1) batch.keep_version("r-1", "whole", 1, true);
    world.commit(batch);
  }
  Batch prune;
  prune.prune_versions("r-1", "whole", 2, {2});
  auto report = world.commit(prune);
  CHECK(report.unreferenced_cargo == std::vector<std::string>{ids[0], ids[3]});
  CHECK(report.unreferenced_states == std::vector<std::string>{"state-0", "state-2", "state-3"});
  auto left = world.store->versions("r-1");
  REQUIRE(left->size() == 4);
  CHECK((*left)[0].version == 1);
  CHECK((*left)[0].kept);
  CHECK((*left)[0].state_name == "state-1");  // so that a run can continue from it
  CHECK((*left)[1].version == 2);
  CHECK((*left)[2].version == 4);
  CHECK((*left)[3].state_name == "state-5");
  world.reopen();
}

TEST_CASE("cargo that another version still refers to is not given up") {
  StoreFixture world;
  auto id = world.cargo->put_bytes(as_bytes_of("same bytes"));
  for (std::uint64_t version = 0; version <= 3; ++version) {
    VersionRecord record = a_version(version);
    record.whole = {*id, 10, ""};
    Batch batch;
    batch.release(record);
    batch.prune_versions("r-1", "whole", 2, {});
    CHECK(world.commit(batch).unreferenced_cargo.empty());
  }
  CHECK(world.store->versions("r-1")->size() == 2);
}

TEST_CASE("metrics come back in order, not-a-number and infinity too") {
  StoreFixture world;
  Batch batch;
  batch.add_metric({"r-1", "exchange", "whole", 1, 1, 50, 3, {{"loss", std::nan("")}, {"norm", INFINITY}}, ""});
  batch.add_metric({"r-1", "evaluation", "", 1, 1, 60, 0, {{"accuracy", 0.25}}, "ada"});
  batch.add_metric({"r-1", "evaluation", "", 1, 1, 60, 0, {{"accuracy", 0.5}}, ""});
  world.commit(batch);
  auto metrics = world.store->metrics("r-1");
  REQUIRE(metrics->size() == 3);
  CHECK(std::isnan((*metrics)[0].metrics[0].value));
  CHECK(std::isinf((*metrics)[0].metrics[1].value));
  CHECK((*metrics)[1].node == "ada");
  CHECK((*world.store->latest_metric("r-1", "evaluation"))->metrics[0].value == 0.5);
  CHECK_FALSE(world.store->latest_metric("r-1", "other")->has_value());
}

TEST_CASE("a reader on another connection sees what was committed, and a writer is not in its way") {
  StoreFixture world;
  auto reader = world.store->open_reader();
  REQUIRE(reader.ok());
  CHECK(reader->runs()->empty());
  Batch batch;
  batch.put_run(a_run());
  world.commit(batch);
  CHECK(reader->runs()->size() == 1);
}

TEST_CASE("a process killed after commits but in the middle of one loses that one only") {
  StoreFixture world;
  world.close();
  pid_t child = ::fork();
  if (child == 0) {
    // Only the child opens the database; it ends without closing anything, inside an open transaction.
    CountingRandom random;
    auto store = Store::open(world.dir.path(), random);
    if (!store.ok()) ::_exit(1);
    Batch batch;
    batch.put_run(a_run());
    batch.accept(an_update("r-1.1"), 100);
    if (!store->commit(batch).ok()) ::_exit(2);
    if (!store->database().execute("BEGIN IMMEDIATE; INSERT INTO audit VALUES (NULL, 1, 'a', 'b', 'c', 'd')").ok())
      ::_exit(3);
    ::_exit(0);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  REQUIRE(WIFEXITED(status));
  REQUIRE(WEXITSTATUS(status) == 0);
  world.reopen();
  CHECK(world.store->accepted_updates("r-1")->size() == 1);
  CHECK(world.store->chain_length() == 1);
  auto log = world.store->audit_log(10);
  REQUIRE(log->size() == 1);
  CHECK(log->front().action == "store.create");
}

TEST_CASE("a full database refuses a batch, which can be committed when there is room again") {
  StoreFixture world;
  REQUIRE(world.store->database().execute("PRAGMA max_page_count = 40").ok());
  Batch batch;
  UpdateRecord update = an_update("r-1.1");
  update.body = std::string(400'000, 'x');
  batch.accept(update, 100);
  auto full = world.store->commit(batch);
  REQUIRE_FALSE(full.ok());
  CHECK(full.error().code == Code::kResourceExhausted);
  CHECK(world.store->chain_length() == 0);
  REQUIRE(world.store->database().execute("PRAGMA max_page_count = 100000").ok());
  world.commit(batch);
  CHECK(world.store->chain_length() == 1);
  world.reopen();
}

TEST_CASE("thousands of exchanges pass checkpoints and open again") {
  StoreFixture world;
  world.reopen({sqlite::Synchronous::kNormal, false, 0});
  for (std::uint64_t version = 1; version <= 2000; ++version) {
    const std::string number = std::to_string(version);
    Batch batch;
    for (const char* node : {"ada", "bob"}) {
      batch.accept(an_update("r-1." + number + node, node, version), 100);
      batch.count("r-1." + number + node, "r-1", node, version, version, 100);
    }
    batch.release(a_version(version, {"r-1." + number + "ada", "r-1." + number + "bob"}));
    batch.prune_versions("r-1", "whole", 2, {});
    world.commit(batch);
  }
  world.reopen({sqlite::Synchronous::kNormal, false, 0});
  CHECK(world.store->chain_length() == 10'000);
  CHECK(world.store->versions("r-1")->size() == 2);
  CHECK(world.store->counted_by_node("r-1")->at("bob") == 2000);
  CHECK(world.store->verify(*world.cargo).ok());
}

TEST_CASE("a collection through the store keeps what rows need and ends what is decided or belongs to an ended run") {
  StoreFixture world;
  auto live = world.cargo->put_bytes(as_bytes_of("live"));
  auto dead = world.cargo->put_bytes(as_bytes_of("dead"));
  auto opened = CargoStore::open(world.dir.path());
  world.cargo = std::move(opened).value();  // as after a restart: nothing is fresh
  RunRecord ended = a_run("r-2");
  ended.ended_ms = 5;
  VersionRecord version = a_version(0);
  version.whole = {*live, 4, ""};
  Batch batch;
  batch.put_run(a_run());
  batch.put_run(ended);
  batch.release(version);
  batch.discard("r-1.1", "r-1", "ada", 1, "late", 1);
  batch.accept(an_update("r-1.2"), 1);
  world.commit(batch);
  const std::string id = content_id(std::string_view("payload"));
  for (const char* task : {"r-1.1", "r-1.2", "r-1.3", "r-2.1"})
    REQUIRE(world.cargo->begin_upload({task, "ada", id, 7}).ok());
  auto report = world.store->collect(*world.cargo);
  REQUIRE(report.ok());
  CHECK(world.cargo->spool_tasks() == std::vector<std::string>{"r-1.2", "r-1.3"});
  CHECK(world.cargo->cargo_size(*live).ok());
  CHECK_FALSE(world.cargo->cargo_size(*dead).ok());
}
