#include <functional>
#include <string>
#include <vector>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "common/tensor/safetensors.h"
#include "tests/support/temp_dir.h"

namespace skerry {
namespace {

// Four tensors of 40, 40, 100 and 20 bytes, filled with their own number.
const std::vector<TensorSpec> kTensors{
    {"a", DType::kF32, {10}}, {"b", DType::kF32, {10}}, {"c", DType::kU8, {100}}, {"d", DType::kF32, {5}}};

std::string content() {
  return std::string(40, '\1') + std::string(40, '\2') + std::string(100, '\3') + std::string(20, '\4');
}

void write_model(const std::string& directory, std::uint64_t shard_bytes, std::vector<std::string> files) {
  auto writer = ShardedWriter::create(directory, kTensors, {{"format", "pt"}}, shard_bytes);
  REQUIRE(writer.ok());
  CHECK(writer->files() == files);
  const std::string bytes = content();
  for (std::size_t at = 0; at < bytes.size(); at += 33)
    REQUIRE(writer->append(as_bytes_of(std::string_view(bytes).substr(at, 33))).ok());
  REQUIRE(writer->finish().ok());
}

void check_model(const std::string& path) {
  const auto model = ShardedModel::open(path);
  REQUIRE(model.ok());
  std::string bytes;
  for (const ShardedModel::Tensor& tensor : model->tensors()) bytes += as_text(tensor.file->bytes(*tensor.entry));
  CHECK(bytes == content());
  CHECK(model->find("c").entry->bytes == 100);
  CHECK(model->find("e").entry == nullptr);
}

const char* const kIndex = "model.safetensors.index.json";

std::string index_with(const std::string& directory, const std::function<void(nlohmann::json&)>& change) {
  auto index = nlohmann::json::parse(*read_file(directory + "/" + kIndex, 1 << 20));
  change(index);
  REQUIRE(write_file_atomic(directory + "/" + kIndex, index.dump()).ok());
  const auto model = ShardedModel::open(directory);
  REQUIRE(!model.ok());
  CHECK(model.error().code == Code::kInvalidArgument);
  return model.error().message;
}

}  // namespace

TEST_CASE("a model below the threshold is one file without an index") {
  const test::TempDir dir;
  write_model(dir.path(), 1000, {"model.safetensors"});
  CHECK(!path_exists(dir / kIndex));
  check_model(dir.path());
  check_model(dir / "model.safetensors");
}

TEST_CASE("a model from the threshold on is cut into shards that no tensor crosses, with an index") {
  const test::TempDir dir;
  write_model(dir.path(), 80,
              {"model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors",
               "model-00003-of-00003.safetensors", kIndex});
  check_model(dir.path());
  check_model(dir / kIndex);
  const auto index = nlohmann::json::parse(*read_file(dir / kIndex, 1 << 20));
  CHECK(index["metadata"]["total_size"] == 200);
  CHECK(index["weight_map"] == nlohmann::json({{"a", "model-00001-of-00003.safetensors"},
                                               {"b", "model-00001-of-00003.safetensors"},
                                               {"c", "model-00002-of-00003.safetensors"},
                                               {"d", "model-00003-of-00003.safetensors"}}));
  CHECK(SafetensorsFile::open(dir / "model-00002-of-00003.safetensors")->metadata() ==
        SafetensorsMetadata{{"format", "pt"}});
}

TEST_CASE("a sharded model whose bytes are incomplete is not finished and has no index") {
  const test::TempDir dir;
  auto writer = ShardedWriter::create(dir.path(), kTensors, {}, 80);
  REQUIRE(writer.ok());
  REQUIRE(writer->append(as_bytes_of(std::string_view(content()).substr(0, 100))).ok());
  const auto finished = writer->finish();
  REQUIRE(!finished.ok());
  CHECK(finished.error().code == Code::kFailedPrecondition);
  CHECK(!path_exists(dir / kIndex));
}

TEST_CASE("more bytes than a sharded model has are refused") {
  const test::TempDir dir;
  auto writer = ShardedWriter::create(dir.path(), kTensors, {}, 80);
  REQUIRE(writer.ok());
  const auto appended = writer->append(as_bytes_of(content() + "x"));
  REQUIRE(!appended.ok());
  CHECK(appended.error().code == Code::kOutOfRange);
}

TEST_CASE("an index that disagrees with its shards is refused, naming the tensor") {
  const test::TempDir dir;
  write_model(dir.path(), 80,
              {"model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors",
               "model-00003-of-00003.safetensors", kIndex});
  const std::string original = *read_file(dir / kIndex, 1 << 20);
  const auto restore = [&] { REQUIRE(write_file_atomic(dir / kIndex, original).ok()); };

  CHECK_THAT(
      index_with(dir.path(), [](auto& index) { index["weight_map"].erase("b"); }),
      Catch::Contains("tensor \"b\" is in shard \"model-00001-of-00003.safetensors\", the index does not list it"));
  restore();
  CHECK_THAT(index_with(dir.path(), [](auto& index) { index["weight_map"]["e"] = "model-00001-of-00003.safetensors"; }),
             Catch::Contains("tensor \"e\" is not in its shard"));
  restore();
  CHECK_THAT(index_with(dir.path(), [](auto& index) { index["weight_map"]["b"] = "model-00002-of-00003.safetensors"; }),
             Catch::Contains("tensor \"b\" is in shard \"model-00001-of-00003.safetensors\", the index says"));
  restore();
  CHECK_THAT(
      index_with(dir.path(), [](auto& index) { index["weight_map"]["b"] = "../x.safetensors"; }),
      Catch::Contains("tensor \"b\": its shard \"../x.safetensors\" is not the name of a file beside the index"));
  restore();
  CHECK_THAT(index_with(dir.path(), [](auto& index) { index["weight_map"]["b"] = 1; }),
             Catch::Contains("tensor \"b\""));
  restore();
  CHECK_THAT(index_with(dir.path(), [](auto& index) { index = nlohmann::json::array(); }),
             Catch::Contains("weight_map"));
  restore();

  std::string doubled = original;
  doubled.insert(doubled.find("\"a\""), "\"a\": \"model-00002-of-00003.safetensors\", ");
  REQUIRE(write_file_atomic(dir / kIndex, doubled).ok());
  const auto twice = ShardedModel::open(dir.path());
  REQUIRE(!twice.ok());
  CHECK_THAT(twice.error().message, Catch::Contains("tensor \"a\": the name is there twice"));

  REQUIRE(write_file_atomic(dir / kIndex, "{").ok());
  CHECK(!ShardedModel::open(dir.path()).ok());
  restore();
  REQUIRE(remove_file(dir / "model-00002-of-00003.safetensors").ok());
  const auto missing = ShardedModel::open(dir.path());
  REQUIRE(!missing.ok());
  CHECK(missing.error().code == Code::kNotFound);
}

}  // namespace skerry
