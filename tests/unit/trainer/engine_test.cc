// Whole models: right gradients, the same bits again, the same mathematics with any number of threads.
#include <cmath>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "client/trainer/engine.h"
#include "client/trainer/sampling.h"
#include "common/model/initialise.h"
#include "common/model/philox.h"

using namespace skerry;
using namespace skerry::trainer;

namespace {

struct Case {
  const char* name;
  const char* model;
  ExampleShape examples;
};

ExampleShape text(std::uint64_t context) { return {ExampleShape::Kind::kText, {context}, context, 256}; }
ExampleShape rows(std::uint64_t inputs, std::uint64_t classes) {
  return {ExampleShape::Kind::kTable, {inputs}, inputs, classes};
}
ExampleShape images(std::uint64_t channels, std::uint64_t side, std::uint64_t classes) {
  return {ExampleShape::Kind::kImages, {channels, side, side}, channels * side * side, classes};
}

const Case kCases[] = {
    {"linear", R"({"architecture":"linear","inputs":5,"outputs":3})", rows(5, 3)},
    {"regression", R"({"architecture":"linear","inputs":5,"outputs":1})", rows(5, 0)},
    {"mlp relu", R"({"architecture":"mlp","inputs":6,"outputs":4,"hidden":[8,7]})", rows(6, 4)},
    {"mlp tanh", R"({"architecture":"mlp","inputs":6,"outputs":4,"hidden":[8],"activation":"tanh"})", rows(6, 4)},
    {"mlp gelu", R"({"architecture":"mlp","inputs":6,"outputs":4,"hidden":[8],"activation":"gelu"})", rows(6, 4)},
    {"cnn", R"({"architecture":"cnn","shape":[1,12,12],"classes":3,"channels":[2,3],"kernel":3,"hidden":5})",
     images(1, 12, 3)},
    {"cnn same",
     R"({"architecture":"cnn","shape":[2,9,9],"classes":3,"channels":[2,3],"kernel":3,"hidden":5,"padding":"same"})",
     images(2, 9, 3)},
    {"resnet", R"({"architecture":"resnet","shape":[3,8,8],"classes":3,"width":4,"groups":2,"blocks":[1,2]})",
     images(3, 8, 3)},
    {"transformer",
     R"({"architecture":"transformer","layers":2,"width":8,"heads":4,"kv_heads":2,"hidden":12,"context":6,"initial_std":0.3})",
     text(6)},
    {"transformer untied, in fragments",
     R"({"architecture":"transformer","layers":3,"width":8,"heads":2,"hidden":12,"context":5,"tied":false,"fragments":3,"initial_std":0.3})",
     text(5)},
    {"transformer with QK-norm",
     R"({"architecture":"transformer","layers":2,"width":8,"heads":2,"kv_heads":1,"hidden":12,"context":6,"qk_norm":true,"initial_std":0.3})",
     text(6)},
    {"mpt", R"({"architecture":"mpt","layers":2,"width":12,"heads":3,"context":6,"initial_std":0.3})", text(6)},
};

ModelLayout layout_of(const Case& c) {
  auto layout = build_layout(nlohmann::json::parse(c.model));
  REQUIRE(layout.ok());
  return *std::move(layout);
}

std::unique_ptr<Engine> engine_of(const Case& c, const ModelLayout& layout, const EngineOptions& options) {
  auto engine = Engine::make(c.model, layout, c.examples, options);
  REQUIRE(engine.ok());
  const auto offsets = fragment_offsets(layout);
  for (std::size_t i = 0; i < layout.fragments.size(); ++i) {
    const auto part = (*engine)->parameters().subspan(offsets[i], layout.fragments[i].elements);
    REQUIRE(initialise_fragment(layout, layout.fragments[i].name, 11, 0, part).ok());
  }
  return *std::move(engine);
}

std::unique_ptr<Engine> engine_of(const Case& c, const ModelLayout& layout, int threads) {
  EngineOptions options;
  options.threads = threads;
  return engine_of(c, layout, options);
}

Batch batch_for(const ExampleShape& shape, std::size_t count) {
  const PhiloxStream draws(5, 5);
  std::uint64_t next = 0;
  Batch batch;
  batch.rows = count;
  if (shape.kind == ExampleShape::Kind::kText) {
    for (std::size_t i = 0; i < count * (shape.input_size + 1); ++i) batch.tokens.push_back(draws.word(next++) % 256);
    return batch;
  }
  for (std::size_t i = 0; i < count * shape.input_size; ++i) {
    batch.inputs.push_back(static_cast<float>(uniform_from(draws.word(next++))));
  }
  for (std::size_t i = 0; i < count; ++i) {
    if (shape.classes == 0) {
      batch.targets.push_back(static_cast<float>(i) - 1.5f);
    } else {
      batch.labels.push_back(draws.word(next++) % static_cast<std::int64_t>(shape.classes));
    }
  }
  return batch;
}

double loss_of(Engine& engine, const Batch& batch) {
  const auto measured = engine.measure(batch);
  REQUIRE(measured.ok());
  return measured->loss_sum / static_cast<double>(measured->counted);
}

}  // namespace

TEST_CASE("the gradient of every architecture is the slope of its loss") {
  for (const Case& c : kCases) {
    INFO(c.name);
    const ModelLayout layout = layout_of(c);
    const auto engine = engine_of(c, layout, 1);
    const Batch batch = batch_for(c.examples, 4);
    const auto loss = engine->compute_gradient(batch);
    REQUIRE(loss.ok());
    CHECK(*loss == Approx(loss_of(*engine, batch)).epsilon(1e-4));
    const std::vector<float> gradient(engine->gradient().begin(), engine->gradient().end());
    const std::vector<float> start(engine->parameters().begin(), engine->parameters().end());
    // Along each tensor alone, in a random direction: the slope by difference against gradient · direction.
    const auto offsets = fragment_offsets(layout);
    for (std::size_t t = 0; t < layout.tensors.size(); ++t) {
      const TensorLayout& tensor = layout.tensors[t];
      INFO(tensor.name);
      const std::size_t first = offsets[tensor.fragment] + tensor.offset;
      const PhiloxStream draws(9, t);
      std::vector<float> direction(tensor.elements);
      for (std::size_t i = 0; i < direction.size(); ++i) direction[i] = draws.word(i) % 2 == 0 ? 1.0f : -1.0f;
      double expected = 0;
      for (std::size_t i = 0; i < direction.size(); ++i) expected += direction[i] * gradient[first + i];
      const double step = 1e-3 / std::sqrt(static_cast<double>(direction.size()));
      double sides[2];
      for (const int side : {0, 1}) {
        for (std::size_t i = 0; i < direction.size(); ++i) {
          engine->parameters()[first + i] =
              start[first + i] + static_cast<float>(side == 0 ? -step : step) * direction[i];
        }
        sides[side] = loss_of(*engine, batch);
      }
      std::copy(start.begin(), start.end(), engine->parameters().begin());
      const double slope = (sides[1] - sides[0]) / (2 * step);
      double length = 0;
      for (std::size_t i = 0; i < direction.size(); ++i) length += gradient[first + i] * gradient[first + i];
      CHECK(slope == Approx(expected).margin(0.04 * std::sqrt(length) +
                                             2e-4 * std::sqrt(static_cast<double>(direction.size()))));
    }
  }
}

TEST_CASE("a gradient computed again has the same bits, with one thread and with three") {
  for (const Case& c : kCases) {
    INFO(c.name);
    const ModelLayout layout = layout_of(c);
    const Batch batch = batch_for(c.examples, 7);
    std::vector<std::vector<float>> gradients;
    for (const int threads : {1, 1, 3, 3}) {
      const auto engine = engine_of(c, layout, threads);
      REQUIRE(engine->compute_gradient(batch_for(c.examples, 3)).ok());  // what came before leaves no trace
      REQUIRE(engine->compute_gradient(batch).ok());
      gradients.emplace_back(engine->gradient().begin(), engine->gradient().end());
    }
    CHECK(gradients[0] == gradients[1]);
    CHECK(gradients[2] == gradients[3]);
    for (std::size_t i = 0; i < gradients[0].size(); ++i) {
      REQUIRE(gradients[2][i] == Approx(gradients[0][i]).epsilon(1e-3).margin(1e-5));
    }
  }
}

TEST_CASE("threads that share a large batch find the gradient of one thread, and the same bits again") {
  const Case c{"", R"({"architecture":"transformer","layers":1,"width":32,"heads":2,"context":64})", text(64)};
  const ModelLayout layout = layout_of(c);
  const Batch batch = batch_for(c.examples, 7);
  std::vector<std::vector<float>> gradients;
  std::vector<double> losses;
  for (const int threads : {1, 3, 3}) {
    const auto engine = engine_of(c, layout, threads);
    const auto loss = engine->compute_gradient(batch);
    REQUIRE(loss.ok());
    losses.push_back(*loss);
    gradients.emplace_back(engine->gradient().begin(), engine->gradient().end());
    CHECK(loss_of(*engine, batch) == Approx(*loss).epsilon(1e-5));
  }
  CHECK(losses[1] == losses[2]);
  CHECK(gradients[1] == gradients[2]);
  CHECK(losses[0] == Approx(losses[1]).epsilon(1e-6));
  for (std::size_t i = 0; i < gradients[0].size(); ++i) {
    REQUIRE(gradients[1][i] == Approx(gradients[0][i]).epsilon(1e-3).margin(1e-6));
  }
}

TEST_CASE("a batch in parts has the gradient of the whole batch to rounding, and the loss") {
  for (const Case& c : kCases) {
    INFO(c.name);
    const ModelLayout layout = layout_of(c);
    const Batch batch = batch_for(c.examples, 7);
    const auto whole = engine_of(c, layout, 1);
    const auto loss = whole->compute_gradient(batch);
    REQUIRE(loss.ok());
    for (const std::uint64_t parts : {3, 7, 100}) {
      EngineOptions options;
      options.accumulate = parts;
      const auto engine = engine_of(c, layout, options);
      const auto same = engine->compute_gradient(batch);
      REQUIRE(same.ok());
      CHECK(*same == Approx(*loss).epsilon(1e-6));
      for (std::size_t i = 0; i < layout.parameters; ++i)
        REQUIRE(engine->gradient()[i] == Approx(whole->gradient()[i]).epsilon(1e-4).margin(1e-6));
    }
  }
}

TEST_CASE("activations that are computed again give the same bits, and so does a copy of the parameters") {
  for (const Case& c : kCases) {
    INFO(c.name);
    const ModelLayout layout = layout_of(c);
    const Batch batch = batch_for(c.examples, 7);
    const auto plain = engine_of(c, layout, 1);
    const auto loss = plain->compute_gradient(batch);
    REQUIRE(loss.ok());
    EngineOptions again;
    again.activation_checkpointing = true;
    EngineOptions staged;
    staged.staged = true;
    for (const EngineOptions& options : {again, staged}) {
      const auto engine = engine_of(c, layout, options);
      const auto same = engine->compute_gradient(batch);
      REQUIRE(same.ok());
      CHECK(*same == *loss);
      CHECK(std::equal(plain->gradient().begin(), plain->gradient().end(), engine->gradient().begin()));
      CHECK(*engine->outputs(batch) == *plain->outputs(batch));
      CHECK(loss_of(*engine, batch) == loss_of(*plain, batch));
    }
  }
}

TEST_CASE("products in bf16 give about the same gradient, in f32") {
  for (const Case& c : kCases) {
    if (c.examples.kind != ExampleShape::Kind::kText) continue;
    INFO(c.name);
    const ModelLayout layout = layout_of(c);
    const Batch batch = batch_for(c.examples, 4);
    const auto exact = engine_of(c, layout, 1);
    EngineOptions options;
    options.precision = Precision::kBf16;
    const auto engine = engine_of(c, layout, options);
    const double loss = *exact->compute_gradient(batch);
    CHECK(*engine->compute_gradient(batch) == Approx(loss).epsilon(0.02));
    double apart = 0;
    double length = 0;
    for (std::size_t i = 0; i < layout.parameters; ++i) {
      apart += std::pow(engine->gradient()[i] - exact->gradient()[i], 2.0);
      length += std::pow(exact->gradient()[i], 2.0);
    }
    CHECK(apart < 0.03 * 0.03 * length);
    CHECK(apart > 0);
  }
}

TEST_CASE("z-loss adds the slope of the mean squared logarithm of the softmax's denominator") {
  const Case& c = kCases[8];
  const ModelLayout layout = layout_of(c);
  const Batch batch = batch_for(c.examples, 3);
  EngineOptions options;
  options.z_loss = 0.5;
  const auto engine = engine_of(c, layout, options);
  const auto plain = engine_of(c, layout, 1);
  CHECK(*engine->compute_gradient(batch) == *plain->compute_gradient(batch));  // what is reported is without it
  const auto z = [&] {
    const std::vector<float> logits = *engine->outputs(batch);
    double sum = 0;
    for (std::size_t row = 0; row < logits.size() / 256; ++row) {
      double total = 0;
      for (std::size_t i = 0; i < 256; ++i) total += std::exp(static_cast<double>(logits[row * 256 + i]));
      sum += std::pow(std::log(total), 2.0);
    }
    return sum / static_cast<double>(logits.size() / 256);
  };
  // Along the difference of the two gradients.
  std::vector<double> difference(layout.parameters);
  double length = 0;
  for (std::size_t i = 0; i < layout.parameters; ++i) {
    difference[i] = engine->gradient()[i] - plain->gradient()[i];
    length += difference[i] * difference[i];
  }
  const std::vector<float> start(engine->parameters().begin(), engine->parameters().end());
  const double step = 1e-2 / std::sqrt(length);
  double sides[2];
  for (const int side : {0, 1}) {
    for (std::size_t i = 0; i < layout.parameters; ++i)
      engine->parameters()[i] = start[i] + static_cast<float>((side == 0 ? -step : step) * difference[i]);
    sides[side] = z();
  }
  CHECK(0.5 * (sides[1] - sides[0]) / (2 * step) == Approx(length).epsilon(0.01));
}

TEST_CASE("tokens that do not count have no part in loss, gradient and counts") {
  const Case& c = kCases[8];
  const ModelLayout layout = layout_of(c);
  EngineOptions options;
  options.z_loss = 0.1;
  options.accumulate = 2;
  const auto engine = engine_of(c, layout, options);
  Batch batch = batch_for(c.examples, 2);
  const std::size_t length = c.examples.input_size;
  for (std::size_t row = 0; row < 2; ++row) {
    for (std::size_t i = 0; i < length; ++i) batch.labels.push_back(batch.tokens[row * (length + 1) + i + 1]);
  }
  batch.counted = 2 * length;
  CHECK(engine->terms(batch) == 2 * length);
  for (std::size_t i = 0; i < length; ++i) batch.labels[length + i] = kIgnored;  // the second row
  batch.counted = length;
  CHECK(engine->terms(batch) == length);
  const double loss = *engine->compute_gradient(batch);
  const std::vector<float> gradient(engine->gradient().begin(), engine->gradient().end());
  CHECK(engine->measure(batch)->counted == length);
  Batch first = batch_for(c.examples, 2);
  first.rows = 1;
  first.tokens.resize(length + 1);
  CHECK(*engine->compute_gradient(first) == Approx(loss));
  for (std::size_t i = 0; i < layout.parameters; ++i)
    REQUIRE(engine->gradient()[i] == Approx(gradient[i]).epsilon(1e-4).margin(1e-6));
}

TEST_CASE("a text is continued by the same tokens with its keys and values kept and without") {
  for (const Case& c : kCases) {
    if (c.examples.kind != ExampleShape::Kind::kText) continue;
    INFO(c.name);
    const ModelLayout layout = layout_of(c);
    const auto engine = engine_of(c, layout, 1);
    for (const double temperature : {0.0, 1.0}) {
      SamplingOptions options{{temperature, 40, 0.9, 7}, 12};  // beyond the context
      const auto kept =
          continue_tokens(*engine, c.examples.input_size, {65, 66}, options, [] { return Result<void>(); });
      options.cached = false;
      const auto anew =
          continue_tokens(*engine, c.examples.input_size, {65, 66}, options, [] { return Result<void>(); });
      REQUIRE(kept.ok());
      CHECK(kept->size() == 12);
      CHECK(*kept == *anew);
      options.end = kept->at(4);
      const auto ended =
          continue_tokens(*engine, c.examples.input_size, {65, 66}, options, [] { return Result<void>(); });
      CHECK(std::equal(ended->begin(), ended->end(), kept->begin()));
      CHECK(ended->size() <= 4);
    }
    const auto reader = engine->reader();
    const auto beyond = reader->read(std::vector<std::int64_t>(c.examples.input_size + 1, 65));
    REQUIRE_FALSE(beyond.ok());
    CHECK(beyond.error().code == Code::kOutOfRange);
  }
}

TEST_CASE("a device that is not there is refused") {
  const ModelLayout layout = layout_of(kCases[0]);
  EngineOptions options;
  options.device = "abacus";
  const auto engine = Engine::make(kCases[0].model, layout, kCases[0].examples, options);
  REQUIRE_FALSE(engine.ok());
  CHECK(engine.error().message.find("abacus") != std::string::npos);
}

TEST_CASE("softmax regression of one example is what a pencil finds") {
  const Case c{"", R"({"architecture":"linear","inputs":2,"outputs":2})", rows(2, 2)};
  const ModelLayout layout = layout_of(c);
  const auto engine = engine_of(c, layout, 1);
  std::fill(engine->parameters().begin(), engine->parameters().end(), 0.0f);
  Batch batch;
  batch.rows = 1;
  batch.inputs = {1, 2};
  batch.labels = {1};
  CHECK(*engine->compute_gradient(batch) == Approx(std::log(2.0)));
  // p = (½, ½); dL/dlogits = p − onehot = (½, −½); the weight's gradient is its product with x.
  const std::vector<float> expected{0.5f, 1.0f, -0.5f, -1.0f, 0.5f, -0.5f};
  CHECK(std::vector<float>(engine->gradient().begin(), engine->gradient().end()) == expected);
  engine->parameters()[5] = 1;  // the bias of the right class
  CHECK(engine->measure(batch)->correct == 1);
  batch.labels = {0};
  CHECK(engine->measure(batch)->correct == 0);
}

TEST_CASE("mean squared error is the mean over the rows") {
  const Case c{"", R"({"architecture":"linear","inputs":1,"outputs":1})", rows(1, 0)};
  const ModelLayout layout = layout_of(c);
  const auto engine = engine_of(c, layout, 1);
  engine->parameters()[0] = 2;  // y = 2x
  engine->parameters()[1] = 0;
  Batch batch;
  batch.rows = 2;
  batch.inputs = {1, 2};
  batch.targets = {0, 3};
  CHECK(*engine->compute_gradient(batch) == Approx(2.5));  // errors 2 and 1
  CHECK(engine->gradient()[0] == Approx(4.0));             // mean of 2·2·1 and 2·1·2
  CHECK(engine->gradient()[1] == Approx(3.0));
}

TEST_CASE("examples that do not fit the model are refused with both sides of the disagreement") {
  const auto refusal = [](const char* model, const ExampleShape& examples,
                          std::optional<LossKind> loss = std::nullopt) {
    const auto layout = build_layout(nlohmann::json::parse(model));
    REQUIRE(layout.ok());
    EngineOptions options;
    options.loss = loss;
    const auto engine = Engine::make(model, *layout, examples, options);
    REQUIRE_FALSE(engine.ok());
    CHECK(engine.error().code == Code::kInvalidArgument);
    return engine.error().message;
  };
  const char* linear = R"({"architecture":"linear","inputs":4,"outputs":3})";
  CHECK(refusal(linear, rows(5, 3)).find("4 inputs but the data set has 5 values") != std::string::npos);
  CHECK(refusal(linear, rows(4, 7)).find("3 classes but the data set has 7") != std::string::npos);
  CHECK(refusal(linear, rows(4, 0)).find("numbers as labels") != std::string::npos);
  CHECK(refusal(linear, text(4)).find("text") != std::string::npos);
  CHECK(refusal(R"({"architecture":"cnn"})", rows(784, 10)).find("rows of a table") != std::string::npos);
  CHECK(refusal(R"({"architecture":"cnn"})", images(3, 28, 10)).find("[1, 28, 28]") != std::string::npos);
  CHECK(refusal(R"({"architecture":"transformer","vocabulary":100})", text(128)).find("100 tokens") !=
        std::string::npos);
  CHECK(refusal(R"({"architecture":"transformer"})", text(128), LossKind::kMse).find("mse") != std::string::npos);
}

TEST_CASE("a damaged batch is an error, not the end of the process") {
  const Case& c = kCases[0];
  const ModelLayout layout = layout_of(c);
  const auto engine = engine_of(c, layout, 1);
  Batch batch = batch_for(c.examples, 2);
  batch.labels = {0, 99};
  const auto loss = engine->compute_gradient(batch);
  REQUIRE_FALSE(loss.ok());
  CHECK(loss.error().code == Code::kInternal);
  batch.labels = {0, 1};
  CHECK(engine->compute_gradient(batch).ok());
}
