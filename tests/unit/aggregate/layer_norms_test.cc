#include "server/aggregate/layer_norms.h"

#include "tests/unit/aggregate/world.h"

namespace skerry::server {
namespace {

std::vector<std::string> names(const std::vector<strategies::TensorRange>& layers) {
  std::vector<std::string> out;
  for (const auto& layer : layers) out.push_back(layer.name);
  return out;
}

}  // namespace

TEST_CASE("tensors become layers by the last number of their names") {
  const std::vector<strategies::TensorRange> tensors = {{"model.embed_tokens.weight", 0, 10},
                                                        {"model.layers.0.self_attn.q_proj.weight", 10, 4},
                                                        {"model.layers.0.mlp.up_proj.weight", 14, 6},
                                                        {"model.layers.4.mlp.up_proj.weight", 20, 5},
                                                        {"model.norm.weight", 25, 2},
                                                        {"weight", 27, 3}};
  const auto layers = layers_of(tensors);
  CHECK(names(layers) ==
        std::vector<std::string>{"model.embed_tokens", "model.layers.0", "model.layers.4", "model.norm", "weight"});
  CHECK(layers[1].first == 10);
  CHECK(layers[1].count == 10);
}

TEST_CASE("layers beyond the most that are told apart share norms with their neighbours") {
  std::vector<strategies::TensorRange> tensors;
  for (std::uint64_t i = 0; i < 4 * kMaxNormLayers; ++i)
    tensors.push_back({"layers." + std::to_string(i) + ".weight", 3 * i, 3});
  const auto layers = layers_of(tensors);
  REQUIRE(layers.size() == kMaxNormLayers);
  CHECK(layers[1].name == "layers.4 to layers.7");
  CHECK(layers[1].first == 12);
  CHECK(layers[1].count == 12);
}

TEST_CASE("norms are of the outer gradient before the optimizer, its momentum after, and the new model") {
  World world({10, 20, 30}, strategies::nesterov({.learning_rate = 0.5, .momentum = 0.5}));
  world.update("t-1", std::vector<float>{3, 4, 2}, 1);
  ReduceJob job = world.job();
  job.layers = {{"a", 0, 2}, {"b", 2, 1}};
  AggregationEngine engine({.threads = 1});
  const auto outcome = engine.reduce(job);
  REQUIRE(outcome.ok());
  const auto& layers = outcome->statistics.layers;
  REQUIRE(layers.size() == 2);
  CHECK(layers[0].layer == "a");
  CHECK(layers[0].outer_gradient == Approx(5));  // (3, 4)
  CHECK(layers[0].momentum == Approx(5));        // u = Δ at the first step
  CHECK(layers[0].model == Approx(std::hypot(10 - 0.5 * 4.5, 20 - 0.5 * 6)));
  CHECK(layers[1].outer_gradient == Approx(2));
  CHECK(layers[1].model == Approx(28.5));  // 30 − 0.5 (2 + 0.5 · 2)
}

TEST_CASE("layers' norms add up to the whole's over chunks, threads and a step that is encoded in blocks") {
  constexpr std::uint64_t kElements = 2'500'000;
  World world(some_values(kElements, 1));
  world.update("t-1", some_values(kElements, 2), 1);
  world.update("t-2", some_values(kElements, 3), 2);
  ReduceJob job = world.job();
  job.down = "int8";
  job.layers = {{"a", 0, 1'300'001}, {"b", 1'300'001, 7}, {"c", 1'300'008, kElements - 1'300'008}};
  std::vector<double> first;
  for (const unsigned threads : {1u, 3u}) {
    AggregationEngine engine({.threads = threads});
    const auto outcome = engine.reduce(job);
    REQUIRE(outcome.ok());
    double squares = 0;
    std::vector<double> norms;
    for (const auto& layer : outcome->statistics.layers) {
      squares += layer.outer_gradient * layer.outer_gradient;
      norms.insert(norms.end(), {layer.outer_gradient, layer.model});
      CHECK(layer.momentum == 0);
    }
    CHECK(std::sqrt(squares) == Approx(outcome->statistics.outer_gradient_norm));
    if (threads == 1) first = norms;
    CHECK(norms == first);
  }
}

}  // namespace skerry::server
