// What an update counts for in rules that weigh: a number from what its holder reports.
#pragma once

#include <string_view>
#include <vector>

#include "strategies/aggregation/rule.h"

namespace skerry::strategies {

/// What an update's weight is.
enum class Weights {
  kExamples,   ///< the examples it saw (FedAvg; DiLoCo with unequal shards)
  kTokens,
  kSteps,      ///< its inner steps
  kUniform,    ///< 1 each
  kReported,   ///< the metric "weight" that the node reports; below 2^-53 counts as 0, above 2^53 as 2^53
  kTokenRate,  ///< tokens × tokens per inner step, quantity times quality (decoupled DiLoCo); 0 without steps
};

struct Weighting {
  Weights by = Weights::kExamples;
  double cap = 0;  ///< no update weighs more than this, whatever its holder claims; 0: no cap
};

/// The weight before the update's factor, finite and ≥ 0. With kReported, `metrics[0]` is the report (Needs::metrics =
/// {"weight"}); 1 where there is none.
double weight_of(const Contribution& contribution, const Weighting& weighting);

/// What an update weighs under a rule: as the part's parameters `weights` and `weight_cap` say; 1 for a rule without weights
/// of ours, and where a report is asked for and not there; 0 without inner steps for normalised_mean, which divides by them.
double weight_of(const Contribution& contribution, const Part& part);

/// Each update's share of the total: weight · factor / Σ weight · factor. INVALID_ARGUMENT beginning with `rule` where all
/// are zero: "… the 3 updates have 0 examples in total, so they have no mean …".
Result<std::vector<double>> shares_of(const Cohort& cohort, const Weighting& weighting, std::string_view rule);

/// The parameters `weights` and `weight_cap`, the same parameters as values of a part, and what a resolved part says.
std::vector<ParameterInfo> weighting_parameters(Weights fallback);
void put_weighting(const Weighting& weighting, Part& part);
Weighting weighting_of(const Part& resolved);

/// The metric that kReported needs.
void add_needs(const Weighting& weighting, Needs& needs);

}  // namespace skerry::strategies
