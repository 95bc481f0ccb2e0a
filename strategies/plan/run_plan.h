// What a run will cost before anyone trains: bytes, bandwidth, memory, disk and time, from its spec and a few
// assumptions. Nothing is materialised: sizes follow from the model's layout.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "common/config/run_spec.h"
#include "strategies/plan/bandwidth.h"

namespace skerry::strategies {

/// Bits a second.
struct LinkSpeed {
  double up = 0;
  double down = 0;
};

/// What a run spec does not say.
struct PlanAssumptions {
  std::uint64_t nodes = 4;             ///< that take part in the run
  double step_seconds = 1;             ///< of one inner step on every node
  LinkSpeed node = {100e6, 100e6};     ///< each node's link
  LinkSpeed coordinator = {1e9, 1e9};  ///< the coordinator's link
  double latency_seconds = 0.05;       ///< a message's one way, and each transfer's start
  double examples = 0;                 ///< of a node; needed where training.epochs counts
  /// Bytes of f32 model a second that the coordinator reduces, steps, hashes and writes (docs/benchmarks.md,
  /// agg_commit).
  double reduce_rate = 500e6;
};

/// A task is one node's work for one exchange; a round exchanges every fragment once. Figures are expected ones where
/// nodes are drawn, and upper bounds where payloads are compressed.
struct RunCost {
  // What is exchanged.
  std::uint64_t parameters = 0;    ///< of the whole model
  std::uint64_t exchanged = 0;     ///< of them, trained by all and exchanged
  std::uint64_t lanes = 0;         ///< exchanges of a round: 1, or with a staggered schedule the fragments
  std::uint64_t largest_lane = 0;  ///< parameters
  std::uint64_t rounds = 0;
  double steps = 0;          ///< inner steps of a task
  std::uint64_t cohort = 0;  ///< updates an exchange
  double overlap_steps = 0;
  bool asynchronous = false;

  // Bytes on the wire, without framing (below 0.1 %), as expected of a node that took part before.
  double up_per_round = 0;  ///< a node that is in each of the round's cohorts
  double down_per_round = 0;
  double up_at_once = 0;  ///< in the largest exchange
  double down_at_once = 0;
  double join = 0;             ///< bytes that a joiner fetches: every fragment whole
  double coordinator_in = 0;   ///< a round
  double coordinator_out = 0;  ///< a round: the K-fold egress, and what evaluations fetch
  double total_in = 0;         ///< the run
  double total_out = 0;

  // Time.
  double exchange_seconds = 0;  ///< from one exchange to the next
  double transfer_seconds = 0;  ///< of the largest exchange: up, reduction, down
  double stall_seconds = 0;     ///< of them, those that nobody computes beside
  double utilisation = 0;       ///< of a node at work
  double round_seconds = 0;
  double total_seconds = 0;

  // Bytes held.
  double island_memory = 0;  ///< trainer: parameters, gradient, optimizer, the copy a failed task falls back on
  double island_disk = 0;    ///< daemon and trainer: fragments, what is emitted, checkpoints, outbox
  double coordinator_memory = 0;
  double coordinator_disk = 0;  ///< versions, optimizer states, spool, what is being written
};

/// The run as its spec says it. INVALID_ARGUMENT: an assumption that is out of its range, or missing (`examples`).
Result<RunCost> plan_run(const RunSpec& spec, const PlanAssumptions& assumptions);

/// Compute utilisations that bandwidth is told for.
inline constexpr double kUtilisations[] = {0.5, 0.8, 0.9, 0.95, 0.99};

/// One way to train the same model.
struct PlanRow {
  std::string method;
  std::vector<double> bandwidth;  ///< bits a second, for each of kUtilisations; infinite: not to be had
  double utilisation = 0;         ///< with the assumed link
  double total_seconds = 0;       ///< for the run's inner steps
};

/// This run's node (its link carrying updates up and steps down), and for comparison the published methods with the
/// run's size, H and fragments. `cost` is plan_run's of the same arguments.
std::vector<PlanRow> compare_methods(const RunCost& cost, const PlanAssumptions& assumptions);

}  // namespace skerry::strategies
