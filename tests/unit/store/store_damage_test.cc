// A store whose database or files were altered behind its back must say so, and name the row or the file.
#include <sys/stat.h>

#include "tests/unit/store/store_fixture.h"

using namespace skerry;
using namespace skerry::server;

namespace {

/// Opening must fail with DATA_LOSS and name `what`.
void refuses_to_open(StoreFixture& world, const std::string& what) {
  auto opened = world.try_open();
  REQUIRE_FALSE(opened.ok());
  CHECK(opened.error().code == Code::kDataLoss);
  CHECK_THAT(opened.error().message, Catch::Contains(what));
}

}  // namespace

TEST_CASE("an altered receipt is found and named") {
  StoreFixture world;
  exchange(world, 1);
  world.tamper("UPDATE receipts SET node = 'eve' WHERE sequence = 2");
  refuses_to_open(world, "receipt 2");
}

TEST_CASE("a receipt lost from the middle is found and named") {
  StoreFixture world;
  exchange(world, 1);
  world.tamper("DELETE FROM receipts WHERE sequence = 3");
  refuses_to_open(world, "receipt 3 is lost");
}

TEST_CASE("receipts lost from the end are found, though what is left is consistent") {
  StoreFixture world;
  exchange(world, 1);
  // What SQLite itself would show after its log has lost the last commit: every table as it was before it.
  world.tamper(
      "DELETE FROM receipts WHERE sequence > 2; DELETE FROM versions; DELETE FROM decisions;"
      "INSERT INTO bodies SELECT id, CAST('body of ' || task_id AS BLOB) || x'000000' FROM tasks;"
      "UPDATE tasks SET state = 2, version = 0, sequence = id");
  refuses_to_open(world, "ends at receipt 2, but receipt 5 was acknowledged");
}

TEST_CASE("a chain that was rewritten as a whole is not the one that was acknowledged") {
  StoreFixture world;
  exchange(world, 1);
  world.close();
  StoreFixture other;
  Batch batch;
  for (int i = 0; i < 9; ++i) batch.discard("r-1." + std::to_string(i), "r-1", "ada", 1, "forged", 1);
  other.commit(batch);
  other.close();
  auto forged = read_file(other.dir / "skerry.db", 1 << 24);
  for (const char* log : {"skerry.db-wal", "skerry.db-shm", "skerry.db-commits"}) REQUIRE(remove_file(world.dir / log).ok());
  REQUIRE(write_file_atomic(world.dir / "skerry.db", *forged).ok());
  refuses_to_open(world, "receipt 5 in skerry.db is not the one that was acknowledged");
}

TEST_CASE("a database that lost all it held is not taken for a new one") {
  StoreFixture world;
  exchange(world, 1);
  world.close();
  for (const char* log : {"skerry.db-wal", "skerry.db-shm"}) REQUIRE(remove_file(world.dir / log).ok());
  SECTION("its count of commits is there") {}
  SECTION("its chain's head is there") { REQUIRE(remove_file(world.dir / "skerry.db-commits").ok()); }
  REQUIRE(File::open(world.dir / "skerry.db", OpenMode::kCreateOrEmpty).ok());
  refuses_to_open(world, "--restored");
}

TEST_CASE("a commit without a receipt is missed when the log loses it") {
  StoreFixture world;
  exchange(world, 1);
  const std::string file = *read_file(world.dir / "skerry.db", 1 << 24);
  const std::string log = *read_file(world.dir / "skerry.db-wal", 1 << 24);
  Batch batch;
  batch.machine_rows("r-1", {{"core", "the newest"}});
  world.commit(batch);
  world.close();
  REQUIRE(write_file_atomic(world.dir / "skerry.db", file).ok());
  REQUIRE(write_file_atomic(world.dir / "skerry.db-wal", log).ok());
  refuses_to_open(world, "was made");
}

TEST_CASE("an altered decision is found and the task named") {
  StoreFixture world;
  exchange(world, 1);
  SECTION("another version") { world.tamper("UPDATE tasks SET version = 9 WHERE task_id = 'r-1.1b'"); }
  SECTION("another state") { world.tamper("UPDATE tasks SET state = 4 WHERE task_id = 'r-1.1b'"); }
  SECTION("no row") { world.tamper("DELETE FROM tasks WHERE task_id = 'r-1.1b'"); }
  refuses_to_open(world, "r-1.1b");
}

TEST_CASE("an accepted update that was altered or lost is found and the task named") {
  StoreFixture world;
  Batch batch;
  batch.accept(an_update("r-1.1"), 1);
  world.commit(batch);
  SECTION("altered") { world.tamper("UPDATE bodies SET body = x'00'"); }
  SECTION("lost") { world.tamper("DELETE FROM bodies"); }
  refuses_to_open(world, "r-1.1");
}

TEST_CASE("an altered or lost released version is found and named") {
  StoreFixture world;
  exchange(world, 1);
  SECTION("another model") { world.tamper("UPDATE versions SET whole_id = 'b2-00'"); }
  SECTION("another exchange") { world.tamper("UPDATE versions SET exchange = 7"); }
  SECTION("a flipped byte of an inline model") { world.tamper("UPDATE versions SET whole_bytes = 'model 2'"); }
  SECTION("no row") { world.tamper("DELETE FROM versions"); }
  refuses_to_open(world, "version 1 of fragment whole of run r-1");
}

TEST_CASE("what opening passes over, behind a checkpoint, verify finds") {
  StoreFixture world;
  world.reopen({sqlite::Synchronous::kNormal, false, 0});
  Batch batch;
  for (int i = 0; i < 5000; ++i) batch.discard("r-1." + std::to_string(i), "r-1", "ada", 1, "late", 1);
  world.commit(batch);
  exchange(world, 1);
  world.tamper("UPDATE receipts SET reason = 'other' WHERE sequence = 10");
  world.reopen({sqlite::Synchronous::kNormal, false, 0});
  auto damaged = world.store->verify(*world.cargo);
  REQUIRE_FALSE(damaged.ok());
  CHECK(damaged.error().code == Code::kDataLoss);
  CHECK_THAT(damaged.error().message, Catch::Contains("receipt 10"));
}

TEST_CASE("a version's file that is missing, cut or has a flipped byte is found and named") {
  StoreFixture world;
  const std::string bytes(100'000, 'm');
  auto id = world.cargo->put_bytes(as_bytes_of(bytes));
  VersionRecord version = a_version(1);
  version.whole = {*id, bytes.size(), ""};
  Batch batch;
  batch.release(version);
  world.commit(batch);
  REQUIRE(world.store->check_files(*world.cargo).ok());
  REQUIRE(world.store->verify(*world.cargo).ok());
  const std::string path = world.cargo->cargo_path(*id);
  REQUIRE(::chmod(path.c_str(), 0600) == 0);
  SECTION("flipped") {
    REQUIRE(File::open(path, OpenMode::kReadWrite)->pwrite(as_bytes_of("n"), 99'999).ok());
    CHECK(world.store->check_files(*world.cargo).ok());
  }
  SECTION("cut") {
    REQUIRE(File::open(path, OpenMode::kReadWrite)->resize(10).ok());
    CHECK(world.store->check_files(*world.cargo).error().code == Code::kDataLoss);
  }
  SECTION("missing") {
    REQUIRE(remove_file(path).ok());
    CHECK_THAT(world.store->check_files(*world.cargo).error().message, Catch::Contains("missing"));
  }
  auto damaged = world.store->verify(*world.cargo);
  REQUIRE_FALSE(damaged.ok());
  CHECK(damaged.error().code == Code::kDataLoss);
  CHECK_THAT(damaged.error().message, Catch::Contains(*id) && Catch::Contains("version 1 of fragment whole"));
}

TEST_CASE("a restored backup is refused until somebody says so, and then begins a new epoch") {
  StoreFixture world;
  exchange(world, 1);
  REQUIRE(world.store->database().backup_to(world.dir / "backup.db").ok());
  exchange(world, 2);
  world.close();
  for (const char* log : {"skerry.db-wal", "skerry.db-shm", "skerry.db-commits"}) REQUIRE(remove_file(world.dir / log).ok());
  REQUIRE(rename_durable(world.dir / "backup.db", world.dir / "skerry.db").ok());
  refuses_to_open(world, "--restored");
  StoreOptions restored;
  restored.restored = true;
  world.reopen(restored);
  CHECK(world.store->epoch().substr(0, 2) == "2-");
  CHECK(world.store->chain_length() == 5);
  std::string epoch = world.store->epoch();
  exchange(world, 2);
  world.reopen();
  CHECK(world.store->epoch() == epoch);
  CHECK(world.store->audit_log(1)->front().action == "store.restore");
}

TEST_CASE("a database without its anchor is refused until somebody says that it was restored") {
  StoreFixture world;
  exchange(world, 1);
  world.close();
  REQUIRE(remove_file(world.dir / "chain.head").ok());
  auto refused = world.try_open();
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().code == Code::kFailedPrecondition);
  CHECK_THAT(refused.error().message, Catch::Contains("chain.head"));
  StoreOptions restored;
  restored.restored = true;
  world.reopen(restored);
  CHECK(world.store->chain_length() == 5);
}

TEST_CASE("an anchor that is behind the database, as after a power cut, does no harm") {
  StoreFixture world;
  exchange(world, 1);
  auto behind = read_file(world.dir / "chain.head", 1000);
  exchange(world, 2);
  world.close();
  REQUIRE(write_file_atomic(world.dir / "chain.head", *behind).ok());
  world.reopen();
  CHECK(world.store->chain_length() == 10);
}
