#include "strategies/aggregation/directions.h"

#include <algorithm>
#include <cmath>

#include "common/base/pattern.h"
#include "strategies/aggregation/kernels/distances.h"
#include "strategies/aggregation/rule_catalogue.h"

namespace skerry::strategies {
namespace {

// Directions are of float32 values: a mean direction shorter than this is what rounding left of nothing.
constexpr double kShortestDirection = 1e-7;

std::vector<std::string> patterns_of(std::string_view text) {
  std::vector<std::string> patterns;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find(' '), text.size());
    if (end > 0) patterns.emplace_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return patterns;
}

// Row t, column k: ‖Δ_k‖² in tensor t.
StatisticsPass measure_norms(std::size_t tensors, std::size_t updates) {
  return {tensors, updates, [](const Block& block, Table& sum) {
            for (std::size_t k = 0; k < block.updates.size(); ++k)
              sum.at(block.tensor, k) += dot_product(block.updates[k], block.updates[k], block.count);
          }};
}

// p_k / ‖Δ_k‖ in one tensor, which makes the mean direction u; 0 for an update without direction.
std::vector<double> direction(const std::vector<double>& shares, const Table& squares, std::size_t tensor) {
  std::vector<double> coefficients;
  for (std::size_t k = 0; k < shares.size(); ++k) {
    const double norm = std::sqrt(squares.at(tensor, k));
    coefficients.push_back(norm > 0 ? shares[k] / norm : 0);
  }
  return coefficients;
}

Result<Pass> next_radial_pass(const Cohort& cohort, std::span<const Table> tables, const Weighting& weighting,
                              const std::vector<std::string>& direct) {
  const std::size_t tensors = cohort.tensors.size();
  const std::size_t updates = cohort.size();
  if (tables.empty()) return Pass(measure_norms(tensors, updates));
  SKERRY_ASSIGN(const std::vector<double> shares, shares_of(cohort, weighting, "radial_directional"));
  std::vector<double> coefficients;
  for (std::size_t t = 0; t < tensors; ++t) {
    const auto of_tensor = direction(shares, tables.front(), t);
    coefficients.insert(coefficients.end(), of_tensor.begin(), of_tensor.end());
  }
  if (tables.size() == 1) {
    return Pass(StatisticsPass{tensors, 1, [coefficients, updates](const Block& block, Table& sum) {
                                 const std::span own(coefficients.data() + block.tensor * updates, updates);
                                 sum.at(block.tensor, 0) += square_of_combination(own, block.updates, block.count);
                               }});
  }
  for (std::size_t t = 0; t < tensors; ++t) {
    double* own = coefficients.data() + t * updates;
    if (fits_any(direct, cohort.tensors[t].name)) {
      std::copy(shares.begin(), shares.end(), own);
      continue;
    }
    double mean_norm = 0;
    for (std::size_t k = 0; k < updates; ++k) mean_norm += shares[k] * std::sqrt(tables[0].at(t, k));
    const double length = std::sqrt(tables[1].at(t, 0));
    const double scale = length > kShortestDirection ? mean_norm / length : 0;
    for (std::size_t k = 0; k < updates; ++k) own[k] *= scale;
  }
  return Pass(LinearOutput{std::move(coefficients)});
}

Result<std::size_t> reference_of(const Cohort& cohort, const std::string& trusted) {
  for (std::size_t k = 0; k < cohort.size(); ++k)
    if (cohort.contributions[k].node == trusted) return k;
  return invalid_argument("fltrust: there is no update of node " + trusted +
                          ", the reference for all others; is it running?");
}

Result<Pass> next_trust_pass(const Cohort& cohort, std::span<const Table> tables, const std::string& trusted) {
  SKERRY_ASSIGN(const std::size_t reference, reference_of(cohort, trusted));
  const std::size_t updates = cohort.size();
  if (tables.empty()) {
    // Row k: ‖Δ_k‖² and Δ_k · g.
    return Pass(StatisticsPass{updates, 2, [reference](const Block& block, Table& sum) {
                                 const float* g = block.updates[reference];
                                 for (std::size_t k = 0; k < block.updates.size(); ++k) {
                                   sum.at(k, 0) += dot_product(block.updates[k], block.updates[k], block.count);
                                   sum.at(k, 1) += dot_product(block.updates[k], g, block.count);
                                 }
                               }});
  }
  const double length = std::sqrt(tables.front().at(reference, 0));
  std::vector<double> coefficients(updates);
  double total = 0;
  for (std::size_t k = 0; k < updates; ++k) {
    const Contribution& contribution = cohort.contributions[k];
    const double norm = std::sqrt(tables.front().at(k, 0));
    if (contribution.node == trusted || norm == 0 || length == 0) continue;
    const double trust = contribution.factor * std::max(0.0, tables.front().at(k, 1) / norm / length);
    coefficients[k] = trust * (length / norm);
    total += trust;
  }
  if (total > 0)
    for (double& coefficient : coefficients) coefficient /= total;
  return Pass(LinearOutput{std::move(coefficients)});
}

}  // namespace

Part radial_directional(const RadialDirectionalOptions& options) {
  Part part{"radial_directional", {{"direct", options.direct}}};
  put_weighting(options.weighting, part);
  return part;
}

Part fltrust(std::string trusted) { return {"fltrust", {{"trusted", std::move(trusted)}}}; }

RuleEntry radial_directional_entry() {
  const RadialDirectionalOptions fallback;
  PartInfo info{"radial_directional", "tensor by tensor, the mean norm times the mean direction (decoupled DiLoCo)",
                weighting_parameters(fallback.weighting.by)};
  ParameterInfo direct;
  direct.name = "direct";
  direct.meaning = "tensors that get the weighted mean instead: name patterns between spaces, * for any characters";
  direct.fallback = fallback.direct;
  info.parameters.push_back(direct);
  return {info, [](const Part& part) -> Result<Rule> {
            Rule rule;
            rule.name = part.name;
            rule.needs.individual_updates = true;
            rule.needs.tensors = true;
            add_needs(weighting_of(part), rule.needs);
            rule.next = [weighting = weighting_of(part), direct = patterns_of(text(part, "direct"))](
                            const Cohort& cohort, std::span<const Table> tables) {
              return next_radial_pass(cohort, tables, weighting, direct);
            };
            return rule;
          }};
}

RuleEntry fltrust_entry() {
  ParameterInfo trusted;
  trusted.name = "trusted";
  trusted.meaning = "the node that trains on the coordinator's own clean data; its update is the reference for all others";
  trusted.fallback = std::string();
  return {{"fltrust",
           "the mean of the updates, scaled to the length of a trusted one and weighed by their agreement with it (arXiv "
           "2012.13995)",
           {trusted}},
          [](const Part& part) -> Result<Rule> {
            const std::string& node = text(part, "trusted");
            if (node.empty())
              return invalid_argument("aggregation.trusted is empty, must name the node that trains on the coordinator's own "
                                      "data");
            Rule rule;
            rule.name = part.name;
            rule.needs.individual_updates = true;
            rule.needs.nodes = {node};
            rule.needs.minimum_updates = 2;
            rule.needs.because = "the trusted update is only the reference for others";
            rule.next = [node](const Cohort& cohort, std::span<const Table> tables) {
              return next_trust_pass(cohort, tables, node);
            };
            return rule;
          }};
}

}  // namespace skerry::strategies
