#include "strategies/aggregation/krum.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "strategies/aggregation/kernels/columns.h"
#include "strategies/aggregation/kernels/distances.h"
#include "strategies/aggregation/rule_catalogue.h"

namespace skerry::strategies {
namespace {

// The others by their distances to each update, nearest first. What is left of them is scored again and again.
class Neighbourhoods {
 public:
  Neighbourhoods(Distances distances, std::size_t updates) : taken_(updates), others_(updates) {
    for (auto& others : others_) others.reserve(updates - 1);
    auto distance = distances.begin();
    for (std::size_t i = 0; i < updates; ++i) {
      for (std::size_t j = i + 1; j < updates; ++j, ++distance) {
        others_[i].push_back({*distance, j});
        others_[j].push_back({*distance, i});
      }
    }
    for (auto& others : others_) std::sort(others.begin(), others.end());
  }

  struct Score {
    double nearest = 0;  // the sum over the neighbours, from the smallest up: the updates' order changes no bit
    double next = 0;     // to the one after them: decides between equals
    std::size_t update = 0;

    bool operator<(const Score& other) const {
      return std::tie(nearest, next, update) < std::tie(other.nearest, other.next, other.update);
    }
  };

  /// Of the updates that are left, in their order.
  std::vector<Score> scores(std::size_t neighbours) const {
    std::vector<Score> out;
    for (std::size_t update = 0; update < others_.size(); ++update)
      if (!taken_[update]) out.push_back(score_of(update, neighbours));
    return out;
  }

  void take(std::size_t update) { taken_[update] = true; }

 private:
  Score score_of(std::size_t update, std::size_t neighbours) const {
    Score score{0, 0, update};
    for (const auto& [distance, other] : others_[update]) {
      if (taken_[other]) continue;
      if (neighbours-- == 0) {
        score.next = distance;
        break;
      }
      score.nearest += distance;
    }
    return score;
  }

  std::vector<bool> taken_;
  std::vector<std::vector<std::pair<double, std::size_t>>> others_;
};

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
  auto scores = Neighbourhoods(distances, updates).scores(neighbours);
  std::sort(scores.begin(), scores.end());
  std::vector<std::size_t> best;
  for (std::size_t i = 0; i < count; ++i) best.push_back(scores[i].update);
  return best;
}

std::vector<std::size_t> bulyan_choice(Distances distances, std::size_t updates, std::size_t byzantine) {
  Neighbourhoods left(distances, updates);
  std::vector<std::size_t> chosen;
  while (chosen.size() < updates - 2 * byzantine) {
    const std::size_t others = updates - chosen.size();
    const auto scores = left.scores(others >= byzantine + 3 ? others - byzantine - 2 : 1);
    chosen.push_back(std::min_element(scores.begin(), scores.end())->update);
    left.take(chosen.back());
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
