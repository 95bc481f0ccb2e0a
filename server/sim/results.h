// What a simulation found, and the files that say so.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "server/store/records.h"

namespace skerry::sim {

struct ClientResult {
  std::string name;
  bool hostile = false;
  double speed = 1;
  std::uint64_t examples = 0;
  std::uint64_t holdout_examples = 0;
  std::uint64_t tasks = 0;      ///< train tasks given to it
  std::uint64_t counted = 0;    ///< updates
  std::uint64_t discarded = 0;
  std::uint64_t dropped = 0;    ///< tasks it gave up, and updates that were lost
  std::uint64_t killed = 0;     ///< times
  std::uint64_t bytes_up = 0;
  std::uint64_t bytes_down = 0;
  double busy_seconds = 0;      ///< virtual time in its trainer
};

/// The central test of one exchange's model.
struct TestResult {
  std::uint64_t exchange = 0;
  std::map<std::string, double> metrics;
};

struct ModelFragment {
  std::string name;
  std::uint64_t version = 0;
  std::string content_id;
  std::string path;                  ///< in the scratch directory,
  std::shared_ptr<const void> held;  ///< as long as this is
};

/// After an exchange, for people who wait.
struct Progress {
  std::uint64_t round = 0;
  std::uint64_t rounds = 0;  ///< planned
  std::int64_t virtual_ms = 0;
  std::map<std::string, double> metrics;
};

struct SimulationResult {
  std::string name;
  std::string strategy;
  std::string spec_hash;
  std::uint64_t seed = 0;
  std::string attack;
  std::string status;  ///< "completed", "stopped", "failed", "interrupted", "stuck"
  std::string status_reason;
  std::int64_t virtual_ms = 0;
  std::vector<server::MetricRecord> rows;  ///< as a coordinator's store has them; times are virtual
  std::vector<TestResult> tests;
  std::vector<ClientResult> clients;
  std::map<std::string, std::uint64_t> discarded;  ///< by kind of reason
  std::vector<ModelFragment> model;

  // What differs from run to run:
  double wall_seconds = 0;
  double cpu_seconds = 0;      ///< of the whole process
  double trainer_seconds = 0;  ///< of them, inside the trainers (of each, its first thread's)
  unsigned workers = 1;
  double compute_share() const { return cpu_seconds > 0 ? trainer_seconds / cpu_seconds : 0; }
};

/// rounds.csv: one line for each exchange of each fragment, with what `skerry run metrics` says of it, the evaluation of
/// its model (columns eval_…) and the central test (test_…). Numbers have all their digits; what was not measured is
/// empty.
std::string rounds_csv(const SimulationResult& result);
std::string clients_csv(const SimulationResult& result);

/// summary.json; with `timing` also what differs from run to run.
std::string summary_json(const SimulationResult& result, bool timing);

/// Some lines for people.
std::string summary_text(const SimulationResult& result);

/// Writes rounds.csv, clients.csv, summary.json and timing.json into `directory`, which is made if need be, and
/// model/FRAGMENT.safetensors. Errors name the file.
Result<void> write_results(const SimulationResult& result, const std::string& directory);

}  // namespace skerry::sim
