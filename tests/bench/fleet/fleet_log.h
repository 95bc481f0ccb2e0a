// What a fleet saw: sessions, exchanges by the clock, updates by their fate. One thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "common/base/result.h"
#include "skerry/v1/fleet.pb.h"

namespace skerry::bench {

/// One exchange of a run as its clients saw it, in seconds since the log began.
struct SeenExchange {
  double first_task = 0;    ///< the first client got its task
  double last_counted = 0;  ///< the last client learned that its update is counted
  std::uint64_t tasks = 0;
  std::uint64_t counted = 0;

  double seconds() const { return last_counted - first_task; }
};

struct SeenRun {
  std::map<std::uint64_t, SeenExchange> exchanges;
  std::string outcome;  ///< empty while it is open
  std::string reason;
  std::uint64_t told = 0;  ///< clients that were told of its end
};

class FleetLog {
 public:
  explicit FleetLog(bool verbose) : verbose_(verbose) {}

  void connected() { ++sessions_; ++connected_; }
  void disconnected(const std::string& node, const Error& error);
  void task(const v1::Task& task);
  void receipt(const std::string& run_id, const v1::Receipt& receipt);
  void evaluated() { ++evaluated_; }
  void failed(const std::string& node, const std::string& what);
  void run_ended(const v1::RunEnded& ended);
  void note(const std::string& node, const std::string& text);
  void carried(std::uint64_t bytes_up, std::uint64_t bytes_down) { bytes_up_ += bytes_up; bytes_down_ += bytes_down; }

  std::uint64_t connected_now() const { return connected_; }
  std::uint64_t failures() const { return failures_; }
  const std::map<std::string, SeenRun>& runs() const { return runs_; }
  std::uint64_t runs_ended() const;

  /// Everything, as `skerry-bench fleet --json` writes it.
  nlohmann::json json() const;

 private:
  double now() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - began_).count(); }

  const bool verbose_;
  const std::chrono::steady_clock::time_point began_ = std::chrono::steady_clock::now();
  std::map<std::string, SeenRun> runs_;
  std::uint64_t sessions_ = 0;
  std::uint64_t connected_ = 0;
  std::uint64_t counted_ = 0;
  std::uint64_t discarded_ = 0;
  std::uint64_t evaluated_ = 0;
  std::uint64_t failures_ = 0;
  std::uint64_t bytes_up_ = 0;
  std::uint64_t bytes_down_ = 0;
  std::vector<std::string> first_failures_;
};

/// Rounds a second between the first tasks of a run's exchanges, the first tenth of them left out; 0 with fewer than two.
double rounds_per_second(const SeenRun& run);

/// The median of the exchanges' seconds, of those that were counted to the end; 0 where there is none.
double median_round_seconds(const SeenRun& run);

}  // namespace skerry::bench
