// Text with a tokenizer, and a trainer that is killed at any step of it.
#include <catch2/catch.hpp>

#include <cmath>

#include "client/trainer/tokenizer_training.h"
#include "common/os/files.h"
#include "tests/integration/trainer/trainer_process.h"

using namespace skerry;
using namespace skerry::test;

namespace {

const std::string kSentence = "the island and the sea, the boat and the bell. ";

/// Documents of different lengths, as JSON lines and as files, and a tokenizer for them.
struct Texts {
  World world;
  std::string lines = world.path() + "/lines.jsonl";
  std::string model = world.path() + "/tokenizer.model";

  Texts() {
    std::string text, all;
    for (int i = 1; i <= 80; ++i) {
      std::string document;
      for (int k = 0; k <= i * 5 % 7; ++k) document += kSentence.substr(0, static_cast<std::size_t>(10 + i * k % 30));
      all += document + "\n";
      text += json{{"text", document}}.dump() + "\n";
    }
    REQUIRE(write_file_atomic(lines, text).ok());
    const std::string_view documents[] = {all};
    REQUIRE(write_file_atomic(model, trainer::train_tokenizer(documents, {290, true}).value()).ok());
  }

  json open(const std::string& tokenizer, const std::string& packing, const json& more = json::object()) {
    json training = {{"optimizer", "adamw"}, {"learning_rate", 0.01}, {"clip_norm", 1.0},
                     {"schedule", "cosine"}, {"schedule_steps", 200}, {"warmup_steps", 5}};
    training.update(more);
    json line = world.open(training);
    line["model"] = {{"architecture", "transformer"},
                     {"layers", 1},
                     {"width", 16},
                     {"heads", 2},
                     {"kv_heads", 1},
                     {"context", 16},
                     {"vocabulary", 290}};
    line["data"] = {{"kind", "jsonl"},
                    {"path", lines},
                    {"schema", {{"field", "text"}}},
                    {"packing", packing},
                    {"splits", {{"train", {{"from", 0.0}, {"to", 0.8}}}, {"holdout", {{"from", 0.8}, {"to", 1.0}}}}}};
    if (!tokenizer.empty()) line["data"]["tokenizer"] = tokenizer;
    line["checkpoint_ms"] = 1;
    return line;
  }

  json train(int number, int steps) {
    return {{"type", "train"},
            {"task", "t-" + std::to_string(number)},
            {"steps", steps},
            {"seed", number},
            {"first_step", (number - 1) * steps},
            {"progress_ms", 1},
            {"write", {{"all", world.work("out-" + std::to_string(number))}}}};
  }

  std::string result(int number) { return read_file(world.work("out-" + std::to_string(number)), 1 << 26).value(); }
};

constexpr int kTasks = 2, kSteps = 60;

/// Without what depends on the machine's speed.
json lasting(json answer) {
  for (const char* name : {"tokens_per_second", "peak_share"})
    if (answer.contains("metrics")) answer["metrics"].erase(name);
  return answer;
}

/// Does the tasks with a trainer that is killed again and again, each time a few steps further on; how often.
int train_and_kill(Texts& texts, const json& open, std::vector<json>& answers) {
  std::optional<TrainerProcess> trainer(TrainerProcess::shipped());
  trainer->ask(open);
  int kills = 0;
  for (int number = 1; number <= kTasks; ++number) {
    std::int64_t next_kill = 7;
    trainer->send(texts.train(number, kSteps));
    for (;;) {
      const json line = trainer->next();
      REQUIRE(line.is_object());
      if (line["type"] == "done") {
        answers.push_back(lasting(line));
        break;
      }
      REQUIRE(line["type"] == "progress");
      if (line["step"].get<std::int64_t>() < next_kill || next_kill >= kSteps) continue;
      trainer->kill();
      ++kills;
      next_kill += 13;
      trainer.emplace(TrainerProcess::shipped());
      REQUIRE(trainer->ask(open)["type"] == "opened");
      trainer->send(texts.train(number, kSteps));
    }
  }
  return kills;
}

}  // namespace

TEST_CASE("a trainer killed at any step goes on from its last checkpoint to the same bytes, whatever its text is") {
  for (const bool tokenized : {false, true}) {
    for (const char* packing : {"stream", "documents"}) {
      Texts calm;
      const json open = calm.open(tokenized ? calm.model : "", packing);
      TrainerProcess trainer = TrainerProcess::shipped();
      REQUIRE(trainer.ask(open)["type"] == "opened");
      std::vector<json> expected;
      for (int number = 1; number <= kTasks; ++number)
        expected.push_back(lasting(trainer.ask(calm.train(number, kSteps))));

      Texts killed;
      std::vector<json> answers;
      CHECK(train_and_kill(killed, killed.open(tokenized ? killed.model : "", packing), answers) >= 4);
      CHECK(answers == expected);
      for (int number = 1; number <= kTasks; ++number) CHECK(killed.result(number) == calm.result(number));
    }
  }
}

TEST_CASE("with accumulated micro-batches and one order over the run it does, too") {
  const json more = {{"accumulate", 4}, {"order", "run"}};
  Texts calm;
  TrainerProcess trainer = TrainerProcess::shipped();
  REQUIRE(trainer.ask(calm.open(calm.model, "documents", more))["type"] == "opened");
  std::vector<json> expected, answers;
  for (int number = 1; number <= kTasks; ++number) expected.push_back(lasting(trainer.ask(calm.train(number, kSteps))));
  Texts killed;
  CHECK(train_and_kill(killed, killed.open(killed.model, "documents", more), answers) >= 4);
  CHECK(answers == expected);
  CHECK(killed.result(kTasks) == calm.result(kTasks));
}

TEST_CASE("with one order over the run two tasks see what one of their length sees") {
  const json more = {{"order", "run"}, {"schedule", "constant"}, {"schedule_steps", 0}, {"warmup_steps", 0}};
  std::string results[2];
  for (const int tasks : {1, 2}) {
    Texts texts;
    TrainerProcess trainer = TrainerProcess::shipped();
    REQUIRE(trainer.ask(texts.open(texts.model, "stream", more))["type"] == "opened");
    for (int number = 1; number <= tasks; ++number) {
      // A task that is cancelled takes nothing out of the order.
      trainer.send(texts.train(99, 1'000'000));
      while (trainer.next()["step"] < 3) {
      }
      REQUIRE(trainer.ask({{"type", "cancel"}, {"task", "t-99"}})["type"] == "cancelled");
      REQUIRE(trainer.ask(texts.train(number, 120 / tasks))["type"] == "done");
    }
    results[tasks - 1] = texts.result(tasks);
  }
  CHECK(results[0] == results[1]);
}

TEST_CASE("a torn checkpoint in a task's middle costs the steps since the one before it, and no bytes") {
  constexpr int kLong = 2000;
  Texts calm;
  TrainerProcess trainer = TrainerProcess::shipped();
  trainer.ask(calm.open(calm.model, "stream"));
  const json expected = lasting(trainer.ask(calm.train(1, kLong)));

  Texts killed;
  const std::string middle = killed.world.path() + "/state/task.safetensors";
  {
    TrainerProcess first = TrainerProcess::shipped();
    first.ask(killed.open(killed.model, "stream"));
    first.send(killed.train(1, kLong));
    while (first.next()["type"] == "progress" && !path_exists(middle + ".previous")) {
    }
    first.kill();
  }
  REQUIRE(path_exists(middle));
  REQUIRE(path_exists(middle + ".previous"));
  std::string torn = read_file(middle, 1 << 26).value();
  torn[torn.size() - 9] ^= 4;
  REQUIRE(write_file_atomic(middle, torn).ok());
  TrainerProcess second = TrainerProcess::shipped();
  CHECK(second.ask(killed.open(killed.model, "stream"))["resumed_step"] > 0);
  CHECK(lasting(second.ask(killed.train(1, kLong))) == expected);
  CHECK(killed.result(1) == calm.result(1));
  second.ask({{"type", "checkpoint"}});  // by its answer the task is tidied up
  CHECK_FALSE(path_exists(middle));
  CHECK_FALSE(path_exists(middle + ".previous"));
}

TEST_CASE("an evaluation says nats per token, and nats and bits per byte of the text they stand for") {
  Texts texts;
  TrainerProcess trainer = TrainerProcess::shipped();
  const json opened = trainer.ask(texts.open(texts.model, "documents"));
  REQUIRE(opened["type"] == "opened");
  REQUIRE(trainer.ask(texts.train(1, 150))["type"] == "done");
  const json answer = trainer.ask({{"type", "evaluate"}, {"task", "e"}, {"split", "holdout"}});
  REQUIRE(answer["type"] == "done");
  const json& metrics = answer["metrics"];
  const double loss = metrics["loss"], nats = metrics["nats_per_byte"], bits = metrics["bits_per_byte"];
  CHECK(bits == Approx(nats / std::log(2.0)));
  CHECK(metrics["perplexity"].get<double>() == Approx(std::exp(loss)));
  CHECK(nats < loss);  // a token stands for more than a byte
  CHECK(loss < std::log(290.0) / 2);
  // Only what is predicted counts, not the windows' padding.
  CHECK(answer["tokens"].get<std::uint64_t>() < answer["examples"].get<std::uint64_t>() * 16);
}

TEST_CASE("a model whose vocabulary is smaller than the tokenizer's is refused at the opening") {
  Texts texts;
  json open = texts.open(texts.model, "stream");
  open["model"]["vocabulary"] = 289;
  TrainerProcess trainer = TrainerProcess::shipped();
  const json answer = trainer.ask(open);
  CHECK(answer["type"] == "error");
  CHECK(answer["code"] == "INVALID_ARGUMENT");
}
