// Everything small that the coordinator must not forget, in SQLite, with the receipts in a hash chain.
//
// One thread writes: it collects the operations of one or many events in a Batch and commits them at once.
//
//   Batch batch;
//   batch.accept(update, now);
//   batch.machine_rows(run_id, machine.take_changes(now));
//   SKERRY_ASSIGN(CommitReport report, store.commit(batch));   // one transaction, one fsync
//   … send receipts with report.chains …
//
// Other threads read through a StoreReader of their own (open_reader). Times are Unix milliseconds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "common/base/result.h"
#include "common/os/random.h"
#include "common/sqlite/database.h"
#include "server/store/cargo_store.h"
#include "server/store/records.h"

namespace skerry::server {

/// Operations that become durable together, in the order in which they were added. Plain data: building one touches
/// nothing, and one whose commit failed for a full disk can be committed again.
class Batch {
 public:
  /// A new run, or all fields of a known one.
  void put_run(RunRecord run);
  void set_run_status(std::string run_id, std::string status, std::string reason, std::int64_t ended_ms);

  /// Adds to a node's and its run's byte counts.
  void add_traffic(std::string run_id, std::string node, std::uint64_t bytes_up, std::uint64_t bytes_down);

  /// Rows of a run machine: a value replaces the row, an empty value removes it.
  void machine_rows(std::string run_id, std::map<std::string, std::string> rows);

  /// The update is part of `update.exchange`: keeps it whole and adds a receipt.
  void accept(UpdateRecord update, std::int64_t now_ms);

  /// COUNTED in `version` of `exchange`: final; the update's body goes.
  void count(std::string task_id, std::string run_id, std::string node, std::uint64_t exchange, std::uint64_t version,
             std::int64_t now_ms);

  /// DISCARDED: final; the update's body goes. Also for tasks of which nothing was stored.
  void discard(std::string task_id, std::string run_id, std::string node, std::uint64_t exchange, std::string reason,
               std::int64_t now_ms);

  /// A version is released: after this commit it exists. Its cargo must be durable already. Add it after the count()s
  /// of the updates it contains.
  void release(VersionRecord version);

  /// Marks a version as one that pruning passes over, or takes the mark back.
  void keep_version(std::string run_id, std::string fragment, std::uint64_t version, bool kept);

  /// Forgets versions of a fragment: all but the newest `latest` (at least 2), the kept ones and those in `needed`; and the
  /// optimizer states of all but the newest two and the kept ones. Add it to the batch that releases a version.
  void prune_versions(std::string run_id, std::string fragment, std::uint64_t latest,
                      std::vector<std::uint64_t> needed);

  void add_metric(MetricRecord metric);
  void audit(AuditRecord entry);

  bool empty() const { return operations_.empty(); }
  std::size_t size() const { return operations_.size(); }
  void clear() { operations_.clear(); }

 private:
  friend class Store;
  friend struct BatchWriter;
  struct SetStatus {
    std::string run_id, status, reason;
    std::int64_t ended_ms;
  };
  struct MachineRows {
    std::string run_id;
    std::map<std::string, std::string> rows;
  };
  struct Accept {
    UpdateRecord update;
    std::int64_t now_ms;
  };
  struct Decide {
    std::string task_id, run_id, node;
    UpdateState state;
    std::uint64_t exchange, version;
    std::string reason;
    std::int64_t now_ms;
  };
  struct Keep {
    std::string run_id, fragment;
    std::uint64_t version;
    bool kept;
  };
  struct Prune {
    std::string run_id, fragment;
    std::uint64_t latest;
    std::vector<std::uint64_t> needed;
  };
  using Operation = std::variant<RunRecord, SetStatus, TrafficRecord, MachineRows, Accept, Decide, VersionRecord, Keep,
                                 Prune, MetricRecord, AuditRecord>;
  std::vector<Operation> operations_;
};

struct CommitReport {
  /// The chain's head after each receipt of the batch (accept, count, discard), in their order: Receipt.chain.
  std::vector<std::string> chains;
  /// Nothing refers to these any more since this commit: give them to CargoStore::remove_cargo, remove_state and
  /// end_task.
  std::vector<std::string> unreferenced_cargo;
  std::vector<std::string> unreferenced_states;
  std::vector<std::string> decided_tasks;
};

/// Reads. One thread at a time; what it sees is what was committed when the call began.
class StoreReader {
 public:
  explicit StoreReader(sqlite::Database database) : database_(std::move(database)) {}

  /// By creation.
  Result<std::vector<RunRecord>> runs();
  Result<std::optional<RunRecord>> run(const std::string& run_id);
  /// All rows of a run machine.
  Result<std::map<std::string, std::string>> machine_rows(const std::string& run_id);

  /// What became of a task's update; nothing if the store does not know the task.
  Result<std::optional<TaskRecord>> task(const std::string& task_id);
  /// Updates of a run that are ACCEPTED and not decided, whole, by exchange and task id.
  Result<std::vector<UpdateRecord>> accepted_updates(const std::string& run_id);
  /// One update as accepted (its body is empty once it is decided).
  Result<std::optional<UpdateRecord>> update(const std::string& task_id);
  /// How many updates of a run were discarded, by kind_of_reason(); and how many were counted, by node
  /// (without reports of evaluations).
  Result<std::map<std::string, std::uint64_t>> discarded_by_reason(const std::string& run_id);
  Result<std::map<std::string, std::uint64_t>> counted_by_node(const std::string& run_id);

  Result<std::optional<VersionRecord>> latest_version(const std::string& run_id, const std::string& fragment);
  Result<std::optional<VersionRecord>> version(const std::string& run_id, const std::string& fragment,
                                               std::uint64_t version);
  /// Every version still stored, by fragment and version; without inline bytes unless `with_bytes`.
  Result<std::vector<VersionRecord>> versions(const std::string& run_id, bool with_bytes = false);

  /// In the order in which they were added.
  Result<std::vector<MetricRecord>> metrics(const std::string& run_id);
  /// The newest row of `kind` that is of all nodes together.
  Result<std::optional<MetricRecord>> latest_metric(const std::string& run_id, const std::string& kind);

  /// Links of the chain from `first` on, at most `limit`.
  Result<std::vector<ReceiptRecord>> receipts(std::uint64_t first, std::uint64_t limit);
  Result<std::vector<TrafficRecord>> traffic(const std::string& run_id);
  Result<std::vector<AuditRecord>> audit_log(std::uint64_t newest);

  /// Cargo, states and accepted updates that rows refer to.
  Result<LiveFiles> live_files();

  sqlite::Database& database() { return database_; }

 protected:
  sqlite::Database database_;
};

struct StoreOptions {
  sqlite::Synchronous synchronous = sqlite::Synchronous::kFull;
  /// The home was restored from a backup: begins a new epoch instead of refusing to open a database that is older than
  /// what was acknowledged.
  bool restored = false;
  std::int64_t now_ms = 0;  ///< Unix time, for the audit log
};

/// The writer, and a reader on the same connection. One thread, the coordinator's core.
class Store : public StoreReader {
 public:
  /// Opens or makes `<home>/skerry.db`, brings its schema up to date and checks the newest part of the receipt chain:
  /// from the last checkpoint on, every link's hash, the releases among them, and the head against `<home>/chain.head`.
  ///
  /// DATA_LOSS naming the row: altered or lost rows; or a database that is older than what was acknowledged (then:
  /// restore with StoreOptions::restored if it is a backup). FAILED_PRECONDITION: a newer schema.
  static Result<Store> open(const std::string& home, Random& random, const StoreOptions& options = {});

  Store(Store&&) noexcept;
  Store& operator=(Store&&) noexcept;
  ~Store();

  /// A reader for another thread, on a connection of its own.
  Result<StoreReader> open_reader() const;

  /// All of the batch or nothing, durable when it returns. Nothing of the store changes on an error: RESOURCE_EXHAUSTED
  /// (disk full: the same batch may be committed later), ALREADY_EXISTS or FAILED_PRECONDITION naming the task or
  /// version that was decided or released before, DATA_LOSS (the disk).
  Result<CommitReport> commit(const Batch& batch);

  /// Names this life of the federation: changes when a backup is restored. "1-5f0c9a12": a serial and something random.
  const std::string& epoch() const;

  /// Hex SHA-256 of the newest link; 64 zeros if there is none.
  std::string chain_head() const;
  std::uint64_t chain_length() const;

  /// Checks that every file that a released version refers to is there with its size, and that those which the next
  /// exchanges start from have their content id, up to 32 MiB of them (CargoStore::verify_once does the rest before their
  /// first use). DATA_LOSS naming run, fragment, version and file.
  Result<void> check_files(const CargoStore& cargo);

  /// Removes what no row refers to, at start and whenever there is time: cargo and states of pruned versions, spool
  /// files of tasks that are decided or whose run has ended. What was put by this process and not released yet stays.
  Result<CollectReport> collect(CargoStore& cargo);

  /// find_damage() on this store: DATA_LOSS naming the first row or file that is wrong.
  Result<void> verify(const CargoStore& cargo);

 private:
  struct State;
  Store(sqlite::Database database, std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// FAILED_PRECONDITION if the database has another schema than this program's, with both numbers and what to do.
Result<void> check_schema(sqlite::Database& database);

/// Told what is looked at next.
using OnProgress = std::function<void(const std::string& what)>;

/// Everything there is to check in a store's database: SQLite's pages and their checksums, the whole chain, each task
/// against its receipts, each version against its release, accepted updates against what was signed; with `cargo` also
/// every cargo and spool file's bytes against its id. Takes a while. A sentence for each row and file that is wrong or
/// missing, saying what to do; none: all is as it was written.
std::vector<std::string> find_damage(
    sqlite::Database& database, const CargoStore* cargo, const OnProgress& progress = [](const std::string&) {});

}  // namespace skerry::server
