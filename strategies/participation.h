// Participation: who takes part in an exchange, until when, and how much an old update still counts.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/config/run_spec.h"
#include "strategies/aggregation/rule.h"

namespace skerry::strategies {

/// The part as a preset says it; everything else of [participation] keeps its default.
struct Participation {
  ParticipationSpec::Mode mode = ParticipationSpec::Mode::kSynchronous;
  std::uint64_t quorum = 1;              ///< synchronous
  double cohort_fraction = 1;            ///< synchronous, in (0, 1]
  double minimum_completion = 0;         ///< synchronous, in [0, 1]
  bool adaptive_grace = false;           ///< synchronous
  std::uint64_t buffer = 4;              ///< asynchronous: updates an exchange
  std::uint64_t maximum_staleness = 10;  ///< asynchronous
  double staleness_exponent = 0.5;       ///< asynchronous
  ParticipationSpec::Work work = ParticipationSpec::Work::kEqual;
};

/// Every node that is ready works in every round.
Participation everyone();

/// The same; an exchange needs the updates of `quorum` nodes at least.
Participation at_least(std::uint64_t quorum);

/// Every node on its own clock; an exchange for every `buffer` updates. Source: Nguyen et al., arXiv 2106.06639
/// (FedBuff).
Participation buffered(std::uint64_t buffer, std::uint64_t maximum_staleness);

/// The nodes that every exchange must have an update of: participation.required_nodes and those the aggregation rule
/// needs (Needs::nodes), by name, each once.
std::vector<std::string> required_nodes(const ParticipationSpec& spec, const Needs& needs);

/// Refuses what a run's participation and its rule's needs cannot do together: INVALID_ARGUMENT with the reason, for
/// example a needed metric that limits.metrics does not let nodes report.
Result<void> check_participation(const RunSpec& spec, const Needs& needs);

/// How many of `ready` nodes make an exchange's cohort: cohort_size, else the fraction of them rounded up, but never
/// fewer than the quorum where that many are ready.
std::size_t cohort_target(const ParticipationSpec& spec, std::size_t ready);

/// How many nodes are invited for a cohort of `goal`: goal × over_selection, rounded up. Source: Bonawitz et al., arXiv
/// 1902.01046 §4.2 (1.3 times as many as are needed).
std::size_t invited_for(const ParticipationSpec& spec, std::size_t goal);

/// How many of `invited` nodes must have returned before their exchange may be committed: the quorum, or
/// minimum_completion of the invited, rounded up, where that is more. Source: Flower's FaultTolerantFedAvg, which drops
/// the results of a round whose rate results / (results + failures) is lower.
std::size_t needed_for(const ParticipationSpec& spec, std::size_t invited);

/// Adaptive grace: for how many milliseconds after the quorum an exchange goes on.
///
/// Never longer than grace_safety times `slack_ms`, nor than grace_s where that is not -1. The slack of an overlapped run
/// is for how long those who have sent their updates still train on by themselves; of any other run what the quorum
/// took since the exchange opened, since nodes that wait hide nothing behind training. Within that bound it lasts as
/// long as the slowest of those who can be expected by its end: `remaining_ms` says for each node that is still awaited
/// when its update should come by its measured speed (negative where it is overdue), nothing where that speed is not
/// known; such a node is given the whole bound. A quarter of the expected wait is added, because measured times
/// scatter; a node that cannot be expected within the bound is not waited for. Source: grace ≤ safety · slack, slack =
/// τ · step time − quorum time, of decoupled DiLoCo (arXiv 2604.21428).
std::int64_t adaptive_grace_ms(const ParticipationSpec& spec, std::int64_t slack_ms,
                               std::span<const std::optional<std::int64_t>> remaining_ms);

/// DyLU: inner steps for a node that takes `step_ms` a step, where the fastest takes `fastest_ms`: floor(v / max v ×
/// most), at least minimum_steps. Both times above 0. Source: Liu et al., arXiv 2401.09135, eq. 6.
std::uint64_t dylu_steps(const ParticipationSpec& spec, std::uint64_t most, double step_ms, double fastest_ms);

/// A group of nodes that are to finish together, as FedCompass makes them.
struct ArrivalGroup {
  std::int64_t expected = 0;  ///< when its members' updates should come
  double fastest_ms = 0;      ///< a step's time of its fastest member
};

/// Where FedCompass puts a node and with how many inner steps.
struct Placement {
  std::optional<std::size_t> group;  ///< index into the groups; nothing: a new one,
  std::uint64_t steps = 0;           ///< whose members are expected steps × step_ms from now
};

/// The node joins the group that lets it do most steps and still arrive with it, if those are within [minimum_steps,
/// most]. Otherwise it begins a group of its own, which is to arrive with the next turn of the group there is whose
/// next turn is last, as far as those bounds let it; that turn is taken as `most` steps of the group's fastest member
/// after its arrival. The first node of all does `most` steps. After Li et al., arXiv 2309.14675 (arrival groups).
Placement fedcompass_steps(const ParticipationSpec& spec, std::uint64_t most, double step_ms, std::int64_t now,
                           std::span<const ArrivalGroup> groups);

/// The node's place in a draw: those with the smallest numbers are taken. The same seed, exchange (asynchronous: serial
/// of the task to give) and name give the same number, so that the draw does not depend on who joined first.
std::uint64_t draw_order(std::uint64_t seed, std::uint64_t exchange, std::string_view node);

/// What an update measured `staleness` exchanges ago still counts: (1 + s)^-exponent, or nothing beyond
/// maximum_staleness. Source: Xie et al., arXiv 1903.03934 (polynomial); FedBuff uses the exponent 1/2.
std::optional<double> staleness_factor(const ParticipationSpec& spec, std::uint64_t staleness);

/// The seed of one task, below 2^53: of the run's seed, the node and how many tasks it had before (asynchronous) or the
/// exchange (synchronous).
std::uint64_t task_seed(std::uint64_t seed, std::string_view node, std::uint64_t position);

}  // namespace skerry::strategies
