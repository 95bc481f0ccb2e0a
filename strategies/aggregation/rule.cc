#include "strategies/aggregation/rule.h"

#include <cmath>

#include "strategies/aggregation/clipping.h"
#include "strategies/aggregation/coordinates.h"
#include "strategies/aggregation/directions.h"
#include "strategies/aggregation/geometric_median.h"
#include "strategies/aggregation/krum.h"
#include "strategies/aggregation/qffl.h"
#include "strategies/aggregation/rule_catalogue.h"
#include "strategies/aggregation/weighted_mean.h"

namespace skerry::strategies {
namespace {

// In the order of the documentation.
const std::vector<RuleEntry>& entries() {
  static const std::vector<RuleEntry> all = {
      weighted_mean_entry(),
      normalised_mean_entry(),
      module_mean_entry(),
      median_entry(),
      trimmed_mean_entry(),
      krum_entry(),
      multi_krum_entry(),
      bulyan_entry(),
      geometric_median_entry(),
      centered_clipping_entry(),
      norm_bound_entry(),
      fltrust_entry(),
      radial_directional_entry(),
      qffl_entry(),
      sign_majority_entry(),
  };
  return all;
}

}  // namespace

Result<void> check_cohort(const Rule& rule, const Cohort& cohort) {
  const std::size_t updates = cohort.size();
  if (updates < rule.needs.minimum_updates || updates > rule.needs.maximum_updates) {
    const bool few = updates < rule.needs.minimum_updates;
    const std::string why = few && !rule.needs.because.empty() ? " (" + rule.needs.because + ")" : "";
    return invalid_argument(rule.name + " needs at " + (few ? "least " : "most ") +
                            std::to_string(few ? rule.needs.minimum_updates : rule.needs.maximum_updates) + " updates" +
                            why + ", this exchange has " + std::to_string(updates));
  }
  for (std::size_t k = 0; k < updates; ++k) {
    const double factor = cohort.contributions[k].factor;
    if (std::isfinite(factor) && factor >= 0) continue;
    return invalid_argument("update " + std::to_string(k) + " has the factor " + std::to_string(factor) +
                            ", must be finite and not negative");
  }
  if (rule.needs.tensors && cohort.tensors.empty()) {
    return invalid_argument(rule.name + " works tensor by tensor, and the fragment's tensors were not given");
  }
  return {};
}

std::span<const PartInfo> aggregation_catalogue() {
  static const std::vector<PartInfo> infos = [] {
    std::vector<PartInfo> all;
    for (const RuleEntry& entry : entries()) all.push_back(entry.info);
    return all;
  }();
  return infos;
}

Result<Rule> make_rule(const Part& part) {
  SKERRY_ASSIGN(const Part resolved, resolve(part, "aggregation", aggregation_catalogue()));
  for (const RuleEntry& entry : entries()) {
    if (entry.info.name == resolved.name) return entry.make(resolved);
  }
  return internal_error("aggregation rule " + resolved.name + " is in the catalogue and cannot be made");
}

}  // namespace skerry::strategies
