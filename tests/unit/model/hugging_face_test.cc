#include "common/model/hugging_face.h"

#include <cstring>
#include <vector>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "common/model/layout.h"
#include "common/os/files.h"
#include "common/tensor/dtype.h"
#include "common/tensor/safetensors.h"
#include "tests/support/temp_dir.h"

namespace skerry {
namespace {

using nlohmann::json;

json config_of(const char* model) {
  const auto files = hugging_face_files(json::parse(model), "");
  if (!files.ok()) FAIL(files.error().message);
  return json::parse(files->at("config.json"));
}

std::string refusal(const json& config) {
  const auto section = hugging_face_section(config);
  REQUIRE_FALSE(section.ok());
  CHECK(section.error().code == Code::kInvalidArgument);
  return section.error().message;
}

// Writes `value(i)` as element i of each tensor, in bf16, in shards of at most 300 bytes.
void write_bf16(const std::string& directory, const std::vector<TensorSpec>& tensors, float (*value)(std::size_t)) {
  auto writer = ShardedWriter::create(directory, tensors, {}, 300);
  REQUIRE(writer.ok());
  for (const TensorSpec& tensor : tensors) {
    std::size_t elements = 1;
    for (const std::uint64_t size : tensor.shape) elements *= size;
    std::vector<std::uint16_t> values(elements);
    for (std::size_t i = 0; i < elements; ++i) values[i] = f32_to_bf16(value(i));
    REQUIRE(writer->append(std::as_bytes(std::span(values))).ok());
  }
  REQUIRE(writer->finish().ok());
}

}  // namespace

TEST_CASE("an exported transformer has the config that Hugging Face's Llama reads") {
  const json config =
      config_of(R"({"architecture":"transformer","layers":2,"width":96,"heads":6,"kv_heads":2,"context":64})");
  CHECK(config["architectures"] == json({"LlamaForCausalLM"}));
  CHECK(config["model_type"] == "llama");
  CHECK(config["num_hidden_layers"] == 2);
  CHECK(config["hidden_size"] == 96);
  CHECK(config["num_key_value_heads"] == 2);
  CHECK(config["head_dim"] == 16);
  CHECK(config["intermediate_size"] == 256);
  CHECK(config["max_position_embeddings"] == 64);
  CHECK(config["tie_word_embeddings"] == true);
  CHECK(config["eos_token_id"] == nullptr);
}

TEST_CASE("with QK-norm the export is a Qwen3, and mpt is an MPT with ALiBi") {
  CHECK(config_of(R"({"architecture":"transformer","qk_norm":true})")["architectures"] == json({"Qwen3ForCausalLM"}));
  const json mpt = config_of(R"({"architecture":"mpt","preset":"125m"})");
  CHECK(mpt["architectures"] == json({"MptForCausalLM"}));
  CHECK(mpt["d_model"] == 768);
  CHECK(mpt["attn_config"]["alibi_bias_max"].dump() == "8");
}

TEST_CASE("an architecture that transformers does not have is refused with the reason") {
  const auto none = hugging_face_files(json::parse(R"({"architecture":"cnn"})"), "");
  REQUIRE_FALSE(none.ok());
  CHECK(none.error().code == Code::kFailedPrecondition);
}

TEST_CASE("a model of bytes is exported with a tokenizer whose token n is byte n") {
  const auto files = hugging_face_files(json::parse(R"({"architecture":"transformer","vocabulary":257})"), "");
  REQUIRE(files.ok());
  const json tokenizer = json::parse(files->at("tokenizer.json"));
  const json& vocabulary = tokenizer["model"]["vocab"];
  CHECK(vocabulary.size() == 257);
  CHECK(vocabulary["a"] == 97);
  CHECK(vocabulary["\u0120"] == 32);  // GPT-2's letter for a space
  CHECK(vocabulary["\u010A"] == 10);
  CHECK(vocabulary["\u00FF"] == 255);
  CHECK(vocabulary["\u0143"] == 173);
  CHECK(json::parse(files->at("config.json"))["eos_token_id"] == 256);
}

TEST_CASE("the section of an exported config is the section that was exported") {
  for (const char* model :
       {R"({"architecture":"transformer","layers":2,"width":96,"heads":6,"kv_heads":2,"rope_theta":500000})",
        R"({"architecture":"transformer","preset":"1b","qk_norm":true})", R"({"architecture":"mpt","preset":"3b"})"}) {
    INFO(model);
    const auto section = hugging_face_section(config_of(model));
    REQUIRE(section.ok());
    CHECK(*section == *resolve_model(json::parse(model)));
  }
}

TEST_CASE("a config whose mathematics is another is refused by the member that says so") {
  const json llama = config_of(R"({"architecture":"transformer"})");
  const auto with = [&](const char* member, const json& value) {
    json changed = llama;
    changed[member] = value;
    return refusal(changed);
  };
  CHECK(with("model_type", "gpt2").find("one of llama, qwen3, mpt") != std::string::npos);
  CHECK(with("hidden_act", "gelu").find("hidden_act is \"gelu\"") != std::string::npos);
  CHECK(with("attention_bias", true).find("attention_bias") != std::string::npos);
  CHECK(with("rope_scaling", {{"type", "linear"}}).find("rope_scaling") != std::string::npos);
  CHECK(with("head_dim", 64).find("head_dim is 64, only 32") != std::string::npos);
  CHECK(with("num_hidden_layers", "two").find("model.layers") != std::string::npos);
  json mpt = config_of(R"({"architecture":"mpt"})");
  mpt["attn_config"]["alibi"] = false;
  CHECK(refusal(mpt).find("alibi is false") != std::string::npos);
}

TEST_CASE("an import widens bf16 shards to one f32 file and checks every name and shape") {
  const test::TempDir dir;
  const char* model = R"({"architecture":"mpt","layers":1,"width":4,"heads":2,"vocabulary":8})";
  const auto layout = build_layout(json::parse(model));
  REQUIRE(layout.ok());
  REQUIRE(write_file_atomic(dir.path() + "/config.json", config_of(model).dump()).ok());
  std::vector<TensorSpec> specs;
  for (const TensorLayout& tensor : layout->tensors) specs.push_back({tensor.name, DType::kBF16, tensor.shape});
  specs.push_back({"lm_head.weight", DType::kBF16, {8, 4}});  // some writers repeat the tied embedding
  const std::string out = dir.path() + "/out.safetensors";
  write_bf16(dir.path(), specs, [](std::size_t i) { return 0.5f * static_cast<float>(i) - 3; });
  const auto section = import_hugging_face(dir.path(), out);
  REQUIRE(section.ok());
  CHECK((*section)["vocabulary"] == 8);
  const auto file = SafetensorsFile::open(out);
  REQUIRE(file.ok());
  CHECK(file->tensors().size() == layout->tensors.size());
  const auto bytes = file->bytes(*file->find("transformer.blocks.0.attn.Wqkv.weight"));
  float last = 0;
  std::memcpy(&last, bytes.data() + bytes.size() - 4, 4);
  CHECK(last == 0.5f * 47 - 3);

  const auto message = [&] {
    write_bf16(dir.path(), specs, [](std::size_t) { return 0.0f; });
    const auto refused = import_hugging_face(dir.path(), out);
    REQUIRE_FALSE(refused.ok());
    return refused.error().message;
  };
  specs.back().name = "transformer.wpe.weight";
  CHECK(message() == R"(tensor "transformer.wpe.weight" is none of mpt's)");
  specs.pop_back();
  specs.back().shape = {5};
  CHECK(message() == R"(tensor "transformer.norm_f.weight" is [5], config.json says [4])");
  specs.pop_back();
  CHECK(message() == R"(the model has no tensor "transformer.norm_f.weight")");
}

TEST_CASE("a config.json that is nested very deep is refused") {
  const test::TempDir dir;
  const std::string deep = std::string(500'000, '[') + std::string(500'000, ']');
  REQUIRE(write_file_atomic(dir.path() + "/config.json", R"({"model_type":"llama","hidden_act":)" + deep + "}").ok());
  const auto refused = import_hugging_face(dir.path(), dir.path() + "/out.safetensors");
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().message == "config.json is nested deeper than 32 levels");
}

}  // namespace skerry
