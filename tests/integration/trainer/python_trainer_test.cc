// The Python trainers keep the same contract, and the NumPy one takes the very steps that a pencil would.
#include <catch2/catch.hpp>

#include "common/os/files.h"
#include "tests/integration/trainer/trainer_process.h"

using namespace skerry;
using namespace skerry::test;

namespace {

void whole_run(const std::string& file, const json& model) {
  World world;
  const json open = world.open({{"momentum", 0.9}, {"nesterov", true}}, model);
  TrainerProcess trainer = TrainerProcess::python(file);
  CHECK(trainer.hello()["type"] == "hello");
  CHECK(trainer.hello()["protocol"] == 1);
  REQUIRE(trainer.ask(open) ==
          json({{"type", "opened"}, {"examples", {{"train", 32}, {"holdout", 8}}}, {"resumed_step", 0}}));
  const std::string start = world.work("start");
  CHECK(trainer.ask({{"type", "initialise"}, {"task", "i"}, {"seed", 1}, {"write", {{"all", start}}}})["type"] ==
        "done");
  fragment_values(start, world.layout());  // the names and shapes are the layout's
  const json read = {{"all", {{"path", start}, {"version", 0}}}};
  const json evaluate = {{"type", "evaluate"}, {"task", "e"}, {"read", read}, {"split", "train"}};
  const json before = trainer.ask(evaluate);
  CHECK(before["examples"] == 32);

  json train = {{"type", "train"},   {"task", "t-1"}, {"read", read}, {"write", {{"all", world.work("one")}}},
                {"steps", 30},       {"epochs", 0},   {"seed", 3},    {"first_step", 0},
                {"progress_ms", 500}};
  const json done = trainer.ask(train);
  CHECK(done["type"] == "done");
  CHECK(done["steps"] == 30);
  CHECK(done["examples"] == 240);
  const json after = trainer.ask({{"type", "evaluate"}, {"task", "e"}, {"split", "train"}});
  CHECK(after["metrics"]["loss"] < before["metrics"]["loss"]);
  CHECK(trainer.ask(evaluate)["metrics"] == before["metrics"]);
  CHECK(trainer.ask({{"type", "evaluate"}, {"task", "e"}, {"split", "train"}})["metrics"] == after["metrics"]);

  // Cancelled: as it was before. Killed: from its checkpoint, the same bytes.
  trainer.send({{"type", "train"}, {"task", "t-2"}, {"steps", 100'000'000}, {"seed", 1}, {"progress_ms", 1}});
  CHECK(trainer.next()["type"] == "progress");
  CHECK(trainer.ask({{"type", "cancel"}, {"task", "t-2"}}) == json({{"type", "cancelled"}, {"task", "t-2"}}));
  json next = {
      {"type", "train"},    {"task", "t-3"}, {"epochs", 1}, {"seed", 4}, {"write", {{"all", world.work("two")}}},
      {"checkpoint", false}};
  CHECK(trainer.ask(next)["examples"] == 32);
  trainer.kill();
  TrainerProcess again = TrainerProcess::python(file);
  CHECK(again.ask(open)["resumed_step"] == 30);
  next["write"]["all"] = world.work("two-again");
  CHECK(again.ask(next)["type"] == "done");
  CHECK(*read_file(world.work("two"), 1 << 20) == *read_file(world.work("two-again"), 1 << 20));

  again.send_text("nonsense\n");
  CHECK(again.next()["code"] == "INVALID_ARGUMENT");
  CHECK(again.ask({{"type", "dance"}})["fatal"] == false);
  CHECK(again.ask({{"type", "train"}, {"task", "t"}, {"steps", 1}, {"read", {{"all", {{"path", "/none"}}}}}})["code"] ==
        "NOT_FOUND");
  CHECK(again.ask({{"type", "checkpoint"}})["type"] == "checkpointed");
  again.close_input();
  const auto status = again.wait(5000);
  REQUIRE(status.has_value());
  CHECK(status->clean());
}

}  // namespace

TEST_CASE("the NumPy trainer keeps the protocol") {
  if (!python_has("numpy")) {
    WARN("Debian's Python has no NumPy (python3-numpy): not tested");
    return;
  }
  whole_run("numpy_trainer.py", json::object());
}

TEST_CASE("the PyTorch trainer keeps the protocol") {
  if (!python_has("torch")) {
    WARN("Debian's Python has no PyTorch (python3-torch): not tested");
    return;
  }
  whole_run("torch_trainer.py", json::object());
  whole_run("torch_trainer.py", {{"architecture", "mlp"}, {"hidden", {5, 4}}, {"activation", "tanh"}});
}

TEST_CASE("a full pass with one batch is the gradient of the whole split, in NumPy as in LibTorch") {
  if (!python_has("numpy")) {
    WARN("Debian's Python has no NumPy (python3-numpy): not tested");
    return;
  }
  std::vector<std::vector<float>> results;
  std::vector<TrainerProcess> trainers;
  trainers.push_back(TrainerProcess::python("numpy_trainer.py"));
  const char* programs = std::getenv("SKERRY_BIN");
  if (programs != nullptr && path_exists(join_path(programs, "skerry-trainer")))
    trainers.push_back(TrainerProcess::shipped());
  if (python_has("torch")) trainers.push_back(TrainerProcess::python("torch_trainer.py"));
  World world;
  for (TrainerProcess& trainer : trainers) {
    json open = world.open({{"batch", 32},
                            {"momentum", 0.5},
                            {"weight_decay", 0.01},
                            {"clip_norm", 0.3},
                            {"schedule", "cosine"},
                            {"schedule_steps", 10},
                            {"warmup_steps", 2}});
    open["state_dir"] = world.work("state-" + std::to_string(results.size()));
    REQUIRE(trainer.ask(open)["type"] == "opened");
    put_fragment(world.work("start"), world.layout(), {0.5f, -0.5f, 0.25f, 0.125f, 0.0f, 1.0f});
    const json done = trainer.ask({{"type", "train"},
                                   {"task", "t"},
                                   {"epochs", 6},
                                   {"seed", 1},
                                   {"first_step", 1},
                                   {"read", {{"all", {{"path", world.work("start")}, {"version", 0}}}}},
                                   {"write", {{"all", world.work("out")}}}});
    REQUIRE(done["type"] == "done");
    CHECK(done["steps"] == 6);
    results.push_back(fragment_values(world.work("out"), world.layout()));
  }
  for (const auto& result : results) {
    for (std::size_t i = 0; i < result.size(); ++i)
      CHECK(result[i] == Approx(results[0][i]).epsilon(1e-4).margin(1e-5));
  }
  CHECK(results[0][0] != 0.5f);
}

TEST_CASE("the NumPy trainer emits and merges fragments as the shipped one does") {
  const std::string rule = GENERATE("replace", "lerp", "eager");
  INFO(rule);
  const char* programs = std::getenv("SKERRY_BIN");
  if (!python_has("numpy") || programs == nullptr || !path_exists(join_path(programs, "skerry-trainer"))) {
    WARN("needs Debian's python3-numpy and skerry-trainer: not tested");
    return;
  }
  World world;
  std::vector<std::vector<float>> results;
  std::vector<TrainerProcess> trainers;
  trainers.push_back(TrainerProcess::shipped());
  trainers.push_back(TrainerProcess::python("numpy_trainer.py"));
  for (TrainerProcess& trainer : trainers) {
    const std::string name = std::to_string(results.size());
    json open = world.open({{"batch", 32}, {"momentum", 0.5}});
    open["state_dir"] = world.work("state-" + name);
    REQUIRE(trainer.ask(open)["type"] == "opened");
    put_fragment(world.work("start"), world.layout(), {0.5f, -0.5f, 0.25f, 0.125f, 0.0f, 1.0f});
    put_fragment(world.work("merged"), world.layout(), {1.0f, 0.5f, -0.25f, 0.5f, 0.5f, -1.0f});
    const auto emit = [&](int step, int exchange) {
      const std::string file = world.work(std::to_string(exchange) + "-" + name);
      return json{{"fragment", "all"}, {"exchange", exchange}, {"at_step", step}, {"path", file}, {"base_path", file + "-base"}};
    };
    json line = {{"type", "train"},
                 {"task", "t"},
                 {"steps", 6},
                 {"seed", 1},
                 {"read", {{"all", {{"path", world.work("start")}, {"version", 3}}}}},
                 {"emit", json::array({emit(2, 1), emit(6, 2)})},
                 {"merge", json::array({{{"fragment", "all"}, {"exchange", 1}, {"at_step", 4}, {"rule", rule}, {"alpha", 0.25}}})}};
    trainer.send(line);
    CHECK(trainer.next()["base"] == 3);
    trainer.send({{"type", "merge"}, {"fragment", "all"}, {"exchange", 1}, {"path", world.work("merged")}, {"version", 4}});
    CHECK(trainer.next()["step"] == 4);
    CHECK(trainer.next()["base"] == 4);
    CHECK(trainer.next()["type"] == "done");
    line["task"] = "u";
    line["after"] = "s";
    line["read"] = json::object();
    CHECK(trainer.ask(line)["code"] == "NOT_FOUND");
    std::vector<float> all;
    for (const char* file : {"1-", "2-"})
      for (const char* base : {"", "-base"})
        for (const float value : fragment_values(world.work(file + name + base), world.layout())) all.push_back(value);
    results.push_back(std::move(all));
  }
  for (std::size_t i = 0; i < results[0].size(); ++i) CHECK(results[1][i] == Approx(results[0][i]).epsilon(1e-4).margin(1e-5));
}

TEST_CASE("the NumPy trainer follows FedProx as the shipped one does") {
  const char* programs = std::getenv("SKERRY_BIN");
  if (!python_has("numpy") || programs == nullptr || !path_exists(join_path(programs, "skerry-trainer"))) {
    WARN("python3-numpy or skerry-trainer is missing: not tested");
    return;
  }
  std::vector<std::vector<float>> results;
  for (const bool python : {true, false}) {
    World world;
    TrainerProcess trainer = python ? TrainerProcess::python("numpy_trainer.py") : TrainerProcess::shipped();
    REQUIRE(trainer.ask(world.open({{"batch", 32}, {"proximal", 2.0}}))["type"] == "opened");
    put_fragment(world.work("start"), world.layout(), {0.5f, -0.5f, 0.25f, 0.125f, 0.0f, 1.0f});
    REQUIRE(trainer.ask({{"type", "train"},
                         {"task", "t"},
                         {"epochs", 6},
                         {"seed", 1},
                         {"read", {{"all", {{"path", world.work("start")}, {"version", 0}}}}},
                         {"write", {{"all", world.work("out")}}}})["type"] == "done");
    results.push_back(fragment_values(world.work("out"), world.layout()));
  }
  for (std::size_t i = 0; i < results[0].size(); ++i)
    CHECK(results[1][i] == Approx(results[0][i]).epsilon(1e-4).margin(1e-5));
}

TEST_CASE("a Python trainer refuses what it does not know or cannot follow") {
  if (!python_has("numpy")) {
    WARN("Debian's Python has no NumPy (python3-numpy): not tested");
    return;
  }
  const auto refusal = [](const json& training, const json& model) {
    World world;
    TrainerProcess trainer = TrainerProcess::python("numpy_trainer.py");
    const json answer = trainer.ask(world.open(training, model));
    CHECK(answer["fatal"] == true);
    return answer["message"].get<std::string>();
  };
  CHECK(refusal({{"proximality", 1}}, json::object()) == "training.proximality is not known to this trainer");
  CHECK(refusal({{"control_variates", true}}, {{"control", true}}) ==
        "training.control_variates is true, this trainer does not have it");
  CHECK(refusal(json::object(), {{"personal", {"bias"}}}) == "model.personal is [\"bias\"], this trainer does not have it");
}
