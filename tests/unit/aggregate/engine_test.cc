#include "server/aggregate/engine.h"

#include <algorithm>

#include "common/crypto/content_id.h"
#include "tests/unit/aggregate/world.h"

namespace skerry::server {
namespace {

using strategies::Block;
using strategies::Cohort;
using strategies::LinearOutput;
using strategies::Pass;
using strategies::Rule;
using strategies::StatisticsPass;
using strategies::Table;
using strategies::ValueOutput;

// The update nearest to all others: K × K squared distances, then the one with the smallest sum.
Rule nearest_rule() {
  Rule rule;
  rule.name = "nearest";
  rule.needs.individual_updates = true;
  rule.needs.minimum_updates = 3;
  rule.next = [](const Cohort& cohort, std::span<const Table> tables) -> Result<Pass> {
    const std::size_t updates = cohort.size();
    if (tables.empty()) {
      return Pass(StatisticsPass{updates, updates, [](const Block& block, Table& sum) {
                                   for (std::size_t a = 0; a < sum.rows; ++a) {
                                     for (std::size_t b = 0; b < sum.columns; ++b) {
                                       for (std::size_t i = 0; i < block.count; ++i) {
                                         const double apart = static_cast<double>(block.updates[a][i]) -
                                                              static_cast<double>(block.updates[b][i]);
                                         sum.at(a, b) += apart * apart;
                                       }
                                     }
                                   }
                                 }});
    }
    std::vector<double> far(updates);
    for (std::size_t a = 0; a < updates; ++a) {
      for (std::size_t b = 0; b < updates; ++b) far[a] += tables[0].at(a, b);
    }
    LinearOutput output{std::vector<double>(updates)};
    output.coefficients[static_cast<std::size_t>(std::min_element(far.begin(), far.end()) - far.begin())] = 1.0;
    return Pass(output);
  };
  return rule;
}

Rule median_rule() {
  Rule rule;
  rule.name = "median";
  rule.needs.individual_updates = true;
  rule.next = [](const Cohort&, std::span<const Table>) -> Result<Pass> {
    return Pass(ValueOutput{[](const Block& block, std::span<float> out, std::span<float* const>) {
      std::vector<float> values(block.updates.size());
      for (std::size_t i = 0; i < block.count; ++i) {
        for (std::size_t k = 0; k < values.size(); ++k) values[k] = block.updates[k][i];
        std::sort(values.begin(), values.end());
        out[i] = values[values.size() / 2];
      }
    }});
  };
  return rule;
}

// Half the sum of the updates' directions, tensor by tensor.
Rule per_tensor_rule() {
  Rule rule;
  rule.name = "per_tensor";
  rule.needs.tensors = true;
  rule.next = [](const Cohort& cohort, std::span<const Table> tables) -> Result<Pass> {
    if (tables.empty()) {
      return Pass(StatisticsPass{cohort.size(), cohort.tensors.size(), [](const Block& block, Table& sum) {
                                   for (std::size_t k = 0; k < sum.rows; ++k) {
                                     for (std::size_t i = 0; i < block.count; ++i) {
                                       const double value = block.updates[k][i];
                                       sum.at(k, block.tensor) += value * value;
                                     }
                                   }
                                 }});
    }
    LinearOutput output;
    for (std::size_t t = 0; t < cohort.tensors.size(); ++t) {
      for (std::size_t k = 0; k < cohort.size(); ++k) {
        const double norm = std::sqrt(tables[0].at(k, t));
        output.coefficients.push_back(norm > 0 ? 0.5 / norm : 0.0);
      }
    }
    return Pass(output);
  };
  return rule;
}

}  // namespace

TEST_CASE("fedavg: the new model is the old one minus the weighted mean of the updates") {
  World world({10.0f, 20.0f, 30.0f});
  world.update("a", std::vector<float>{4.0f, 0.0f, -8.0f}, 1).update("b", std::vector<float>{0.0f, 8.0f, -8.0f}, 3);
  const auto outcome = reduced(world.job());
  CHECK(values_of(outcome.fragment.bytes) == std::vector<float>{9.0f, 14.0f, 38.0f});
  CHECK(outcome.fragment.bytes.substr(0, World::kHeader) == std::string(World::kHeader, 'h'));
  CHECK(outcome.fragment.content_id == content_id(outcome.fragment.bytes));
  CHECK(outcome.state.size == 0);
  CHECK(outcome.step.size == 0);
  CHECK(outcome.outer_step == 1);
  // Δ = (1, 6, −8)
  CHECK(outcome.statistics.outer_gradient_norm == Approx(std::sqrt(101.0)));
  CHECK(outcome.statistics.change_norm == Approx(std::sqrt(101.0)));
}

TEST_CASE("one update alone is adopted as it is") {
  World world({1.0f});
  world.update("a", std::vector<float>{0.25f}, 17);
  CHECK(values_of(reduced(world.job()).fragment.bytes) == std::vector<float>{0.75f});
}

TEST_CASE("the mean of 1000 updates is their float64 mean, rounded once") {
  const std::size_t count = 37;
  World world(std::vector<float>(count, 0.0f));
  std::vector<double> sums(count);
  for (unsigned k = 0; k < 1000; ++k) {
    const auto values = some_values(count, k);
    // Task ids in an order that is the order of summation: node names are their letters backwards.
    std::string task = std::to_string(10000 + k);
    std::reverse(task.begin(), task.end());
    world.update(task, values, 1);
    for (std::size_t i = 0; i < count; ++i) sums[i] += static_cast<double>(values[i]) * (1.0 / 1000.0);
  }
  std::vector<float> expected;
  for (const double sum : sums) expected.push_back(0.0f - static_cast<float>(sum));
  CHECK((values_of(reduced(world.job()).fragment.bytes) == expected));
}

TEST_CASE("updates in f32 and bf16 aggregate together") {
  World world({0.0f, 0.0f});
  world.update("a", std::vector<float>{1.0f, 2.0f}, 1)
      .update("b", bf16_of({3.0f, -2.0f}), 1, "bf16")
      .update("c", std::vector<float>{5.0f, 6.0f}, 2);
  CHECK(values_of(reduced(world.job()).fragment.bytes) == std::vector<float>{-3.5f, -3.0f});
}

TEST_CASE("a bf16 step is adopted as it decodes, and adding it to the old model gives the new one bit for bit") {
  const std::size_t count = 1000;
  World world(some_values(count, 1), strategies::nesterov());
  world.down = "bf16";
  world.update("a", some_values(count, 2), 3).update("b", some_values(count, 3), 5);
  const auto outcome = reduced(world.job());
  REQUIRE(outcome.step.bytes.size() == 2 * count);
  CHECK(outcome.step.content_id == content_id(outcome.step.bytes));
  const auto old_values = values_of(world.base);
  std::vector<float> expected;
  for (std::size_t i = 0; i < count; ++i) {
    std::uint16_t half = 0;
    std::memcpy(&half, outcome.step.bytes.data() + 2 * i, sizeof half);
    const std::uint32_t bits = static_cast<std::uint32_t>(half) << 16;
    float change = 0;
    std::memcpy(&change, &bits, sizeof change);
    expected.push_back(old_values[i] + change);
  }
  CHECK(values_of(outcome.fragment.bytes) == expected);
}

TEST_CASE("diloco over three exchanges follows Nesterov's table, its velocity travelling through the state") {
  // The table of outer_optimizer_test: η = β = 0.5.
  World world({10.0f}, strategies::nesterov({.learning_rate = 0.5, .momentum = 0.5}));
  const float gradients[] = {2, 4, -1};
  const float models[] = {8.5f, 5.25f, 5.375f};
  for (std::uint64_t step = 0; step < 3; ++step) {
    world.payloads.clear();
    world.update("a", std::vector<float>{gradients[step]}, 1);
    const auto outcome = advance(world);
    CHECK(outcome.outer_step == step + 1);
    CHECK(values_of(outcome.fragment.bytes) == std::vector<float>{models[step]});
  }
}

TEST_CASE("fedadam keeps two moments and its count of steps for the bias correction") {
  const strategies::AdamOptions options{
      .learning_rate = 1.0, .beta1 = 0.5, .beta2 = 0.5, .epsilon = 1.0, .bias_correction = true};
  World world({0.0f}, strategies::adam(options));
  world.update("a", std::vector<float>{2.0f}, 1);
  advance(world);
  world.payloads.clear();
  world.update("a", std::vector<float>{-6.0f}, 1);
  const auto outcome = advance(world);
  const float first = static_cast<float>(-2.0 / (std::sqrt(4.0) + 1.0));
  const float second = static_cast<float>((2.5 / 0.75) / (std::sqrt(19.0 / 0.75) + 1.0));
  CHECK(values_of(outcome.fragment.bytes) == std::vector<float>{first + second});
}

TEST_CASE("an update whose weight is zero does not count") {
  World world({0.0f});
  world.update("a", std::vector<float>{100.0f}, 0).update("b", std::vector<float>{1.0f}, 4);
  CHECK(values_of(reduced(world.job()).fragment.bytes) == std::vector<float>{-1.0f});
}

TEST_CASE("a rule of a distance pass and a choice finds the update nearest to the others") {
  const std::size_t count = 300000;  // several blocks and lanes
  World world(std::vector<float>(count, 0.0f));
  world.rule = nearest_rule();
  world.update("a", std::vector<float>(count, 1.0f), 1)
      .update("b", std::vector<float>(count, 1.5f), 1)
      .update("c", std::vector<float>(count, 9.0f), 1)
      .update("d", bf16_of(std::vector<float>(count, 1.25f)), 1, "bf16")
      .update("e", std::vector<float>(count, -6.5f), 1);
  const auto values = values_of(reduced(world.job()).fragment.bytes);
  CHECK(static_cast<std::size_t>(std::count(values.begin(), values.end(), -1.25f)) == count);
}

TEST_CASE("statistics are the sums over all elements") {
  const std::size_t count = 700001;
  World world(std::vector<float>(count, 0.0f));
  world.update("a", std::vector<float>(count, 0.5f), 1);
  double seen = 0;
  world.rule.next = [&seen](const Cohort&, std::span<const Table> tables) -> Result<Pass> {
    if (tables.empty()) {
      return Pass(StatisticsPass{1, 2, [](const Block& block, Table& sum) {
                                   for (std::size_t i = 0; i < block.count; ++i) {
                                     sum.at(0, 0) += block.updates[0][i];
                                     sum.at(0, 1) += static_cast<double>(block.first + i);
                                   }
                                 }});
    }
    seen = tables[0].at(0, 1);
    return Pass(LinearOutput{{tables[0].at(0, 0)}});
  };
  const auto values = values_of(reduced(world.job()).fragment.bytes);
  CHECK(values.front() == -0.5f * 350000.5f);
  CHECK(seen == 700000.0 * 700001.0 / 2);
}

TEST_CASE("a coordinate median is an output of its own") {
  World world({0.0f, 0.0f});
  world.rule = median_rule();
  world.update("a", std::vector<float>{1.0f, 9.0f}, 1)
      .update("b", std::vector<float>{1000.0f, 7.0f}, 1)
      .update("c", bf16_of({2.0f, -50.0f}), 1, "bf16");
  CHECK(values_of(reduced(world.job()).fragment.bytes) == std::vector<float>{-2.0f, -7.0f});
}

TEST_CASE("a rule may have coefficients for every tensor, and its blocks never cross tensors") {
  World world(std::vector<float>(5, 0.0f));
  world.rule = per_tensor_rule();
  world.tensors = {{"w", 0, 2}, {"empty", 2, 0}, {"b", 2, 3}};
  world.update("a", std::vector<float>{3.0f, 4.0f, 0.0f, 0.0f, 2.0f}, 1)
      .update("b", std::vector<float>{0.0f, 10.0f, 0.0f, 4.0f, 0.0f}, 1);
  // Norms of w: 5 and 10; of b: 2 and 4. Directions: (0.6, 0.8), (0, 1); (0, 0, 1), (0, 1, 0); half of their sums.
  const auto values = values_of(reduced(world.job()).fragment.bytes);
  const std::vector<double> expected = {-0.3, -0.9, 0, -0.5, -0.5};
  for (std::size_t i = 0; i < 5; ++i) CHECK(values[i] == Approx(expected[i]));
}

TEST_CASE("norms of the updates and their cosines with the outer gradient are measured on request") {
  World world({0.0f, 0.0f});
  world.update("b", std::vector<float>{3.0f, 4.0f}, 1).update("a", std::vector<float>{3.0f, -4.0f}, 1);
  auto job = world.job();
  job.measure_updates = true;
  AggregationEngine engine({.threads = 1});
  for (const auto& statistics : {reduced(job).statistics, engine.measure(job).value()}) {
    CHECK(statistics.outer_gradient_norm == Approx(3.0));
    CHECK(statistics.update_norms == std::vector<double>{5.0, 5.0});
    CHECK(statistics.cosines[0] == Approx(0.6));
    CHECK(statistics.cosines[1] == Approx(0.6));
  }
}

TEST_CASE("files in and files out give the bytes that memory gives") {
  const std::size_t count = 5000;
  World world(some_values(count, 1), strategies::adam());
  world.down = "bf16";
  world.update("a", some_values(count, 2), 3).update("b", bf16_of(some_values(count, 3)), 5, "bf16");
  advance(world);
  const auto in_memory = reduced(world.job());
  const test::TempDir directory;
  auto job = world.job_in_files(directory);
  job.output = {directory / "fragment", directory / "new-state", directory / "step", true};
  const auto outcome = reduced(job);
  CHECK(outcome.fragment.bytes.empty());
  CHECK((read_file(directory / "fragment", 1 << 20).value() == in_memory.fragment.bytes));
  CHECK((read_file(directory / "new-state", 1 << 20).value() == in_memory.state.bytes));
  CHECK((read_file(directory / "step", 1 << 20).value() == in_memory.step.bytes));
  CHECK(outcome.fragment.content_id == in_memory.fragment.content_id);
  CHECK(outcome.step.content_id == in_memory.step.content_id);
  CHECK(outcome.fragment.size == in_memory.fragment.bytes.size());
  CHECK(outcome.state.size == in_memory.state.bytes.size());
  CHECK(outcome.outer_step == 2);
}

TEST_CASE("more updates than are mapped at once give the same bytes") {
  const std::size_t count = 200;
  World world(some_values(count, 1));
  for (unsigned k = 0; k < 1100; ++k) {
    const auto values = some_values(count, k + 2);
    const std::string task = "task-" + std::to_string(k);
    if (k % 3 == 0) {
      world.update(task, bf16_of(values), k, "bf16");
    } else {
      world.update(task, values, k);
    }
  }
  const test::TempDir directory;
  CHECK((reduced(world.job_in_files(directory)).fragment.bytes == reduced(world.job()).fragment.bytes));
  world.rule = median_rule();
  CHECK((reduced(world.job_in_files(directory)).fragment.bytes == reduced(world.job()).fragment.bytes));
}

TEST_CASE("an empty list, a job without elements and a total weight of zero are refused") {
  AggregationEngine engine({.threads = 1});
  World world({1.0f});
  CHECK(engine.reduce(world.job()).error().message == "fragment all: there is no update to aggregate");
  world.update("a", std::vector<float>{1.0f}, 0);
  CHECK(engine.reduce(world.job()).error().message.find("0 examples in total") != std::string::npos);
  auto job = world.job();
  job.elements = 0;
  CHECK(engine.reduce(job).error().code == Code::kInvalidArgument);
}

}  // namespace skerry::server
