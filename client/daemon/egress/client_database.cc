#include "client/daemon/egress/client_database.h"

#include <array>
#include <charconv>
#include <cstdio>
#include <utility>

#include <nlohmann/json.hpp>

#include "common/crypto/sha256.h"

namespace skerry::client {
namespace {

using nlohmann::json;

constexpr std::array kMigrations = {
    "CREATE TABLE ledger (seq INTEGER PRIMARY KEY, time_ms INTEGER NOT NULL, kind TEXT NOT NULL, run TEXT NOT NULL, task TEXT NOT NULL,"
    " exchange INTEGER NOT NULL, bytes INTEGER NOT NULL, sha256 TEXT NOT NULL, norm REAL NOT NULL, detail TEXT NOT NULL,"
    " hash TEXT NOT NULL);"
    "CREATE TABLE outbox (task_id TEXT PRIMARY KEY, stored_ms INTEGER NOT NULL, task BLOB NOT NULL, message BLOB NOT NULL,"
    " uploads TEXT NOT NULL) WITHOUT ROWID;"
    "CREATE TABLE words (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;"
    "CREATE TABLE runs (run_id TEXT PRIMARY KEY, name TEXT NOT NULL, spec_hash TEXT NOT NULL, spec_json TEXT NOT NULL,"
    " accepted INTEGER NOT NULL, data_set TEXT NOT NULL, answered_ms INTEGER NOT NULL) WITHOUT ROWID;",
    // Every page carries a checksum (common/sqlite), which a program that knows only schema 1 would not write.
    ""};

const std::string kNoHead(64, '0');

std::string head_path(const std::string& home) { return join_path(home, "egress.head"); }

std::string exact(double value) {
  char text[32];
  const auto [end, error] = std::to_chars(text, text + sizeof text, value);
  return error == std::errc() ? std::string(text, end) : std::string("0");
}

constexpr const char* kColumns = "seq, time_ms, kind, run, task, exchange, bytes, sha256, norm, detail, hash";

EgressRow row_of(const sqlite::Statement& statement) {
  EgressRow row;
  row.seq = statement.uint64(0);
  row.time_ms = statement.int64(1);
  row.kind = statement.text(2);
  row.run = statement.text(3);
  row.task = statement.text(4);
  row.exchange = statement.uint64(5);
  row.bytes = statement.uint64(6);
  row.sha256 = statement.text(7);
  row.norm = statement.real(8);
  row.detail = statement.text(9);
  row.hash = statement.text(10);
  return row;
}

}  // namespace

std::string ledger_hash(std::string_view previous, const EgressRow& row) {
  std::string text = "skerry egress v1\n";
  const auto add = [&text](std::string_view field) {
    text += std::to_string(field.size());
    text += ':';
    text += field;
    text += '\n';
  };
  add(previous);
  add(std::to_string(row.seq));
  add(std::to_string(row.time_ms));
  add(row.kind);
  add(row.run);
  add(row.task);
  add(std::to_string(row.exchange));
  add(std::to_string(row.bytes));
  add(row.sha256);
  add(exact(row.norm));
  add(row.detail);
  return sha256_hex(text);
}

Result<ClientDatabase> ClientDatabase::open(const std::string& home, bool read_only) {
  if (read_only && !path_exists(join_path(home, "client.db")))
    return not_found("there is no client.db in " + home + "; join a federation first: `skerry-client join TOKEN`");
  sqlite::OpenOptions options;
  options.read_only = read_only;
  options.cache_kib = 512;
  SKERRY_ASSIGN(auto database, sqlite::Database::open(join_path(home, "client.db"), options));
  if (!read_only) SKERRY_TRY(database.migrate(kMigrations));
  ClientDatabase client(std::move(database), home);
  SKERRY_TRY(client.load_head());
  if (!read_only) {
    SKERRY_ASSIGN(client.mirror_, File::open(head_path(home), OpenMode::kCreateOrOpen));
  }
  return client;
}

Result<void> ClientDatabase::load_head() {
  SKERRY_ASSIGN(auto last, database_.query("SELECT seq, hash FROM ledger ORDER BY seq DESC LIMIT 1"));
  SKERRY_ASSIGN(const bool any, last.next());
  seq_ = durable_seq_ = any ? last.uint64(0) : 0;
  head_ = durable_head_ = any ? last.text(1) : kNoHead;
  return {};
}

Result<void> ClientDatabase::begin() {
  if (transaction_) return {};
  SKERRY_ASSIGN(auto transaction, sqlite::Transaction::begin(database_));
  transaction_.emplace(std::move(transaction));
  return {};
}

Result<void> ClientDatabase::commit() {
  if (!transaction_) return {};
  auto result = transaction_->commit();
  transaction_.reset();
  if (!result.ok()) {
    seq_ = durable_seq_;
    head_ = durable_head_;
    return result;
  }
  if (seq_ == durable_seq_) return {};
  durable_seq_ = seq_;
  durable_head_ = head_;
  // Behind by at most the last commit after a power cut, never ahead: the database is durable first.
  char text[96];
  std::snprintf(text, sizeof text, "%020llu %s\n", static_cast<unsigned long long>(seq_), head_.c_str());
  return mirror_->pwrite(as_bytes_of(text), 0);
}

void ClientDatabase::rollback() {
  transaction_.reset();
  seq_ = durable_seq_;
  head_ = durable_head_;
}

Result<void> ClientDatabase::append(EgressRow row) {
  row.seq = seq_ + 1;
  row.hash = ledger_hash(head_, row);
  SKERRY_TRY(database_.run("INSERT INTO ledger (seq, time_ms, kind, run, task, exchange, bytes, sha256, norm, detail, hash)"
                           " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                           row.seq, row.time_ms, row.kind, row.run, row.task, row.exchange, row.bytes, row.sha256, row.norm, row.detail,
                           row.hash));
  seq_ = row.seq;
  head_ = row.hash;
  return {};
}

Result<void> ClientDatabase::put_update(const StoredUpdate& update, std::int64_t now_ms) {
  json uploads = json::array();
  for (const auto& upload : update.uploads) uploads.push_back({upload.content_id, upload.size});
  const std::string task = update.task.SerializeAsString();
  const std::string message = update.message.SerializeAsString();
  SKERRY_TRY(database_.run("INSERT OR REPLACE INTO outbox (task_id, stored_ms, task, message, uploads) VALUES (?, ?, ?, ?, ?)",
                           update.task.task_id(), now_ms, sqlite::Blob{task}, sqlite::Blob{message}, uploads.dump()));
  return {};
}

Result<void> ClientDatabase::remove_update(std::string_view task_id) {
  SKERRY_TRY(database_.run("DELETE FROM outbox WHERE task_id = ?", task_id));
  return {};
}

Result<void> ClientDatabase::set_value(std::string_view key, std::string_view value) {
  SKERRY_TRY(database_.run("INSERT OR REPLACE INTO words (key, value) VALUES (?, ?)", key, value));
  return {};
}

Result<std::string> ClientDatabase::value(std::string_view key) {
  SKERRY_ASSIGN(auto found, database_.query("SELECT value FROM words WHERE key = ?", key));
  SKERRY_ASSIGN(const bool any, found.next());
  return any ? found.text(0) : std::string();
}

Result<void> ClientDatabase::remember_run(const v1::RunAnnouncement& run, const v1::RunAnswer& answer, std::int64_t now_ms) {
  SKERRY_TRY(database_.run("INSERT OR REPLACE INTO runs (run_id, name, spec_hash, spec_json, accepted, data_set, answered_ms)"
                           " VALUES (?, ?, ?, ?, ?, ?, ?)",
                           run.run_id(), run.name(), run.spec_hash(), run.spec_json(), answer.accepted() ? 1 : 0, answer.data_set(),
                           now_ms));
  return {};
}

Result<std::vector<ClientDatabase::KnownRun>> ClientDatabase::known_runs() {
  SKERRY_ASSIGN(auto rows, database_.query("SELECT run_id, name, spec_hash, spec_json, data_set, accepted, answered_ms FROM runs"
                                           " ORDER BY answered_ms"));
  std::vector<KnownRun> runs;
  for (;;) {
    SKERRY_ASSIGN(const bool more, rows.next());
    if (!more) return runs;
    runs.push_back({rows.text(0), rows.text(1), rows.text(2), rows.text(3), rows.text(4), rows.int64(5) != 0, rows.int64(6)});
  }
}

Result<std::vector<StoredUpdate>> ClientDatabase::load_outbox() {
  SKERRY_ASSIGN(auto rows, database_.query("SELECT task_id, task, message, uploads FROM outbox ORDER BY stored_ms, task_id"));
  std::vector<StoredUpdate> outbox;
  for (;;) {
    SKERRY_ASSIGN(const bool more, rows.next());
    if (!more) return outbox;
    StoredUpdate update;
    const json uploads = json::parse(rows.text_view(3), nullptr, false);
    if (!update.task.ParseFromString(rows.blob(1)) || !update.message.ParseFromString(rows.blob(2)) || !uploads.is_array())
      return data_loss(join_path(home_, "client.db") + ": the outbox row of task " + rows.text(0) + " is damaged");
    for (const auto& upload : uploads) {
      if (!upload.is_array() || upload.size() != 2 || !upload[0].is_string() || !upload[1].is_number_unsigned())
        return data_loss(join_path(home_, "client.db") + ": the outbox row of task " + rows.text(0) + " is damaged");
      update.uploads.push_back({upload[0], upload[1]});
    }
    outbox.push_back(std::move(update));
  }
}

Result<std::uint64_t> ClientDatabase::updates_since(std::int64_t unix_ms) {
  // From the end: an index would cost a page in every commit, and this is asked seldom.
  SKERRY_ASSIGN(auto rows, database_.query("SELECT time_ms, kind FROM ledger ORDER BY seq DESC"));
  std::uint64_t count = 0;
  for (;;) {
    SKERRY_ASSIGN(const bool more, rows.next());
    if (!more || rows.int64(0) < unix_ms) return count;
    if (rows.text_view(1) == "update") ++count;
  }
}

Result<void> ClientDatabase::visit_ledger(std::string_view run, const std::function<bool(const EgressRow&)>& visit) {
  const std::string sql = "SELECT " + std::string(kColumns) + " FROM ledger " + (run.empty() ? "WHERE ? = ''" : "WHERE run = ?") +
                          " ORDER BY seq";
  SKERRY_ASSIGN(auto rows, database_.query(sql, run));
  for (;;) {
    SKERRY_ASSIGN(const bool more, rows.next());
    if (!more || !visit(row_of(rows))) return {};
  }
}

Result<LedgerReport> ClientDatabase::verify_ledger() {
  // The mirror is read first: what a running daemon adds meanwhile is then only ever newer than it.
  std::uint64_t mirrored_seq = 0;
  std::string mirrored_head;
  bool mirror_there = false;
  if (auto text = read_file(head_path(home_), 4096); text.ok() && text->size() >= 85) {
    mirror_there = true;
    const auto [end, error] = std::from_chars(text->data(), text->data() + 20, mirrored_seq);
    mirrored_head = text->substr(21, 64);
    if (error != std::errc() || end != text->data() + 20) mirror_there = false;
  }
  LedgerReport report;
  report.head = kNoHead;
  std::string at_mirror = kNoHead;
  SKERRY_TRY(visit_ledger("", [&](const EgressRow& row) {
    if (row.seq != report.rows + 1) {
      report.finding = row.seq > report.rows + 1 ? "row " + std::to_string(report.rows + 1) + " is missing"
                                                 : "row " + std::to_string(row.seq) + " stands twice";
      return false;
    }
    if (row.hash != ledger_hash(report.head, row)) {
      report.finding = "row " + std::to_string(row.seq) + " (" + row.kind + (row.run.empty() ? "" : ", run " + row.run) +
                       ") was altered: its hash does not follow from its content and the row before";
      return false;
    }
    ++report.rows;
    report.head = row.hash;
    if (row.seq == mirrored_seq) at_mirror = row.hash;
    return true;
  }));
  if (!report.finding.empty()) return report;
  if (!mirror_there) {
    if (report.rows > 0) report.finding = "egress.head is missing or damaged, so a cut at the end could not be noticed";
  } else if (mirrored_seq > report.rows) {
    report.finding = "row " + std::to_string(report.rows + 1) + " is missing: the ledger ends before row " + std::to_string(mirrored_seq) +
                     ", which egress.head remembers";
  } else if (mirrored_seq > 0 && at_mirror != mirrored_head) {
    report.finding = "row " + std::to_string(mirrored_seq) + " is not the one that egress.head remembers: the ledger was rewritten";
  }
  return report;
}

}  // namespace skerry::client
