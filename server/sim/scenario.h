// What a simulation adds to a run spec: who the clients are, what they have, how they behave.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "common/base/result.h"
#include "server/sim/attacks.h"
#include "server/sim/partition.h"
#include "server/sim/traces.h"

namespace skerry::sim {

struct Scenario {
  std::string data;              ///< file or directory of the run spec's data kind; text also as JSON lines or token files
  std::uint64_t clients = 10;    ///< ignored where the partition is by files
  PartitionPlan partition;
  std::uint64_t examples = 0;    ///< only so many rows of the data, from the first on; 0: all
  std::string initial;           ///< a model to start from: a safetensors file; empty: as the run spec says
  std::string tokenizer;         ///< a SentencePiece model's file; empty: bytes
  double holdout = 0.1;          ///< the part of each client's rows that is its holdout split
  double test_share = 0;         ///< the last part of the data, kept from all clients and measured after every exchange
  std::string test_path;         ///< instead: other data of the same kind
  std::uint64_t test_every = 1;  ///< instead: after so many exchanges, and at the end
  std::uint64_t trusted_examples = 100;  ///< of the node that aggregation.trusted names, drawn from all rows
  double step_seconds = 0.05;    ///< virtual time of one inner step at speed 1
  SpeedPlan speed;
  Pace pace;                     ///< the line of a client that `speed` says nothing of
  AvailabilityPlan availability;
  double dropout = 0;            ///< the chance that a train task is given up in its middle
  double drop_updates = 0;       ///< the chance that an update is lost on its way
  std::uint64_t kill_every = 0;  ///< after so many exchanges a client loses all it has; 0: never
  AttackPlan attack;
  unsigned threads = 1;          ///< of each client's trainer
};

/// One setting: a flag `--step-seconds VALUE`, a key `step_seconds = VALUE` of a scenario file.
struct Setting {
  std::string_view name;    ///< "step_seconds"
  std::string_view value;   ///< what stands for it in the help: "SECONDS"
  std::string_view help;
  Result<void> (*apply)(Scenario& scenario, const std::string& text);
};

/// All of them, in the order of the help and docs/simulation.md.
std::span<const Setting> settings();

/// "step_seconds" as a flag: "--step-seconds".
std::string flag_of(const Setting& setting);

/// Applies a scenario file (TOML, settings at the top level). Paths in it are relative to the file's directory.
/// INVALID_ARGUMENT with file and line: `scenario.toml line 3: dropout is "2", must be …`; an unknown key names all there
/// are.
Result<void> apply_scenario_file(const std::string& path, Scenario& scenario);

}  // namespace skerry::sim
