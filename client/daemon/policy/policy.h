// A data holder's policy: the file in which everything that is allowed is written down. What it does not allow is refused.
// docs/data-holders.md is its reference.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "client/daemon/policy/hours.h"
#include "common/base/pattern.h"
#include "common/base/result.h"

namespace skerry::client {

struct Policy {
  enum class Telling { kNone, kCode, kFull };
  enum class Sandbox { kBubblewrap, kNone };
  enum class WorkPlace { kDisk, kTmpfs };

  struct DataRule {
    std::string set;                    ///< a name in the catalogue
    std::vector<std::string> purposes;  ///< patterns; '*' stands for any characters
  };

  std::vector<std::string> coordinators;  ///< hex SHA-256 of trusted root certificates
  std::vector<std::string> purposes;      ///< patterns of a run's purpose
  std::vector<std::string> architectures;
  std::uint64_t max_parameters = 0;
  std::vector<std::string> metrics;       ///< patterns of names that may leave
  Telling error_messages = Telling::kNone;  ///< of the trainer, and the reasons of refusals
  std::vector<DataRule> data;             ///< the first that fits a run is used
  Hours hours;

  std::uint32_t threads = 1;              ///< of one trainer
  std::uint64_t memory_mb = 0;            ///< of one trainer; 0: not limited
  std::uint32_t trainers = 1;             ///< at once
  std::uint64_t task_seconds = 0;         ///< 0: the coordinator's deadline alone
  std::uint64_t disk_mb = 10'000;         ///< of runs, caches and outbox together
  std::uint64_t rounds_a_day = 0;         ///< training updates in 24 hours; 0: not limited

  std::uint64_t minimum_examples = 1;     ///< that a data set must have, and that an update must be made from
  double maximum_update_norm = 0;         ///< updates are scaled down to this L2 norm; 0: not clipped
  std::vector<std::string> encodings;     ///< of updates
  std::vector<std::string> tokenizers = {"bytes"};  ///< patterns: "bytes", content ids of SentencePiece models

  Sandbox sandbox = Sandbox::kBubblewrap;
  std::vector<std::string> trainer;       ///< command; empty: skerry-trainer beside the daemon
  std::vector<std::string> read_only;     ///< more paths the sandboxed trainer may read (an interpreter, say)
  std::vector<std::string> devices;       ///< device files it may use, for example /dev/nvidia0
  WorkPlace work_dir = WorkPlace::kDisk;
  std::uint64_t checkpoint_seconds = 60;  ///< between the trainer's checkpoints in the middle of a task; 0: none there

  std::uint32_t island_workers = 1;       ///< trainer processes that train as this node
  std::uint32_t island_local = 1;         ///< of them on this machine
  std::string island_address;             ///< IP:PORT where the others come: grants the trainer this machine's network

  /// What the trainer's command gets besides; empty: it trains alone.
  std::vector<std::string> island_arguments() const;
};

/// The policy in a TOML text; `name` stands for the file in messages.
/// INVALID_ARGUMENT with the line for a syntax error, an unknown key, a wrong type or a value out of range.
Result<Policy> parse_policy(std::string_view toml, const std::string& name);

/// Reads and parses. NOT_FOUND says how to make one.
Result<Policy> load_policy(const std::string& path);

/// A commented policy that trusts this coordinator and allows nothing.
std::string policy_template(std::string_view ca_fingerprint);

}  // namespace skerry::client
