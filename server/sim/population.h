// The virtual clients of a simulation and what each of them has.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "client/trainer/data_set.h"
#include "common/base/result.h"
#include "common/config/run_spec.h"
#include "server/sim/scenario.h"

namespace skerry::sim {

struct ClientPlan {
  std::string name;
  bool hostile = false;
  bool trusted = false;          ///< the node that aggregation.trusted names: never hostile
  Pace pace;
  std::uint64_t examples = 0;    ///< of the run's training split
  std::uint64_t holdout_examples = 0;  ///< of its evaluation split

  /// A data set of its own, over memory that all share. Labels are flipped where its attack wants that. Any thread.
  Result<std::unique_ptr<trainer::DataSet>> open_data() const;

  std::shared_ptr<const trainer::DataSet> whole;
  trainer::DataPart part;
  bool flip_labels = false;
};

struct Population {
  std::vector<ClientPlan> clients;  ///< by name
  std::shared_ptr<const trainer::DataSet> test_data;  ///< nothing: no central test
  trainer::DataPart test_part;                        ///< its split is "test"
};

/// Names are client-00 … client-99, or the names of the files without their last extension; of a partition by files
/// each client's rows keep their order. The splits are those of `skerry-client data add --holdout`: the first rows are
/// the split "train", the last the split "holdout".
/// Errors name the file, or the setting: INVALID_ARGUMENT, NOT_FOUND.
Result<Population> make_population(const Scenario& scenario, const RunSpec& spec);

}  // namespace skerry::sim
