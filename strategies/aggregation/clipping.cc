#include "strategies/aggregation/clipping.h"

#include <algorithm>
#include <cmath>

#include "strategies/aggregation/kernels/distances.h"
#include "strategies/aggregation/rule_catalogue.h"

namespace skerry::strategies {
namespace {

std::vector<double> roots(const Table& squares) {
  std::vector<double> out;
  for (const double square : squares.values) out.push_back(std::sqrt(square));
  return out;
}

double median_of(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t half = values.size() / 2;
  return values.size() % 2 != 0 ? values[half] : (values[half - 1] + values[half]) / 2;
}

// What takes a vector of this length to at most `limit`.
double shortening(double length, double limit) { return length > limit ? limit / length : 1; }

Result<Pass> bounded_mean(const Cohort& cohort, std::span<const Table> tables, const NormBoundOptions& options) {
  if (tables.empty()) {
    return Pass(StatisticsPass{1, cohort.size(), [](const Block& block, Table& sum) {
                                 for (std::size_t k = 0; k < block.updates.size(); ++k)
                                   sum.values[k] += dot_product(block.updates[k], block.updates[k], block.count);
                               }});
  }
  SKERRY_ASSIGN(std::vector<double> coefficients, shares_of(cohort, options.weighting, "norm_bound"));
  const std::vector<double> norms = roots(tables.front());
  const double bound = options.bound > 0 ? options.bound : median_of(norms);
  for (std::size_t k = 0; k < norms.size(); ++k) coefficients[k] *= shortening(norms[k], bound);
  return Pass(LinearOutput{std::move(coefficients)});
}

// The coefficients of v over the updates and the kept center after one more iteration.
std::vector<double> clipped(std::vector<double> v, const Cohort& cohort, const Table& squares, double radius) {
  const std::vector<double> distances = roots(squares);
  const double limit = radius > 0 ? radius : median_of(distances);
  std::vector<double> pulls;
  double total = 0;
  for (std::size_t k = 0; k < distances.size(); ++k) {
    const double weight = cohort.contributions[k].factor / static_cast<double>(distances.size());
    pulls.push_back(weight * shortening(distances[k], limit));
    total += pulls.back();
  }
  for (double& coefficient : v) coefficient *= 1 - total;
  for (std::size_t k = 0; k < pulls.size(); ++k) v[k] += pulls[k];
  return v;
}

Result<Pass> centered_mean(const Cohort& cohort, std::span<const Table> tables, const CenteredClippingOptions& options) {
  std::vector<double> v(cohort.size() + 1);
  v.back() = 1;
  for (const Table& table : tables) v = clipped(std::move(v), cohort, table, options.radius);
  if (tables.size() == options.iterations) return Pass(LinearOutput{std::move(v)});
  return Pass(StatisticsPass{1, cohort.size(), [v](const Block& block, Table& sum) {
                               std::vector<const float*> rows(block.updates.begin(), block.updates.end());
                               rows.push_back(block.state.front());
                               add_distances_to(v, rows, block.count, sum.values);
                             }});
}

ParameterInfo length_info(std::string name, std::string meaning) {
  ParameterInfo info;
  info.name = std::move(name);
  info.meaning = std::move(meaning);
  info.fallback = 0.0;
  info.maximum = 1e30;
  return info;
}

}  // namespace

Part norm_bound(const NormBoundOptions& options) {
  Part part{"norm_bound", {{"bound", options.bound}}};
  put_weighting(options.weighting, part);
  return part;
}

Part centered_clipping(const CenteredClippingOptions& options) {
  return {"centered_clipping",
          {{"radius", options.radius}, {"iterations", static_cast<double>(options.iterations)}}};
}

RuleEntry norm_bound_entry() {
  PartInfo info{"norm_bound", "the weighted mean of updates that are scaled to at most a norm (arXiv 1911.07963)",
                weighting_parameters(Weights::kExamples)};
  info.parameters.push_back(length_info("bound", "the largest norm of an update; 0: the median of their norms"));
  return {info, [](const Part& part) -> Result<Rule> {
            const NormBoundOptions options{number(part, "bound"), weighting_of(part)};
            Rule rule;
            rule.name = part.name;
            rule.needs.individual_updates = true;
            add_needs(options.weighting, rule.needs);
            rule.next = [options](const Cohort& cohort, std::span<const Table> tables) {
              return bounded_mean(cohort, tables, options);
            };
            return rule;
          }};
}

RuleEntry centered_clipping_entry() {
  const CenteredClippingOptions fallback;
  ParameterInfo iterations;
  iterations.name = "iterations";
  iterations.meaning = "how often the center moves in an exchange; each reads all updates once";
  iterations.fallback = static_cast<double>(fallback.iterations);
  iterations.minimum = 1;
  iterations.maximum = 500;
  iterations.whole = true;
  return {{"centered_clipping",
           "the last outer gradient plus the mean of the clipped differences to it (arXiv 2012.10333)",
           {length_info("radius", "the most that one update pulls; 0: the median of the distances to the center"),
            iterations}},
          [](const Part& part) -> Result<Rule> {
            const CenteredClippingOptions options{number(part, "radius"),
                                                  static_cast<std::size_t>(number(part, "iterations"))};
            Rule rule;
            rule.name = part.name;
            rule.needs.individual_updates = true;
            rule.state_vectors = {"center"};
            rule.next = [options](const Cohort& cohort, std::span<const Table> tables) {
              return centered_mean(cohort, tables, options);
            };
            return rule;
          }};
}

}  // namespace skerry::strategies
