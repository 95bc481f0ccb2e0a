#include "strategies/aggregation/krum.h"

#include <algorithm>
#include <numeric>
#include <tuple>

#include "strategies/aggregation/kernels/columns.h"
#include "strategies/aggregation/kernels/distances.h"
#include "strategies/aggregation/rule_catalogue.h"

namespace skerry::strategies {
namespace {

double distance_of(Distances distances, std::size_t updates, std::size_t a, std::size_t b) {
  const std::size_t i = std::min(a, b);
  const std::size_t j = std::max(a, b);
  return distances[i * (2 * updates - i - 1) / 2 + (j - i - 1)];
}

struct Score {
  double nearest = 0;  // to the neighbours
  double next = 0;     // to the one after them: decides between equals
  std::size_t update = 0;

  bool operator<(const Score& other) const {
    return std::tie(nearest, next, update) < std::tie(other.nearest, other.next, other.update);
  }
};

// The scores among `left`. Sums run from the smallest distance up, so that they do not depend on the updates' order.
std::vector<Score> scores_among(const std::vector<std::size_t>& left, Distances distances, std::size_t updates,
                                std::size_t neighbours) {
  std::vector<Score> scores;
  std::vector<double> to_others;
  for (const std::size_t own : left) {
    to_others.clear();
    for (const std::size_t other : left)
      if (other != own) to_others.push_back(distance_of(distances, updates, own, other));
    std::sort(to_others.begin(), to_others.end());
    Score score{0, neighbours < to_others.size() ? to_others[neighbours] : 0, own};
    to_others.resize(std::min(neighbours, to_others.size()));
    for (const double distance : to_others) score.nearest += distance;
    scores.push_back(score);
  }
  return scores;
}

std::vector<std::size_t> everyone(std::size_t updates) {
  std::vector<std::size_t> all(updates);
  std::iota(all.begin(), all.end(), std::size_t{0});
  return all;
}

StatisticsPass measure_distances(std::size_t updates) {
  return {1, pairs_of(updates),
          [](const Block& block, Table& sum) { add_pair_distances(block.updates, block.count, sum.values); }};
}

// A rule that looks at distances first and then does what `output` says.
template <typename Output>
Rule distance_rule(std::string name, const Output& output) {
  Rule rule;
  rule.name = std::move(name);
  rule.needs.individual_updates = true;
  rule.next = [output](const Cohort& cohort, std::span<const Table> tables) -> Result<Pass> {
    if (tables.empty()) return Pass(measure_distances(cohort.size()));
    return output(cohort.size(), Distances(tables.front().values));
  };
  return rule;
}

// The mean of the `keep` updates of least score; 0: of as many as have a meaning.
Rule krum_rule(std::string name, std::size_t byzantine, std::size_t keep) {
  Rule rule = distance_rule(std::move(name), [byzantine, keep](std::size_t updates, Distances distances) {
    const std::size_t neighbours = updates - byzantine - 2;
    const std::size_t kept = keep > 0 ? keep : neighbours;
    std::vector<double> coefficients(updates);
    for (const std::size_t update : least_scores(distances, updates, neighbours, kept))
      coefficients[update] = 1.0 / static_cast<double>(kept);
    return Pass(LinearOutput{std::move(coefficients)});
  });
  rule.needs.minimum_updates = 2 * byzantine + 3;
  rule.needs.because = "n >= 2f + 3 with f = " + std::to_string(byzantine);
  return rule;
}

Rule bulyan_rule(std::size_t byzantine) {
  Rule rule = distance_rule("bulyan", [byzantine](std::size_t updates, Distances distances) {
    auto chosen = bulyan_choice(distances, updates, byzantine);
    const std::size_t closest = chosen.size() - 2 * byzantine;
    return Pass(ValueOutput{[chosen, closest](const Block& block, std::span<float> out, std::span<float* const>) {
      std::vector<const float*> rows;
      for (const std::size_t update : chosen) rows.push_back(block.updates[update]);
      column_means_around_median(rows, closest, out);
    }});
  });
  rule.needs.minimum_updates = 4 * byzantine + 3;
  rule.needs.because = "n >= 4f + 3 with f = " + std::to_string(byzantine);
  return rule;
}

ParameterInfo count_info(std::string name, std::string meaning, std::size_t fallback) {
  ParameterInfo info;
  info.name = std::move(name);
  info.meaning = std::move(meaning);
  info.fallback = static_cast<double>(fallback);
  info.maximum = 1e6;
  info.whole = true;
  return info;
}

ParameterInfo byzantine_info(const std::string& bound) {
  return count_info("byzantine", "f, how many updates may be hostile; needs at least " + bound + " updates", 1);
}

std::size_t count(const Part& part, std::string_view name) { return static_cast<std::size_t>(number(part, name)); }

}  // namespace

std::vector<std::size_t> least_scores(Distances distances, std::size_t updates, std::size_t neighbours, std::size_t count) {
  auto scores = scores_among(everyone(updates), distances, updates, neighbours);
  std::sort(scores.begin(), scores.end());
  std::vector<std::size_t> best;
  for (std::size_t i = 0; i < count; ++i) best.push_back(scores[i].update);
  return best;
}

std::vector<std::size_t> bulyan_choice(Distances distances, std::size_t updates, std::size_t byzantine) {
  std::vector<std::size_t> left = everyone(updates);
  std::vector<std::size_t> chosen;
  while (chosen.size() < updates - 2 * byzantine) {
    const std::size_t neighbours = left.size() >= byzantine + 3 ? left.size() - byzantine - 2 : 1;
    const auto scores = scores_among(left, distances, updates, neighbours);
    chosen.push_back(std::min_element(scores.begin(), scores.end())->update);
    left.erase(std::find(left.begin(), left.end(), chosen.back()));
  }
  return chosen;
}

Part krum(std::size_t byzantine) { return {"krum", {{"byzantine", static_cast<double>(byzantine)}}}; }

Part multi_krum(const MultiKrumOptions& options) {
  return {"multi_krum",
          {{"byzantine", static_cast<double>(options.byzantine)}, {"keep", static_cast<double>(options.keep)}}};
}

Part bulyan(std::size_t byzantine) { return {"bulyan", {{"byzantine", static_cast<double>(byzantine)}}}; }

RuleEntry krum_entry() {
  return {{"krum", "the update that is closest to its neighbours (arXiv 1703.02757)", {byzantine_info("2f + 3")}},
          [](const Part& part) -> Result<Rule> { return krum_rule("krum", count(part, "byzantine"), 1); }};
}

RuleEntry multi_krum_entry() {
  return {{"multi_krum",
           "the mean of the updates that are closest to their neighbours (arXiv 1703.02757)",
           {byzantine_info("2f + 3"),
            count_info("keep", "how many updates are averaged, at most n - f - 2; 0: that many", 0)}},
          [](const Part& part) -> Result<Rule> {
            const std::size_t byzantine = count(part, "byzantine");
            const std::size_t keep = count(part, "keep");
            Rule rule = krum_rule("multi_krum", byzantine, keep);
            if (keep + byzantine + 2 > rule.needs.minimum_updates) {
              rule.needs.minimum_updates = keep + byzantine + 2;
              rule.needs.because = "n >= keep + f + 2 with keep = " + std::to_string(keep) +
                                   " and f = " + std::to_string(byzantine);
            }
            return rule;
          }};
}

RuleEntry bulyan_entry() {
  return {{"bulyan",
           "of the updates that Krum chooses one after the other, the mean around each coordinate's median (arXiv "
           "1802.07927)",
           {byzantine_info("4f + 3")}},
          [](const Part& part) -> Result<Rule> { return bulyan_rule(count(part, "byzantine")); }};
}

}  // namespace skerry::strategies
