// A rule on vectors in memory, for its author's tests: the engine's passes without the engine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "strategies/aggregation/rule.h"

namespace skerry::strategies::sdk {

/// What a cohort has beside its updates' values. What is left empty is made up: one example each, no tensors, a base of zeros.
struct TrySetting {
  std::vector<Contribution> contributions = {};
  std::vector<TensorRange> tensors = {};
  std::vector<float> base = {};
  std::vector<std::vector<float>> state = {};  ///< before; zeros
  std::uint64_t seed = 1;
  std::uint64_t step = 1;
};

/// The outer gradient that a rule makes of updates of equal length, as one block (one a tensor where the rule needs them).
/// Whatever the rule refuses.
inline Result<std::vector<float>> try_rule(const Rule& rule, const std::vector<std::vector<float>>& updates, TrySetting setting = {}) {
  const std::size_t elements = updates.at(0).size();
  setting.contributions.resize(updates.size(), {.examples = 1, .steps = 1});
  setting.base.resize(elements);
  setting.state.resize(rule.state_vectors.size());
  for (auto& vector : setting.state) vector.resize(elements);
  if (setting.tensors.empty()) setting.tensors = {{"all", 0, elements}};
  const Cohort cohort{setting.contributions, setting.tensors, setting.seed, setting.step};
  std::vector<std::vector<float>> state_after = setting.state;
  std::vector<float> out(elements);

  const auto for_each_block = [&](const auto& use) {
    const std::vector<TensorRange> whole = {{"all", 0, elements}};
    const std::vector<TensorRange>& ranges = rule.needs.tensors ? setting.tensors : whole;
    for (std::size_t t = 0; t < ranges.size(); ++t) {
      const auto first = static_cast<std::size_t>(ranges[t].first);
      std::vector<const float*> rows, state;
      std::vector<float*> after;
      for (const auto& update : updates) rows.push_back(update.data() + first);
      for (const auto& vector : setting.state) state.push_back(vector.data() + first);
      for (auto& vector : state_after) after.push_back(vector.data() + first);
      Block block;
      block.fragment = "all";
      block.first = first;
      block.count = static_cast<std::size_t>(ranges[t].count);
      block.tensor = rule.needs.tensors ? t : 0;
      block.updates = rows;
      block.base = setting.base.data() + first;
      block.state = state;
      use(block, std::span<float>(out.data() + first, block.count), std::span<float* const>(after));
    }
  };

  std::vector<Table> tables;
  for (;;) {
    SKERRY_ASSIGN(const Pass pass, rule.next(cohort, tables));
    if (const auto* statistics = std::get_if<StatisticsPass>(&pass)) {
      Table sum{statistics->rows, statistics->columns, std::vector<double>(statistics->rows * statistics->columns)};
      for_each_block([&](const Block& block, auto, auto) { statistics->add(block, sum); });
      tables.push_back(std::move(sum));
    } else if (const auto* linear = std::get_if<LinearOutput>(&pass)) {
      const std::size_t vectors = updates.size() + setting.state.size();
      for_each_block([&](const Block& block, std::span<float> to, auto) {
        const std::size_t row = linear->coefficients.size() == vectors ? 0 : block.tensor * vectors;
        for (std::size_t i = 0; i < to.size(); ++i) {
          double sum = 0;
          for (std::size_t k = 0; k < vectors; ++k)
            sum += linear->coefficients[row + k] * (k < updates.size() ? block.updates[k][i] : block.state[k - updates.size()][i]);
          to[i] = static_cast<float>(sum);
        }
      });
      return out;
    } else {
      for_each_block(std::get<ValueOutput>(pass).reduce);
      return out;
    }
  }
}

}  // namespace skerry::strategies::sdk
