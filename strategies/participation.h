// Participation: who takes part in an exchange, until when, and how much an old update still counts.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/config/run_spec.h"

namespace skerry::strategies {

/// The part as a preset says it; everything else of [participation] keeps its default.
struct Participation {
  ParticipationSpec::Mode mode = ParticipationSpec::Mode::kSynchronous;
  double cohort_fraction = 1;            ///< synchronous, in (0, 1]
  std::uint64_t buffer = 4;              ///< asynchronous: updates an exchange
  std::uint64_t maximum_staleness = 10;  ///< asynchronous
};

/// Every node that is ready works in every round.
Participation everyone();

/// A share of the ready nodes, drawn anew for each exchange. Source: McMahan et al., arXiv 1602.05629 (C).
Participation a_fraction(double fraction);

/// Every node on its own clock; an exchange for every `buffer` updates. Source: Nguyen et al., arXiv 2106.06639
/// (FedBuff).
Participation buffered(std::uint64_t buffer, std::uint64_t maximum_staleness);

/// How many of `ready` nodes an exchange invites: cohort_size, else the fraction of them rounded up, but never fewer
/// than the quorum where that many are ready.
std::size_t cohort_target(const ParticipationSpec& spec, std::size_t ready);

/// The node's place in the draw for an exchange: those with the smallest numbers are invited. The same seed, exchange
/// and name give the same number, so that the draw does not depend on who joined first.
std::uint64_t draw_order(std::uint64_t seed, std::uint64_t exchange, std::string_view node);

/// What an update measured `staleness` exchanges ago still counts: (1 + s)^-exponent, or nothing beyond
/// maximum_staleness. Source: Xie et al., arXiv 1903.03934 (polynomial); FedBuff uses the exponent 1/2.
std::optional<double> staleness_factor(const ParticipationSpec& spec, std::uint64_t staleness);

/// The seed of one task, below 2^53: of the run's seed, the node and how many tasks it had before (asynchronous) or the
/// exchange (synchronous).
std::uint64_t task_seed(std::uint64_t seed, std::string_view node, std::uint64_t position);

}  // namespace skerry::strategies
