#include "strategies/aggregation/geometric_median.h"

#include <algorithm>
#include <cmath>

#include "strategies/aggregation/kernels/distances.h"
#include "strategies/aggregation/rule_catalogue.h"

namespace skerry::strategies {
namespace {

StatisticsPass measure_distances(std::vector<double> coefficients) {
  const std::size_t updates = coefficients.size();
  return {1, updates, [coefficients = std::move(coefficients)](const Block& block, Table& sum) {
            add_distances_to(coefficients, block.updates, block.count, sum.values);
          }};
}

// Whether no distance changed by more than `tolerance` of itself. (The sum of distances would not do: one update that is very
// far away would hide that the others' still fall.)
bool settled(const Table& before, const Table& now, const GeometricMedianOptions& options) {
  for (std::size_t k = 0; k < now.values.size(); ++k) {
    const double last = std::max(options.smoothing, std::sqrt(before.values[k]));
    const double change = std::sqrt(now.values[k]) - std::sqrt(before.values[k]);
    if (std::abs(change) > options.tolerance * last) return false;
  }
  return true;
}

Result<Pass> next_pass(const Cohort& cohort, std::span<const Table> tables, const GeometricMedianOptions& options) {
  SKERRY_ASSIGN(const std::vector<double> shares, shares_of(cohort, options.weighting, "geometric_median"));
  if (tables.empty()) return Pass(measure_distances(shares));
  // β_k / Σ β, with every distance in units of the least: the numbers stay in range.
  std::vector<double> coefficients;
  double total = 0;
  double nearest = std::numeric_limits<double>::infinity();
  for (const double square : tables.back().values) nearest = std::min(nearest, std::sqrt(square));
  nearest = std::max(nearest, options.smoothing);
  for (std::size_t k = 0; k < shares.size(); ++k) {
    coefficients.push_back(shares[k] * (nearest / std::max(options.smoothing, std::sqrt(tables.back().values[k]))));
    total += coefficients.back();
  }
  for (double& coefficient : coefficients) coefficient /= total;
  const std::size_t done = tables.size();
  if (done >= options.iterations || (done > 1 && settled(tables[done - 2], tables[done - 1], options)))
    return Pass(LinearOutput{std::move(coefficients)});
  return Pass(measure_distances(std::move(coefficients)));
}

}  // namespace

Part geometric_median(const GeometricMedianOptions& options) {
  Part part{"geometric_median",
            {{"smoothing", options.smoothing},
             {"iterations", static_cast<double>(options.iterations)},
             {"tolerance", options.tolerance}}};
  put_weighting(options.weighting, part);
  return part;
}

RuleEntry geometric_median_entry() {
  const GeometricMedianOptions fallback;
  PartInfo info{"geometric_median",
                "the point from which the updates are least far in sum, by Weiszfeld's iteration (RFA, arXiv 1912.13445)",
                weighting_parameters(fallback.weighting.by)};
  ParameterInfo smoothing;
  smoothing.name = "smoothing";
  smoothing.meaning = "distances count as at least this, so that none is divided by zero";
  smoothing.fallback = fallback.smoothing;
  smoothing.maximum = 1e6;
  smoothing.above_minimum = true;
  ParameterInfo iterations;
  iterations.name = "iterations";
  iterations.meaning = "at most so many; each reads all updates once";
  iterations.fallback = static_cast<double>(fallback.iterations);
  iterations.minimum = 1;
  iterations.maximum = 500;
  iterations.whole = true;
  ParameterInfo tolerance;
  tolerance.name = "tolerance";
  tolerance.meaning = "it ends when no update's distance changes by more than this share of itself";
  tolerance.fallback = fallback.tolerance;
  tolerance.maximum = 1;
  tolerance.below_maximum = true;
  info.parameters.insert(info.parameters.end(), {smoothing, iterations, tolerance});
  return {info, [](const Part& part) -> Result<Rule> {
            GeometricMedianOptions options;
            options.weighting = weighting_of(part);
            options.smoothing = number(part, "smoothing");
            options.iterations = static_cast<std::size_t>(number(part, "iterations"));
            options.tolerance = number(part, "tolerance");
            Rule rule;
            rule.name = part.name;
            rule.needs.individual_updates = true;
            add_needs(options.weighting, rule.needs);
            rule.next = [options](const Cohort& cohort, std::span<const Table> tables) {
              return next_pass(cohort, tables, options);
            };
            return rule;
          }};
}

}  // namespace skerry::strategies
