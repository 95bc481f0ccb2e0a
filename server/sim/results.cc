#include "server/sim/results.h"

#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <set>

#include <nlohmann/json.hpp>

#include "common/os/files.h"

namespace skerry::sim {
namespace {

using nlohmann::ordered_json;

constexpr std::uint64_t kMaxModelBytes = std::uint64_t{1} << 40;
constexpr const char* kWallTime = "reduce_seconds";  // differs from run to run

std::string csv_number(double value) {
  char text[40];
  std::snprintf(text, sizeof text, "%.17g", value);
  return std::isfinite(value) ? text : "";
}

bool is_exchange(const server::MetricRecord& row) { return row.kind == "exchange"; }
bool is_evaluation_of_all(const server::MetricRecord& row) { return row.kind == "evaluation" && row.node.empty(); }

std::map<std::string, double> metrics_of(const server::MetricRecord& row) {
  std::map<std::string, double> metrics;
  for (const server::MetricValue& metric : row.metrics)
    if (metric.name != kWallTime) metrics[metric.name] = metric.value;
  return metrics;
}

struct Columns {
  std::set<std::string> exchange, evaluation, test;
};

std::string cells(const std::set<std::string>& names, const std::map<std::string, double>& metrics) {
  std::string text;
  for (const std::string& name : names) {
    const auto found = metrics.find(name);
    text += "," + (found == metrics.end() ? "" : csv_number(found->second));
  }
  return text;
}

std::string virtual_time(std::int64_t ms) {
  char text[64];
  if (ms < 60'000) std::snprintf(text, sizeof text, "%.1f s", static_cast<double>(ms) / 1000);
  else std::snprintf(text, sizeof text, "%" PRId64 ":%02d:%02d", ms / 3'600'000, static_cast<int>(ms / 60'000 % 60), static_cast<int>(ms / 1000 % 60));
  return text;
}

std::map<std::string, double> last_evaluation(const SimulationResult& result) {
  std::map<std::string, double> metrics;
  for (const server::MetricRecord& row : result.rows)
    if (is_evaluation_of_all(row) && !row.metrics.empty()) metrics = metrics_of(row);
  return metrics;
}

std::map<std::string, double> last_exchange(const SimulationResult& result) {
  std::map<std::string, double> metrics;
  for (const server::MetricRecord& row : result.rows)
    if (is_exchange(row)) metrics = metrics_of(row);
  return metrics;
}

std::uint64_t exchanges_of(const SimulationResult& result) {
  std::set<std::uint64_t> exchanges;
  for (const server::MetricRecord& row : result.rows)
    if (is_exchange(row)) exchanges.insert(row.exchange);
  return exchanges.size();
}

// JSON has neither infinities nor NaN.
ordered_json numbers(const std::map<std::string, double>& metrics) {
  ordered_json object = ordered_json::object();
  for (const auto& [name, value] : metrics) object[name] = std::isfinite(value) ? ordered_json(value) : ordered_json();
  return object;
}

std::string metrics_line(const std::map<std::string, double>& metrics) {
  std::string line;
  for (const auto& [name, value] : metrics) {
    char text[64];
    std::snprintf(text, sizeof text, "%.4g", value);
    line += (line.empty() ? "" : ", ") + name + " " + text;
  }
  return line.empty() ? "none" : line;
}

}  // namespace

std::string rounds_csv(const SimulationResult& result) {
  Columns columns;
  std::map<std::uint64_t, std::map<std::string, double>> evaluations, tests;
  for (const server::MetricRecord& row : result.rows) {
    const auto metrics = metrics_of(row);
    for (const auto& [name, value] : metrics) {
      if (is_exchange(row)) columns.exchange.insert(name);
      if (is_evaluation_of_all(row)) columns.evaluation.insert(name);
    }
    if (is_evaluation_of_all(row)) evaluations[row.exchange] = metrics;
  }
  for (const TestResult& test : result.tests) {
    tests[test.exchange] = test.metrics;
    for (const auto& [name, value] : test.metrics) columns.test.insert(name);
  }
  std::string text = "exchange,fragment,version,time_s,updates";
  for (const std::string& name : columns.exchange) text += "," + name;
  for (const std::string& name : columns.evaluation) text += ",eval_" + name;
  for (const std::string& name : columns.test) text += ",test_" + name;
  text += "\n";
  const std::int64_t begin = 946'684'800'000;  // the virtual clock's midnight
  for (const server::MetricRecord& row : result.rows) {
    if (!is_exchange(row)) continue;
    text += std::to_string(row.exchange) + "," + row.fragment + "," + std::to_string(row.version) + "," +
            csv_number(static_cast<double>(row.time_ms - begin) / 1000) + "," + std::to_string(row.updates) +
            cells(columns.exchange, metrics_of(row)) + cells(columns.evaluation, evaluations[row.exchange]) +
            cells(columns.test, tests[row.exchange]) + "\n";
  }
  return text;
}

std::string clients_csv(const SimulationResult& result) {
  std::map<std::string, std::map<std::string, double>> evaluations;  // the latest of each client
  std::set<std::string> names;
  for (const server::MetricRecord& row : result.rows) {
    if (row.kind != "evaluation" || row.node.empty()) continue;
    evaluations[row.node] = metrics_of(row);
    for (const auto& [name, value] : evaluations[row.node]) names.insert(name);
  }
  std::string text = "client,hostile,speed,examples,holdout_examples,tasks,counted,discarded,dropped,killed,bytes_up,bytes_down,busy_s";
  for (const std::string& name : names) text += ",eval_" + name;
  text += "\n";
  for (const ClientResult& client : result.clients) {
    text += client.name + "," + (client.hostile ? "1" : "0") + "," + csv_number(client.speed);
    for (const std::uint64_t count : {client.examples, client.holdout_examples, client.tasks, client.counted, client.discarded,
                                      client.dropped, client.killed, client.bytes_up, client.bytes_down})
      text += "," + std::to_string(count);
    text += "," + csv_number(client.busy_seconds) + cells(names, evaluations[client.name]) + "\n";
  }
  return text;
}

std::string summary_json(const SimulationResult& result, bool timing) {
  ordered_json summary = {{"name", result.name},
                          {"strategy", result.strategy},
                          {"spec_hash", result.spec_hash},
                          {"seed", result.seed},
                          {"attack", result.attack},
                          {"status", result.status},
                          {"status_reason", result.status_reason},
                          {"exchanges", exchanges_of(result)},
                          {"virtual_seconds", static_cast<double>(result.virtual_ms) / 1000},
                          {"clients", result.clients.size()},
                          {"hostile", ordered_json::array()},
                          {"exchange", numbers(last_exchange(result))},
                          {"evaluation", numbers(last_evaluation(result))},
                          {"test", numbers(result.tests.empty() ? std::map<std::string, double>{} : result.tests.back().metrics)},
                          {"discarded", result.discarded},
                          {"model", ordered_json::object()}};
  for (const ClientResult& client : result.clients)
    if (client.hostile) summary["hostile"].push_back(client.name);
  for (const ModelFragment& fragment : result.model)
    summary["model"][fragment.name] = {{"version", fragment.version}, {"content_id", fragment.content_id}};
  if (timing) {
    summary["timing"] = {{"wall_seconds", result.wall_seconds},
                         {"workers", result.workers},
                         {"cpu_seconds", result.cpu_seconds},
                         {"trainer_cpu_seconds", result.trainer_seconds},
                         {"compute_share", result.compute_share()}};
  }
  return summary.dump(2) + "\n";
}

std::string summary_text(const SimulationResult& result) {
  std::uint64_t counted = 0, discarded = 0, dropped = 0, hostile = 0;
  for (const ClientResult& client : result.clients) {
    counted += client.counted;
    discarded += client.discarded;
    dropped += client.dropped;
    hostile += client.hostile ? 1 : 0;
  }
  std::string text = result.name + " (" + result.strategy + "): " + result.status;
  if (!result.status_reason.empty()) text += ", " + result.status_reason;
  text += "\n  " + std::to_string(exchanges_of(result)) + " exchanges in " + virtual_time(result.virtual_ms) + " of virtual time, " +
          std::to_string(result.clients.size()) + " clients" + (hostile > 0 ? ", " + std::to_string(hostile) + " hostile (" + result.attack + ")" : "") +
          "\n  updates: " + std::to_string(counted) + " counted, " + std::to_string(discarded) + " discarded, " +
          std::to_string(dropped) + " never came\n";
  for (const auto& [reason, count] : result.discarded) text += "    " + std::to_string(count) + " × " + reason + "\n";
  text += "  last exchange: " + metrics_line(last_exchange(result)) + "\n";
  text += "  last evaluation: " + metrics_line(last_evaluation(result)) + "\n";
  if (!result.tests.empty()) text += "  last test: " + metrics_line(result.tests.back().metrics) + "\n";
  for (const ModelFragment& fragment : result.model)
    text += "  model " + fragment.name + " version " + std::to_string(fragment.version) + ": " + fragment.content_id + "\n";
  char timing[120];
  std::snprintf(timing, sizeof timing, "  %.1f s on %u workers, %.1f s of CPU time, %.0f %% of it in the trainers\n", result.wall_seconds,
                result.workers, result.cpu_seconds, 100 * result.compute_share());
  return text + timing;
}

Result<void> write_results(const SimulationResult& result, const std::string& directory) {
  const std::string model = join_path(directory, "model");
  SKERRY_TRY(make_directories(model, 0755));
  SKERRY_TRY(write_file_atomic(join_path(directory, "rounds.csv"), rounds_csv(result), 0644));
  SKERRY_TRY(write_file_atomic(join_path(directory, "clients.csv"), clients_csv(result), 0644));
  SKERRY_TRY(write_file_atomic(join_path(directory, "summary.json"), summary_json(result, false), 0644));
  const ordered_json timing = ordered_json::parse(summary_json(result, true)).at("timing");
  SKERRY_TRY(write_file_atomic(join_path(directory, "timing.json"), timing.dump(2) + "\n", 0644));
  for (const ModelFragment& fragment : result.model) {
    SKERRY_ASSIGN(const std::string bytes, read_file(fragment.path, kMaxModelBytes));
    SKERRY_TRY(write_file_atomic(join_path(model, fragment.name + ".safetensors"), bytes, 0644));
  }
  return {};
}

}  // namespace skerry::sim
