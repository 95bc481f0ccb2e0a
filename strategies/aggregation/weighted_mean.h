// Means whose coefficients follow from what nodes report, not from values: they may go with secure sums.
#pragma once

#include "strategies/aggregation/weights.h"

namespace skerry::strategies {

struct RuleEntry;

/// Δ = Σ w_k f_k Δ_k / Σ w_k f_k, where f_k is the update's factor (its discount for staleness). FedAvg: McMahan et al., arXiv
/// 1602.05629, algorithm 1.
struct WeightedMeanOptions {
  /// kKept divides by Σ w_k instead, so that a discount really shortens the step; FedAsync (arXiv 1903.03934) and FedBuff
  /// (arXiv 2106.06639) do. kRenormalised shifts weight to the fresh updates.
  enum class Discount { kRenormalised, kKept };
  /// kSqrtUpdates multiplies by the root of the number of updates that count: means of nearly orthogonal updates shrink by
  /// as much (Photon, arXiv 2411.02908; DiPaCo, arXiv 2403.10616).
  enum class Scale { kNone, kSqrtUpdates };

  Weighting weighting = {};
  Discount discount = Discount::kRenormalised;
  Scale scale = Scale::kNone;
  bool rebase = false;  ///< FedAsync: updates against older versions count as (current − then) + Δ (Needs::rebased)
};

/// The part "weighted_mean" as a run spec names it.
Part weighted_mean(const WeightedMeanOptions& options);
Part weighted_mean(Weights weights = Weights::kExamples);

/// The rule. One pass, linear in the updates, any number of them. Its `next` fails with INVALID_ARGUMENT if all weights are
/// zero: "… report 0 examples in total …".
Rule weighted_mean_rule(const WeightedMeanOptions& options);
Rule weighted_mean_rule(Weights weights);

/// The part "module_mean": the weighted mean over the updates that carry the fragment, times the root of their number. For
/// runs whose updates carry only some fragments (Needs::partial_updates), as DiPaCo's paths share modules: arXiv 2403.10616,
/// algorithm 1.
Part module_mean(const Weighting& weighting = {});

/// The part "normalised_mean", FedNova: Δ = τ_eff Σ p_k Δ_k / a_k with p_k the weighted shares and τ_eff = Σ p_k a_k. a_k is how
/// far the update's inner steps go under a constant gradient, in learning rates: the steps themselves for plain SGD. With
/// momentum ρ and a proximal term of α = learning rate · μ it is D after the steps of u ← ρu + 1 − αD; D ← D + u (from zero),
/// which is Σ (1 − ρ^i)/(1 − ρ) without the proximal term and Σ (1 − α)^i without momentum. Equal steps give the weighted
/// mean. Updates without steps do not count. Source: Wang et al., arXiv 2007.07481, §4.
struct NormalisedMeanOptions {
  Weighting weighting = {};
  double momentum = 0;  ///< ρ in [0, 1) of the nodes' inner SGD
  double proximal = 0;  ///< α in [0, 1): their learning rate times FedProx's μ
};
Part normalised_mean(const NormalisedMeanOptions& options = {});

/// a_k: how far `steps` inner steps go; 0 for none.
double normalised_steps(std::uint64_t steps, double momentum, double proximal);

/// Their entries in the catalogue.
RuleEntry weighted_mean_entry();
RuleEntry module_mean_entry();
RuleEntry normalised_mean_entry();

}  // namespace skerry::strategies
