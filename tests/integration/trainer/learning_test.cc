// Real images: the loss falls and the network learns, at the speed that federated runs are planned with.
#include <cstdlib>

#include <catch2/catch.hpp>

#include "common/os/files.h"
#include "tests/integration/trainer/trainer_process.h"

using namespace skerry;
using namespace skerry::test;

TEST_CASE("a small CNN learns MNIST's digits from 9,000 of them, with one thread and with two") {
  const char* data = std::getenv("SKERRY_DATA");
  const std::string path = std::string(data != nullptr ? data : "") + "/mnist";
  if (!path_exists(path)) {
    WARN("no MNIST below SKERRY_DATA: not tested");
    return;
  }
  World world;
  json open = world.open({{"learning_rate", 0.05}, {"batch", 10}});
  open["threads"] = GENERATE(1, 2);
  open["model"] = {{"architecture", "cnn"}, {"channels", {8, 16}}, {"hidden", 64}};
  open["data"] = {{"kind", "idx"},
                  {"path", path},
                  {"schema", {{"shape", {1, 28, 28}}, {"classes", 10}}},
                  {"splits", {{"train", {{"from", 0.0}, {"to", 0.9}}}, {"holdout", {{"from", 0.9}, {"to", 1.0}}}}}};
  TrainerProcess trainer = TrainerProcess::shipped();
  CHECK(trainer.ask(open)["examples"] == json({{"train", 9000}, {"holdout", 1000}}));
  const json before = trainer.ask({{"type", "evaluate"}, {"task", "e"}, {"split", "holdout"}})["metrics"];
  CHECK(before["accuracy"] < 0.3);
  const json trained = trainer.ask({{"type", "train"}, {"task", "t"}, {"epochs", 1}, {"seed", 1}});
  CHECK(trained["examples"] == 9000);
  CHECK(trained["steps"] == 900);
  const json after = trainer.ask({{"type", "evaluate"}, {"task", "e"}, {"split", "holdout"}})["metrics"];
  CHECK(after["loss"] < 0.3);
  CHECK(after["accuracy"] > 0.92);
}
