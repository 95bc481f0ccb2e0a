// What a trainer remembers of the fragments that travel while it trains on: what their next update is measured from.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "client/trainer/messages.h"
#include "common/base/result.h"

namespace skerry::trainer {

/// One fragment. Every vector has the fragment's elements.
struct FragmentMemory {
  std::uint64_t version = 0;               ///< read or merged last
  std::uint64_t merged = 0;                ///< the newest exchange merged since it was read; 0: none
  std::vector<float> base;                 ///< what the next update is measured from; empty: never read
  std::optional<std::uint64_t> in_flight;  ///< the exchange that the base was emitted for, until its version is merged
  std::map<std::uint64_t, std::vector<float>> earlier;  ///< emissions before that one which are not merged either

  friend bool operator==(const FragmentMemory&, const FragmentMemory&) = default;
};

/// The fragment was replaced by `values` of `version`: the next update is measured from there, nothing is in flight.
void remember_read(FragmentMemory& memory, std::uint64_t version, std::span<const float> values);

/// `values` were emitted for `exchange`: what has gone is in no later update. Of emissions that are never merged the
/// oldest are forgotten.
void remember_emitted(FragmentMemory& memory, std::uint64_t exchange, std::span<const float> values);

/// Whether the plan is behind the times: its exchange, or a later one, was merged. Plans without an exchange never are.
bool is_merged(const FragmentMemory& memory, const MergePlan& plan);

/// Merges `fresh`, the version that `plan.exchange` made, into the trainer's `own` tensors by M, and moves all that is
/// remembered by the same M, so that what was learned and is not yet sent stays own − base, and stays to be sent:
///   replace: M(x) = fresh
///   lerp:    M(x) = α·x + (1 − α)·fresh               (arXiv 2501.18512, algorithm 2)
///   eager:   M(x) = fresh + α·(x − e)                 (arXiv 2502.12996: what was learned since e, again)
/// where e is what was emitted for that exchange. FAILED_PRECONDITION where that is not remembered, and for `lerp` and
/// `eager` of a fragment that was never read; nothing has changed then.
Result<void> merge(FragmentMemory& memory, const MergePlan& plan, std::uint64_t version, std::span<const float> fresh,
                   std::span<float> own);

}  // namespace skerry::trainer
