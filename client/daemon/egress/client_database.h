// client.db: the ledger of everything that left this machine, the outbox of undecided updates, and a few remembered words.
//
// docs/egress-ledger.md specifies the ledger. Writes are made between begin() and commit(), so that an update and the row
// that says it left become durable together, in one commit.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "client/daemon/machine/client_machine.h"
#include "common/base/result.h"
#include "common/os/files.h"
#include "common/sqlite/database.h"

namespace skerry::client {

/// One payload that left, or is about to.
struct EgressRow {
  std::uint64_t seq = 0;    ///< 1, 2, 3, … without gaps; given by the ledger
  std::int64_t time_ms = 0; ///< Unix time
  std::string kind;         ///< "update", "evaluation", "progress", "error", "data-summary", "run-answer", "signing-request"
  std::string run;          ///< empty where it belongs to none
  std::string task;
  std::uint64_t exchange = 0;
  std::uint64_t bytes = 0;  ///< of the payload, cargo included
  std::string sha256;       ///< hex, of the message that left (it names its cargo by content id)
  double norm = 0;          ///< L2 norm of an update
  std::string detail;       ///< for people: fragments and encodings, metric names, …
  std::string hash;         ///< hex SHA-256 over the row before and this row; given by the ledger
};

struct LedgerReport {
  std::uint64_t rows = 0;
  std::string head;      ///< hash of the last row; 64 zeros where there is none
  std::string finding;   ///< empty: unaltered; else a sentence naming the first altered or missing row
};

class ClientDatabase {
 public:
  /// Opens or creates `home`/client.db (0600). With `read_only` for the commands that look while a daemon runs.
  static Result<ClientDatabase> open(const std::string& home, bool read_only = false);

  /// Begins a transaction unless one is open.
  Result<void> begin();
  /// Makes everything since begin() durable and mirrors the ledger's head; nothing to do without begin().
  Result<void> commit();
  void rollback();
  bool in_transaction() const { return transaction_.has_value(); }

  // Inside begin() … commit():
  Result<void> append(EgressRow row);
  Result<void> put_update(const StoredUpdate& update, std::int64_t now_ms);
  /// Success where there is none.
  Result<void> remove_update(std::string_view task_id);
  Result<void> set_value(std::string_view key, std::string_view value);
  Result<void> remember_run(const v1::RunAnnouncement& run, const v1::RunAnswer& answer, std::int64_t now_ms);

  Result<std::vector<StoredUpdate>> load_outbox();
  /// Empty where there is none.
  Result<std::string> value(std::string_view key);
  struct KnownRun {
    std::string run_id, name, spec_hash, spec_json, data_set;
    bool accepted = false;
    std::int64_t answered_ms = 0;
  };
  Result<std::vector<KnownRun>> known_runs();

  /// Ledger rows of kind "update" since a Unix time.
  Result<std::uint64_t> updates_since(std::int64_t unix_ms);
  /// Rows in order, of one run where `run` is not empty; stops where `visit` returns false.
  Result<void> visit_ledger(std::string_view run, const std::function<bool(const EgressRow&)>& visit);
  /// Walks the whole chain.
  Result<LedgerReport> verify_ledger();

 private:
  ClientDatabase(sqlite::Database database, std::string home) : database_(std::move(database)), home_(std::move(home)) {}
  Result<void> load_head();

  sqlite::Database database_;
  std::string home_;
  std::optional<sqlite::Transaction> transaction_;
  std::optional<File> mirror_;
  std::uint64_t seq_ = 0;       // of the last row, in the open transaction too
  std::string head_;
  std::uint64_t durable_seq_ = 0;
  std::string durable_head_;
};

/// The hash that a row must have after the row with hash `previous`.
std::string ledger_hash(std::string_view previous, const EgressRow& row);

}  // namespace skerry::client
