// Fragments that travel while training goes on, against the same steps calculated here in a straightforward way.
#include <cmath>

#include <catch2/catch.hpp>

#include "client/trainer/example_order.h"
#include "common/model/initialise.h"
#include "tests/integration/trainer/trainer_process.h"

using namespace skerry;
using namespace skerry::test;

namespace {

// `linear` with 2 inputs and 1 output under mean squared error, batch 1, rate 0.1: fragment f0 is the weight, f1 the
// bias.
struct Straightforward {
  float weight[2] = {};
  float bias = 0;

  void step(const std::vector<float>& x, float y) {
    const float error = x[0] * weight[0] + x[1] * weight[1] + bias - y;
    weight[0] -= 0.1f * 2 * error * x[0];
    weight[1] -= 0.1f * 2 * error * x[1];
    bias -= 0.1f * 2 * error;
  }
};

struct Overlap {
  World world;
  TrainerProcess trainer = TrainerProcess::shipped();
  Straightforward model;
  std::vector<std::vector<float>> inputs;
  std::vector<float> targets;
  trainer::ExampleOrder order{9, 32, 1};

  Overlap() {
    json open = world.open({{"learning_rate", 0.1}, {"batch", 1}}, {{"outputs", 1}, {"fragments", 2}});
    open["data"]["schema"]["classes"] = 0;
    REQUIRE(trainer.ask(open)["type"] == "opened");
    for (int i = 0; i < 32; ++i) {  // the table of World, as its text rounds it
      const double a = (i * 7 % 20) / 10.0 - 1;
      const double b = (i * 3 % 19) / 9.0 - 1;
      inputs.push_back({std::stof(std::to_string(a)), std::stof(std::to_string(b))});
      targets.push_back(a > b ? 1.0f : 0.0f);
    }
    REQUIRE(world.layout().fragments.size() == 2);
    REQUIRE(world.layout().fragments[0].elements == 2);
    put_fragment(world.work("w"), world.layout(), {0.5f, -0.25f}, "f0");
    put_fragment(world.work("b"), world.layout(), {0.125f}, "f1");
    model = {{0.5f, -0.25f}, 0.125f};
  }

  void steps(int count) {
    for (int i = 0; i < count; ++i) {
      const std::uint64_t row = order.next(1).numbers[0];
      model.step(inputs[row], targets[row]);
    }
  }

  json task(const json& emit, const json& merge) {
    return {
        {"type", "train"},
        {"task", "t"},
        {"seed", 9},
        {"steps", 20},
        {"emit", emit},
        {"merge", merge},
        {"read",
         {{"f0", {{"path", world.work("w")}, {"version", 3}}}, {"f1", {{"path", world.work("b")}, {"version", 3}}}}},
        {"write", {{"f0", world.work("w-out")}, {"f1", world.work("b-out")}}}};
  }

  void deliver(const std::vector<float>& weight) {
    put_fragment(world.work("w-4"), world.layout(), weight, "f0");
    trainer.send({{"type", "merge"},
                  {"fragment", "f0"},
                  {"path", world.work("w-4")},
                  {"version", 4},
                  {"base", 3},
                  {"base_path", world.work("w-base")}});
  }

  void check_weight(const std::string& file) {
    const auto values = fragment_values(world.work(file), world.layout(), "f0");
    CHECK(values[0] == Approx(model.weight[0]).margin(1e-5));
    CHECK(values[1] == Approx(model.weight[1]).margin(1e-5));
  }

  void check_result() {
    check_weight("w-out");
    CHECK(fragment_values(world.work("b-out"), world.layout(), "f1")[0] == Approx(model.bias).margin(1e-5));
  }
};

}  // namespace

TEST_CASE("a fragment emitted at step 5 and merged at step 12 by each rule, waiting for it") {
  Overlap overlap;
  const std::string rule = GENERATE("replace", "lerp", "eager");
  INFO(rule);
  const json emit = {{{"fragment", "f0"}, {"at_step", 5}, {"path", overlap.world.work("w-5")}}};
  const json merge = {{{"fragment", "f0"}, {"at_step", 12}, {"rule", rule}, {"alpha", 0.25}, {"on_late", "block"}}};
  overlap.trainer.send(overlap.task(emit, merge));
  const json emitted = overlap.trainer.next();
  CHECK(
      emitted ==
      json(
          {{"type", "fragment"}, {"task", "t"}, {"fragment", "f0"}, {"step", 5}, {"path", overlap.world.work("w-5")}}));
  overlap.steps(5);
  overlap.check_weight("w-5");
  const Straightforward at_emit = overlap.model;

  overlap.deliver({2.0f, -3.0f});
  CHECK(overlap.trainer.next() == json({{"type", "merged"},
                                        {"task", "t"},
                                        {"fragment", "f0"},
                                        {"version", 4},
                                        {"step", 12},
                                        {"base_path", overlap.world.work("w-base")}}));
  overlap.steps(7);
  const float merged[2] = {2.0f, -3.0f};
  for (int i = 0; i < 2; ++i) {
    float& own = overlap.model.weight[i];
    if (rule == "replace") own = merged[i];
    if (rule == "lerp") own = 0.25f * own + 0.75f * merged[i];
    if (rule == "eager") own = merged[i] + (own - at_emit.weight[i]);
  }
  overlap.check_weight("w-base");
  overlap.steps(8);
  CHECK(overlap.trainer.next()["type"] == "done");
  overlap.check_result();
}

TEST_CASE("a merge that blocks does not depend on when it comes; cancel and checkpoint are heard meanwhile") {
  Overlap overlap;
  const json merge = {{{"fragment", "f0"}, {"at_step", 12}, {"rule", "replace"}, {"on_late", "block"}}};
  overlap.trainer.send(overlap.task(json::array(), merge));
  CHECK(overlap.trainer.ask({{"type", "checkpoint"}})["type"] == "checkpointed");
  CHECK(overlap.trainer.ask({{"type", "cancel"}, {"task", "t"}})["type"] == "cancelled");
  overlap.deliver({1.0f, 1.0f});  // this one comes before its task has begun
  CHECK(overlap.trainer.ask({{"type", "dance"}})["type"] == "error");
  json line = overlap.task(json::array(), merge);
  line["read"].erase("f0");
  line["read"]["f0"] = {{"path", overlap.world.work("w")}, {"version", 3}};
  // A fragment that is read anew is not merged with what came for the one before.
  overlap.trainer.send(line);
  overlap.deliver({2.0f, -3.0f});
  CHECK(overlap.trainer.next()["type"] == "merged");
  overlap.steps(12);
  overlap.model.weight[0] = 2.0f;
  overlap.model.weight[1] = -3.0f;
  overlap.steps(8);
  CHECK(overlap.trainer.next()["type"] == "done");
  overlap.check_result();
}

TEST_CASE("a merge on arrival does not hold the training up, and comes at the first boundary after it is there") {
  Overlap overlap;
  const json merge = {{{"fragment", "f0"}, {"at_step", 2}, {"rule", "replace"}, {"on_late", "on-arrival"}}};
  SECTION("it never comes") {
    CHECK(overlap.trainer.ask(overlap.task(json::array(), merge))["type"] == "done");
    overlap.steps(20);
    overlap.check_result();
  }
  SECTION("it comes late") {
    json line = overlap.task(json::array(), merge);
    line["steps"] = 200'000'000;
    line["progress_ms"] = 1;
    overlap.trainer.send(line);
    json progress = overlap.trainer.next();
    while (progress["step"] <= 2) progress = overlap.trainer.next();
    REQUIRE(progress["type"] == "progress");
    overlap.deliver({2.0f, -3.0f});
    json merged = overlap.trainer.next();
    while (merged["type"] == "progress") merged = overlap.trainer.next();
    CHECK(merged["type"] == "merged");
    CHECK(merged["step"] > 2);
    const auto base = fragment_values(overlap.world.work("w-base"), overlap.world.layout(), "f0");
    CHECK(base == std::vector<float>{2.0f, -3.0f});
    CHECK(overlap.trainer.ask({{"type", "cancel"}, {"task", "t"}})["type"] == "cancelled");
  }
}

TEST_CASE("a trainer killed while it waits for a merge goes on there") {
  Overlap overlap;
  const json emit = {{{"fragment", "f0"}, {"at_step", 5}, {"path", overlap.world.work("w-5")}}};
  const json merge = {{{"fragment", "f0"}, {"at_step", 12}, {"rule", "eager"}, {"on_late", "block"}}};
  const json line = overlap.task(emit, merge);
  json open = overlap.world.open({{"learning_rate", 0.1}, {"batch", 1}}, {{"outputs", 1}, {"fragments", 2}});
  open["data"]["schema"]["classes"] = 0;
  overlap.trainer.send(line);
  CHECK(overlap.trainer.next()["type"] == "fragment");
  json answer = overlap.trainer.ask({{"type", "checkpoint"}});
  while (answer["step"] != 12) answer = overlap.trainer.ask({{"type", "checkpoint"}});
  overlap.trainer.kill();
  overlap.trainer = TrainerProcess::shipped();
  CHECK(overlap.trainer.ask(open)["resumed_step"] == 12);
  CHECK(overlap.trainer.ask(line)["type"] == "fragment");  // said again: its first hearer may be gone
  overlap.steps(5);
  const Straightforward at_emit = overlap.model;
  overlap.steps(7);
  overlap.deliver({2.0f, -3.0f});
  CHECK(overlap.trainer.next()["type"] == "merged");
  overlap.model.weight[0] = 2.0f + (overlap.model.weight[0] - at_emit.weight[0]);
  overlap.model.weight[1] = -3.0f + (overlap.model.weight[1] - at_emit.weight[1]);
  overlap.steps(8);
  CHECK(overlap.trainer.next()["type"] == "done");
  overlap.check_result();
}

TEST_CASE("plans that cannot be kept are refused before the first step") {
  Overlap overlap;
  const auto refused = [&](const json& emit, const json& merge, const std::string& code) {
    const json answer = overlap.trainer.ask(overlap.task(emit, merge));
    CHECK(answer["type"] == "error");
    CHECK(answer["code"] == code);
  };
  const json none = json::array();
  refused({{{"fragment", "f9"}, {"at_step", 1}, {"path", "/x"}}}, none, "NOT_FOUND");
  refused({{{"fragment", "f0"}, {"at_step", 21}, {"path", "/x"}}}, none, "INVALID_ARGUMENT");
  refused(none, {{{"fragment", "f0"}, {"at_step", 21}}}, "INVALID_ARGUMENT");
  CHECK(overlap.trainer.ask({{"type", "merge"}, {"fragment", "f9"}, {"path", "/x"}})["code"] == "NOT_FOUND");
  overlap.deliver({1.0f, 1.0f});
  json eager = overlap.task(none, {{{"fragment", "f0"}, {"at_step", 0}, {"rule", "eager"}}});
  eager["read"].erase("f0");
  CHECK(overlap.trainer.ask(eager)["code"] == "FAILED_PRECONDITION");
}
