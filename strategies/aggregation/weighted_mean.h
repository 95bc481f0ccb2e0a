// The weighted mean: Δ = Σ w_k Δ_k / Σ w_k.
#pragma once

#include "strategies/aggregation/rule.h"

namespace skerry::strategies {

/// What an update's weight is.
enum class Weights {
  kExamples,  ///< the examples it saw (FedAvg; DiLoCo with unequal shards)
  kTokens,
  kSteps,
  kUniform,  ///< 1 each
};

/// The part as a run spec names it: {"weighted_mean", {{"weights", "examples"}}}.
Part weighted_mean(Weights weights = Weights::kExamples);

/// The rule. One pass, linear in the updates, any number of them. The weight of update k is its examples (tokens, steps, 1)
/// times its factor. Its `next` fails with INVALID_ARGUMENT if all weights are zero: "… report 0 examples in total …".
/// Source: McMahan et al., arXiv 1602.05629, algorithm 1.
Rule weighted_mean_rule(Weights weights);

/// Its entry in the catalogue, and the weights that a resolved part names.
PartInfo weighted_mean_info();
Weights weights_of(const Part& resolved);

}  // namespace skerry::strategies
