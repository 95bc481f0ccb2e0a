// SQLite behind values and Results: a connection, cached statements, transactions, schema versions.
//
//   SKERRY_TRY(db.run("INSERT INTO runs (name, created_ms) VALUES (?, ?)", name, now));
//   SKERRY_ASSIGN(auto row, db.query("SELECT name, created_ms FROM runs WHERE status = ?", "running"));
//   for (;;) {
//     SKERRY_ASSIGN(bool more, row.next());
//     if (!more) break;
//     use(row.text(0), row.int64(1));
//   }
//
// Errors name the database, the SQL and SQLite's own message: ALREADY_EXISTS (a UNIQUE or PRIMARY KEY constraint),
// FAILED_PRECONDITION (another constraint, or a schema newer than this program), UNAVAILABLE (locked by another
// connection for longer than the busy timeout), RESOURCE_EXHAUSTED (disk full), DATA_LOSS (corrupt, not a database, I/O
// error), PERMISSION_DENIED (read-only or not accessible), INTERNAL (a mistake in the SQL).
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "common/base/result.h"

struct sqlite3;
struct sqlite3_stmt;

namespace skerry::sqlite {

enum class Synchronous {
  kNormal,  ///< a power cut may lose the last commits, never corrupt; a crash of the process loses nothing
  kFull,    ///< a commit that returned survives a power cut
};

struct OpenOptions {
  bool read_only = false;  ///< also: NOT_FOUND if there is no database
  Synchronous synchronous = Synchronous::kFull;
  int busy_timeout_ms = 5000;
  int wal_checkpoint_pages = 2000;  ///< the WAL is folded back into the database when it is this long
  int cache_kib = 2048;             ///< page cache of this connection
  bool accept_lost_commits = false; ///< take the database as it is, an older copy for example, and count on from there
};

/// Binds as a BLOB what a std::string or string_view would bind as TEXT.
struct Blob {
  std::string_view bytes;
};

class Database;
struct DatabaseState;

/// A prepared statement, bound and ready to be stepped; back in its connection's cache when it goes. It must not
/// outlive the Database. Columns count from 0, parameters from 1. One thread at a time, the Database's.
class Statement {
 public:
  Statement(Statement&& other) noexcept;
  Statement& operator=(Statement&& other) noexcept;
  ~Statement();

  /// Binds a value; a wrong index shows as INTERNAL at the next next(). The value is copied.
  void bind(int parameter, std::int64_t value);
  void bind(int parameter, double value);
  void bind(int parameter, std::string_view text);
  void bind(int parameter, Blob blob);
  void bind(int parameter, std::span<const std::byte> blob);
  void bind(int parameter, std::nullptr_t);
  void bind(int parameter, const char* text) { bind(parameter, std::string_view(text)); }
  void bind(int parameter, const std::string& text) { bind(parameter, std::string_view(text)); }
  /// Every integer type; an unsigned value above 2^63 - 1 is stored as its two's complement and read back by uint64().
  template <std::integral T>
  void bind(int parameter, T value) {
    bind(parameter, static_cast<std::int64_t>(value));
  }

  /// Moves to the next row; false when there is none left.
  Result<bool> next();

  /// Makes it ready to run again with new bindings.
  void reset();

  // The current row. A NULL reads as 0, 0.0 or empty. Views hold until the next next(), reset() or the end of this.
  bool is_null(int column) const;
  std::int64_t int64(int column) const;
  std::uint64_t uint64(int column) const { return static_cast<std::uint64_t>(int64(column)); }
  double real(int column) const;
  std::string_view text_view(int column) const;
  std::string text(int column) const { return std::string(text_view(column)); }
  std::string_view blob_view(int column) const;
  std::string blob(int column) const { return std::string(blob_view(column)); }

 private:
  friend class Database;
  Statement(DatabaseState* database, sqlite3_stmt* statement) : database_(database), statement_(statement) {}
  void release();

  DatabaseState* database_ = nullptr;
  sqlite3_stmt* statement_ = nullptr;
  int bind_error_ = 0;
};

/// One connection. One thread at a time; other threads open their own.
class Database {
 public:
  /// Opens or creates the database at `path` (0600) in WAL mode, with foreign keys enforced.
  ///
  /// Every page carries a checksum: whatever reads a damaged one fails with DATA_LOSS naming the page. Transactions of a
  /// migrated database with kFull are counted, in it and in the file `<path>-commits`: DATA_LOSS here if it has lost any.
  static Result<Database> open(const std::string& path, const OpenOptions& options = {});

  /// A private database in memory, for tests and simulations.
  static Result<Database> open_in_memory();

  Database(Database&&) noexcept;
  Database& operator=(Database&&) noexcept;
  ~Database();

  /// Runs any number of statements without parameters, for schemas and pragmas.
  Result<void> execute(const std::string& sql);

  /// The prepared statement for `sql`, from the cache if it is there and free. Unbound.
  Result<Statement> prepare(std::string_view sql);

  /// A statement with its parameters bound in order, to be read row by row.
  template <typename... Args>
  Result<Statement> query(std::string_view sql, const Args&... args) {
    SKERRY_ASSIGN(Statement statement, prepare(sql));
    int parameter = 0;
    (statement.bind(++parameter, args), ...);
    return statement;
  }

  /// Runs one statement to its end; the number of rows it changed.
  template <typename... Args>
  Result<std::int64_t> run(std::string_view sql, const Args&... args) {
    SKERRY_ASSIGN(Statement statement, query(sql, args...));
    return finish(statement);
  }

  std::int64_t last_insert_id() const;

  /// Brings the schema up to date: `migrations[i]` leads from user_version i to i + 1, each in a transaction of its
  /// own. FAILED_PRECONDITION if the database is newer than `migrations` (a newer Skerry wrote it), with both numbers. A
  /// database without page checksums (an older Skerry wrote it) is given them; nobody else may use it meanwhile.
  Result<void> migrate(std::span<const char* const> migrations);

  /// The file's page-level consistency by SQLite's own check; DATA_LOSS with its findings. Flipped payload bits do not
  /// show.
  Result<void> check_integrity();

  /// Copies a consistent snapshot to a new file at `path` while others go on writing (VACUUM INTO).
  Result<void> backup_to(const std::string& path);

  /// True between a Transaction's begin and its end.
  bool in_transaction() const;

  const std::string& path() const;

 private:
  friend class Transaction;
  static Result<Statement> prepare(DatabaseState& state, std::string_view sql);
  explicit Database(std::unique_ptr<DatabaseState> state);
  Result<std::int64_t> finish(Statement& statement);
  Result<void> add_checksums();
  Result<void> count_commits(bool accept_lost);

  std::unique_ptr<DatabaseState> state_;
};

/// Everything or nothing: what ran on the database since begin() is committed by commit(), else rolled back at the end.
/// Transactions do not nest. It must not outlive the Database.
class Transaction {
 public:
  /// Takes the write lock at once (BEGIN IMMEDIATE), so that a later statement cannot fail for a lock.
  static Result<Transaction> begin(Database& database);

  Transaction(Transaction&& other) noexcept
      : database_(std::exchange(other.database_, nullptr)), changes_(other.changes_) {}
  Transaction& operator=(Transaction&&) = delete;
  ~Transaction();

  /// After an error the transaction is rolled back.
  Result<void> commit();

 private:
  explicit Transaction(Database& database);
  Result<std::uint64_t> count();

  DatabaseState* database_;
  std::int64_t changes_ = 0;  ///< of the connection when it began
};

}  // namespace skerry::sqlite
