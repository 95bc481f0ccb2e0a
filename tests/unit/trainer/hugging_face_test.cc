// A model in Hugging Face's layout computes there what it computes here: against tests/oracle, in float64.
#include <cmath>
#include <cstdlib>
#include <cstring>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "client/trainer/engine.h"
#include "common/model/hugging_face.h"
#include "common/model/initialise.h"
#include "common/os/files.h"
#include "common/tensor/safetensors.h"
#include "tests/support/child.h"
#include "tests/support/temp_dir.h"

using namespace skerry;
using namespace skerry::trainer;
using nlohmann::json;

namespace {

constexpr std::size_t kLength = 9;

void export_to(const std::string& directory, const json& model, const ModelLayout& layout,
               std::span<const float> values) {
  const auto files = hugging_face_files(model, "");
  REQUIRE(files.ok());
  for (const auto& [name, content] : *files) REQUIRE(write_file_atomic(directory + "/" + name, content).ok());
  std::vector<TensorSpec> specs;
  for (const TensorLayout& tensor : layout.tensors) specs.push_back({tensor.name, DType::kF32, tensor.shape});
  auto writer = ShardedWriter::create(directory, specs);
  REQUIRE(writer.ok());
  REQUIRE(writer->append(std::as_bytes(values)).ok());
  REQUIRE(writer->finish().ok());
}

std::vector<double> oracle_logits(const char* script, const std::string& directory,
                                  const std::vector<std::int64_t>& tokens) {
  const char* source = std::getenv("SKERRY_SOURCE");
  const auto run = test::run_program(
      {"/usr/bin/python3", std::string(source != nullptr ? source : ".") + "/tests/oracle/" + script, directory}, {},
      json::array({tokens}).dump());
  INFO(run.err);
  REQUIRE(run.ok());
  std::vector<double> values(run.out.size() / sizeof(double));
  std::memcpy(values.data(), run.out.data(), values.size() * sizeof(double));
  return values;
}

}  // namespace

TEST_CASE("the logits of an exported model are the ones that Hugging Face's definitions give") {
  const struct {
    const char* script;
    const char* model;
  } cases[] = {
      {"transformer.py", R"({"architecture":"transformer","layers":2,"width":24,"heads":4,"kv_heads":2,"context":9})"},
      {"transformer.py", R"({"architecture":"transformer","layers":2,"width":24,"heads":3,"context":9,"tied":false,
                             "rope_theta":500,"vocabulary":300})"},
      {"transformer.py", R"({"architecture":"transformer","layers":2,"width":24,"heads":2,"kv_heads":1,"context":9,
                             "qk_norm":true})"},
      {"mpt.py", R"({"architecture":"mpt","layers":2,"width":24,"heads":4,"context":9})"},
      {"mpt.py", R"({"architecture":"mpt","layers":2,"width":24,"heads":6,"context":9,"alibi_maximum":6})"},
  };
  for (const auto& c : cases) {
    INFO(c.model);
    json model = json::parse(c.model);
    model["initial_std"] = 0.3;
    const auto layout = build_layout(model);
    REQUIRE(layout.ok());
    const ExampleShape text{ExampleShape::Kind::kText, {kLength}, kLength, 256};
    const auto engine = Engine::make(model.dump(), *layout, text, {});
    REQUIRE(engine.ok());
    const std::span<float> values = (*engine)->parameters();
    REQUIRE(initialise_fragment(*layout, "all", 11, 0, values).ok());
    for (const TensorLayout& tensor : layout->tensors) {  // weights of norms that are not all one
      for (std::uint64_t i = 0; tensor.shape.size() == 1 && i < tensor.elements; ++i)
        values[tensor.offset + i] += 0.1f * static_cast<float>(i % 5) - 0.2f;
    }
    Batch batch;
    batch.rows = 1;
    batch.tokens = {72, 101, 0, 255, 32, 72, 101, 10, 200, 1};
    const auto logits = (*engine)->outputs(batch);
    REQUIRE(logits.ok());

    const test::TempDir dir;
    export_to(dir.path(), model, *layout, values);
    batch.tokens.pop_back();
    const std::vector<double> expected = oracle_logits(c.script, dir.path(), batch.tokens);
    REQUIRE(expected.size() == logits->size());
    double worst = 0;
    double largest = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      worst = std::max(worst, std::abs(expected[i] - static_cast<double>((*logits)[i])));
      largest = std::max(largest, std::abs(expected[i]));
    }
    CHECK(largest > 1);
    CHECK(worst < 1e-5);

    // And back: the same bits under the same names.
    const std::string back = dir.path() + "/back.safetensors";
    const auto section = import_hugging_face(dir.path(), back);
    REQUIRE(section.ok());
    CHECK(*section == *resolve_model(model));
    const auto file = SafetensorsFile::open(back);
    REQUIRE(file.ok());
    CHECK(std::memcmp(file->data().data(), values.data(), values.size_bytes()) == 0);
  }
}
