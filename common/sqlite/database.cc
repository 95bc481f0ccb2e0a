#include "common/sqlite/database.h"

#include <sqlite3.h>

#include <optional>
#include <string>
#include <unordered_map>
#include <utility>

#include "common/os/files.h"
#include "common/sqlite/checked_vfs.h"
#include "common/sqlite/commit_witness.h"

namespace skerry::sqlite {

/// Lives at one address however the Database is moved, because statements and transactions point to it.
struct DatabaseState {
  struct Cached {
    sqlite3_stmt* statement = nullptr;
    bool in_use = false;
  };

  std::string path;
  sqlite3* handle = nullptr;
  std::unordered_map<std::string, Cached> cache;  // by SQL
  bool counts = false;                            // its commits survive a power cut, so they can be counted
  std::optional<CommitWitness> witness;           // while they are: from migrate() on

  ~DatabaseState() {
    for (auto& entry : cache) sqlite3_finalize(entry.second.statement);
    sqlite3_close_v2(handle);
  }

  Error error(int code, std::string_view sql) const {
    std::string message =
        "database " + path + ": " + (handle != nullptr ? sqlite3_errmsg(handle) : sqlite3_errstr(code));
    if (!sql.empty()) message += ", in: " + std::string(sql);
    switch (code & 0xff) {
      case SQLITE_FULL:
        return resource_exhausted(std::move(message) + free_space_note());
      case SQLITE_BUSY:
      case SQLITE_LOCKED:
        return unavailable(std::move(message) + "; another process or connection holds it, try again");
      case SQLITE_CONSTRAINT:
        if (code == SQLITE_CONSTRAINT_UNIQUE || code == SQLITE_CONSTRAINT_PRIMARYKEY ||
            code == SQLITE_CONSTRAINT_ROWID) {
          return already_exists(std::move(message));
        }
        return failed_precondition(std::move(message));
      case SQLITE_CORRUPT:
      case SQLITE_NOTADB:
        return data_loss(std::move(message) + "; restore it from a backup");
      case SQLITE_IOERR:
        if (code == SQLITE_IOERR_DATA) return data_loss("database " + path + ": " + damaged_page() + "; restore it from a backup");
        // A full disk can also show as a failed write of the journal.
        if (code == SQLITE_IOERR_WRITE && disk_is_full())
          return resource_exhausted(std::move(message) + free_space_note());
        return data_loss(std::move(message) + " (" + sqlite3_errstr(code) + "); the disk may have failed");
      case SQLITE_READONLY:
      case SQLITE_PERM:
      case SQLITE_AUTH:
        return permission_denied(std::move(message));
      case SQLITE_CANTOPEN:
        return path_exists(path) ? permission_denied(std::move(message)) : not_found(std::move(message));
      case SQLITE_NOMEM:
      case SQLITE_TOOBIG:
        return resource_exhausted(std::move(message));
      default:
        return internal_error(std::move(message));
    }
  }

  std::string damaged_page() const {
    std::uint64_t page = 0;
    sqlite3_file_control(handle, "main", kFileDamagedPage, &page);
    return "page " + std::to_string(page) + " is damaged or missing, its bytes do not have their checksum";
  }

  bool has_checksums() const {
    int checked = 1;
    sqlite3_file_control(handle, "main", kFileIsChecked, &checked);
    return checked != 0;
  }

  bool disk_is_full() const {
    auto free_bytes = free_disk_bytes(parent_directory(path));
    return free_bytes.ok() && *free_bytes < (1U << 20);
  }

  std::string free_space_note() const {
    auto free_bytes = free_disk_bytes(parent_directory(path));
    if (!free_bytes.ok()) return "";
    return " (" + std::to_string(*free_bytes) + " bytes are free there); free some space and try again";
  }
};

namespace {

constexpr std::size_t kMostCached = 256;

Result<void> create_private(const std::string& path) {
  SKERRY_ASSIGN(File file, File::open(path, OpenMode::kCreateOrOpen, 0600));
  return fsync_directory(parent_directory(path));
}

}  // namespace

// ---- statements ----

Statement::Statement(Statement&& other) noexcept
    : database_(std::exchange(other.database_, nullptr)),
      statement_(std::exchange(other.statement_, nullptr)),
      bind_error_(other.bind_error_) {}

Statement& Statement::operator=(Statement&& other) noexcept {
  if (this != &other) {
    release();
    database_ = std::exchange(other.database_, nullptr);
    statement_ = std::exchange(other.statement_, nullptr);
    bind_error_ = other.bind_error_;
  }
  return *this;
}

Statement::~Statement() { release(); }

void Statement::release() {
  if (statement_ == nullptr) return;
  sqlite3_reset(statement_);
  sqlite3_clear_bindings(statement_);
  auto entry = database_->cache.find(sqlite3_sql(statement_));
  if (entry != database_->cache.end() && entry->second.statement == statement_) {
    entry->second.in_use = false;
  } else {
    sqlite3_finalize(statement_);
  }
  statement_ = nullptr;
}

void Statement::bind(int parameter, std::int64_t value) {
  if (int code = sqlite3_bind_int64(statement_, parameter, value); code != SQLITE_OK) bind_error_ = code;
}

void Statement::bind(int parameter, double value) {
  if (int code = sqlite3_bind_double(statement_, parameter, value); code != SQLITE_OK) bind_error_ = code;
}

void Statement::bind(int parameter, std::string_view text) {
  int code = sqlite3_bind_text64(statement_, parameter, text.data() != nullptr ? text.data() : "", text.size(),
                                 SQLITE_TRANSIENT, SQLITE_UTF8);
  if (code != SQLITE_OK) bind_error_ = code;
}

void Statement::bind(int parameter, Blob blob) { bind(parameter, as_bytes_of(blob.bytes)); }

void Statement::bind(int parameter, std::span<const std::byte> blob) {
  // A null pointer would bind NULL instead of an empty blob.
  const void* data = blob.data() != nullptr ? static_cast<const void*>(blob.data()) : "";
  if (int code = sqlite3_bind_blob64(statement_, parameter, data, blob.size(), SQLITE_TRANSIENT); code != SQLITE_OK) {
    bind_error_ = code;
  }
}

void Statement::bind(int parameter, std::nullptr_t) {
  if (int code = sqlite3_bind_null(statement_, parameter); code != SQLITE_OK) bind_error_ = code;
}

Result<bool> Statement::next() {
  if (bind_error_ != 0) {
    int code = std::exchange(bind_error_, 0);
    return internal_error("database " + database_->path + ": cannot bind a value (" + sqlite3_errstr(code) +
                          "), in: " + sqlite3_sql(statement_));
  }
  int code = sqlite3_step(statement_);
  if (code == SQLITE_ROW) return true;
  if (code == SQLITE_DONE) return false;
  Error error = database_->error(sqlite3_extended_errcode(database_->handle), sqlite3_sql(statement_));
  sqlite3_reset(statement_);
  return error;
}

void Statement::reset() {
  sqlite3_reset(statement_);
  sqlite3_clear_bindings(statement_);
  bind_error_ = 0;
}

bool Statement::is_null(int column) const { return sqlite3_column_type(statement_, column) == SQLITE_NULL; }

std::int64_t Statement::int64(int column) const { return sqlite3_column_int64(statement_, column); }

double Statement::real(int column) const { return sqlite3_column_double(statement_, column); }

std::string_view Statement::text_view(int column) const {
  const auto* data = reinterpret_cast<const char*>(sqlite3_column_text(statement_, column));
  return data == nullptr ? std::string_view()
                         : std::string_view(data, static_cast<std::size_t>(sqlite3_column_bytes(statement_, column)));
}

std::string_view Statement::blob_view(int column) const {
  const auto* data = static_cast<const char*>(sqlite3_column_blob(statement_, column));
  return data == nullptr ? std::string_view()
                         : std::string_view(data, static_cast<std::size_t>(sqlite3_column_bytes(statement_, column)));
}

// ---- connections ----

Database::Database(std::unique_ptr<DatabaseState> state) : state_(std::move(state)) {}
Database::Database(Database&&) noexcept = default;
Database& Database::operator=(Database&&) noexcept = default;
Database::~Database() = default;

Result<Database> Database::open(const std::string& path, const OpenOptions& options) {
  auto state = std::make_unique<DatabaseState>();
  state->path = path;
  const bool in_memory = path == ":memory:";
  if (!options.read_only && !in_memory && !path_exists(path)) {
    // SQLite gives its -wal and -shm files the database's mode, so it is enough to make this one private.
    SKERRY_TRY(create_private(path));
  }
  int flags = SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE |
              (options.read_only ? SQLITE_OPEN_READONLY : SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE);
  if (int code = sqlite3_open_v2(path.c_str(), &state->handle, flags, checked_vfs()); code != SQLITE_OK) {
    return with_context(state->error(code, ""), "cannot open");
  }
  sqlite3_busy_timeout(state->handle, options.busy_timeout_ms);
  Database database(std::move(state));
  if (!options.read_only) {
    SKERRY_TRY(database.execute("PRAGMA page_size = " + std::to_string(kCheckedPageBytes)));  // of a new one
    int reserved = kChecksumBytes;
    sqlite3_file_control(database.state_->handle, "main", SQLITE_FCNTL_RESERVE_BYTES, &reserved);
    SKERRY_TRY(database.execute("PRAGMA journal_mode = WAL"));
    SKERRY_TRY(database.execute("PRAGMA wal_autocheckpoint = " + std::to_string(options.wal_checkpoint_pages)));
    SKERRY_TRY(database.execute(options.synchronous == Synchronous::kFull ? "PRAGMA synchronous = FULL"
                                                                          : "PRAGMA synchronous = NORMAL"));
  }
  SKERRY_TRY(database.execute("PRAGMA foreign_keys = ON"));
  SKERRY_TRY(database.execute("PRAGMA cache_size = -" + std::to_string(options.cache_kib)));
  if (!options.read_only && !in_memory && options.synchronous == Synchronous::kFull) {
    database.state_->counts = true;
    SKERRY_TRY(database.count_commits(options.accept_lost_commits));
  }
  return database;
}

Result<Database> Database::open_in_memory() { return open(":memory:"); }

Result<void> Database::execute(const std::string& sql) {
  int code = sqlite3_exec(state_->handle, sql.c_str(), nullptr, nullptr, nullptr);
  if (code != SQLITE_OK) return state_->error(code, sql);
  return {};
}

Result<Statement> Database::prepare(std::string_view sql) { return prepare(*state_, sql); }

Result<Statement> Database::prepare(DatabaseState& state, std::string_view sql) {
  std::string key(sql);
  auto entry = state.cache.find(key);
  if (entry != state.cache.end() && !entry->second.in_use) {
    entry->second.in_use = true;
    return Statement(&state, entry->second.statement);
  }
  sqlite3_stmt* statement = nullptr;
  const bool cached = entry == state.cache.end() && state.cache.size() < kMostCached;
  int code = sqlite3_prepare_v3(state.handle, key.c_str(), static_cast<int>(key.size() + 1),
                                cached ? SQLITE_PREPARE_PERSISTENT : 0, &statement, nullptr);
  if (code != SQLITE_OK) return state.error(code, sql);
  if (statement == nullptr) return internal_error("database " + state.path + ": the SQL is empty");
  if (cached) state.cache.emplace(sqlite3_sql(statement), DatabaseState::Cached{statement, true});
  return Statement(&state, statement);
}

Result<std::int64_t> Database::finish(Statement& statement) {
  for (;;) {
    SKERRY_ASSIGN(bool more, statement.next());
    if (!more) return static_cast<std::int64_t>(sqlite3_changes64(state_->handle));
  }
}

std::int64_t Database::last_insert_id() const { return sqlite3_last_insert_rowid(state_->handle); }

Result<void> Database::migrate(std::span<const char* const> migrations) {
  SKERRY_ASSIGN(Statement row, query("PRAGMA user_version"));
  SKERRY_ASSIGN(bool present, row.next());
  std::int64_t version = present ? row.int64(0) : 0;
  row.reset();
  if (version > static_cast<std::int64_t>(migrations.size())) {
    return failed_precondition("database " + state_->path + " has schema version " + std::to_string(version) +
                               ", this program knows versions up to " + std::to_string(migrations.size()) +
                               "; use the newer program that wrote it");
  }
  SKERRY_TRY(add_checksums());
  for (; version < static_cast<std::int64_t>(migrations.size()); ++version) {
    SKERRY_ASSIGN(Transaction transaction, Transaction::begin(*this));
    SKERRY_TRY(execute(migrations[static_cast<std::size_t>(version)]));
    SKERRY_TRY(execute("PRAGMA user_version = " + std::to_string(version + 1)));
    SKERRY_TRY(transaction.commit());
  }
  if (!state_->counts || state_->witness) return {};
  SKERRY_TRY(execute("BEGIN IMMEDIATE;"
                     "CREATE TABLE commit_counter (one INTEGER PRIMARY KEY CHECK (one = 1), commits INTEGER NOT NULL);"
                     "INSERT INTO commit_counter VALUES (1, 0);"
                     "COMMIT"));
  return count_commits(false);
}

Result<void> Database::add_checksums() {
  if (state_->has_checksums()) return {};
  // What counts its commits was made with checksums.
  if (path_exists(state_->path + "-commits"))
    return data_loss("database " + state_->path + ": its header is damaged; restore it from a backup");
  SKERRY_TRY(execute("VACUUM"));
  SKERRY_TRY(execute("PRAGMA wal_checkpoint(TRUNCATE)"));
  if (!state_->has_checksums())
    return failed_precondition("database " + state_->path +
                               " cannot be given page checksums while another connection uses it; stop what does");
  return {};
}

Result<void> Database::count_commits(bool accept_lost) {
  bool counted = false;
  {
    SKERRY_ASSIGN(Statement table, query("SELECT 1 FROM sqlite_schema WHERE name = 'commit_counter'"));
    SKERRY_ASSIGN(counted, table.next());
  }
  if (!counted && !path_exists(state_->path + "-commits")) return {};  // not migrated yet
  SKERRY_ASSIGN(CommitWitness witness, CommitWitness::open(state_->path));
  // The file first: other connections may commit in between.
  std::uint64_t durable = 0;
  if (!accept_lost) {
    SKERRY_ASSIGN(durable, witness.read());
  }
  std::uint64_t commits = 0;
  if (counted) {
    SKERRY_ASSIGN(Statement row, query("SELECT commits FROM commit_counter"));
    SKERRY_ASSIGN(const bool present, row.next());
    if (!present) return data_loss("database " + state_->path + " has lost its count of commits; restore it from a backup");
    commits = row.uint64(0);
  }
  if (commits < durable) {
    return data_loss("database " + state_->path + " ends at commit " + std::to_string(commits) + ", but commit " +
                     std::to_string(durable) + " was made: " + state_->path + "-wal is damaged or was removed, or the database is "
                     "an older copy; restore a backup");
  }
  if (accept_lost) SKERRY_TRY(witness.reset(commits));
  if (counted) state_->witness = std::move(witness);
  return {};
}

Result<void> Database::check_integrity() {
  SKERRY_ASSIGN(Statement row, query("PRAGMA integrity_check"));
  std::string findings;
  for (;;) {
    SKERRY_ASSIGN(bool more, row.next());
    if (!more) break;
    if (row.text_view(0) != "ok") findings += (findings.empty() ? "" : "; ") + row.text(0);
  }
  if (!findings.empty())
    return data_loss("database " + state_->path + " is damaged: " + findings + "; restore it from a backup");
  return {};
}

Result<void> Database::backup_to(const std::string& path) {
  SKERRY_TRY(run("VACUUM INTO ?", path));
  return {};
}

bool Database::in_transaction() const { return sqlite3_get_autocommit(state_->handle) == 0; }

const std::string& Database::path() const { return state_->path; }

// ---- transactions ----

Result<Transaction> Transaction::begin(Database& database) {
  SKERRY_TRY(database.run("BEGIN IMMEDIATE"));
  return Transaction(database);
}

Transaction::Transaction(Database& database)
    : database_(database.state_.get()), changes_(sqlite3_total_changes64(database_->handle)) {}

Transaction::~Transaction() {
  // After some errors SQLite has already rolled back by itself.
  if (database_ != nullptr && sqlite3_get_autocommit(database_->handle) == 0) {
    sqlite3_exec(database_->handle, "ROLLBACK", nullptr, nullptr, nullptr);
  }
}

Result<std::uint64_t> Transaction::count() {
  SKERRY_ASSIGN(Statement row, Database::prepare(*database_, "UPDATE commit_counter SET commits = commits + 1 RETURNING commits"));
  SKERRY_ASSIGN(const bool present, row.next());
  const std::uint64_t number = present ? row.uint64(0) : 0;
  if (present) SKERRY_TRY(row.next());  // runs the statement to its end
  return number;
}

Result<void> Transaction::commit() {
  DatabaseState* database = database_;
  std::uint64_t number = 0;
  if (database->witness && sqlite3_total_changes64(database->handle) != changes_) {
    SKERRY_ASSIGN(number, count());
  }
  int code = sqlite3_exec(database->handle, "COMMIT", nullptr, nullptr, nullptr);
  if (code != SQLITE_OK) return database->error(code, "COMMIT");  // the destructor rolls back
  database_ = nullptr;
  if (number != 0) (void)database->witness->write(number).ok();  // one that cannot be written stays behind
  return {};
}

}  // namespace skerry::sqlite
