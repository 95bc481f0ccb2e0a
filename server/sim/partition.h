// How one data set is divided among virtual clients.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.h"

namespace skerry::sim {

struct PartitionPlan {
  enum class Kind {
    kIid,        ///< shuffled and dealt out evenly
    kDirichlet,  ///< each label's rows by shares drawn from Dirichlet(parameter)
    kShards,     ///< sorted by label, cut into clients · parameter shards, `parameter` of them to each client
    kLabels,     ///< `parameter` labels to each client; a label's rows evenly to those who have it
    kPower,      ///< shuffled; client i gets a share ∝ (i + 1)^−parameter
    kLinear,     ///< shuffled; shares grow evenly, the largest is `parameter` times the smallest
    kFiles,      ///< one file (or directory) of the given directory to each client
  };
  Kind kind = Kind::kIid;
  double parameter = 0;
  std::uint64_t minimum = 1;  ///< rows that each client has at least

  bool needs_labels() const { return kind == Kind::kDirichlet || kind == Kind::kShards || kind == Kind::kLabels; }
};

/// "iid", "dirichlet:0.5", "shards:2", "labels:3", "power:1.2", "linear:10", "files"; a second number is the minimum:
/// "dirichlet:0.1,10". INVALID_ARGUMENT naming the text and what is allowed.
Result<PartitionPlan> parse_partition(std::string_view text);

/// Each client's rows: numbers below `rows`, every number exactly once, each client's in a random order. `labels` has
/// one label a row where the plan needs them. Clients below the minimum get rows from the largest ones. The seed
/// decides everything. INVALID_ARGUMENT: fewer rows than the minima need, or no labels.
Result<std::vector<std::vector<std::uint64_t>>> partition_rows(const PartitionPlan& plan, std::uint64_t rows,
                                                               std::span<const std::int64_t> labels,
                                                               std::uint64_t clients, std::uint64_t seed);

/// The sizes of kIid, kPower and kLinear alone, for what is cut in one piece (text): their sum is `total`.
std::vector<std::uint64_t> partition_sizes(const PartitionPlan& plan, std::uint64_t total, std::uint64_t clients);

}  // namespace skerry::sim
