// Every rule against its formula in NumPy (tests/oracle/aggregation.py).
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <functional>

#include "strategies/aggregation/clipping.h"
#include "strategies/aggregation/coordinates.h"
#include "strategies/aggregation/directions.h"
#include "strategies/aggregation/geometric_median.h"
#include "strategies/aggregation/krum.h"
#include "strategies/aggregation/qffl.h"
#include "strategies/aggregation/weighted_mean.h"
#include "tests/support/temp_dir.h"
#include "tests/unit/aggregation/world.h"

namespace skerry::strategies {
namespace {

constexpr std::size_t kCount = 1237;  // no multiple of anything that a kernel likes

struct Named {
  std::string name;
  Case world;
};

// What updates look like. All have a common part, so that there is something to agree on.
Rows rows_of(const std::string& look, std::size_t updates, std::uint32_t seed) {
  Rows rows = random_rows(updates, kCount, seed);
  const auto common = random_rows(1, kCount, 77).front();
  for (std::size_t k = 0; k < updates; ++k) {
    for (std::size_t i = 0; i < kCount; ++i) {
      float& value = rows[k][i];
      value = common[i] + value * (0.3f + 0.05f * static_cast<float>(k));
      if (look == "ties") value = std::round(value);
      if (look == "equal") value = common[i];
      if (look == "denormal") value *= 1e-41f;
      if (look == "offset") value = 4096.0f + value / 64;
    }
  }
  if (look == "zeros") rows[0].assign(kCount, 0.0f);
  if (look == "zeros" && updates > 3) rows[3].assign(kCount, -0.0f);
  if (look == "far")
    for (float& value : rows[updates / 2]) value *= 1e30f;
  return rows;
}

std::vector<Contribution> contributions_of(std::size_t updates) {
  std::vector<Contribution> out;
  for (std::uint64_t k = 0; k < updates; ++k) {
    Contribution own{100 + 37 * k % 91, 5000 + 411 * k, 1 + 7 * k % 23, k % 3 == 2 ? 0.5 : 1.0};
    own.node = "node-" + std::to_string(k);
    own.metrics = {0.25 + 0.4 * static_cast<double>(k % 5)};
    out.push_back(std::move(own));
  }
  return out;
}

std::vector<Named> all_cases() {
  using Discount = WeightedMeanOptions::Discount;
  using Scale = WeightedMeanOptions::Scale;
  using Magnitude = SignMajorityOptions::Magnitude;
  const std::vector<std::pair<Part, std::vector<std::size_t>>> parts = {
      {weighted_mean(), {1, 2, 10}},
      {weighted_mean({.weighting = {Weights::kTokenRate, 0}}), {10}},
      {weighted_mean({.weighting = {Weights::kReported, 1.0}, .discount = Discount::kKept}), {10}},
      {weighted_mean({.weighting = {Weights::kTokens, 6000}, .scale = Scale::kSqrtUpdates}), {10}},
      {weighted_mean({.weighting = {Weights::kSteps, 0}, .discount = Discount::kKept, .scale = Scale::kSqrtUpdates}), {10}},
      {module_mean(), {1, 10}},
      {normalised_mean(), {1, 10}},
      {normalised_mean({.momentum = 0.9}), {10}},
      {normalised_mean({.proximal = 0.05}), {10}},
      {normalised_mean({.weighting = {Weights::kUniform, 0}, .momentum = 0.5, .proximal = 0.01}), {10}},
      {median(), {1, 2, 3, 10, 11, 16, 33, 130}},
      {trimmed_mean({.trim = 0}), {1, 10}},
      {trimmed_mean({.trim = 2}), {5, 10, 17}},
      {trimmed_mean({.fraction = 0.29}), {2, 10, 100}},
      {krum(0), {3, 10}},
      {krum(1), {5, 10}},
      {krum(3), {10}},
      {multi_krum({.byzantine = 2}), {10}},
      {multi_krum({.byzantine = 1, .keep = 3}), {7}},
      {bulyan(0), {3, 8}},
      {bulyan(1), {7, 10}},
      {bulyan(3), {15, 20}},
      {geometric_median(), {1, 2, 10}},
      {geometric_median({.weighting = {Weights::kExamples, 120}, .iterations = 3, .tolerance = 0}), {10}},
      {geometric_median({.iterations = 200, .tolerance = 1e-9}), {9}},
      {centered_clipping(), {1, 2, 10}},
      {centered_clipping({.radius = 4, .iterations = 3}), {10}},
      {norm_bound(), {1, 2, 10}},
      {norm_bound({.bound = 12, .weighting = {Weights::kUniform, 0}}), {10}},
      {radial_directional(), {1, 2, 10}},
      {radial_directional({.weighting = {Weights::kTokenRate, 0}, .direct = "*embed* head"}), {10}},
      {fltrust("node-1"), {2, 10}},
      {qffl(), {1, 10}},
      {qffl({.q = 2, .learning_rate = 0.01}), {10}},
      {qffl({.q = 0}), {10}},
      {sign_majority(), {1, 2, 10}},
      {sign_majority({Magnitude::kMean}), {10}},
      {sign_majority({Magnitude::kMedian}), {9, 10}},
  };
  std::vector<Named> cases;
  for (const auto& [part, sizes] : parts) {
    for (const std::size_t updates : sizes) {
      for (const char* look : {"plain", "ties", "equal", "zeros", "denormal", "offset", "far"}) {
        Named named{part.name + " of " + std::to_string(updates) + " updates, " + look, {}};
        named.world.part = part;
        named.world.updates = rows_of(look, updates, static_cast<std::uint32_t>(cases.size()));
        named.world.contributions = contributions_of(updates);
        named.world.tensors = {{"model.embed_tokens.weight", 0, 200}, {"bias", 200, 37}, {"head", 237, kCount - 237}};
        if (part.name == "centered_clipping") named.world.state = rows_of(look, 1, 5);
        cases.push_back(std::move(named));
      }
    }
  }
  return cases;
}

std::string json_of(const Value& value) {
  if (const auto* number = std::get_if<double>(&value)) {
    char buffer[32];
    std::snprintf(buffer, sizeof buffer, "%.17g", *number);
    // The shortest decimal that reads back as the same number: what a person wrote.
    for (int digits = 1; digits < 17 && std::strtod(buffer, nullptr) != 0; ++digits) {
      char shorter[32];
      std::snprintf(shorter, sizeof shorter, "%.*g", digits, *number);
      if (std::strtod(shorter, nullptr) == *number) return shorter;
    }
    return buffer;
  }
  if (const auto* flag = std::get_if<bool>(&value)) return *flag ? "true" : "false";
  return '"' + std::get<std::string>(value) + '"';
}

std::string json_of(const Case& world) {
  std::string text = "{\"rule\":\"" + world.part.name + "\",\"parameters\":{";
  for (const auto& [name, value] : world.part.parameters)
    text += (text.back() == '{' ? "\"" : ",\"") + name + "\":" + json_of(value);
  text += "},\"updates\":" + std::to_string(world.updates.size()) + ",\"count\":" + std::to_string(kCount) +
          ",\"state\":" + std::to_string(world.state.size()) + ",\"contributions\":[";
  for (const Contribution& own : world.contributions)
    text += std::string(text.back() == '[' ? "" : ",") + "{\"examples\":" + std::to_string(own.examples) +
            ",\"tokens\":" + std::to_string(own.tokens) + ",\"steps\":" + std::to_string(own.steps) +
            ",\"factor\":" + json_of(own.factor) + ",\"node\":\"" + own.node + "\",\"metrics\":[" +
            json_of(own.metrics.front()) + "]}";
  text += "],\"tensors\":[";
  for (const TensorRange& tensor : world.tensors)
    text += std::string(text.back() == '[' ? "" : ",") + "[\"" + tensor.name + "\"," + std::to_string(tensor.first) + "," +
            std::to_string(tensor.count) + "]";
  return text + "]}";
}

void write_case(const Case& world, const std::string& path) {
  std::ofstream file(path, std::ios::binary);
  for (const Rows* rows : {&world.updates, &world.state})
    for (const auto& row : *rows)
      file.write(reinterpret_cast<const char*>(row.data()), static_cast<std::streamsize>(4 * row.size()));
}

std::vector<double> read_doubles(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::vector<double> values(kCount);
  file.read(reinterpret_cast<char*>(values.data()), static_cast<std::streamsize>(8 * kCount));
  REQUIRE(file.good());
  return values;
}

}  // namespace

TEST_CASE("every rule gives what its paper's formula gives in NumPy") {
  const char* source = std::getenv("SKERRY_SOURCE");
  REQUIRE(source != nullptr);
  if (std::system("/usr/bin/python3 -c 'import numpy' 2>/dev/null") != 0) {
    WARN("skipped: Debian's Python has no NumPy (python3-numpy)");
    return;
  }
  const test::TempDir directory;
  const std::vector<Named> cases = all_cases();
  {
    std::ofstream list(directory / "cases");
    for (std::size_t i = 0; i < cases.size(); ++i) {
      list << json_of(cases[i].world) << '\n';
      write_case(cases[i].world, directory / (std::to_string(i) + ".f32"));
    }
  }
  const std::string command = std::string("/usr/bin/python3 ") + source + "/tests/oracle/aggregation.py " + directory.path();
  REQUIRE(std::system(command.c_str()) == 0);
  for (std::size_t i = 0; i < cases.size(); ++i) {
    INFO(cases[i].name);
    const std::vector<double> expected = read_doubles(directory / (std::to_string(i) + ".f64"));
    const std::vector<float> given = gradient_of(cases[i].world, 640);
    double largest = 0;
    for (const double value : expected) largest = std::max(largest, std::abs(value));
    std::size_t wrong = 0;
    for (std::size_t e = 0; e < kCount; ++e) {
      // One rounding to float32, and what float64 sums of another order may differ by.
      const double allowed = 6.1e-8 * std::abs(expected[e]) + 7.1e-46 + 1e-9 * largest;
      if (!(std::abs(static_cast<double>(given[e]) - expected[e]) <= allowed) && ++wrong == 1)
        UNSCOPED_INFO("value " << e << " is " << given[e] << ", must be " << expected[e]);
    }
    CHECK(wrong == 0);
  }
}

}  // namespace skerry::strategies
