#include "client/daemon/egress/client_database.h"

#include <catch2/catch.hpp>

#include "common/os/files.h"
#include "common/sqlite/database.h"
#include "tests/support/temp_dir.h"

using namespace skerry;
using namespace skerry::client;

namespace {

EgressRow row(const std::string& kind, const std::string& run = "r") {
  EgressRow row;
  row.time_ms = 1'000;
  row.kind = kind;
  row.run = run;
  row.bytes = 42;
  row.sha256 = std::string(64, 'a');
  row.norm = 0.5;
  return row;
}

/// A home whose ledger has `count` rows.
void fill(const std::string& home, int count) {
  auto database = ClientDatabase::open(home);
  REQUIRE(database.ok());
  for (int i = 0; i < count; ++i) {
    REQUIRE(database->begin().ok());
    REQUIRE(database->append(row("update")).ok());
    REQUIRE(database->commit().ok());
  }
}

std::string finding(const std::string& home) {
  auto database = ClientDatabase::open(home, true);
  REQUIRE(database.ok());
  const auto report = database->verify_ledger();
  REQUIRE(report.ok());
  return report->finding;
}

void tamper(const std::string& home, const std::string& sql) {
  auto database = sqlite::Database::open(home + "/client.db");
  REQUIRE(database.ok());
  REQUIRE(database->execute(sql).ok());
}

StoredUpdate update(const std::string& id) {
  StoredUpdate update;
  update.task.set_task_id(id);
  update.task.set_run_id("r");
  update.task.set_ticket("ticket");
  update.message.set_body(std::string("body\0of ", 8) + id);
  update.message.set_signature("signature");
  update.uploads = {{"b2-1", 70'000}};
  return update;
}

}  // namespace

TEST_CASE("an untouched ledger is found unaltered") {
  test::TempDir dir;
  fill(dir.path(), 5);
  CHECK(finding(dir.path()).empty());
}

TEST_CASE("an altered row is named") {
  test::TempDir dir;
  fill(dir.path(), 5);
  tamper(dir.path(), "UPDATE ledger SET bytes = 1 WHERE seq = 3");
  CHECK_THAT(finding(dir.path()), Catch::StartsWith("row 3 "));
}

TEST_CASE("a removed row is named") {
  test::TempDir dir;
  fill(dir.path(), 5);
  tamper(dir.path(), "DELETE FROM ledger WHERE seq = 2");
  CHECK(finding(dir.path()) == "row 2 is missing");
}

TEST_CASE("rows cut off at the end are noticed") {
  test::TempDir dir;
  fill(dir.path(), 5);
  tamper(dir.path(), "DELETE FROM ledger WHERE seq >= 4");
  CHECK_THAT(finding(dir.path()), Catch::Contains("row 4 is missing"));
}

TEST_CASE("a ledger written anew with good hashes is noticed") {
  test::TempDir dir, other;
  fill(dir.path(), 3);
  {
    auto database = ClientDatabase::open(other.path());
    REQUIRE(database->begin().ok());
    for (int i = 0; i < 3; ++i) REQUIRE(database->append(row("progress")).ok());
    REQUIRE(database->commit().ok());
  }
  const auto forged = read_file(other / "client.db", 1 << 20);
  REQUIRE(forged.ok());
  REQUIRE(remove_file(dir / "client.db-wal").ok());
  REQUIRE(remove_file(dir / "client.db-shm").ok());
  REQUIRE(write_file_atomic(dir / "client.db", *forged).ok());
  CHECK_THAT(finding(dir.path()), Catch::Contains("rewritten"));
}

TEST_CASE("what was not committed is not in the ledger, and the chain goes on from what was") {
  test::TempDir dir;
  fill(dir.path(), 2);
  {
    auto database = ClientDatabase::open(dir.path());
    REQUIRE(database->begin().ok());
    REQUIRE(database->append(row("update")).ok());
    database->rollback();
    REQUIRE(database->begin().ok());
    REQUIRE(database->append(row("error")).ok());
    REQUIRE(database->commit().ok());
  }
  CHECK(finding(dir.path()).empty());
  std::vector<std::string> kinds;
  auto database = ClientDatabase::open(dir.path(), true);
  REQUIRE(database->visit_ledger("", [&](const EgressRow& one) {
    kinds.push_back(one.kind);
    return true;
  }).ok());
  CHECK(kinds == std::vector<std::string>{"update", "update", "error"});
}

TEST_CASE("rows can be listed by run and counted by day") {
  test::TempDir dir;
  auto database = ClientDatabase::open(dir.path());
  REQUIRE(database->begin().ok());
  REQUIRE(database->append(row("update", "a")).ok());
  REQUIRE(database->append(row("update", "b")).ok());
  REQUIRE(database->append(row("progress", "a")).ok());
  REQUIRE(database->commit().ok());
  int count = 0;
  REQUIRE(database->visit_ledger("a", [&](const EgressRow&) { return ++count < 10; }).ok());
  CHECK(count == 2);
  CHECK(*database->updates_since(500) == 2);
  CHECK(*database->updates_since(1'500) == 0);
}

TEST_CASE("a committed update is in the outbox of the next life, an uncommitted one is not") {
  test::TempDir dir;
  {
    auto database = ClientDatabase::open(dir.path());
    REQUIRE(database->begin().ok());
    REQUIRE(database->put_update(update("t1"), 1).ok());
    REQUIRE(database->put_update(update("t2"), 2).ok());
    REQUIRE(database->set_value("incarnation", "i-7").ok());
    REQUIRE(database->commit().ok());
    REQUIRE(database->begin().ok());
    REQUIRE(database->put_update(update("t3"), 3).ok());
    REQUIRE(database->remove_update("t1").ok());
    // The process ends here.
  }
  auto database = ClientDatabase::open(dir.path());
  const auto outbox = database->load_outbox();
  REQUIRE(outbox.ok());
  REQUIRE(outbox->size() == 2);
  CHECK((*outbox)[0].task.task_id() == "t1");
  CHECK((*outbox)[0].message.body() == std::string("body\0of t1", 10));
  CHECK((*outbox)[0].task.ticket() == "ticket");
  REQUIRE((*outbox)[0].uploads.size() == 1);
  CHECK((*outbox)[0].uploads[0].size == 70'000);
  CHECK(*database->value("incarnation") == "i-7");
  CHECK(database->value("absent")->empty());
}
