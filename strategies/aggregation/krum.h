// Krum and the rules built on it: updates are chosen by their distances to each other.
//
// The squared distances are sums of squared differences, in float64 (not ‖x‖² + ‖y‖² − 2x·y, which cancels for updates that are
// close to each other and far from zero). With n updates, f of them hostile, an update's score is the sum of its distances to
// the n − f − 2 others closest to it; the least score is best. Ties go to whoever has the next neighbour closer, then to the
// update that comes first in the order of (node, task id). Weights and discounts are ignored.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "strategies/aggregation/rule.h"

namespace skerry::strategies {

struct RuleEntry;

/// The part "krum": the update with the least score, alone. `byzantine` is f; needs n ≥ 2f + 3. Slow to learn, since it uses one
/// holder's update; poor where shards differ much. Source: Blanchard et al., NIPS 2017, arXiv 1703.02757, §4.
Part krum(std::size_t byzantine = 1);

/// The part "multi_krum": the mean of the `keep` updates of least score. Needs n ≥ max(2f + 3, keep + f + 2). Source: the same,
/// §5.
struct MultiKrumOptions {
  std::size_t byzantine = 1;
  std::size_t keep = 0;  ///< m; 0: n − f − 2, the most that the analysis allows
};
Part multi_krum(const MultiKrumOptions& options = {});

/// The part "bulyan": θ = n − 2f times the update that Krum chooses among those that are left is taken out; then, in each
/// coordinate, the mean of the θ − 2f values closest to the median of the θ, where of two equally close the smaller counts as
/// closer. Needs n ≥ 4f + 3. Each turn scores anew over the r updates that are left, with r − f − 2 neighbours; where that is
/// less than one (the last turns with f ≤ 1) the nearest neighbour alone decides. Source: El Mhamdi et al., ICML 2018, arXiv
/// 1802.07927.
Part bulyan(std::size_t byzantine = 1);

RuleEntry krum_entry();
RuleEntry multi_krum_entry();
RuleEntry bulyan_entry();

/// Squared distances between n updates, above the diagonal of an n × n matrix, row by row: (0,1), (0,2), …, (1,2), ….
using Distances = std::span<const double>;

/// The `count` updates of least score, best first. `neighbours` (n − f − 2 in Krum) ≥ 1.
std::vector<std::size_t> least_scores(Distances distances, std::size_t updates, std::size_t neighbours, std::size_t count);

/// The n − 2f updates that Bulyan takes, in the order in which it takes them.
std::vector<std::size_t> bulyan_choice(Distances distances, std::size_t updates, std::size_t byzantine);

}  // namespace skerry::strategies
