// A fragment and its updates in memory, for tests of the engine.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include <catch2/catch.hpp>

#include "server/aggregate/engine.h"
#include "strategies/aggregation/weighted_mean.h"
#include "tests/support/simd_targets.h"
#include "tests/support/temp_dir.h"

namespace skerry::server {

inline std::string bytes_of(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

inline std::vector<float> floats_of(std::string_view bytes) {
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
}

/// Values of many magnitudes and both signs, the same in every run.
inline std::vector<float> some_values(std::size_t count, unsigned seed) {
  std::vector<float> values(count);
  std::uint32_t state = seed * 2654435761u + 1;
  for (float& value : values) {
    state = state * 1664525u + 1013904223u;
    value = std::ldexp(static_cast<float>(state >> 8) / 8388608.0f - 1.0f, static_cast<int>(state % 16) - 12);
  }
  return values;
}

/// The upper half of each value's bits.
inline std::string bf16_of(const std::vector<float>& values) {
  std::string bytes;
  for (const float value : values) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof bits);
    bytes.push_back(static_cast<char>(bits >> 16 & 0xff));
    bytes.push_back(static_cast<char>(bits >> 24));
  }
  return bytes;
}

/// Owns what a job points at. Node names are the task ids' letters backwards, so that both orders differ.
struct World {
  explicit World(std::vector<float> base_values, const strategies::Part& outer_part = strategies::sgd())
      : base(std::string(kHeader, 'h') + bytes_of(base_values)) {
    auto made = strategies::make_outer_optimizer(outer_part);
    REQUIRE(made.ok());
    outer = std::move(made).value();
    rule = strategies::weighted_mean_rule(strategies::Weights::kExamples);
    elements = base_values.size();
  }

  World& update(const std::string& task, std::string payload, std::uint64_t examples, std::string encoding = "f32") {
    payloads.push_back({task, std::move(payload), std::move(encoding), examples});
    return *this;
  }
  World& update(const std::string& task, const std::vector<float>& values, std::uint64_t examples) {
    return update(task, bytes_of(values), examples);
  }

  ReduceJob job() const {
    ReduceJob result;
    result.fragment = "all";
    result.elements = elements;
    result.tensors = tensors;
    result.base = Payload::in_memory(base);
    result.data_offset = kHeader;
    result.state = Payload::in_memory(state);
    for (const auto& update : payloads) {
      result.updates.push_back({"node-" + std::string(update.task.rbegin(), update.task.rend()), update.task,
                                Payload::in_memory(update.bytes), update.encoding, {update.examples, 0, 0, 1.0}});
    }
    result.rule = &rule;
    result.outer = &outer;
    result.down = down;
    return result;
  }

  /// The same with base, state and updates in files of `directory`.
  ReduceJob job_in_files(const test::TempDir& directory) const {
    ReduceJob result = job();
    const auto spool = [&](const std::string& name, Payload& payload) {
      if (payload.bytes.empty()) return;
      const std::string path = directory / name;
      auto file = File::open(path, OpenMode::kCreateOrEmpty);
      REQUIRE(file.ok());
      REQUIRE(file->pwrite(as_bytes_of(payload.bytes), 0).ok());
      payload = Payload::file(path);
    };
    spool("base", result.base);
    spool("state", result.state);
    for (UpdateInput& update : result.updates) spool("update-" + update.task_id, update.payload);
    return result;
  }

  static constexpr std::size_t kHeader = 128;
  struct Stored {
    std::string task;
    std::string bytes;
    std::string encoding;
    std::uint64_t examples = 0;
  };
  std::string base;
  std::string state;
  std::string down = "f32";
  std::uint64_t elements = 0;
  std::vector<strategies::TensorRange> tensors;
  std::vector<Stored> payloads;
  strategies::Rule rule;
  strategies::OuterOptimizer outer;
};

/// What the job comes to; anything else fails the test.
inline ReduceOutcome reduced(const ReduceJob& job, unsigned threads = 2) {
  AggregationEngine engine({.threads = threads});
  auto outcome = engine.reduce(job);
  if (!outcome.ok()) FAIL(outcome.error().message);
  return std::move(outcome).value();
}

/// The next fragment and state, and where the world stands after it.
inline ReduceOutcome advance(World& world) {
  auto outcome = reduced(world.job());
  world.base = outcome.fragment.bytes;
  world.state = outcome.state.bytes;
  return outcome;
}

/// The values of a fragment file.
inline std::vector<float> values_of(std::string_view fragment) { return floats_of(fragment.substr(World::kHeader)); }

}  // namespace skerry::server
