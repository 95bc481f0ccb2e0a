// The conversation of docs/trainer-protocol.md with the real skerry-trainer, and what it says to lines that are wrong.
#include <cmath>
#include <fstream>

#include <catch2/catch.hpp>

#include "common/os/files.h"
#include "tests/integration/trainer/trainer_process.h"
#include "tests/support/child.h"

using namespace skerry;
using namespace skerry::test;

TEST_CASE("a run from hello to close, as the protocol's page tells it") {
  World world;
  TrainerProcess trainer = TrainerProcess::shipped();
  CHECK(trainer.hello()["type"] == "hello");
  CHECK(trainer.hello()["protocol"] == 1);
  CHECK(trainer.hello()["architectures"] == json({"cnn", "linear", "mlp", "mpt", "resnet", "transformer"}));
  CHECK(trainer.hello()["warnings"].is_array());

  CHECK(trainer.ask(world.open()) ==
        json({{"type", "opened"}, {"examples", {{"train", 32}, {"holdout", 8}}}, {"resumed_step", 0}}));
  const std::string start = world.work("all-0.safetensors");
  CHECK(trainer.ask({{"type", "initialise"}, {"task", "t-0"}, {"seed", 1}, {"write", {{"all", start}}}}) ==
        json({{"type", "done"}, {"task", "t-0"}}));
  const json read = {{"all", {{"path", start}, {"version", 0}}}};

  const json before = trainer.ask({{"type", "evaluate"}, {"task", "t-1"}, {"read", read}, {"split", "holdout"}});
  CHECK(before["type"] == "done");
  CHECK(before["examples"] == 8);
  CHECK(before["tokens"] == 0);

  const std::string out = world.work("out.safetensors");
  const json trained = trainer.ask({{"type", "train"},
                                    {"task", "t-2"},
                                    {"read", read},
                                    {"write", {{"all", out}}},
                                    {"steps", 50},
                                    {"epochs", 0},
                                    {"seed", 3},
                                    {"first_step", 0},
                                    {"progress_ms", 500}});
  CHECK(trained["type"] == "done");
  CHECK(trained["task"] == "t-2");
  CHECK(trained["steps"] == 50);
  CHECK(trained["examples"] == 400);
  CHECK(trained["tokens"] == 0);
  CHECK(trained["metrics"]["train_loss"].get<double>() > 0);
  CHECK(fragment_values(out, world.layout()) != fragment_values(start, world.layout()));

  const json after = trainer.ask({{"type", "evaluate"}, {"task", "t-3"}, {"split", "holdout"}});
  CHECK(after["metrics"]["loss"] < before["metrics"]["loss"]);
  CHECK(after["metrics"]["accuracy"] >= 0.75);

  // An evaluation of other tensors leaves the training state alone.
  CHECK(trainer.ask({{"type", "evaluate"}, {"task", "t-4"}, {"read", read}, {"split", "holdout"}})["metrics"] ==
        before["metrics"]);
  CHECK(trainer.ask({{"type", "evaluate"}, {"task", "t-5"}, {"split", "holdout"}})["metrics"] == after["metrics"]);

  CHECK(trainer.ask({{"type", "checkpoint"}}) == json({{"type", "checkpointed"}, {"step", 50}}));
  trainer.send({{"type", "close"}});
  const auto status = trainer.wait(5000);
  REQUIRE(status.has_value());
  CHECK(status->clean());
}

TEST_CASE("epochs count passes over the training split, and a fraction of one is allowed") {
  World world;
  TrainerProcess trainer = TrainerProcess::shipped();
  trainer.ask(world.open({{"batch", 5}}));
  const json two = trainer.ask({{"type", "train"}, {"task", "a"}, {"epochs", 2}, {"seed", 1}});
  CHECK(two["examples"] == 64);
  CHECK(two["steps"] == 13);
  CHECK(trainer.ask({{"type", "train"}, {"task", "b"}, {"epochs", 0.5}, {"seed", 1}})["examples"] == 16);
  // A batch larger than the split reaches over several passes.
  TrainerProcess other = TrainerProcess::shipped();
  other.ask(world.open({{"batch", 100}}));
  CHECK(other.ask({{"type", "train"}, {"task", "c"}, {"steps", 1}, {"seed", 1}})["examples"] == 100);
}

TEST_CASE("a text model trains, evaluates to a perplexity and continues a prompt") {
  World world;
  REQUIRE(make_directories(world.path() + "/text").ok());
  std::string text;
  for (int i = 0; i < 400; ++i) text += "the island and the sea. ";
  REQUIRE(write_file_atomic(world.path() + "/text/a.txt", text).ok());
  json open = world.open({{"optimizer", "adamw"}, {"learning_rate", 0.01}, {"clip_norm", 1.0}});
  open["model"] = {
      {"architecture", "transformer"}, {"layers", 2}, {"width", 32}, {"heads", 4}, {"kv_heads", 2}, {"context", 32}};
  open["data"] = {{"kind", "text"},
                  {"path", world.path() + "/text"},
                  {"schema", {{"encoding", "bytes"}}},
                  {"splits", {{"train", {{"from", 0.0}, {"to", 0.9}}}, {"holdout", {{"from", 0.9}, {"to", 1.0}}}}}};
  TrainerProcess trainer = TrainerProcess::shipped();
  CHECK(trainer.ask(open)["examples"] == json({{"train", 269}, {"holdout", 29}}));
  const json before = trainer.ask({{"type", "evaluate"}, {"task", "e"}, {"split", "holdout"}})["metrics"];
  CHECK(before["perplexity"].get<double>() == Approx(std::exp(before["loss"].get<double>())));
  CHECK(before["perplexity"] > 100);
  const json trained = trainer.ask({{"type", "train"}, {"task", "t"}, {"steps", 120}, {"seed", 1}});
  CHECK(trained["tokens"] == 120 * 8 * 32);
  CHECK(trainer.ask({{"type", "evaluate"}, {"task", "e2"}, {"split", "holdout"}})["metrics"]["perplexity"] < 1.5);
  const json said =
      trainer.ask({{"type", "generate"}, {"task", "g"}, {"prompt", "the isl"}, {"tokens", 17}, {"temperature", 0}});
  CHECK(said["text"] == "the island and the sea. ");
  const json drawn = {{"type", "generate"}, {"task", "g2"},       {"prompt", "the "},
                      {"tokens", 40},       {"temperature", 1.5}, {"seed", 5}};
  CHECK(trainer.ask(drawn)["text"] == trainer.ask(drawn)["text"]);
}

TEST_CASE("every wrong line is an error with a code and a sentence, and the trainer goes on") {
  World world;
  TrainerProcess trainer = TrainerProcess::shipped();
  const auto refused = [&](const json& answer, const std::string& code, const std::string& part) {
    INFO(answer.dump());
    CHECK(answer["type"] == "error");
    CHECK(answer["code"] == code);
    CHECK(answer["fatal"] == false);
    CHECK(answer["message"].get<std::string>().find(part) != std::string::npos);
  };
  trainer.send_text("this is not JSON\n");
  refused(trainer.next(), "INVALID_ARGUMENT", "not a JSON object");
  trainer.send_text(std::string(100'000, '[') + "\n");
  refused(trainer.next(), "INVALID_ARGUMENT", "not a JSON object");
  trainer.send_text(std::string("{\"type\":\"\xFF\xFE\"}\n"));
  refused(trainer.next(), "INVALID_ARGUMENT", "not a JSON object");
  refused(trainer.ask({{"type", "dance"}}), "INVALID_ARGUMENT", "dance");
  refused(trainer.ask({{"type", "train"}, {"task", "t"}, {"steps", 1}}), "FAILED_PRECONDITION", "no run is open");
  REQUIRE(trainer.ask(world.open())["type"] == "opened");
  refused(trainer.ask(world.open()), "FAILED_PRECONDITION", "is open");
  const json missing = {{"all", {{"path", world.work("none")}, {"version", 1}}}};
  const json answer = trainer.ask({{"type", "train"}, {"task", "t-7"}, {"read", missing}, {"steps", 1}});
  refused(answer, "NOT_FOUND", "none");
  CHECK(answer["task"] == "t-7");
  refused(trainer.ask({{"type", "train"}, {"task", "t"}, {"steps", 1}, {"write", {{"f9", "/x"}}}}), "NOT_FOUND", "f9");
  refused(trainer.ask({{"type", "evaluate"}, {"task", "t"}, {"split", "test"}}), "NOT_FOUND", "holdout");
  refused(trainer.ask({{"type", "generate"}, {"task", "t"}}), "FAILED_PRECONDITION", "linear");
  refused(trainer.ask({{"type", "train"}, {"task", "t"}, {"steps", 1}, {"write", {{"all", "/does/not/exist"}}}}),
          "NOT_FOUND", "/does/not/exist");

  put_fragment(world.work("other"), *build_layout({{"architecture", "linear"}, {"inputs", 3}, {"outputs", 2}}),
               std::vector<float>(8, 0.0f));
  refused(trainer.ask({{"type", "evaluate"}, {"task", "t"}, {"read", {{"all", {{"path", world.work("other")}}}}}}),
          "INVALID_ARGUMENT", "weight");
  put_fragment(world.work("nan"), world.layout(), {0, 0, 0, std::nanf(""), 0, 0});
  refused(trainer.ask({{"type", "evaluate"}, {"task", "t"}, {"read", {{"all", {{"path", world.work("nan")}}}}}}),
          "INVALID_ARGUMENT", "not finite");
  REQUIRE(write_file_atomic(world.work("torn"), "{{{").ok());
  refused(trainer.ask(
              {{"type", "train"}, {"task", "t"}, {"steps", 1}, {"read", {{"all", {{"path", world.work("torn")}}}}}}),
          "INVALID_ARGUMENT", "torn");
  CHECK(trainer.ask({{"type", "train"}, {"task", "t"}, {"steps", 1}})["type"] == "done");
}

TEST_CASE("a run that cannot be opened ends the trainer with a fatal error") {
  World world;
  json open = world.open();
  SECTION("no data") { open["data"]["path"] = "/does/not/exist"; }
  SECTION("a wrong training section") { open["training"]["learning_rate"] = "fast"; }
  SECTION("data that do not fit") { open["model"]["inputs"] = 5; }
  SECTION("a line without its model") { open.erase("model"); }
  TrainerProcess trainer = TrainerProcess::shipped();
  const json answer = trainer.ask(open);
  CHECK(answer["type"] == "error");
  CHECK(answer["fatal"] == true);
  const auto status = trainer.wait(5000);
  REQUIRE(status.has_value());
  CHECK(status->code == 1);
}

TEST_CASE("a loss that is not finite fails the task, and the state before it is kept") {
  World world;
  TrainerProcess trainer = TrainerProcess::shipped();
  trainer.ask(world.open({{"learning_rate", 1e6}, {"loss", "mse"}}));
  const json before = trainer.ask({{"type", "evaluate"}, {"task", "e"}, {"split", "train"}});
  const json failed = trainer.ask({{"type", "train"}, {"task", "t"}, {"steps", 200}, {"seed", 1}});
  CHECK(failed["code"] == "FAILED_PRECONDITION");
  CHECK(failed["task"] == "t");
  CHECK(trainer.ask({{"type", "evaluate"}, {"task", "e"}, {"split", "train"}}) == before);
}

TEST_CASE("the end of stdin ends the trainer at once, also in the middle of a task") {
  World world;
  TrainerProcess trainer = TrainerProcess::shipped();
  trainer.ask(world.open());
  trainer.send({{"type", "train"}, {"task", "t"}, {"steps", 100'000'000}, {"progress_ms", 1}});
  CHECK(trainer.next()["type"] == "progress");
  trainer.close_input();
  const auto status = trainer.wait(5000);
  REQUIRE(status.has_value());
  CHECK(status->clean());
}

TEST_CASE("cancel ends a task between two steps and leaves the state as it was") {
  World world;
  TrainerProcess trainer = TrainerProcess::shipped();
  trainer.ask(world.open({{"optimizer", "adam"}, {"learning_rate", 0.01}}));
  trainer.ask({{"type", "train"}, {"task", "t-1"}, {"steps", 5}, {"seed", 1}});
  const json before = trainer.ask({{"type", "evaluate"}, {"task", "e"}, {"split", "train"}});
  trainer.send({{"type", "train"}, {"task", "t-2"}, {"steps", 100'000'000}, {"seed", 2}, {"progress_ms", 1}});
  CHECK(trainer.next()["type"] == "progress");
  CHECK(trainer.ask({{"type", "train"}, {"task", "t-3"}, {"steps", 1}})["code"] == "FAILED_PRECONDITION");
  trainer.send({{"type", "cancel"}, {"task", "t-of-long-ago"}});  // not the one that runs
  CHECK(trainer.ask({{"type", "cancel"}, {"task", "t-2"}}) == json({{"type", "cancelled"}, {"task", "t-2"}}));
  CHECK(trainer.ask({{"type", "evaluate"}, {"task", "e"}, {"split", "train"}}) == before);

  // The optimizer's state is back too: the next task's bytes are those of a trainer that was never cancelled.
  const json next = {
      {"type", "train"}, {"task", "t-4"}, {"steps", 5}, {"seed", 4}, {"write", {{"all", world.work("a")}}}};
  CHECK(trainer.ask(next)["type"] == "done");
  World other;
  TrainerProcess calm = TrainerProcess::shipped();
  calm.ask(other.open({{"optimizer", "adam"}, {"learning_rate", 0.01}}));
  calm.ask({{"type", "train"}, {"task", "t-1"}, {"steps", 5}, {"seed", 1}});
  json same = next;
  same["write"]["all"] = other.work("a");
  calm.ask(same);
  CHECK(*read_file(world.work("a"), 1 << 20) == *read_file(other.work("a"), 1 << 20));
}

TEST_CASE("the command line says what it is, and generates from a model's files") {
  const std::string trainer = program("skerry-trainer");
  CHECK(run_program({trainer, "--version"}).out == "skerry-trainer 0.1.0\n");
  CHECK(run_program({trainer, "--help"}).out.find("trainer protocol") != std::string::npos);
  CHECK(run_program({trainer, "--nonsense"}).status.code == 2);
  CHECK(run_program({trainer, "generate", "--tokens", "5"}).status.code == 2);
  CHECK(run_program({trainer, "generate", "--model-dir", "/does/not/exist"}).status.code == 1);
  const TempDir dir;
  const json model = {{"architecture", "transformer"}, {"layers", 1}, {"width", 8}, {"heads", 2}, {"context", 8}};
  const ModelLayout layout = *build_layout(model);
  REQUIRE(write_file_atomic(dir / "model.json", model.dump()).ok());
  put_fragment(dir / "all.safetensors", layout, std::vector<float>(layout.parameters, 0.5f));
  const Finished said = run_program(
      {trainer, "generate", "--model-dir", dir.path(), "--prompt", "ab", "--tokens", "3", "--temperature", "0"});
  CHECK(said.ok());
  CHECK(said.out == std::string("ab\0\0\0\n", 6));  // all logits equal: the first byte, 0
}
