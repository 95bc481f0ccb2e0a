// SQLite itself takes flipped bits for data and a damaged log for a short one; here neither passes.
#include <sqlite3.h>

#include <catch2/catch.hpp>

#include "common/os/files.h"
#include "common/sqlite/checked_vfs.h"
#include "common/sqlite/database.h"
#include "tests/support/temp_dir.h"

using namespace skerry;
using namespace skerry::sqlite;
using skerry::test::TempDir;

namespace {

constexpr const char* kSchema[] = {"CREATE TABLE t (i INTEGER PRIMARY KEY, text TEXT)"};

Result<Database> open_migrated(const std::string& path) {
  SKERRY_ASSIGN(Database database, Database::open(path));
  SKERRY_TRY(database.migrate(kSchema));
  return database;
}

void add_rows(Database& database, int rows) {
  for (int i = 0; i < rows; ++i) {
    auto transaction = Transaction::begin(database);
    REQUIRE(transaction.ok());
    REQUIRE(database.run("INSERT INTO t (text) VALUES (?)", std::string(300, static_cast<char>('a' + i % 26))).ok());
    REQUIRE(transaction->commit().ok());
  }
}

/// Reads every row.
Result<std::uint64_t> sum_of_lengths(Result<Database>&& database) {
  if (!database.ok()) return database.error();
  SKERRY_ASSIGN(auto row, database->query("SELECT text FROM t"));
  std::uint64_t sum = 0;
  for (;;) {
    SKERRY_ASSIGN(bool more, row.next());
    if (!more) return sum;
    sum += row.text_view(0).size();
  }
}

void flip(const std::string& path, std::uint64_t offset, unsigned bit) {
  auto file = File::open(path, OpenMode::kReadWrite);
  std::byte value[1];
  REQUIRE(file->pread_exact(value, offset).ok());
  value[0] ^= static_cast<std::byte>(1U << bit);
  REQUIRE(file->pwrite(value, offset).ok());
}

/// A closed database of `rows` rows, all in its one file.
std::string closed_database(const TempDir& dir, int rows) {
  const std::string path = dir / "some.db";
  auto database = open_migrated(path);
  REQUIRE(database.ok());
  add_rows(*database, rows);
  return path;
}

/// Copies a database with its log while it is open, as a killed process leaves it.
std::string killed_database(const TempDir& dir, int rows) {
  const std::string path = dir / "live.db";
  auto database = open_migrated(path);
  REQUIRE(database.ok());
  add_rows(*database, rows);
  for (const char* part : {"", "-wal", "-commits"})
    REQUIRE(write_file_atomic(dir / "killed.db" + part, *read_file(path + part, 1 << 24)).ok());
  return dir / "killed.db";
}

}  // namespace

TEST_CASE("a flipped bit anywhere in a database is noticed by whoever reads the page") {
  TempDir dir;
  const std::string path = closed_database(dir, 200);
  const std::uint64_t size = *file_size(path);
  REQUIRE(size > 15 * kCheckedPageBytes);
  const std::string good = *read_file(path, size);
  for (std::uint64_t offset = 24; offset < size; offset += 491) {
    REQUIRE(write_file_atomic(path, good).ok());
    flip(path, offset, offset % 8);
    const auto sum = sum_of_lengths(open_migrated(path));
    auto database = open_migrated(path);
    const auto whole = database.ok() ? database->check_integrity() : Result<void>(database.error());
    INFO("offset " << offset);
    REQUIRE_FALSE((sum.ok() && whole.ok()));
    CHECK((sum.ok() ? whole.error() : sum.error()).code == Code::kDataLoss);
    if (sum.ok()) CHECK(*sum == 200 * 300);  // the page belongs to none of the rows
  }
}

TEST_CASE("a damaged page is named") {
  TempDir dir;
  const std::string path = closed_database(dir, 200);
  flip(path, 7 * kCheckedPageBytes + 2000, 3);
  auto sum = sum_of_lengths(Database::open(path));
  REQUIRE_FALSE(sum.ok());
  CHECK_THAT(sum.error().message, Catch::Contains("page 8 is damaged"));
}

TEST_CASE("a page in another's place, a hole and a cut are noticed") {
  TempDir dir;
  const std::string path = closed_database(dir, 200);
  auto file = File::open(path, OpenMode::kReadWrite);
  std::vector<std::byte> page(kCheckedPageBytes);
  SECTION("another page") {
    REQUIRE(file->pread_exact(page, 8 * kCheckedPageBytes).ok());
    REQUIRE(file->pwrite(page, 9 * kCheckedPageBytes).ok());
  }
  SECTION("zeros") { REQUIRE(file->pwrite(page, 9 * kCheckedPageBytes).ok()); }
  SECTION("a page is cut off") { REQUIRE(file->resize(*file->size() - kCheckedPageBytes).ok()); }
  SECTION("half a page is cut off") { REQUIRE(file->resize(*file->size() - kCheckedPageBytes / 2).ok()); }
  SECTION("all is cut off") { REQUIRE(file->resize(0).ok()); }
  const auto sum = sum_of_lengths(open_migrated(path));
  REQUIRE_FALSE(sum.ok());
  CHECK(sum.error().code == Code::kDataLoss);
}

TEST_CASE("commits that a damaged log loses are missed") {
  TempDir dir;
  const std::string path = killed_database(dir, 30);
  const std::uint64_t size = *file_size(path + "-wal");
  const std::string good = *read_file(path + "-wal", size);
  const std::string file = *read_file(path, 1 << 24);
  auto lost = [&](const std::string& what) {
    INFO(what);
    auto database = open_migrated(path);
    REQUIRE_FALSE(database.ok());
    CHECK(database.error().code == Code::kDataLoss);
    CHECK_THAT(database.error().message, Catch::Contains("but commit 30 was made"));
    for (const char* part : {"", "-shm"}) REQUIRE(remove_file(path + part).ok());
    REQUIRE(write_file_atomic(path, file).ok());
    REQUIRE(write_file_atomic(path + "-wal", good).ok());
  };
  for (std::uint64_t offset = 0; offset < size; offset += 1999) {
    // Bytes 0 to 31 are the log's header; its checkpoint serial is the only part that nothing depends on.
    if (offset >= 12 && offset < 16) continue;
    flip(path + "-wal", offset, offset % 8);
    lost("flip at " + std::to_string(offset));
  }
  REQUIRE(File::open(path + "-wal", OpenMode::kReadWrite)->resize(size / 2).ok());
  lost("cut");
  REQUIRE(remove_file(path + "-wal").ok());
  lost("removed");
}

TEST_CASE("an older copy of a database is refused unless that is what is wanted") {
  TempDir dir;
  const std::string path = closed_database(dir, 5);
  const std::string older = *read_file(path, 1 << 24);
  {
    auto database = open_migrated(path);
    add_rows(*database, 1);
  }
  REQUIRE(write_file_atomic(path, older).ok());
  CHECK(Database::open(path).error().code == Code::kDataLoss);
  OpenOptions options;
  options.accept_lost_commits = true;
  CHECK(Database::open(path, options).ok());
  CHECK(Database::open(path).ok());
}

TEST_CASE("a damaged count of commits falls back to the one before, and is refused where that is damaged too") {
  TempDir dir;
  const std::string path = closed_database(dir, 5);
  flip(path + "-commits", 64 + 19, 1);
  CHECK(Database::open(path).ok());
  flip(path + "-commits", 19, 1);
  auto database = Database::open(path);
  REQUIRE_FALSE(database.ok());
  CHECK_THAT(database.error().message, Catch::Contains("some.db-commits is damaged"));
}

TEST_CASE("a database of an older Skerry, without checksums, is given them once") {
  TempDir dir;
  const std::string path = dir / "old.db";
  sqlite3* plain = nullptr;
  REQUIRE(sqlite3_open(path.c_str(), &plain) == SQLITE_OK);
  const std::string sql = std::string("PRAGMA journal_mode = WAL;") + kSchema[0] + "; INSERT INTO t VALUES (1, '" + std::string(9000, 'x') +
                          "'); PRAGMA user_version = 1;";
  REQUIRE(sqlite3_exec(plain, sql.c_str(), nullptr, nullptr, nullptr) == SQLITE_OK);
  sqlite3_close(plain);
  {
    auto database = open_migrated(path);
    INFO((database.ok() ? "" : database.error().message));
    REQUIRE(database.ok());
    CHECK(*sum_of_lengths(open_migrated(path)) == 9000);
    add_rows(*database, 1);
  }
  CHECK(*sum_of_lengths(open_migrated(path)) == 9300);
  flip(path, 2 * kCheckedPageBytes + 2000, 0);  // the first page of the rows
  CHECK_FALSE(sum_of_lengths(open_migrated(path)).ok());
  // Its header cannot be made to look like an old one's again.
  flip(path, 20, 3);
  CHECK(open_migrated(path).error().code == Code::kDataLoss);
}

TEST_CASE("a snapshot of a database has checksums as well") {
  TempDir dir;
  const std::string path = closed_database(dir, 100);
  REQUIRE(Database::open(path)->backup_to(dir / "copy.db").ok());
  CHECK(*sum_of_lengths(open_migrated(dir / "copy.db")) == 30000);
  flip(dir / "copy.db", 5 * kCheckedPageBytes + 1000, 0);
  CHECK_FALSE(sum_of_lengths(Database::open(dir / "copy.db")).ok());
}
