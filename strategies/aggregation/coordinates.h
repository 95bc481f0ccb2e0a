// Rules that look at each coordinate by itself: the K values of one parameter → one value.
//
// None of them weighs: what holders claim of their examples does not move them, and neither do discounts for staleness.
// The order of updates changes no bit. Negative zeros count as zeros.
#pragma once

#include "strategies/aggregation/rule.h"

namespace skerry::strategies {

struct RuleEntry;

/// The part "median": the middle value; for an even number of updates the mean of the two in the middle, formed in float64.
/// Holds against fewer than half of the updates, at the price of noise where shards differ much. Source: Yin et al., arXiv
/// 1803.01498, option I (FedMedian).
Part median();

/// The part "trimmed_mean": without the `trim` smallest and the `trim` largest values, the mean of the others, summed in float64
/// from the smallest up. Holds against `trim` hostile updates. Source: Yin et al., arXiv 1803.01498, option II.
struct TrimmedMeanOptions {
  std::size_t trim = 1;  ///< values off each end; needs at least 2 · trim + 1 updates
  double fraction = 0;   ///< in [0, 0.5); above 0, the largest whole number of updates that is at most this share is trimmed
};
Part trimmed_mean(const TrimmedMeanOptions& options = {});

/// The largest whole number that is at most `fraction` of `updates`, where both are meant as decimals: 29 for 0.29 of 100,
/// although 0.29 · 100 is 28.999… in float64. `fraction` in [0, 0.5).
std::size_t trimmed_of(double fraction, std::size_t updates);

/// The part "sign_majority": the sign that more updates have than have the other, 0 in a tie, times a magnitude. With kUnit the
/// outer optimizer's learning rate is the length of the step in every coordinate. Source: Bernstein et al., arXiv 1810.05291
/// (signSGD with majority vote).
struct SignMajorityOptions {
  enum class Magnitude {
    kUnit,    ///< 1
    kMean,    ///< the mean of the absolute values: one huge value moves it
    kMedian,  ///< the median of the absolute values
  };
  Magnitude magnitude = Magnitude::kUnit;
};
Part sign_majority(const SignMajorityOptions& options = {});

RuleEntry median_entry();
RuleEntry trimmed_mean_entry();
RuleEntry sign_majority_entry();

}  // namespace skerry::strategies
