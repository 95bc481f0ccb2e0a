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
  REQUIRE(write_checkpoint(path, "{\"step\":3,\"name\":\"é\"}", {{"model", model}, {"first", first}}).ok());
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

  REQUIRE(write_checkpoint(path, "note", {{"model", std::vector<float>(100, 1.0f)}}).ok());
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
  const auto result = write_checkpoint("/does/not/exist/state", "note", {{"model", values}});
  REQUIRE_FALSE(result.ok());
  CHECK(result.error().message.find("/does/not/exist/state") != std::string::npos);
}
