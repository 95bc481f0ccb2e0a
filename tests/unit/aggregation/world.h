// Updates in memory and a plain walk over them, for tests of rules without the engine.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include "strategies/aggregation/rule.h"
#include "tests/support/simd_targets.h"

namespace skerry::strategies {

using Rows = std::vector<std::vector<float>>;

struct Case {
  Part part;
  Rows updates;
  std::vector<Contribution> contributions = {};  // made up where there are none
  std::vector<TensorRange> tensors = {};         // one of all values where there are none
  Rows state = {};                               // zeros where there are none
};

struct Reduced {
  std::vector<float> gradient;
  std::size_t passes = 0;  // over the updates, the output's among them
};

namespace detail {

inline std::vector<const float*> shifted(const Rows& rows, std::size_t first) {
  std::vector<const float*> pointers;
  for (const auto& row : rows) pointers.push_back(row.data() + first);
  return pointers;
}

// Calls `use` for blocks of at most `most` values that do not cross tensors.
template <typename Use>
void for_each_block(const Case& world, std::size_t most, const Use& use) {
  for (std::size_t t = 0; t < world.tensors.size(); ++t) {
    const TensorRange& tensor = world.tensors[t];
    for (std::uint64_t at = 0; at < tensor.count; at += most) {
      const auto updates = shifted(world.updates, tensor.first + at);
      const auto state = shifted(world.state, tensor.first + at);
      Block block;
      block.fragment = "all";
      block.first = tensor.first + at;
      block.count = std::min<std::size_t>(most, tensor.count - at);
      block.tensor = t;
      block.updates = updates;
      block.state = state;
      use(block);
    }
  }
}

}  // namespace detail

/// Fills in what the case leaves out.
inline Case completed(Case world, const Rule& rule) {
  const std::size_t count = world.updates.front().size();
  if (world.tensors.empty()) world.tensors = {{"w", 0, count}};
  for (std::size_t k = world.contributions.size(); k < world.updates.size(); ++k)
    world.contributions.push_back({1, 1, 1, 1.0, "node-" + std::to_string(k), {1.0}});
  while (world.state.size() < rule.state_vectors.size()) world.state.emplace_back(count);
  return world;
}

/// The outer gradient that the rule makes of the updates, walking in blocks of `most` values.
inline Result<Reduced> reduce(const Case& given, std::size_t most = 1000) {
  SKERRY_ASSIGN(const Rule rule, make_rule(given.part));
  const Case world = completed(given, rule);
  const Cohort cohort{world.contributions, world.tensors, 1, 1};
  SKERRY_TRY(check_cohort(rule, cohort));
  std::vector<Table> tables;
  Reduced out;
  out.gradient.resize(world.updates.front().size());
  for (;;) {
    SKERRY_ASSIGN(const Pass pass, rule.next(cohort, tables));
    ++out.passes;
    if (const auto* statistics = std::get_if<StatisticsPass>(&pass)) {
      Table sum{statistics->rows, statistics->columns, std::vector<double>(statistics->rows * statistics->columns)};
      detail::for_each_block(world, most, [&](const Block& block) { statistics->add(block, sum); });
      tables.push_back(std::move(sum));
      continue;
    }
    detail::for_each_block(world, most, [&](const Block& block) {
      const std::span<float> to(out.gradient.data() + block.first, block.count);
      if (const auto* values = std::get_if<ValueOutput>(&pass)) return values->reduce(block, to, {});
      const auto& coefficients = std::get<LinearOutput>(pass).coefficients;
      std::vector<const float*> rows(block.updates.begin(), block.updates.end());
      rows.insert(rows.end(), block.state.begin(), block.state.end());
      const double* own = coefficients.data() + (coefficients.size() > rows.size() ? block.tensor * rows.size() : 0);
      for (std::size_t i = 0; i < block.count; ++i) {
        double value = 0;
        for (std::size_t k = 0; k < rows.size(); ++k) value += own[k] * static_cast<double>(rows[k][i]);
        to[i] = static_cast<float>(value);
      }
    });
    return out;
  }
}

inline std::vector<float> gradient_of(const Case& world, std::size_t most = 1000) {
  auto reduced = reduce(world, most);
  if (!reduced.ok()) FAIL(reduced.error().message);
  return std::move(reduced)->gradient;
}

inline std::string refusal_of(const Case& world) {
  const auto reduced = reduce(world);
  REQUIRE_FALSE(reduced.ok());
  CHECK(reduced.error().code == Code::kInvalidArgument);
  return reduced.error().message;
}

/// Uniform in [−1, 1), the same in every run.
class Draws {
 public:
  explicit Draws(std::uint32_t seed) : state_(seed * 2654435761u + 1) {}
  float next() {
    state_ = state_ * 1664525u + 1013904223u;
    return static_cast<float>(state_ >> 8) / 8388608.0f - 1.0f;
  }

 private:
  std::uint32_t state_;
};

inline Rows random_rows(std::size_t rows, std::size_t count, std::uint32_t seed) {
  Draws draws(seed);
  Rows out(rows, std::vector<float>(count));
  for (auto& row : out)
    for (float& value : row) value = draws.next();
  return out;
}

}  // namespace skerry::strategies
