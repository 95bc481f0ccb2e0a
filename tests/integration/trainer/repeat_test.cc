// The same seed gives the same bytes, and so does a trainer that was killed on the way.
#include <catch2/catch.hpp>

#include "common/os/files.h"
#include "tests/integration/trainer/trainer_process.h"

using namespace skerry;
using namespace skerry::test;

namespace {

std::string bytes_of(const std::string& path) {
  const auto content = read_file(path, 1 << 26);
  REQUIRE(content.ok());
  return *content;
}

const json kTraining = {{"optimizer", "adamw"},   {"learning_rate", 0.01}, {"schedule", "cosine"},
                        {"schedule_steps", 1000}, {"warmup_steps", 10},    {"clip_norm", 1.0}};
const json kModel = {{"architecture", "mlp"}, {"hidden", {16}}};

json task(const World& world, int number, int steps, const std::string& out, bool read_first) {
  json line = {{"type", "train"}, {"task", "t-" + std::to_string(number)}, {"steps", steps}, {"seed", number},
               {"first_step", 0}, {"write", {{"all", world.work(out)}}}};
  if (read_first) line["read"] = {{"all", {{"path", world.work("start")}, {"version", 0}}}};
  return line;
}

void make_start(const World& world, TrainerProcess& trainer) {
  REQUIRE(
      trainer.ask(
          {{"type", "initialise"}, {"task", "i"}, {"seed", 1}, {"write", {{"all", world.work("start")}}}})["type"] ==
      "done");
}

}  // namespace

TEST_CASE("the same seed gives the same bytes, another seed others") {
  std::vector<std::string> results;
  for (const int seed : {5, 5, 6}) {
    World world;
    TrainerProcess trainer = TrainerProcess::shipped();
    trainer.ask(world.open(kTraining, kModel));
    make_start(world, trainer);
    json line = task(world, 1, 30, "out", true);
    line["seed"] = seed;
    REQUIRE(trainer.ask(line)["type"] == "done");
    results.push_back(bytes_of(world.work("out")));
  }
  CHECK(results[0] == results[1]);
  CHECK(results[0] != results[2]);
}

TEST_CASE("a trainer killed between two tasks goes on from its checkpoint, bit for bit") {
  World whole;
  TrainerProcess calm = TrainerProcess::shipped();
  calm.ask(whole.open(kTraining, kModel));
  make_start(whole, calm);
  calm.ask(task(whole, 1, 20, "one", true));
  const json expected = calm.ask(task(whole, 2, 20, "two", false));

  World world;
  {
    TrainerProcess trainer = TrainerProcess::shipped();
    trainer.ask(world.open(kTraining, kModel));
    make_start(world, trainer);
    trainer.ask(task(world, 1, 20, "one", true));
    trainer.kill();
  }
  TrainerProcess trainer = TrainerProcess::shipped();
  CHECK(trainer.ask(world.open(kTraining, kModel))["resumed_step"] == 20);
  CHECK(trainer.ask(task(world, 2, 20, "two", false)) == expected);
  CHECK(bytes_of(world.work("one")) == bytes_of(whole.work("one")));
  CHECK(bytes_of(world.work("two")) == bytes_of(whole.work("two")));
}

TEST_CASE("a trainer killed in the middle of a task goes on from the checkpoint asked for there, bit for bit") {
  constexpr int kSteps = 20'000;
  World whole;
  TrainerProcess calm = TrainerProcess::shipped();
  calm.ask(whole.open(kTraining, kModel));
  make_start(whole, calm);
  calm.ask(task(whole, 1, 7, "one", true));
  const json expected = calm.ask(task(whole, 2, kSteps, "two", true));

  World world;
  std::int64_t at = 0;
  {
    TrainerProcess trainer = TrainerProcess::shipped();
    trainer.ask(world.open(kTraining, kModel));
    make_start(world, trainer);
    trainer.ask(task(world, 1, 7, "one", true));
    json line = task(world, 2, kSteps, "two", true);
    line["progress_ms"] = 1;
    trainer.send(line);
    REQUIRE(trainer.next()["type"] == "progress");
    const json answer = trainer.ask({{"type", "checkpoint"}});
    REQUIRE(answer["type"] == "checkpointed");
    at = answer["step"].get<std::int64_t>();
    CHECK(at > 7);
    REQUIRE(at < 7 + kSteps);
    trainer.kill();
  }
  TrainerProcess trainer = TrainerProcess::shipped();
  CHECK(trainer.ask(world.open(kTraining, kModel))["resumed_step"] == at);
  const json done = trainer.ask(task(world, 2, kSteps, "two", true));
  CHECK(done == expected);
  CHECK(bytes_of(world.work("two")) == bytes_of(whole.work("two")));
}

TEST_CASE("a checkpoint in the middle of a task does not touch the tasks after its cancellation") {
  World whole;
  TrainerProcess calm = TrainerProcess::shipped();
  calm.ask(whole.open(kTraining, kModel));
  make_start(whole, calm);
  calm.ask(task(whole, 1, 7, "one", true));
  calm.ask(task(whole, 3, 9, "three", false));

  World world;
  {
    TrainerProcess trainer = TrainerProcess::shipped();
    trainer.ask(world.open(kTraining, kModel));
    make_start(world, trainer);
    trainer.ask(task(world, 1, 7, "one", true));
    json line = task(world, 2, 100'000'000, "two", false);
    line["progress_ms"] = 1;
    trainer.send(line);
    REQUIRE(trainer.next()["type"] == "progress");
    REQUIRE(trainer.ask({{"type", "checkpoint"}})["type"] == "checkpointed");
    trainer.kill();
  }
  TrainerProcess trainer = TrainerProcess::shipped();
  trainer.ask(world.open(kTraining, kModel));
  trainer.ask(task(world, 3, 9, "three", false));  // the coordinator gave up task 2
  CHECK(bytes_of(world.work("three")) == bytes_of(whole.work("three")));
}

TEST_CASE("a task that ended just before the kill is answered again, not trained twice") {
  World world;
  json done;
  std::string bytes;
  {
    TrainerProcess trainer = TrainerProcess::shipped();
    trainer.ask(world.open(kTraining, kModel));
    make_start(world, trainer);
    done = trainer.ask(task(world, 1, 20, "out", true));
    bytes = bytes_of(world.work("out"));
    trainer.kill();
  }
  REQUIRE(remove_file(world.work("out")).ok());
  TrainerProcess trainer = TrainerProcess::shipped();
  trainer.ask(world.open(kTraining, kModel));
  CHECK(trainer.ask(task(world, 1, 20, "out", true)) == done);
  CHECK(bytes_of(world.work("out")) == bytes);
  CHECK(trainer.ask({{"type", "checkpoint"}})["step"] == 20);
}

TEST_CASE("a checkpoint that is damaged or of another model is left aside") {
  World world;
  {
    TrainerProcess trainer = TrainerProcess::shipped();
    trainer.ask(world.open(kTraining, kModel));
    trainer.ask(task(world, 1, 5, "out", false));
  }
  const std::string state = world.path() + "/state/state.safetensors";
  const std::string good = bytes_of(state);
  {
    TrainerProcess trainer = TrainerProcess::shipped();
    CHECK(trainer.ask(world.open(kTraining, {{"architecture", "mlp"}, {"hidden", {17}}}))["resumed_step"] == 0);
  }
  std::string torn = good;
  torn[torn.size() / 2] ^= 1;
  REQUIRE(write_file_atomic(state, torn).ok());
  TrainerProcess trainer = TrainerProcess::shipped();
  CHECK(trainer.ask(world.open(kTraining, kModel))["resumed_step"] == 0);
}

TEST_CASE("an optimizer's state is kept between tasks unless the spec says reset") {
  const auto twice = [](const char* state) {
    World world;
    json training = kTraining;
    training["optimizer_state"] = state;
    TrainerProcess trainer = TrainerProcess::shipped();
    trainer.ask(world.open(training, kModel));
    make_start(world, trainer);
    trainer.ask(task(world, 1, 10, "one", true));
    trainer.ask(task(world, 1, 10, "two", true));  // the same start, the same data
    return bytes_of(world.work("one")) == bytes_of(world.work("two"));
  };
  CHECK(twice("reset"));
  CHECK_FALSE(twice("keep"));
}

TEST_CASE("without a checkpoint asked for, none is written") {
  World world;
  TrainerProcess trainer = TrainerProcess::shipped();
  trainer.ask(world.open());
  json line = task(world, 1, 5, "out", false);
  line["checkpoint"] = false;
  trainer.ask(line);
  CHECK_FALSE(path_exists(world.path() + "/state/state.safetensors"));
}
