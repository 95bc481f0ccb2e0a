// Store::commit: the operations of a batch as rows and links.
#include <algorithm>

#include "common/base/encoding_text.h"
#include "common/crypto/sha256.h"
#include "server/store/store_internal.h"

namespace skerry::server {
namespace {

using sqlite::Blob;
using sqlite::Database;

constexpr int kEvaluateTask = 2;  // skerry.v1.TASK_EVALUATE

/// `id` is bound with its bytes if they are kept in the row, else with NULL.
void bind_bytes(sqlite::Statement& statement, int parameter, const StoredBlob& blob) {
  if (!blob.content_id.empty() && blob.bytes.size() == blob.size)
    statement.bind(parameter, Blob{blob.bytes});
  else
    statement.bind(parameter, nullptr);
}

/// A content id, or a state's name, that rows stopped referring to in this transaction.
struct Candidates {
  std::vector<std::string> cargo, states;
};

}  // namespace

/// Writes one batch inside a transaction that the caller commits.
struct BatchWriter {
  Database& database;
  ChainHead head;
  CommitReport report;
  Candidates candidates;
  std::map<std::pair<std::string, std::pair<int, std::string>>, std::uint64_t>
      decisions;  // (run, (state, name)) → updates

  /// Appends a link; its sequence, hash and `link.hash` (raw) come from the chain.
  Result<void> append(ReceiptRecord& link) {
    link.sequence = head.sequence + 1;
    link.hash = link_hash(head.hash, link);
    SKERRY_TRY(database.run(
        "INSERT INTO receipts (sequence, kind, run_id, subject, node, exchange, version, reason, time_ms, hash) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        link.sequence, link.kind, link.run_id, link.subject, link.node, link.exchange, link.version, link.reason,
        link.time_ms, Blob{link.hash}));
    head = {link.sequence, link.hash};
    return {};
  }

  Result<void> append_receipt(ReceiptRecord link) {
    SKERRY_TRY(append(link));
    report.chains.push_back(to_hex(link.hash));
    return {};
  }

  Result<void> operator()(const RunRecord& run) {
    SKERRY_TRY(database.run(
        "INSERT INTO runs (run_id, name, strategy, spec_hash, spec_json, status, status_reason, created_ms, ended_ms) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (run_id) DO UPDATE SET name = excluded.name, "
        "strategy = excluded.strategy, spec_hash = excluded.spec_hash, spec_json = excluded.spec_json, status = "
        "excluded.status, "
        "status_reason = excluded.status_reason, created_ms = excluded.created_ms, ended_ms = excluded.ended_ms",
        run.run_id, run.name, run.strategy, run.spec_hash, run.spec_json, run.status, run.status_reason, run.created_ms,
        run.ended_ms));
    return {};
  }

  Result<void> operator()(const Batch::SetStatus& change) {
    SKERRY_ASSIGN(std::int64_t rows,
                  database.run("UPDATE runs SET status = ?, status_reason = ?, ended_ms = ? WHERE run_id = ?",
                               change.status, change.reason, change.ended_ms, change.run_id));
    if (rows == 0) return not_found("there is no run " + change.run_id + " whose status could change");
    return {};
  }

  Result<void> operator()(const TrafficRecord& traffic) {
    SKERRY_TRY(
        database.run("INSERT INTO traffic (run_id, node, bytes_up, bytes_down) VALUES (?, ?, ?, ?) "
                     "ON CONFLICT (run_id, node) DO UPDATE SET bytes_up = bytes_up + excluded.bytes_up, "
                     "bytes_down = bytes_down + excluded.bytes_down",
                     traffic.run_id, traffic.node, traffic.bytes_up, traffic.bytes_down));
    return {};
  }

  Result<void> operator()(const Batch::MachineRows& change) {
    for (const auto& row : change.rows) {
      if (row.second.empty()) {
        SKERRY_TRY(database.run("DELETE FROM machine_rows WHERE run_id = ? AND key = ?", change.run_id, row.first));
      } else {
        SKERRY_TRY(database.run("INSERT OR REPLACE INTO machine_rows (run_id, key, value) VALUES (?, ?, ?)",
                                change.run_id, row.first, row.second));
      }
    }
    return {};
  }

  Result<void> operator()(const Batch::Accept& accept) {
    const UpdateRecord& update = accept.update;
    const std::string digest = sha256_hex(update.body);
    auto inserted = database.run(
        "INSERT INTO tasks (task_id, run_id, node, kind, state, exchange, version, reason, weight, examples, metrics, "
        "signature, "
        "body_sha256, spooled, sequence) VALUES (?, ?, ?, ?, ?, ?, 0, '', ?, ?, ?, ?, ?, ?, ?)",
        update.task_id, update.run_id, update.node, update.kind, static_cast<int>(UpdateState::kAccepted),
        update.exchange, update.weight, update.examples, update.metrics_json, Blob{update.signature}, digest,
        spooled_to_json(update.spooled), head.sequence + 1);
    if (!inserted.ok()) {
      return with_context(std::move(inserted).error(),
                          "task " + update.task_id + " cannot be accepted, it was accepted or decided before");
    }
    SKERRY_TRY(
        database.run("INSERT INTO bodies (task, body) VALUES (?, ?)", database.last_insert_id(), Blob{update.body}));
    return append_receipt(
        {0, "ACCEPTED", update.run_id, update.task_id, update.node, update.exchange, 0, digest, accept.now_ms, {}});
  }

  Result<void> operator()(const Batch::Decide& decide) {
    const bool counted = decide.state == UpdateState::kCounted;
    bool report_only = false;  // a measurement: no part of a model
    {
      SKERRY_ASSIGN(auto row,
                    database.query("UPDATE tasks SET state = ?, exchange = ?, version = ?, reason = ?, sequence = ? "
                                   "WHERE task_id = ? AND state = 2 RETURNING id, spooled, kind",
                                   static_cast<int>(decide.state), decide.exchange, decide.version, decide.reason,
                                   head.sequence + 1, decide.task_id));
      SKERRY_ASSIGN(bool was_accepted, row.next());
      const std::int64_t id = was_accepted ? row.int64(0) : 0;
      const bool in_spool = was_accepted && row.text_view(1) != "[]";
      report_only = was_accepted && row.int64(2) == kEvaluateTask;
      if (was_accepted) SKERRY_TRY(row.next());  // runs the statement to its end
      if (was_accepted) {
        SKERRY_TRY(database.run("DELETE FROM bodies WHERE task = ?", id));
      } else if (counted) {
        return failed_precondition("task " + decide.task_id +
                                   " cannot be counted: it is not accepted, or was decided before");
      } else {
        auto inserted = database.run(
            "INSERT INTO tasks (task_id, run_id, node, kind, state, exchange, version, reason, weight, examples, "
            "metrics, signature, "
            "body_sha256, spooled, sequence) VALUES (?, ?, ?, 0, ?, ?, 0, ?, 0, 0, '', x'', '', '[]', ?)",
            decide.task_id, decide.run_id, decide.node, static_cast<int>(decide.state), decide.exchange, decide.reason,
            head.sequence + 1);
        if (!inserted.ok()) {
          return with_context(std::move(inserted).error(),
                              "task " + decide.task_id + " cannot be discarded, it was decided before");
        }
      }
      if (in_spool || !was_accepted) report.decided_tasks.push_back(decide.task_id);
    }
    if (!counted || !report_only)
      decisions[{decide.run_id, {static_cast<int>(decide.state), counted ? decide.node : kind_of_reason(decide.reason)}}] += 1;
    return append_receipt({0,
                           counted ? "COUNTED" : "DISCARDED",
                           decide.run_id,
                           decide.task_id,
                           decide.node,
                           decide.exchange,
                           decide.version,
                           decide.reason,
                           decide.now_ms,
                           {}});
  }

  Result<void> operator()(const VersionRecord& given) {
    VersionRecord version = given;
    version.counted_digest = counted_digest(version.counted);
    ReceiptRecord link{0,
                       "RELEASED",
                       version.run_id,
                       version.fragment,
                       "",
                       version.exchange,
                       version.version,
                       release_digest(version),
                       version.time_ms,
                       {}};
    SKERRY_TRY(append(link));
    SKERRY_ASSIGN(auto row, database.query("INSERT INTO versions (run_id, fragment, version, exchange, whole_id, "
                                           "whole_size, step_id, step_size, step_encoding, "
                                           "state_name, state_size, counted_digest, chain, sequence, time_ms, kept, "
                                           "whole_bytes, step_bytes, state_bytes) "
                                           "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                                           version.run_id, version.fragment, version.version, version.exchange,
                                           version.whole.content_id, version.whole.size, version.step.content_id,
                                           version.step.size, version.step_encoding, version.state_name,
                                           version.state_size, version.counted_digest, to_hex(link.hash), link.sequence,
                                           version.time_ms, version.kept));
    bind_bytes(row, 17, version.whole);
    bind_bytes(row, 18, version.step);
    if (!version.state_bytes.empty()) row.bind(19, Blob{version.state_bytes});
    auto inserted = row.next();
    if (!inserted.ok()) {
      return with_context(std::move(inserted).error(), "version " + std::to_string(version.version) + " of fragment " +
                                                           version.fragment + " of run " + version.run_id +
                                                           " cannot be released");
    }
    return {};
  }

  Result<void> operator()(const Batch::Keep& keep) {
    SKERRY_ASSIGN(std::int64_t rows,
                  database.run("UPDATE versions SET kept = ? WHERE run_id = ? AND fragment = ? AND version = ?",
                               keep.kept, keep.run_id, keep.fragment, keep.version));
    if (rows == 0) {
      return not_found("version " + std::to_string(keep.version) + " of fragment " + keep.fragment + " of run " +
                       keep.run_id + " is not stored any more");
    }
    return {};
  }

  Result<void> operator()(const Batch::Prune& prune) {
    std::int64_t newest = 0;
    {
      SKERRY_ASSIGN(auto row, database.query("SELECT max(version) FROM versions WHERE run_id = ? AND fragment = ?",
                                             prune.run_id, prune.fragment));
      SKERRY_ASSIGN(bool found, row.next());
      if (!found || row.is_null(0)) return {};
      newest = row.int64(0);
    }
    struct Old {
      std::int64_t id;
      std::uint64_t version;
      std::string whole, step, state;  // names of files; empty where the bytes are in the row or there are none
    };
    std::vector<Old> olds;
    {
      SKERRY_ASSIGN(
          auto row,
          database.query(
              "SELECT id, version, iif(whole_bytes IS NULL, whole_id, ''), iif(step_bytes IS NULL, step_id, ''), "
              "state_name "
              "FROM versions WHERE run_id = ? AND fragment = ? AND version <= ? AND kept = 0",
              prune.run_id, prune.fragment, newest - 2));
      for (;;) {
        SKERRY_ASSIGN(bool more, row.next());
        if (!more) break;
        olds.push_back({row.int64(0), row.uint64(1), row.text(2), row.text(3), row.text(4)});
      }
    }
    const std::uint64_t latest = std::max<std::uint64_t>(prune.latest, 2);
    for (const Old& old : olds) {
      if (!old.state.empty()) candidates.states.push_back(old.state);
      const bool recent = old.version + latest > static_cast<std::uint64_t>(newest);
      const bool needed = std::find(prune.needed.begin(), prune.needed.end(), old.version) != prune.needed.end();
      if (recent || needed) {
        SKERRY_TRY(database.run(
            "UPDATE versions SET state_name = '', state_size = 0, state_bytes = NULL WHERE id = ? AND state_size > 0",
            old.id));
        continue;
      }
      SKERRY_TRY(database.run("DELETE FROM versions WHERE id = ?", old.id));
      if (!old.whole.empty()) candidates.cargo.push_back(old.whole);
      if (!old.step.empty()) candidates.cargo.push_back(old.step);
    }
    return {};
  }

  Result<void> operator()(const MetricRecord& metric) {
    SKERRY_TRY(
        database.run("INSERT INTO metrics (run_id, kind, fragment, exchange, version, time_ms, updates, node, metrics) "
                     "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                     metric.run_id, metric.kind, metric.fragment, metric.exchange, metric.version, metric.time_ms,
                     metric.updates, metric.node, metrics_to_json(metric.metrics)));
    return {};
  }

  Result<void> operator()(const AuditRecord& entry) {
    SKERRY_TRY(database.run("INSERT INTO audit (time_ms, who, action, subject, detail) VALUES (?, ?, ?, ?, ?)",
                            entry.time_ms, entry.who, entry.action, entry.subject, entry.detail));
    return {};
  }

  Result<void> write_decisions() {
    for (const auto& entry : decisions) {
      SKERRY_TRY(
          database.run("INSERT INTO decisions (run_id, state, name, updates) VALUES (?, ?, ?, ?) "
                       "ON CONFLICT (run_id, state, name) DO UPDATE SET updates = updates + excluded.updates",
                       entry.first.first, entry.first.second.first, entry.first.second.second, entry.second));
    }
    return {};
  }

  /// Which candidates no row refers to now that the whole batch is written.
  Result<void> find_unreferenced() {
    for (const std::string& id : candidates.cargo) {
      SKERRY_ASSIGN(
          auto row,
          database.query("SELECT 1 FROM versions WHERE whole_bytes IS NULL AND whole_id = ?1 UNION ALL "
                         "SELECT 1 FROM versions WHERE step_bytes IS NULL AND step_id <> '' AND step_id = ?1 LIMIT 1",
                         id));
      SKERRY_ASSIGN(bool referenced, row.next());
      if (!referenced) report.unreferenced_cargo.push_back(id);
    }
    for (const std::string& name : candidates.states) {
      SKERRY_ASSIGN(auto row, database.query("SELECT 1 FROM versions WHERE state_name = ? LIMIT 1", name));
      SKERRY_ASSIGN(bool referenced, row.next());
      if (!referenced) report.unreferenced_states.push_back(name);
    }
    return {};
  }
};

Result<CommitReport> Store::commit(const Batch& batch) {
  if (batch.empty()) return CommitReport{};
  SKERRY_ASSIGN(auto transaction, sqlite::Transaction::begin(database_));
  BatchWriter writer{database_, state_->head, {}, {}, {}};
  for (const Batch::Operation& operation : batch.operations_) SKERRY_TRY(std::visit(writer, operation));
  SKERRY_TRY(writer.write_decisions());
  SKERRY_TRY(writer.find_unreferenced());
  const bool checkpoint = writer.head.sequence >= state_->checkpoint + kCheckpointEvery;
  if (checkpoint) {
    SKERRY_TRY(
        write_meta(database_, "checkpoint", std::to_string(writer.head.sequence) + " " + to_hex(writer.head.hash)));
  }
  SKERRY_TRY(transaction.commit());
  const bool longer = writer.head.sequence != state_->head.sequence;
  state_->head = std::move(writer.head);
  if (checkpoint) state_->checkpoint = state_->head.sequence;
  // An anchor may be behind the database but never ahead of what is durable; one that cannot be written stays behind.
  if (longer && state_->synchronous == sqlite::Synchronous::kFull) (void)state_->anchor.write(state_->head).ok();
  return std::move(writer.report);
}

}  // namespace skerry::server
