// A federation whose run brings a tokenizer, and whose holders have text in different forms.
#include <catch2/catch.hpp>

#include "common/os/files.h"
#include "tests/support/federation.h"

namespace skerry::test {
namespace {

using nlohmann::json;

constexpr const char* kSentence = "the island and the sea, the boat and the bell, and the light over the water. ";

/// Text for a tokenizer and three holders, in a federation's directory.
struct Texts {
  std::string files, lines, tokens, model;

  explicit Texts(const std::string& directory)
      : files(directory + "/files"), lines(directory + "/lines.jsonl"), tokens(directory + "/all.tokens"), model(directory + "/text.model") {
    REQUIRE(make_directories(files).ok());
    std::string all;
    for (int i = 0; i < 60; ++i) {
      std::string text;
      for (int k = 0; k <= i % 5; ++k) text += std::string(kSentence).substr(0, static_cast<std::size_t>(20 + (i * 7 + k) % 57));
      REQUIRE(write_file_atomic(files + "/" + std::to_string(100 + i) + ".txt", text).ok());
      all += json{{"text", text}}.dump() + "\n";
    }
    REQUIRE(write_file_atomic(lines, all).ok());
    done({program("skerry-trainer"), "tokenizer", "train", "--input", files, "--vocabulary", "290", "--out", model});
    done({program("skerry-trainer"), "tokens", "--input", files, "--tokenizer", model, "--out", tokens});
  }

  static void done(std::vector<std::string> command) {
    const Finished finished = run_program(std::move(command));
    INFO(finished.err);
    REQUIRE(finished.ok());
  }
};

RunText run_of(const std::string& tokenizer, const std::string& packing) {
  RunText run;
  run.name = "letters";
  run.model = "architecture = \"transformer\"\nlayers = 1\nwidth = 16\nheads = 2\nkv_heads = 2\ncontext = 16\nvocabulary = 290\n";
  run.data = "kind = \"text\"\ntokenizer = \"" + tokenizer + "\"\npacking = \"" + packing + "\"\n";
  run.training = "optimizer = \"adamw\"\nlearning_rate = 0.01\nbatch = 8\nsteps = 10\n";
  run.participation = "start_nodes = 3\nquorum = 3\n";
  run.evaluation = "every = 1\n";
  run.rounds = 4;
  return run;
}

TEST_CASE("holders with files, JSON lines and token files train one model with the tokenizer that comes with the run") {
  Federation federation;
  const Texts texts(federation.directory().path());
  federation.add_node("alder", {.kind = "text", .path = texts.files, .holdout = 0.2});
  federation.add_node("birch", {.kind = "jsonl", .path = texts.lines, .holdout = 0.2});
  federation.add_node("cedar", {.kind = "tokens", .path = texts.tokens, .holdout = 0.2});
  const std::string id = federation.submit(run_of(texts.model, "documents"));  // the file is uploaded with it
  const json detail = federation.wait_for_status(id, "completed");
  for (const char* node : {"alder", "birch", "cedar"}) {
    CAPTURE(node);
    CHECK(Federation::number(Federation::participant(detail, node).at("counted")) == 4);
    CHECK(read_file(federation.node(node).home() + "/runs/" + id + "/tokenizer.model", 1 << 20).value() ==
          read_file(texts.model, 1 << 20).value());
  }
  const auto losses = federation.metric_rows(id, "evaluation", "loss");
  const auto bits = federation.metric_rows(id, "evaluation", "bits_per_byte");
  REQUIRE(losses.size() == bits.size());
  REQUIRE(bits.size() >= 2);
  CHECK(losses.back() < losses.front());
  CHECK(bits.back() < losses.back());  // a token stands for several bytes

  INFO("the tokenizer outlives a restart of the coordinator as long as its run");
  CHECK(federation.stop_server().clean());
  federation.start_server();
  const Finished again = federation.skerry({"cargo", "upload", texts.model});
  INFO(again.err);
  CHECK(again.ok());
  CHECK(again.out.starts_with("b2-"));
}

TEST_CASE("a tokenizer that does not fit its model, is none, or is not allowed, is refused with the reason") {
  Federation federation;
  const Texts texts(federation.directory().path());
  federation.add_node("alder", {.policy = "coordinators = [\"@CA@\"]\n[allow]\npurposes = [\"*\"]\narchitectures = [\"transformer\"]\n"
                                          "max_parameters = 1000000\nmetrics = [\"*\"]\nencodings = [\"f32\"]\nerror_messages = \"full\"\n"
                                          "[[data]]\nset = \"table\"\npurposes = [\"*\"]\n[trainer]\nsandbox = \"none\"\n",
                                .kind = "text", .path = texts.files});
  const auto dry_run = [&](RunText run) {
    const std::string file = federation.directory() / "run.toml";
    REQUIRE(write_file_atomic(file, run.toml()).ok());
    return federation.skerry({"run", "submit", file, "--dry-run"});
  };
  RunText small = run_of(texts.model, "stream");
  small.model = "architecture = \"transformer\"\nlayers = 1\nwidth = 16\nheads = 2\nkv_heads = 2\ncontext = 16\nvocabulary = 289\n";
  CHECK_THAT(dry_run(small).err, Catch::Contains("model.vocabulary is 289, the tokenizer has 290 tokens"));
  CHECK_THAT(dry_run(run_of(texts.lines, "stream")).err, Catch::Contains("not a SentencePiece model"));
  CHECK_THAT(dry_run(run_of("b2-" + std::string(64, '0'), "stream")).err, Catch::Contains("there is no cargo"));
  CHECK_THAT(dry_run(run_of("no-such-file.model", "stream")).err, Catch::Contains("no-such-file.model"));
  const Finished refused = dry_run(run_of(texts.model, "stream"));
  CHECK_THAT(refused.out, Catch::Contains("allow.tokenizers"));
}

}  // namespace
}  // namespace skerry::test
