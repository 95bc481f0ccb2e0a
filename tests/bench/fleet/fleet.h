// `skerry-bench fleet`: many client identities from one process, each with a certificate and a TLS session of its own.
#pragma once

#include <cstdint>
#include <string>

#include <nlohmann/json_fwd.hpp>

#include "common/base/result.h"

namespace skerry::bench {

struct FleetOptions {
  std::string home;           ///< certificates live here and are found again by the next start
  std::string profile;        ///< an operator's profile, to invite and to submit; or
  std::string tokens;         ///< a file of join tokens, one a line
  unsigned clients = 10;      ///< with `profile`
  std::string prefix = "fleet";
  unsigned workers = 8;       ///< threads for cargo and large updates
  unsigned connecting = 32;   ///< members that dial at the same time
  std::uint64_t seed = 1;
  std::uint64_t train_ms = 0;
  std::string submit;         ///< a run spec to submit once all are connected (needs `profile`)
  std::uint64_t runs = 0;     ///< end after so many runs; 0 with `submit`: after that one
  std::uint64_t seconds = 0;  ///< end after this long at the latest; 0: no limit
  int watch_pid = 0;          ///< the coordinator's process: its memory and CPU are sampled while runs go on
  bool verbose = false;
};

/// Enrols, connects, works until the runs are over or the time is, says farewell. What it saw, as JSON: FleetLog::json and
/// "clients", "connect_seconds", "timed_out", "memory_bytes", "cpu_seconds" and, with `watch_pid`, "watched".
Result<nlohmann::json> run_fleet(const FleetOptions& options);

}  // namespace skerry::bench
