// A small fragment that an outer optimizer walks.
#pragma once

#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include <catch2/catch.hpp>

#include "strategies/outer/outer_optimizer.h"
#include "tests/support/simd_targets.h"

namespace skerry::strategies {

/// Values, state, and the outer gradients given one after the other.
struct Walker {
  Walker(const Part& part, std::vector<float> start) : values(std::move(start)) {
    auto made = make_outer_optimizer(part);
    if (!made.ok()) FAIL(made.error().message);
    optimizer = std::move(made).value();
    state.assign(optimizer.state_vectors.size(), std::vector<float>(values.size(), 0.0f));
  }

  /// Returns the change.
  std::vector<float> step(const std::vector<float>& delta) {
    std::vector<float> change(values.size());
    std::vector<float*> pointers;
    for (auto& vector : state) pointers.push_back(vector.data());
    OuterBlock block;
    block.step = ++steps;
    block.count = values.size();
    block.delta = delta.data();
    block.base = values.data();
    block.state = pointers;
    block.change = change.data();
    optimizer.step(block);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] += change[i];
    return change;
  }

  OuterOptimizer optimizer;
  std::vector<float> values;
  std::vector<std::vector<float>> state;
  std::uint64_t steps = 0;
};

/// Values of many magnitudes and both signs, the same in every run.
inline std::vector<float> some_values(std::size_t count, unsigned seed) {
  std::vector<float> values(count);
  std::uint32_t state = seed * 2654435761u + 1;
  for (float& value : values) {
    state = state * 1664525u + 1013904223u;
    const float mantissa = static_cast<float>(state >> 8) / 8388608.0f - 1.0f;
    value = std::ldexp(mantissa, static_cast<int>(state % 30) - 20);
  }
  return values;
}

}  // namespace skerry::strategies
