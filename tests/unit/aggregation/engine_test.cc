// Every rule of the catalogue through the engine: the same bytes whatever the order of arrival, the threads and the SIMD target.
#include "server/aggregate/engine.h"

#include <cstring>

#include "strategies/aggregation/directions.h"
#include "tests/unit/aggregation/world.h"

namespace skerry::strategies {
namespace {

constexpr std::size_t kCount = 70'001;
constexpr std::size_t kUpdates = 11;

std::string_view bytes_of(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

struct World {
  World() : updates(random_rows(kUpdates, kCount, 3)), base(kCount) {
    for (std::size_t i = 0; i < kCount; ++i) updates[2][i] = updates[7][i];  // ties
  }

  // The rule's outer gradient: the change that SGD of learning rate 1 makes to a model of zeros, after `exchanges` of them.
  std::string run(const Rule& rule, unsigned threads, int exchanges = 1) const {
    const OuterOptimizer outer = std::move(make_outer_optimizer(sgd())).value();
    server::AggregationEngine engine({threads});
    std::string model(bytes_of(base));
    std::string state;
    for (int exchange = 1; exchange <= exchanges; ++exchange) {
      server::ReduceJob job;
      job.fragment = "all";
      job.elements = kCount;
      job.tensors = {{"embed", 0, 9}, {"w", 9, kCount - 9}};
      job.base = server::Payload::in_memory(model);
      job.state = server::Payload::in_memory(state);
      for (std::size_t i = 0; i < kUpdates; ++i) {
        const std::size_t k = (i * 4 + threads) % kUpdates;  // in another order for each number of threads
        server::UpdateInput update;
        update.node = "node-" + std::to_string(k);
        update.task_id = "task-" + std::to_string(k);
        update.payload = server::Payload::in_memory(bytes_of(updates[k]));
        update.encoding = "f32";
        update.contribution = {10 + k, 100 * k + 1, 1 + k, 1.0, update.node, {0.5 + static_cast<double>(k)}};
        job.updates.push_back(update);
      }
      job.rule = &rule;
      job.outer = &outer;
      job.step = static_cast<std::uint64_t>(exchange);
      auto outcome = engine.reduce(job);
      if (!outcome.ok()) FAIL(rule.name + ": " + outcome.error().message);
      model = outcome->fragment.bytes;
      state = outcome->state.bytes;
    }
    return model;
  }

  Rows updates;
  std::vector<float> base;
};

Part part_of(const PartInfo& info) { return info.name == "fltrust" ? fltrust("node-4") : Part{info.name, {}}; }

}  // namespace

TEST_CASE("the engine gives the same bytes for every rule, on any threads and SIMD target, in any order of arrival") {
  const World world;
  for (const PartInfo& info : aggregation_catalogue()) {
    INFO(info.name);
    const Rule rule = std::move(make_rule(part_of(info))).value();
    const std::string expected = world.run(rule, 1);
    for (const unsigned threads : {2u, 3u}) CHECK(world.run(rule, threads) == expected);
    on_every_target([&] { CHECK(world.run(rule, 2) == expected); });
  }
}

TEST_CASE("the engine gives what a plain walk gives") {
  const World world;
  for (const PartInfo& info : aggregation_catalogue()) {
    INFO(info.name);
    Case plain{part_of(info), world.updates};
    plain.tensors = {{"embed", 0, 9}, {"w", 9, kCount - 9}};
    for (std::size_t k = 0; k < kUpdates; ++k)
      plain.contributions.push_back(
          {10 + k, 100 * k + 1, 1 + k, 1.0, "node-" + std::to_string(k), {0.5 + static_cast<double>(k)}});
    // The engine's order is that of the names: node-0, node-1, node-10, node-2, …
    std::rotate(plain.updates.begin() + 2, plain.updates.end() - 1, plain.updates.end());
    std::rotate(plain.contributions.begin() + 2, plain.contributions.end() - 1, plain.contributions.end());
    const std::vector<float> expected = gradient_of(plain);
    const std::string given = world.run(std::move(make_rule(part_of(info))).value(), 2);
    double worst = 0;
    for (std::size_t i = 0; i < kCount; ++i) {
      float value = 0;
      std::memcpy(&value, given.data() + 4 * i, 4);
      worst = std::max(worst, std::abs(static_cast<double>(value) + static_cast<double>(expected[i])));
    }
    CHECK(worst <= 1e-6);
  }
}

TEST_CASE("centered clipping starts each exchange from the last one's outer gradient") {
  const World world;
  Case first{{"centered_clipping", {{"radius", 20.0}}}, world.updates};
  const std::vector<float> one = gradient_of(first);
  first.state = {one};
  const std::vector<float> two = gradient_of(first);
  const std::string model = world.run(std::move(make_rule(first.part)).value(), 2, 2);
  double worst = 0;
  for (std::size_t i = 0; i < kCount; ++i) {
    float value = 0;
    std::memcpy(&value, model.data() + 4 * i, 4);
    worst = std::max(worst, std::abs(value + (static_cast<double>(one[i]) + static_cast<double>(two[i]))));
  }
  CHECK(worst <= 1e-5);
}

}  // namespace skerry::strategies
