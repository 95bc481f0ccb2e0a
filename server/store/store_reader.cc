#include <cmath>
#include <limits>

#include <nlohmann/json.hpp>

#include "common/base/encoding_text.h"
#include "server/store/store_internal.h"

namespace skerry::server {
namespace {

using nlohmann::json;

RunRecord read_run(const sqlite::Statement& row) {
  RunRecord run;
  run.run_id = row.text(0);
  run.name = row.text(1);
  run.strategy = row.text(2);
  run.spec_hash = row.text(3);
  run.spec_json = row.text(4);
  run.status = row.text(5);
  run.status_reason = row.text(6);
  run.created_ms = row.int64(7);
  run.ended_ms = row.int64(8);
  run.bytes_up = row.uint64(9);
  run.bytes_down = row.uint64(10);
  return run;
}

const std::string kSelectRun =
    "SELECT run_id, name, strategy, spec_hash, spec_json, status, status_reason, created_ms, ended_ms, "
    "(SELECT coalesce(sum(bytes_up), 0) FROM traffic WHERE traffic.run_id = runs.run_id), "
    "(SELECT coalesce(sum(bytes_down), 0) FROM traffic WHERE traffic.run_id = runs.run_id) FROM runs ";

const std::string kSelectUpdate =
    "SELECT task_id, run_id, node, kind, exchange, weight, examples, metrics, body, signature, body_sha256, spooled "
    "FROM tasks LEFT JOIN bodies ON bodies.task = tasks.id ";

UpdateRecord read_update(const sqlite::Statement& row) {
  UpdateRecord update;
  update.task_id = row.text(0);
  update.run_id = row.text(1);
  update.node = row.text(2);
  update.kind = static_cast<int>(row.int64(3));
  update.exchange = row.uint64(4);
  update.weight = row.real(5);
  update.examples = row.uint64(6);
  update.metrics_json = row.text(7);
  update.body = row.blob(8);
  update.signature = row.blob(9);
  update.body_sha256 = row.text(10);
  update.spooled = spooled_from_json(row.text_view(11));
  return update;
}

const std::string kSelectMetric =
    "SELECT run_id, kind, fragment, exchange, version, time_ms, updates, node, metrics FROM metrics ";

MetricRecord read_metric(const sqlite::Statement& row) {
  MetricRecord metric;
  metric.run_id = row.text(0);
  metric.kind = row.text(1);
  metric.fragment = row.text(2);
  metric.exchange = row.uint64(3);
  metric.version = row.uint64(4);
  metric.time_ms = row.int64(5);
  metric.updates = static_cast<std::uint32_t>(row.int64(6));
  metric.node = row.text(7);
  metric.metrics = metrics_from_json(row.text_view(8));
  return metric;
}

/// All rows of a query, each made a value by `read`.
template <typename T, typename Read, typename... Args>
Result<std::vector<T>> collect_rows(sqlite::Database& database, const std::string& sql, Read read,
                                    const Args&... args) {
  SKERRY_ASSIGN(auto row, database.query(sql, args...));
  std::vector<T> values;
  for (;;) {
    SKERRY_ASSIGN(bool more, row.next());
    if (!more) return values;
    values.push_back(read(row));
  }
}

/// The first row of a query, if there is one.
template <typename T, typename Read, typename... Args>
Result<std::optional<T>> first_row(sqlite::Database& database, const std::string& sql, Read read, const Args&... args) {
  SKERRY_ASSIGN(auto row, database.query(sql, args...));
  SKERRY_ASSIGN(bool found, row.next());
  if (!found) return std::optional<T>();
  return std::optional<T>(read(row));
}

Result<std::map<std::string, std::uint64_t>> read_decisions(sqlite::Database& database, const std::string& run_id,
                                                            UpdateState state) {
  SKERRY_ASSIGN(auto row, database.query("SELECT name, updates FROM decisions WHERE run_id = ? AND state = ?", run_id,
                                         static_cast<int>(state)));
  std::map<std::string, std::uint64_t> counts;
  for (;;) {
    SKERRY_ASSIGN(bool more, row.next());
    if (!more) return counts;
    counts[row.text(0)] = row.uint64(1);
  }
}

}  // namespace

// ---- rows as values ----

std::string metrics_to_json(const std::vector<MetricValue>& metrics) {
  json list = json::array();
  for (const MetricValue& metric : metrics) {
    json value = metric.value;
    if (std::isnan(metric.value))
      value = "nan";
    else if (std::isinf(metric.value))
      value = metric.value > 0 ? "inf" : "-inf";
    list.push_back({metric.name, value});
  }
  return list.dump(-1, ' ', false, json::error_handler_t::replace);
}

std::vector<MetricValue> metrics_from_json(std::string_view text) {
  std::vector<MetricValue> metrics;
  json list = json::parse(text, nullptr, false);
  if (!list.is_array()) return metrics;
  for (const json& entry : list) {
    if (!entry.is_array() || entry.size() != 2 || !entry[0].is_string()) continue;
    double value = std::numeric_limits<double>::quiet_NaN();
    if (entry[1].is_number())
      value = entry[1].get<double>();
    else if (entry[1] == "inf")
      value = std::numeric_limits<double>::infinity();
    else if (entry[1] == "-inf")
      value = -std::numeric_limits<double>::infinity();
    metrics.push_back({entry[0].get<std::string>(), value});
  }
  return metrics;
}

std::string spooled_to_json(const std::vector<SpooledPayload>& spooled) {
  if (spooled.empty()) return "[]";
  json list = json::array();
  for (const SpooledPayload& payload : spooled) list.push_back({payload.fragment, payload.content_id, payload.size});
  return list.dump(-1, ' ', false, json::error_handler_t::replace);
}

std::vector<SpooledPayload> spooled_from_json(std::string_view text) {
  std::vector<SpooledPayload> spooled;
  if (text == "[]") return spooled;
  json list = json::parse(text, nullptr, false);
  if (!list.is_array()) return spooled;
  for (const json& entry : list) {
    if (!entry.is_array() || entry.size() != 3 || !entry[0].is_string() || !entry[1].is_string() ||
        !entry[2].is_number_unsigned())
      continue;
    spooled.push_back({entry[0].get<std::string>(), entry[1].get<std::string>(), entry[2].get<std::uint64_t>()});
  }
  return spooled;
}

ReceiptRecord read_receipt(const sqlite::Statement& row) {
  return {row.uint64(0), row.text(1),   row.text(2), row.text(3),  row.text(4),
          row.uint64(5), row.uint64(6), row.text(7), row.int64(8), row.blob(9)};
}

VersionRecord read_version(const sqlite::Statement& row, bool with_bytes) {
  VersionRecord version;
  version.run_id = row.text(0);
  version.fragment = row.text(1);
  version.version = row.uint64(2);
  version.exchange = row.uint64(3);
  version.whole = {row.text(4), row.uint64(5), with_bytes ? row.blob(6) : std::string()};
  version.step = {row.text(7), row.uint64(8), with_bytes ? row.blob(9) : std::string()};
  version.step_encoding = row.text(10);
  version.state_name = row.text(11);
  version.state_size = row.uint64(12);
  if (with_bytes) version.state_bytes = row.blob(13);
  version.counted_digest = row.text(14);
  version.chain = row.text(15);
  version.time_ms = row.int64(16);
  version.kept = row.int64(17) != 0;
  return version;
}

Result<std::string> read_meta(sqlite::Database& database, const std::string& key) {
  SKERRY_ASSIGN(auto row, database.query("SELECT value FROM meta WHERE key = ?", key));
  SKERRY_ASSIGN(bool found, row.next());
  return found ? row.text(0) : std::string();
}

Result<void> write_meta(sqlite::Database& database, const std::string& key, const std::string& value) {
  SKERRY_TRY(database.run("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", key, value));
  return {};
}

// ---- the reader ----

Result<std::vector<RunRecord>> StoreReader::runs() {
  return collect_rows<RunRecord>(database_, kSelectRun + "ORDER BY created_ms, run_id", read_run);
}

Result<std::optional<RunRecord>> StoreReader::run(const std::string& run_id) {
  return first_row<RunRecord>(database_, kSelectRun + "WHERE run_id = ?", read_run, run_id);
}

Result<std::map<std::string, std::string>> StoreReader::machine_rows(const std::string& run_id) {
  SKERRY_ASSIGN(auto row, database_.query("SELECT key, value FROM machine_rows WHERE run_id = ?", run_id));
  std::map<std::string, std::string> rows;
  for (;;) {
    SKERRY_ASSIGN(bool more, row.next());
    if (!more) return rows;
    rows.emplace(row.text(0), row.text(1));
  }
}

Result<std::optional<TaskRecord>> StoreReader::task(const std::string& task_id) {
  auto read = [](const sqlite::Statement& row) {
    return TaskRecord{row.text(0),   row.text(1),   row.text(2), static_cast<UpdateState>(row.int64(3)),
                      row.uint64(4), row.uint64(5), row.text(6), to_hex(row.blob_view(7))};
  };
  return first_row<TaskRecord>(
      database_,
      "SELECT task_id, tasks.run_id, tasks.node, state, tasks.exchange, tasks.version, tasks.reason, hash "
      "FROM tasks LEFT JOIN receipts USING (sequence) WHERE task_id = ?",
      read, task_id);
}

Result<std::vector<UpdateRecord>> StoreReader::accepted_updates(const std::string& run_id) {
  return collect_rows<UpdateRecord>(
      database_, kSelectUpdate + "WHERE run_id = ? AND state = 2 ORDER BY exchange, task_id", read_update, run_id);
}

Result<std::optional<UpdateRecord>> StoreReader::update(const std::string& task_id) {
  return first_row<UpdateRecord>(database_, kSelectUpdate + "WHERE task_id = ?", read_update, task_id);
}

Result<std::map<std::string, std::uint64_t>> StoreReader::discarded_by_reason(const std::string& run_id) {
  return read_decisions(database_, run_id, UpdateState::kDiscarded);
}

Result<std::map<std::string, std::uint64_t>> StoreReader::counted_by_node(const std::string& run_id) {
  return read_decisions(database_, run_id, UpdateState::kCounted);
}

namespace {

std::string select_versions(const std::string& rest) {
  return "SELECT " + std::string(kVersionColumns) + " FROM versions " + rest;
}

VersionRecord read_whole_version(const sqlite::Statement& row) { return read_version(row, true); }

}  // namespace

Result<std::optional<VersionRecord>> StoreReader::latest_version(const std::string& run_id,
                                                                 const std::string& fragment) {
  return first_row<VersionRecord>(database_,
                                  select_versions("WHERE run_id = ? AND fragment = ? ORDER BY version DESC LIMIT 1"),
                                  read_whole_version, run_id, fragment);
}

Result<std::optional<VersionRecord>> StoreReader::version(const std::string& run_id, const std::string& fragment,
                                                          std::uint64_t version) {
  return first_row<VersionRecord>(database_, select_versions("WHERE run_id = ? AND fragment = ? AND version = ?"),
                                  read_whole_version, run_id, fragment, version);
}

Result<std::vector<VersionRecord>> StoreReader::versions(const std::string& run_id, bool with_bytes) {
  return collect_rows<VersionRecord>(
      database_, select_versions("WHERE run_id = ? ORDER BY fragment, version"),
      [with_bytes](const sqlite::Statement& row) { return read_version(row, with_bytes); }, run_id);
}

Result<std::vector<MetricRecord>> StoreReader::metrics(const std::string& run_id) {
  return collect_rows<MetricRecord>(database_, kSelectMetric + "WHERE run_id = ? ORDER BY id", read_metric, run_id);
}

Result<std::optional<MetricRecord>> StoreReader::latest_metric(const std::string& run_id, const std::string& kind) {
  return first_row<MetricRecord>(database_,
                                 kSelectMetric + "WHERE run_id = ? AND kind = ? AND node = '' ORDER BY id DESC LIMIT 1",
                                 read_metric, run_id, kind);
}

Result<std::vector<ReceiptRecord>> StoreReader::receipts(std::uint64_t first, std::uint64_t limit) {
  auto read = [](const sqlite::Statement& row) {
    ReceiptRecord receipt = read_receipt(row);
    receipt.hash = to_hex(receipt.hash);
    return receipt;
  };
  return collect_rows<ReceiptRecord>(
      database_,
      "SELECT " + std::string(kReceiptColumns) + " FROM receipts WHERE sequence >= ? ORDER BY sequence LIMIT ?", read,
      first, limit);
}

Result<std::vector<TrafficRecord>> StoreReader::traffic(const std::string& run_id) {
  auto read = [](const sqlite::Statement& row) {
    return TrafficRecord{row.text(0), row.text(1), row.uint64(2), row.uint64(3)};
  };
  return collect_rows<TrafficRecord>(
      database_, "SELECT run_id, node, bytes_up, bytes_down FROM traffic WHERE run_id = ? ORDER BY node", read, run_id);
}

Result<std::vector<AuditRecord>> StoreReader::audit_log(std::uint64_t newest) {
  auto read = [](const sqlite::Statement& row) {
    return AuditRecord{row.int64(0), row.text(1), row.text(2), row.text(3), row.text(4)};
  };
  return collect_rows<AuditRecord>(
      database_,
      "SELECT time_ms, who, action, subject, detail FROM (SELECT * FROM audit ORDER BY id DESC LIMIT ?) ORDER BY id",
      read, newest);
}

Result<LiveFiles> StoreReader::live_files() {
  LiveFiles live;
  {
    SKERRY_ASSIGN(auto row, database_.query(
                                "SELECT iif(whole_bytes IS NULL, whole_id, ''), iif(step_bytes IS NULL, step_id, ''), "
                                "state_name FROM versions"));
    for (;;) {
      SKERRY_ASSIGN(bool more, row.next());
      if (!more) break;
      for (int column : {0, 1}) {
        if (!row.text_view(column).empty()) live.cargo.insert(row.text(column));
      }
      if (!row.text_view(2).empty()) live.states.insert(row.text(2));
    }
  }
  {
    SKERRY_ASSIGN(auto row, database_.query("SELECT DISTINCT json_extract(spec_json, '$.data.tokenizer') FROM runs WHERE "
                                            "json_valid(spec_json) AND json_extract(spec_json, '$.data.tokenizer') <> 'bytes'"));
    for (;;) {
      SKERRY_ASSIGN(bool more, row.next());
      if (!more) break;
      live.cargo.insert(row.text(0));
    }
  }
  SKERRY_ASSIGN(auto row, database_.query("SELECT task_id FROM tasks WHERE state = 2"));
  for (;;) {
    SKERRY_ASSIGN(bool more, row.next());
    if (!more) return live;
    live.tasks.insert(row.text(0));
  }
}

}  // namespace skerry::server
