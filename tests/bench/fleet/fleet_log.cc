#include "tests/bench/fleet/fleet_log.h"

#include <algorithm>
#include <cstdio>
#include <iterator>

#include <nlohmann/json.hpp>

namespace skerry::bench {

constexpr std::size_t kFailuresShown = 20;

void FleetLog::disconnected(const std::string& node, const Error& error) {
  if (connected_ > 0) --connected_;
  failed(node, "session ended: " + to_string(error));
}

void FleetLog::task(const v1::Task& task) {
  if (task.kind() != v1::TASK_TRAIN) return;
  SeenExchange& exchange = runs_[task.run_id()].exchanges[task.exchange()];
  if (exchange.tasks++ == 0) exchange.first_task = now();
}

void FleetLog::receipt(const std::string& run_id, const v1::Receipt& receipt) {
  if (receipt.state() == v1::UPDATE_DISCARDED) {
    ++discarded_;
    failed(receipt.task_id(), "discarded: " + receipt.reason());
  }
  if (receipt.state() != v1::UPDATE_COUNTED) return;
  const auto run = runs_.find(run_id);
  if (run == runs_.end()) return;
  const auto exchange = run->second.exchanges.find(receipt.exchange());
  if (exchange == run->second.exchanges.end()) return;  // of an evaluation
  ++counted_;
  ++exchange->second.counted;
  exchange->second.last_counted = now();
}

void FleetLog::failed(const std::string& node, const std::string& what) {
  ++failures_;
  if (first_failures_.size() < kFailuresShown) first_failures_.push_back(node + ": " + what);
  if (verbose_) std::fprintf(stderr, "%s: %s\n", node.c_str(), what.c_str());
}

void FleetLog::run_ended(const v1::RunEnded& ended) {
  SeenRun& run = runs_[ended.run_id()];
  run.outcome = ended.outcome();
  run.reason = ended.reason();
  ++run.told;
}

void FleetLog::note(const std::string& node, const std::string& text) {
  if (verbose_) std::fprintf(stderr, "%s: %s\n", node.c_str(), text.c_str());
}

std::uint64_t FleetLog::runs_ended() const {
  return static_cast<std::uint64_t>(std::count_if(runs_.begin(), runs_.end(), [](const auto& entry) { return !entry.second.outcome.empty(); }));
}

double rounds_per_second(const SeenRun& run) {
  if (run.exchanges.size() < 2) return 0;
  const std::size_t skipped = run.exchanges.size() / 10;
  const auto first = std::next(run.exchanges.begin(), static_cast<std::ptrdiff_t>(skipped));
  const auto last = std::prev(run.exchanges.end());
  const double seconds = last->second.first_task - first->second.first_task;
  return seconds > 0 ? static_cast<double>(run.exchanges.size() - 1 - skipped) / seconds : 0;
}

double median_round_seconds(const SeenRun& run) {
  std::vector<double> seconds;
  for (const auto& [number, exchange] : run.exchanges)
    if (exchange.counted > 0 && exchange.counted == exchange.tasks) seconds.push_back(exchange.seconds());
  if (seconds.empty()) return 0;
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

nlohmann::json FleetLog::json() const {
  nlohmann::json runs = nlohmann::json::object();
  for (const auto& [id, run] : runs_) {
    nlohmann::json seconds = nlohmann::json::array();
    for (const auto& [number, exchange] : run.exchanges)
      if (run.exchanges.size() <= 100) seconds.push_back(exchange.seconds());
    runs[id] = {{"outcome", run.outcome},
                {"reason", run.reason},
                {"rounds", run.exchanges.size()},
                {"rounds_per_second", rounds_per_second(run)},
                {"median_round_seconds", median_round_seconds(run)},
                {"round_seconds", std::move(seconds)}};
  }
  return {{"seconds", now()},        {"sessions", sessions_},   {"connected", connected_},     {"counted", counted_},
          {"discarded", discarded_}, {"evaluated", evaluated_}, {"failures", failures_},       {"first_failures", first_failures_},
          {"bytes_up", bytes_up_},   {"bytes_down", bytes_down_}, {"runs", std::move(runs)}};
}

}  // namespace skerry::bench
