#include "common/model/layout.h"

#include <cmath>
#include <string>
#include <vector>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

namespace skerry {
namespace {

using Kind = Initialiser::Kind;

ModelLayout layout_of(const char* model) {
  auto layout = build_layout(nlohmann::json::parse(model));
  if (!layout.ok()) FAIL(layout.error().message);
  return *std::move(layout);
}

std::vector<std::string> names(const ModelLayout& layout) {
  std::vector<std::string> all;
  for (const TensorLayout& tensor : layout.tensors) all.push_back(tensor.name);
  return all;
}

}  // namespace

TEST_CASE("linear has a weight of outputs × inputs and a bias") {
  const ModelLayout layout = layout_of(R"({"architecture":"linear","inputs":99,"outputs":10})");
  CHECK(layout.parameters == 1000);
  CHECK(describe_layout(layout) == "weight [10, 99] uniform(0.100504) all+0\nbias [10] zeros all+990\n");
  CHECK(layout_of(R"({"architecture":"linear","inputs":99,"outputs":10,"bias":false})").parameters == 990);
}

TEST_CASE("mlp has one linear layer more than hidden widths, initialised for its activation") {
  const ModelLayout layout = layout_of(R"({"architecture":"mlp","inputs":4,"outputs":2,"hidden":[3,6]})");
  CHECK(describe_layout(layout) ==
        "layers.0.weight [3, 4] uniform(1.22474) all+0\nlayers.0.bias [3] zeros all+12\n"
        "layers.1.weight [6, 3] uniform(1.41421) all+15\nlayers.1.bias [6] zeros all+33\n"
        "layers.2.weight [2, 6] uniform(0.408248) all+39\nlayers.2.bias [2] zeros all+51\n");
  const ModelLayout tanh =
      layout_of(R"({"architecture":"mlp","inputs":4,"outputs":2,"hidden":[2],"activation":"tanh"})");
  CHECK(tanh.tensors[0].initialiser == Initialiser{Kind::kUniform, std::sqrt(6.0) / std::sqrt(6.0)});
}

TEST_CASE("an mlp without hidden layers is one linear layer") {
  const ModelLayout layout = layout_of(R"({"architecture":"mlp","inputs":4,"outputs":2,"hidden":[]})");
  CHECK(names(layout) == std::vector<std::string>{"layers.0.weight", "layers.0.bias"});
}

TEST_CASE("the default cnn has the 80,202 parameters that its page states") {
  const ModelLayout layout = layout_of(R"({"architecture":"cnn"})");
  // 16·25+16, 32·16·25+32, 512·128+128, 128·10+10
  CHECK(layout.parameters == 416 + 12'832 + 65'664 + 1'290);
  CHECK(layout.find_tensor("fc1.weight")->shape == std::vector<std::uint64_t>{128, 512});
}

TEST_CASE("with the FedAvg paper's sizes the cnn has the paper's 1,663,370 parameters") {
  const ModelLayout layout = layout_of(R"({"architecture":"cnn","channels":[32,64],"hidden":512,"padding":"same"})");
  CHECK(layout.parameters == 1'663'370);
}

TEST_CASE("a cnn on images that are not square flattens what its poolings leave") {
  const ModelLayout layout = layout_of(R"({"architecture":"cnn","shape":[3,32,21],"kernel":3})");
  // 32 → 30 → 15 → 13 → 6; 21 → 19 → 9 → 7 → 3
  CHECK(layout.find_tensor("fc1.weight")->shape == std::vector<std::uint64_t>{128, 32 * 6 * 3});
  CHECK(layout.find_tensor("conv1.weight")->shape == std::vector<std::uint64_t>{16, 3, 3, 3});
}

TEST_CASE("resnet has a stem, blocks whose first of each later stage projects its shortcut, and a head") {
  const ModelLayout layout =
      layout_of(R"({"architecture":"resnet","shape":[1,28,28],"width":4,"groups":2,"blocks":[1,2],"classes":3})");
  CHECK(names(layout) == std::vector<std::string>{"conv1.weight",
                                                  "norm1.weight",
                                                  "norm1.bias",
                                                  "stages.0.0.conv1.weight",
                                                  "stages.0.0.norm1.weight",
                                                  "stages.0.0.norm1.bias",
                                                  "stages.0.0.conv2.weight",
                                                  "stages.0.0.norm2.weight",
                                                  "stages.0.0.norm2.bias",
                                                  "stages.1.0.conv1.weight",
                                                  "stages.1.0.norm1.weight",
                                                  "stages.1.0.norm1.bias",
                                                  "stages.1.0.conv2.weight",
                                                  "stages.1.0.norm2.weight",
                                                  "stages.1.0.norm2.bias",
                                                  "stages.1.0.shortcut.conv.weight",
                                                  "stages.1.0.shortcut.norm.weight",
                                                  "stages.1.0.shortcut.norm.bias",
                                                  "stages.1.1.conv1.weight",
                                                  "stages.1.1.norm1.weight",
                                                  "stages.1.1.norm1.bias",
                                                  "stages.1.1.conv2.weight",
                                                  "stages.1.1.norm2.weight",
                                                  "stages.1.1.norm2.bias",
                                                  "fc.weight",
                                                  "fc.bias"});
  const std::uint64_t stem = 4 * 9 + 8;
  const std::uint64_t block0 = 2 * (4 * 4 * 9 + 8);
  const std::uint64_t block1 = 8 * 4 * 9 + 16 + 8 * 8 * 9 + 16 + 8 * 4 + 16;
  const std::uint64_t block2 = 2 * (8 * 8 * 9 + 16);
  CHECK(layout.parameters == stem + block0 + block1 + block2 + 3 * 8 + 3);
  CHECK(layout.find_tensor("norm1.weight")->initialiser == Initialiser{Kind::kOnes, 0.0});
  CHECK(layout.find_tensor("norm1.bias")->initialiser == Initialiser{Kind::kZeros, 0.0});
}

TEST_CASE("transformer has Hugging Face Llama's names, shapes and order") {
  const ModelLayout layout = layout_of(R"({"architecture":"transformer","layers":1,"width":8,"heads":4,"kv_heads":2,
                                           "hidden":12,"vocabulary":16,"tied":false,"initial_std":0.5})");
  CHECK(describe_layout(layout) ==
        "model.embed_tokens.weight [16, 8] normal(0.5) all+0\n"
        "model.layers.0.self_attn.q_proj.weight [8, 8] normal(0.5) all+128\n"
        "model.layers.0.self_attn.k_proj.weight [4, 8] normal(0.5) all+192\n"
        "model.layers.0.self_attn.v_proj.weight [4, 8] normal(0.5) all+224\n"
        "model.layers.0.self_attn.o_proj.weight [8, 8] normal(0.353553) all+256\n"
        "model.layers.0.mlp.gate_proj.weight [12, 8] normal(0.5) all+320\n"
        "model.layers.0.mlp.up_proj.weight [12, 8] normal(0.5) all+416\n"
        "model.layers.0.mlp.down_proj.weight [8, 12] normal(0.353553) all+512\n"
        "model.layers.0.input_layernorm.weight [8] ones all+608\n"
        "model.layers.0.post_attention_layernorm.weight [8] ones all+616\n"
        "model.norm.weight [8] ones all+624\n"
        "lm_head.weight [16, 8] normal(0.5) all+632\n");
  CHECK(layout.parameters == 760);
}

TEST_CASE("a tied transformer has no head of its own, and the default one has 836,736 parameters") {
  const ModelLayout layout = layout_of(R"({"architecture":"transformer"})");
  CHECK(layout.find_tensor("lm_head.weight") == nullptr);
  // embedding 256·128; per layer 4·128² + 3·128·352 + 2·128; final norm 128
  CHECK(layout.parameters == 256 * 128 + 4 * (4 * 128 * 128 + 3 * 128 * 352 + 2 * 128) + 128);
  CHECK(layout.parameters == 836'736);
}

TEST_CASE("the sizes of Llama 2 7B give its 6,738,415,616 parameters") {
  const ModelLayout layout =
      layout_of(R"({"architecture":"transformer","layers":32,"width":4096,"heads":32,"hidden":11008,
                                           "vocabulary":32000,"context":4096,"tied":false})");
  CHECK(layout.parameters == 6'738'415'616);
}

TEST_CASE("with qk_norm every layer has one weight a head's component for queries and for keys") {
  const ModelLayout layout =
      layout_of(R"({"architecture":"transformer","layers":2,"width":8,"heads":2,"hidden":12,"qk_norm":true})");
  CHECK(layout.find_tensor("model.layers.1.self_attn.q_norm.weight")->shape == std::vector<std::uint64_t>{4});
  CHECK(layout.find_tensor("model.layers.1.self_attn.k_norm.weight")->initialiser == Initialiser{Kind::kOnes, 0.0});
  const ModelLayout plain = layout_of(R"({"architecture":"transformer","layers":2,"width":8,"heads":2,"hidden":12})");
  CHECK(layout.parameters == plain.parameters + 2 * (4 + 4));
}

TEST_CASE("mpt has Hugging Face MPT's names, shapes and order, and its embedding is its head") {
  const ModelLayout layout =
      layout_of(R"({"architecture":"mpt","layers":1,"width":8,"heads":2,"vocabulary":16,"initial_std":0.5})");
  CHECK(describe_layout(layout) ==
        "transformer.wte.weight [16, 8] normal(0.5) all+0\n"
        "transformer.blocks.0.norm_1.weight [8] ones all+128\n"
        "transformer.blocks.0.attn.Wqkv.weight [24, 8] normal(0.5) all+136\n"
        "transformer.blocks.0.attn.out_proj.weight [8, 8] normal(0.353553) all+328\n"
        "transformer.blocks.0.norm_2.weight [8] ones all+392\n"
        "transformer.blocks.0.ffn.up_proj.weight [32, 8] normal(0.5) all+400\n"
        "transformer.blocks.0.ffn.down_proj.weight [8, 32] normal(0.353553) all+656\n"
        "transformer.norm_f.weight [8] ones all+912\n");
  CHECK(layout.parameters == 920);
}

TEST_CASE("named sizes have the parameters that a pencil finds") {
  // transformer: vocabulary · width (twice untied) + layers · (2·width² + 2·width·keys + 3·width·hidden + 2·width) +
  // width; mpt: vocabulary · width + layers · (12·width² + 2·width) + width.
  const struct {
    const char* architecture;
    const char* preset;
    std::uint64_t parameters;
  } sizes[] = {
      {"transformer", "1m", 1'037'696},     {"transformer", "3m", 3'148'608},     {"transformer", "10m", 9'999'680},
      {"transformer", "35m", 35'363'328},   {"transformer", "60m", 57'665'664},   {"transformer", "150m", 144'643'968},
      {"transformer", "400m", 388'929'024}, {"transformer", "1b", 1'100'048'384}, {"transformer", "3b", 3'426'473'600},
      {"transformer", "7b", 6'738'415'616}, {"mpt", "125m", 123'636'480},         {"mpt", "1b", 1'311'213'568},
      {"mpt", "3b", 2'645'690'880},         {"mpt", "7b", 6'649'024'512},
  };
  for (const auto& size : sizes) {
    INFO(size.architecture << " " << size.preset);
    const auto layout = build_layout({{"architecture", size.architecture}, {"preset", size.preset}});
    REQUIRE(layout.ok());
    CHECK(layout->parameters == size.parameters);
  }
}

TEST_CASE("a preset fills what the section leaves out, and the resolved section has its sizes instead of its name") {
  const auto resolved = resolve_model(
      nlohmann::json::parse(R"({"architecture":"transformer","preset":"1m","vocabulary":300,"layers":2})"));
  REQUIRE(resolved.ok());
  CHECK_FALSE(resolved->contains("preset"));
  CHECK((*resolved)["layers"] == 2);
  CHECK((*resolved)["vocabulary"] == 300);
  CHECK((*resolved)["width"] == 128);
  const auto unknown = resolve_model({{"architecture", "mpt"}, {"preset", "2b"}});
  REQUIRE_FALSE(unknown.ok());
  CHECK(unknown.error().message == "model.preset is \"2b\", must be one of 125m, 1b, 3b, 7b");
  const auto none = resolve_model({{"architecture", "cnn"}, {"preset", "1m"}});
  REQUIRE_FALSE(none.ok());
  CHECK(none.error().message.find("has none") != std::string::npos);
}

TEST_CASE("tensors and fragments are found by name") {
  const ModelLayout layout = layout_of(R"({"architecture":"cnn"})");
  CHECK(layout.find_tensor("conv2.bias")->elements == 32);
  CHECK(layout.find_tensor("conv3.bias") == nullptr);
  CHECK(layout.find_fragment("all")->elements == layout.parameters);
  CHECK(layout.find_fragment("f0") == nullptr);
}

}  // namespace skerry
