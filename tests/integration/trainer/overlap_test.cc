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

  json emission(int at_step, int exchange) {
    const std::string file = world.work("w-" + std::to_string(at_step));
    return {{"fragment", "f0"}, {"at_step", at_step}, {"exchange", exchange}, {"path", file}, {"base_path", file + "-base"}};
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

  void deliver(const std::vector<float>& weight, int exchange = 7) {
    const std::string file = world.work("merged-" + std::to_string(exchange));
    put_fragment(file, world.layout(), weight, "f0");
    trainer.send({{"type", "merge"}, {"fragment", "f0"}, {"path", file}, {"version", 4}, {"exchange", exchange}});
  }

  std::vector<float> weight_of(const std::string& file) { return fragment_values(world.work(file), world.layout(), "f0"); }

  void check_weight(const std::string& file) {
    check_values(file, model.weight);
  }

  void check_values(const std::string& file, const float (&expected)[2]) {
    const auto values = weight_of(file);
    CHECK(values[0] == Approx(expected[0]).margin(1e-5));
    CHECK(values[1] == Approx(expected[1]).margin(1e-5));
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
  const json emit = {overlap.emission(5, 7), overlap.emission(20, 8)};
  const json merge = {
      {{"fragment", "f0"}, {"exchange", 7}, {"at_step", 12}, {"rule", rule}, {"alpha", 0.25}, {"on_late", "block"}}};
  overlap.trainer.send(overlap.task(emit, merge));
  CHECK(overlap.trainer.next() == json({{"type", "fragment"},
                                        {"task", "t"},
                                        {"fragment", "f0"},
                                        {"exchange", 7},
                                        {"step", 5},
                                        {"path", overlap.world.work("w-5")},
                                        {"base", 3}}));
  overlap.steps(5);
  overlap.check_weight("w-5");
  CHECK(overlap.weight_of("w-5-base") == std::vector<float>{0.5f, -0.25f});  // as it was read
  const Straightforward at_emit = overlap.model;

  overlap.deliver({2.0f, -3.0f});
  CHECK(overlap.trainer.next() == json({{"type", "merged"},
                                        {"task", "t"},
                                        {"fragment", "f0"},
                                        {"exchange", 7},
                                        {"version", 4},
                                        {"step", 12}}));
  overlap.steps(7);
  const float merged[2] = {2.0f, -3.0f};
  float base[2];
  for (int i = 0; i < 2; ++i) {
    float& own = overlap.model.weight[i];
    const float emitted = at_emit.weight[i];
    if (rule == "replace") base[i] = own = merged[i];
    if (rule == "lerp") own = 0.25f * own + 0.75f * merged[i];
    if (rule == "lerp") base[i] = 0.25f * emitted + 0.75f * merged[i];
    if (rule == "eager") own = merged[i] + 0.25f * (own - emitted);
    if (rule == "eager") base[i] = merged[i];
  }
  overlap.steps(8);
  const json again = overlap.trainer.next();
  CHECK(again["base"] == 4);
  overlap.check_weight("w-20");
  overlap.check_values("w-20-base", base);
  CHECK(overlap.trainer.next()["type"] == "done");
  overlap.check_result();
}

TEST_CASE("what is emitted and merged is remembered over tasks, cancels and evaluations") {
  Overlap overlap;
  json first = overlap.task(json::array({overlap.emission(20, 7)}), json::array());
  overlap.trainer.send(first);
  CHECK(overlap.trainer.next()["type"] == "fragment");
  CHECK(overlap.trainer.next()["type"] == "done");
  overlap.steps(20);
  const Straightforward at_emit = overlap.model;

  json second = overlap.task(json::array({overlap.emission(10, 8)}),
                             {{{"fragment", "f0"}, {"exchange", 7}, {"at_step", 3}, {"rule", "eager"}}});
  second["task"] = "u";
  second["after"] = "t";
  second["steps"] = 10;
  second["read"] = json::object();
  overlap.trainer.send(second);
  CHECK(overlap.trainer.ask({{"type", "cancel"}, {"task", "u"}})["type"] == "cancelled");
  overlap.deliver({9.0f, 9.0f});  // between two tasks: for a later one
  overlap.trainer.send(second);
  CHECK(overlap.trainer.next()["type"] == "merged");
  overlap.order = trainer::ExampleOrder(9, 32, 1);
  overlap.steps(3);
  for (int i = 0; i < 2; ++i) overlap.model.weight[i] = 9.0f + (overlap.model.weight[i] - at_emit.weight[i]);
  overlap.steps(7);
  CHECK(overlap.trainer.next()["type"] == "fragment");
  overlap.check_weight("w-10");
  CHECK(overlap.weight_of("w-10-base") == std::vector<float>{9.0f, 9.0f});
  CHECK(overlap.trainer.next()["type"] == "done");
}

TEST_CASE("a task that goes on from another than the one that ended last is refused unless it reads everything") {
  Overlap overlap;
  json line = overlap.task(json::array({overlap.emission(20, 7)}), json::array());
  line["after"] = "t-0";  // it reads everything
  overlap.trainer.send(line);
  CHECK(overlap.trainer.next()["type"] == "fragment");
  CHECK(overlap.trainer.next()["type"] == "done");
  line["task"] = "u";
  line["after"] = "s";
  line["read"].erase("f1");
  CHECK(overlap.trainer.ask(line)["code"] == "NOT_FOUND");
  line["after"] = "t";
  CHECK(overlap.trainer.ask(line)["type"] == "fragment");
}

TEST_CASE("a merge that blocks does not depend on when it comes; cancel and checkpoint are heard meanwhile") {
  Overlap overlap;
  const json merge = {
      {{"fragment", "f0"}, {"exchange", 7}, {"at_step", 12}, {"rule", "replace"}, {"on_late", "block"}}};
  overlap.trainer.send(overlap.task(json::array(), merge));
  CHECK(overlap.trainer.ask({{"type", "checkpoint"}})["type"] == "checkpointed");
  CHECK(overlap.trainer.ask({{"type", "cancel"}, {"task", "t"}})["type"] == "cancelled");
  overlap.deliver({1.0f, 1.0f}, 6);  // of another exchange
  CHECK(overlap.trainer.ask({{"type", "dance"}})["type"] == "error");
  json line = overlap.task(json::array(), merge);
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
  const json merge = {
      {{"fragment", "f0"}, {"exchange", 7}, {"at_step", 2}, {"rule", "replace"}, {"on_late", "on-arrival"}}};
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
    CHECK(overlap.trainer.ask({{"type", "cancel"}, {"task", "t"}})["type"] == "cancelled");
  }
}

TEST_CASE("a trainer killed while it waits for a merge goes on there") {
  Overlap overlap;
  const json emit = {overlap.emission(5, 7), overlap.emission(20, 8)};
  const json merge = {{{"fragment", "f0"}, {"exchange", 7}, {"at_step", 12}, {"rule", "eager"}, {"on_late", "block"}}};
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
  CHECK(overlap.trainer.next()["type"] == "fragment");
  CHECK(overlap.weight_of("w-20-base") == std::vector<float>{2.0f, -3.0f});
  const json done = overlap.trainer.next();
  CHECK(done["type"] == "done");
  overlap.check_result();

  // Its daemon did not hear the end: it is said again, files and all, as long as they are what was written.
  const std::string files[] = {overlap.world.work("w-5"), overlap.world.work("w-20-base")};
  SECTION("the files are there") {
    overlap.trainer.kill();
    overlap.trainer = TrainerProcess::shipped();
    CHECK(overlap.trainer.ask(open)["resumed_step"] == 20);
    overlap.trainer.send(line);
    CHECK(overlap.trainer.next()["exchange"] == 7);
    CHECK(overlap.trainer.next()["base"] == 4);
    CHECK(overlap.trainer.next() == done);
  }
  SECTION("one of them is not") {
    overlap.trainer.kill();
    put_fragment(GENERATE_COPY(files[0], files[1]), overlap.world.layout(), {0.0f, 1.0f}, "f0");
    overlap.trainer = TrainerProcess::shipped();
    CHECK(overlap.trainer.ask(open)["type"] == "opened");
    json said = overlap.trainer.ask(line);
    while (said["type"] == "fragment") said = overlap.trainer.next();
    CHECK(said["code"] == "NOT_FOUND");
  }
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
  json eager = overlap.task(none, {{{"fragment", "f0"}, {"exchange", 7}, {"at_step", 0}, {"rule", "eager"}}});
  eager["read"].erase("f0");
  CHECK(overlap.trainer.ask(eager)["code"] == "FAILED_PRECONDITION");
}
