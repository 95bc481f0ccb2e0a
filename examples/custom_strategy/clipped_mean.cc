#include "clipped_mean.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "strategies/sdk/plugin.hpp"

using namespace skerry;
using namespace skerry::strategies;

// Two passes: the squared length of every update, then a linear combination.
Result<Rule> clipped_mean(const Part& part) {
  const double multiple = number(part, "multiple");
  Rule rule;
  rule.name = "clipped_mean";
  rule.needs.individual_updates = true;
  rule.next = [multiple](const Cohort& cohort, std::span<const Table> tables) -> Result<Pass> {
    const std::size_t updates = cohort.size();
    if (tables.empty())
      return Pass(StatisticsPass{1, updates, [](const Block& block, Table& squares) {
        for (std::size_t k = 0; k < block.updates.size(); ++k)
          for (std::size_t i = 0; i < block.count; ++i) squares.at(0, k) += double{block.updates[k][i]} * block.updates[k][i];
      }});
    std::vector<double> sorted = tables[0].values;
    std::sort(sorted.begin(), sorted.end());
    const double longest = multiple * std::sqrt(sorted[(updates - 1) / 2]);
    std::vector<double> weights(updates, 1.0 / static_cast<double>(updates));
    for (std::size_t k = 0; k < updates; ++k)
      if (const double length = std::sqrt(tables[0].at(0, k)); length > longest) weights[k] *= longest / length;
    return Pass(LinearOutput{weights});
  };
  return rule;
}

SKERRY_PLUGIN("clipped-mean", "1.0.0",
              {{{"clipped_mean", "mean of updates, none much longer than the median one",
                 {{.name = "multiple", .meaning = "of the median length that an update may have", .fallback = 1.0, .minimum = 0,
                   .maximum = 1000, .above_minimum = true}}},
                clipped_mean}})
