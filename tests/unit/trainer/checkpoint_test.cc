// Checkpoints: what was written comes back, and what is damaged is not taken for it.
#include <catch2/catch.hpp>

#include "client/trainer/checkpoint.h"
#include "common/os/files.h"
#include "tests/support/temp_dir.h"

using namespace skerry;
using namespace skerry::trainer;
using skerry::test::TempDir;

TEST_CASE("a checkpoint comes back as it was written") {
  const TempDir dir;
  const std::string path = dir.path() + "/state";
  const std::vector<float> model{1, -2.5f, 3e-30f};
  const std::vector<float> first{0};
  REQUIRE(write_checkpoint(path, {"{\"step\":3,\"name\":\"é\"}", {{"model", model}, {"first", first}}}).ok());
  const auto checkpoint = read_checkpoint(path);
  REQUIRE(checkpoint.ok());
  CHECK(checkpoint->note == "{\"step\":3,\"name\":\"é\"}");
  CHECK(checkpoint->vectors == std::map<std::string, std::vector<float>>{{"model", model}, {"first", first}});
  CHECK_FALSE(path_exists(path + ".new"));
}

TEST_CASE("no checkpoint, another file and a damaged checkpoint are told apart") {
  const TempDir dir;
  const std::string path = dir.path() + "/state";
  CHECK(read_checkpoint(path).error().code == Code::kNotFound);
  REQUIRE(write_file_atomic(path, "not one").ok());
  CHECK(read_checkpoint(path).error().code == Code::kInvalidArgument);

  const std::vector<float> ones(100, 1.0f);
  REQUIRE(remove_checkpoint(path).ok());
  REQUIRE(write_checkpoint(path, {"note", {{"model", ones}}}).ok());
  std::string bytes = *read_file(path, 1 << 20);
  std::string torn = bytes;
  torn[torn.size() - 5] ^= 1;
  REQUIRE(write_file_atomic(path, torn).ok());
  CHECK(read_checkpoint(path).error().code == Code::kDataLoss);
  REQUIRE(write_file_atomic(path, bytes.substr(0, bytes.size() - 8)).ok());
  CHECK_FALSE(read_checkpoint(path).ok());
}

TEST_CASE("a file that cannot be written is an error that names it") {
  const std::vector<float> values{1};
  const auto result = write_checkpoint("/does/not/exist/state", {"note", {{"model", values}}});
  REQUIRE_FALSE(result.ok());
  CHECK(result.error().message.find("/does/not/exist/state") != std::string::npos);
}

TEST_CASE("where the latest checkpoint is torn, the one before it is there") {
  const TempDir dir;
  const std::string path = dir.path() + "/state";
  const std::vector<float> values(100, 1.0f);
  for (const char* note : {"first", "second", "third"}) REQUIRE(write_checkpoint(path, {note, {{"model", values}}}).ok());
  CHECK(read_checkpoint(path)->note == "third");
  const std::string whole = *read_file(path, 1 << 20);
  for (const std::size_t size : {std::size_t{0}, std::size_t{5}, whole.size() / 2, whole.size() - 1}) {
    REQUIRE(write_file_atomic(path, whole.substr(0, size)).ok());
    REQUIRE(read_checkpoint(path).ok());
    CHECK(read_checkpoint(path)->note == "second");
  }
  REQUIRE(remove_checkpoint(path).ok());
  CHECK(read_checkpoint(path).error().code == Code::kNotFound);
}

TEST_CASE("a checkpoint in the background holds what was there when it began") {
  const TempDir dir;
  const std::string path = dir.path() + "/state";
  std::vector<float> values(1 << 20, 1.0f);
  CheckpointWriter writer;
  REQUIRE(writer.start(path, {"note", {{"model", values}}}));
  std::fill(values.begin(), values.end(), 2.0f);
  (void)writer.start(path, {"later", {{"model", values}}});  // left out, unless the first is done already
  REQUIRE(writer.wait().ok());
  const auto checkpoint = read_checkpoint(path);
  REQUIRE(checkpoint.ok());
  const float expected = checkpoint->note == "note" ? 1.0f : 2.0f;
  CHECK(checkpoint->vectors.at("model") == std::vector<float>(1 << 20, expected));
  REQUIRE(writer.start("/does/not/exist/state", {"note", {{"model", values}}}));
  CHECK_FALSE(writer.wait().ok());
  CHECK(writer.wait().ok());
}
