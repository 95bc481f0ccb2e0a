#include <sys/stat.h>

#include <catch2/catch.hpp>

#include "common/os/files.h"
#include "common/sqlite/database.h"
#include "tests/support/temp_dir.h"

using namespace skerry;
using namespace skerry::sqlite;

namespace {

std::int64_t count(Database& database, const std::string& table) {
  auto row = database.query("SELECT count(*) FROM " + table);
  REQUIRE(row.ok());
  REQUIRE(*row->next());
  return row->int64(0);
}

}  // namespace

TEST_CASE("values of every kind come back as they were bound") {
  auto database = Database::open_in_memory();
  REQUIRE(database.ok());
  REQUIRE(database->execute("CREATE TABLE t (i, d, s, b, n)").ok());
  const std::string bytes("\0\x01\xff", 3);
  REQUIRE(database->run("INSERT INTO t VALUES (?, ?, ?, ?, ?)", -5, 2.5, "text", Blob{bytes}, nullptr).ok());
  auto row = database->query("SELECT * FROM t");
  REQUIRE(row.ok());
  REQUIRE(*row->next());
  CHECK(row->int64(0) == -5);
  CHECK(row->real(1) == 2.5);
  CHECK(row->text(2) == "text");
  CHECK(row->blob(3) == bytes);
  CHECK(row->is_null(4));
  CHECK_FALSE(*row->next());
}

TEST_CASE("unsigned values beyond 2^63, empty texts and empty blobs survive") {
  auto database = Database::open_in_memory();
  REQUIRE(database->execute("CREATE TABLE t (i, s NOT NULL, b NOT NULL)").ok());
  REQUIRE(database->run("INSERT INTO t VALUES (?, ?, ?)", ~std::uint64_t{0}, std::string_view(), Blob{{}}).ok());
  auto row = database->query("SELECT * FROM t");
  REQUIRE(*row->next());
  CHECK(row->uint64(0) == ~std::uint64_t{0});
  CHECK(row->text(1).empty());
  CHECK(row->blob(2).empty());
}

TEST_CASE("a transaction that is not committed leaves nothing") {
  auto database = Database::open_in_memory();
  REQUIRE(database->execute("CREATE TABLE t (i)").ok());
  {
    auto transaction = Transaction::begin(*database);
    REQUIRE(transaction.ok());
    REQUIRE(database->run("INSERT INTO t VALUES (1)").ok());
    CHECK(database->in_transaction());
  }
  CHECK_FALSE(database->in_transaction());
  CHECK(count(*database, "t") == 0);
  {
    auto transaction = Transaction::begin(*database);
    REQUIRE(database->run("INSERT INTO t VALUES (1)").ok());
    REQUIRE(transaction->commit().ok());
  }
  CHECK(count(*database, "t") == 1);
}

TEST_CASE("what was committed is there after the database is opened again, private to its owner") {
  test::TempDir dir;
  {
    auto database = Database::open(dir / "a.db");
    REQUIRE(database.ok());
    REQUIRE(database->execute("CREATE TABLE t (i)").ok());
    REQUIRE(database->run("INSERT INTO t VALUES (7)").ok());
  }
  struct stat info {};
  REQUIRE(::stat((dir / "a.db").c_str(), &info) == 0);
  CHECK((info.st_mode & 0777) == 0600);
  OpenOptions read_only;
  read_only.read_only = true;
  auto database = Database::open(dir / "a.db", read_only);
  REQUIRE(database.ok());
  CHECK(count(*database, "t") == 1);
  auto refused = database->run("INSERT INTO t VALUES (8)");
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().code == Code::kPermissionDenied);
}

TEST_CASE("a reader that finds no database says NOT_FOUND") {
  test::TempDir dir;
  OpenOptions read_only;
  read_only.read_only = true;
  auto missing = Database::open(dir / "none.db", read_only);
  REQUIRE_FALSE(missing.ok());
  CHECK(missing.error().code == Code::kNotFound);
}

TEST_CASE("errors carry the SQL, SQLite's message and a code that says whose mistake it is") {
  auto database = Database::open_in_memory();
  REQUIRE(database->execute("CREATE TABLE t (i INTEGER PRIMARY KEY, s TEXT NOT NULL)").ok());
  auto syntax = database->run("INSERT INTO nowhere VALUES (1)");
  REQUIRE_FALSE(syntax.ok());
  CHECK(syntax.error().code == Code::kInternal);
  CHECK_THAT(syntax.error().message,
             Catch::Contains("no such table: nowhere") && Catch::Contains("INSERT INTO nowhere"));
  REQUIRE(database->run("INSERT INTO t VALUES (1, 'a')").ok());
  CHECK(database->run("INSERT INTO t VALUES (1, 'b')").error().code == Code::kAlreadyExists);
  CHECK(database->run("INSERT INTO t VALUES (2, NULL)").error().code == Code::kFailedPrecondition);
  CHECK(database->run("INSERT INTO t VALUES (?, 'c')", 3, 4).error().code == Code::kInternal);
}

TEST_CASE("a full database is RESOURCE_EXHAUSTED and works on when there is room") {
  test::TempDir dir;
  auto database = Database::open(dir / "a.db");
  REQUIRE(database->execute("CREATE TABLE t (b BLOB)").ok());
  REQUIRE(database->execute("PRAGMA max_page_count = 20").ok());
  auto full = database->run("INSERT INTO t VALUES (?)", Blob{std::string(200'000, 'x')});
  REQUIRE_FALSE(full.ok());
  CHECK(full.error().code == Code::kResourceExhausted);
  CHECK(full.error().retryable);
  REQUIRE(database->execute("PRAGMA max_page_count = 2000").ok());
  CHECK(database->run("INSERT INTO t VALUES (?)", Blob{std::string(200'000, 'x')}).ok());
}

TEST_CASE("a database that another connection holds is UNAVAILABLE after the busy timeout") {
  test::TempDir dir;
  OpenOptions impatient;
  impatient.busy_timeout_ms = 10;
  auto first = Database::open(dir / "a.db", impatient);
  auto second = Database::open(dir / "a.db", impatient);
  REQUIRE(first->execute("CREATE TABLE t (i)").ok());
  auto held = Transaction::begin(*first);
  REQUIRE(held.ok());
  auto refused = Transaction::begin(*second);
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().code == Code::kUnavailable);
  CHECK(refused.error().retryable);
}

TEST_CASE("a file that is no database is DATA_LOSS") {
  test::TempDir dir;
  REQUIRE(write_file_atomic(dir / "a.db", std::string(4096, 'x')).ok());
  auto broken = Database::open(dir / "a.db");
  REQUIRE_FALSE(broken.ok());
  CHECK(broken.error().code == Code::kDataLoss);
}

TEST_CASE("migrations run once, in order, and a newer schema is refused with both numbers") {
  test::TempDir dir;
  const char* first[] = {"CREATE TABLE a (i)"};
  const char* both[] = {"CREATE TABLE a (i)", "ALTER TABLE a ADD COLUMN j"};
  {
    auto database = Database::open(dir / "a.db");
    REQUIRE(database->migrate(first).ok());
    REQUIRE(database->migrate(first).ok());
    REQUIRE(database->migrate(both).ok());
    REQUIRE(database->run("INSERT INTO a (i, j) VALUES (1, 2)").ok());
  }
  auto database = Database::open(dir / "a.db");
  auto newer = database->migrate(first);
  REQUIRE_FALSE(newer.ok());
  CHECK(newer.error().code == Code::kFailedPrecondition);
  CHECK_THAT(newer.error().message, Catch::Contains("schema version 2") && Catch::Contains("up to 1"));
}

TEST_CASE("a migration that fails half-way leaves the schema as it was") {
  auto database = Database::open_in_memory();
  const char* broken[] = {"CREATE TABLE a (i); CREATE TABLE a (j)"};
  CHECK_FALSE(database->migrate(broken).ok());
  const char* mended[] = {"CREATE TABLE a (i)"};
  CHECK(database->migrate(mended).ok());
}

TEST_CASE("one statement may be used twice at the same time, and by a database that was moved") {
  auto database = Database::open_in_memory();
  REQUIRE(database->execute("CREATE TABLE t (i); INSERT INTO t VALUES (1), (2)").ok());
  Database moved = std::move(*database);
  auto outer = moved.query("SELECT i FROM t ORDER BY i");
  auto inner = moved.query("SELECT i FROM t ORDER BY i");
  REQUIRE(*outer->next());
  REQUIRE(*inner->next());
  REQUIRE(*inner->next());
  CHECK(outer->int64(0) == 1);
  CHECK(inner->int64(0) == 2);
}

TEST_CASE("a backup taken while a transaction is open elsewhere is what was committed") {
  test::TempDir dir;
  auto writer = Database::open(dir / "a.db");
  REQUIRE(writer->execute("CREATE TABLE t (i); INSERT INTO t VALUES (1)").ok());
  auto open = Transaction::begin(*writer);
  REQUIRE(writer->run("INSERT INTO t VALUES (2)").ok());
  auto reader = Database::open(dir / "a.db");
  REQUIRE(reader->backup_to(dir / "copy.db").ok());
  auto copy = Database::open(dir / "copy.db");
  CHECK(count(*copy, "t") == 1);
}
