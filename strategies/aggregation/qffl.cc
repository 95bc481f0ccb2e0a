#include "strategies/aggregation/qffl.h"

#include <algorithm>
#include <cmath>

#include "strategies/aggregation/kernels/distances.h"
#include "strategies/aggregation/rule_catalogue.h"

namespace skerry::strategies {
namespace {

constexpr double kAddedLoss = 1e-10;

Result<Pass> next_pass(const Cohort& cohort, std::span<const Table> tables, const QfflOptions& options) {
  if (tables.empty()) {
    return Pass(StatisticsPass{1, cohort.size(), [](const Block& block, Table& sum) {
                                 for (std::size_t k = 0; k < block.updates.size(); ++k)
                                   sum.values[k] += dot_product(block.updates[k], block.updates[k], block.count);
                               }});
  }
  std::vector<double> losses;
  for (const Contribution& contribution : cohort.contributions) {
    if (contribution.metrics.empty())
      return invalid_argument("qffl: the update of node " + contribution.node +
                              " reports no start_loss; set training.start_loss");
    losses.push_back(std::max(0.0, contribution.metrics.front()) + kAddedLoss);
  }
  // Both sums divided by L and by the largest loss^q, which may be beyond the range of numbers.
  const double worst = *std::max_element(losses.begin(), losses.end());
  const double lipschitz = 1 / options.learning_rate;
  std::vector<double> coefficients;
  double total = 0;
  for (std::size_t k = 0; k < losses.size(); ++k) {
    coefficients.push_back(cohort.contributions[k].factor * std::pow(losses[k] / worst, options.q));
    total += coefficients.back() * (options.q / losses[k] * lipschitz * tables.front().values[k] + 1);
  }
  if (!(total > 0)) return invalid_argument("qffl: every update's discount is 0, so there is nothing to aggregate");
  for (double& coefficient : coefficients) coefficient /= total;
  return Pass(LinearOutput{std::move(coefficients)});
}

}  // namespace

Part qffl(const QfflOptions& options) {
  return {"qffl", {{"q", options.q}, {"learning_rate", options.learning_rate}}};
}

RuleEntry qffl_entry() {
  const QfflOptions fallback;
  ParameterInfo q;
  q.name = "q";
  q.meaning = "how much more holders of high loss count; 0: all the same";
  q.fallback = fallback.q;
  q.maximum = 100;
  ParameterInfo learning_rate;
  learning_rate.name = "learning_rate";
  learning_rate.meaning = "of the nodes' inner optimizer; its inverse stands for the loss's Lipschitz constant";
  learning_rate.fallback = fallback.learning_rate;
  learning_rate.maximum = 1e6;
  learning_rate.above_minimum = true;
  return {{"qffl", "updates count by a power of their holder's loss: fairness among holders (q-FedAvg, arXiv 1905.10497)",
           {q, learning_rate}},
          [](const Part& part) -> Result<Rule> {
            const QfflOptions options{number(part, "q"), number(part, "learning_rate")};
            Rule rule;
            rule.name = part.name;
            rule.needs.individual_updates = true;
            rule.needs.metrics = {"start_loss"};
            rule.next = [options](const Cohort& cohort, std::span<const Table> tables) {
              return next_pass(cohort, tables, options);
            };
            return rule;
          }};
}

}  // namespace skerry::strategies
