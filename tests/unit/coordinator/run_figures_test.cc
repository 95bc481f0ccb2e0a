// What an exchange tells besides its model.
#include <cmath>

#include "tests/unit/coordinator/world.h"

namespace skerry::server {
namespace {

std::map<std::string, double> figures(World& world, std::size_t row) {
  std::map<std::string, double> out;
  const auto rows = world.store.metrics("r-1").value();
  for (const MetricValue& metric : rows.at(row).metrics) out[metric.name] = metric.value;
  return out;
}

// Both nodes offer a constant update in this exchange.
void exchange(World& world, RunHost& run, float alder, float birch) {
  std::map<std::string, std::string> tasks;
  for (const auto& [node, message] : std::exchange(world.told, {}))
    if (message.has_task()) tasks[node] = message.task().task_id();
  const FragmentShape& shape = run.plan().shapes.front();
  const std::uint64_t base = world.store.latest_version("r-1", shape.name).value()->version;
  for (const auto& [node, value] : std::map<std::string, float>{{"alder", alder}, {"birch", birch}})
    world.offer(run, node, tasks.at(node), {{shape.name, std::vector<float>(shape.elements, value)}}, {{shape.name, base}});
  for (int i = 0; i < 3; ++i) world.settle();
}

}  // namespace

TEST_CASE("every exchange tells the gradient-noise scale, smoothed over exchanges and restarts") {
  World world;
  auto run = world.begin("r-1");
  for (const char* node : {"alder", "birch"}) run->handle(NodeJoined{.node = node, .data_set = "d", .examples = 100});
  world.settle();
  exchange(world, *run, 3.0f, 1.0f);
  // Ten values each: norms² 90 and 10, mean norm² 40; |G|² = 2·40 − 50 = 30, S = 2·(50 − 40) = 20.
  CHECK(figures(world, 0).at("noise_scale_signal") == Approx(30));
  CHECK(figures(world, 0).at("noise_scale_noise") == Approx(20));
  CHECK(figures(world, 0).at("noise_scale") == Approx(20.0 / 30));
  CHECK(world.metrics.prometheus_text().find("skerry_noise_scale{run=\"r-1\"} 0.666") != std::string::npos);

  run.reset();
  run = RunHost::restore(world.services, world.store.run("r-1").value().value()).value();
  run->start();
  world.told.clear();
  for (const char* node : {"alder", "birch"}) run->handle(NodeJoined{.node = node, .data_set = "d", .examples = 100});
  world.settle();
  exchange(world, *run, 1.0f, 1.0f);  // |G|² = 10, S = 0
  CHECK(figures(world, 1).at("noise_scale_signal") == Approx(0.99 * 30 + 0.01 * 10));
  CHECK(figures(world, 1).at("noise_scale_noise") == Approx(0.99 * 20));
}

TEST_CASE("the root of the number of updates scales the outer gradient, not the noise estimate") {
  World world;
  auto run = world.begin("r-1", std::string(kSpec) + "[aggregation]\nscale = \"sqrt_updates\"\n");
  for (const char* node : {"alder", "birch"}) run->handle(NodeJoined{.node = node, .data_set = "d", .examples = 100});
  world.settle();
  exchange(world, *run, 3.0f, 1.0f);
  CHECK(figures(world, 0).at("outer_gradient_norm") == Approx(std::sqrt(2.0 * 40)));
  CHECK(figures(world, 0).at("noise_scale_signal") == Approx(30));
}

TEST_CASE("layer norms are told where the run asks for them") {
  for (const bool asked : {false, true}) {
    World world;
    auto run = world.begin("r-1", std::string(kSpec) + (asked ? "layer_norms = true\n" : "") + "[outer]\noptimizer = \"nesterov\"\n");
    for (const char* node : {"alder", "birch"}) run->handle(NodeJoined{.node = node, .data_set = "d", .examples = 100});
    world.settle();
    exchange(world, *run, 2.0f, 2.0f);
    const auto told = figures(world, 0);
    CHECK(told.contains("outer_gradient_norm/weight") == asked);
    if (!asked) continue;
    CHECK(told.at("outer_gradient_norm/weight") == Approx(std::sqrt(8 * 4.0)));
    CHECK(told.at("momentum_norm/bias") == Approx(std::sqrt(2 * 4.0)));
    CHECK(told.at("model_norm/bias") == Approx(std::sqrt(2.0) * 0.7 * (2 + 0.9 * 2)));
  }
}

}  // namespace skerry::server
