// An island: several trainer processes, one for each machine or GPU of a holder, that train as one node.
//
// The leader speaks the trainer protocol and owns everything a trainer is: data, checkpoints, merges. The workers hold the
// same tensors and optimizer state. In each step every process works on some rows of the batch, the gradients are summed
// over all, and every process makes the same optimizer step. Before the first step of a task, and after whatever changed
// the leader's tensors in any other way, the workers take the leader's.
//
// The network inside an island is the holder's own and is trusted (docs/threat-model.md): nothing on it is encrypted.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "client/trainer/data_set.h"
#include "client/trainer/engine.h"
#include "client/trainer/island_group.h"
#include "client/trainer/island_link.h"
#include "client/trainer/messages.h"
#include "client/trainer/trainer_state.h"
#include "common/base/result.h"
#include "common/os/process.h"

namespace skerry::trainer {

struct IslandOptions {
  int size = 1;         ///< processes, the leader among them
  int local = 1;        ///< of them on the leader's machine, the leader among them; it starts them
  std::string address;  ///< where workers of other machines come; empty: there are none
  std::int64_t join_ms = 60'000;   ///< how long a task waits until the island is complete
  std::int64_t step_ms = 120'000;  ///< how long a process waits for the others inside a step
};

/// Reads "--island-size N --island-local K --island-address IP:PORT --island-rank R"; `rank` stays empty where none is
/// named. INVALID_ARGUMENT naming the word.
struct IslandArguments {
  IslandOptions options;
  std::optional<int> rank;
};
Result<IslandArguments> parse_island_arguments(const std::vector<std::string>& words);

/// The leader's side. One thread at a time.
///
/// The island forms at the first step: workers of this machine are started then, the others must have come within
/// `join_ms`. When a process is lost, late or out of memory the step's error is UNAVAILABLE and says which; all others
/// are sent away, and the next step forms the island anew. Workers on this machine end with the leader.
class Island {
 public:
  /// INVALID_ARGUMENT or UNAVAILABLE for an address that cannot be listened on.
  static Result<std::unique_ptr<Island>> make(IslandOptions options);
  ~Island();

  /// The run that the leader opened, and what its examples look like.
  void open(const OpenRequest& request, const ExampleShape& shape);

  /// The leader's tensors changed otherwise than by a step: the workers take them before the next one.
  void changed() { stale_ = true; }

  /// The batch's mean loss, computed by all; afterwards engine.gradient() is that loss's in each process, and every worker
  /// has made the optimizer step that the leader is to make with this rate. A process has the rows
  /// ⌊rows·rank/size⌋ … ⌊rows·(rank + 1)/size⌋ − 1. Errors: those of Engine::compute_gradient, and UNAVAILABLE.
  Result<double> compute_gradient(Engine& engine, const TrainerState& state, const Batch& batch, double rate);

 private:
  explicit Island(IslandOptions options) : options_(std::move(options)) {}

  struct Worker {
    std::optional<IslandLink> link;
    std::optional<Process> process;  // of this machine
  };

  Result<void> form();
  Result<void> start_local();
  Result<void> admit(IslandLink link);
  Result<void> share(Engine& engine, const TrainerState& state);
  Result<double> step(Engine& engine, const Batch& batch, double rate);
  /// What a worker said before it left, where it said something.
  Error explain(Error error);
  void disband();

  IslandOptions options_;
  std::optional<IslandDoor> door_;
  OpenRequest request_;
  ExampleShape shape_;
  std::vector<Worker> workers_;  // rank r is workers_[r - 1]
  std::unique_ptr<IslandGroup> group_;
  unsigned formed_ = 0;
  bool stale_ = true;
};

/// A worker's life: connects to the leader (again and again until it is there), follows it, ends with it. The process's
/// exit status: 0 when the leader closed the run, 1 otherwise.
int follow_island(const IslandOptions& options, int rank);

/// Rows first … first + count − 1 of a batch, as a batch of their own.
Batch rows_of(const Batch& batch, const ExampleShape& shape, std::size_t first, std::size_t count);

}  // namespace skerry::trainer
