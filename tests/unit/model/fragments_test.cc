#include <algorithm>
#include <string>
#include <vector>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "common/model/layout.h"

namespace skerry {
namespace {

ModelLayout layout_of(const std::string& model) {
  auto layout = build_layout(nlohmann::json::parse(model));
  if (!layout.ok()) FAIL(layout.error().message);
  return *std::move(layout);
}

std::string fragment_of(const ModelLayout& layout, const std::string& tensor) {
  return layout.fragments[layout.find_tensor(tensor)->fragment].name;
}

std::vector<std::uint64_t> sizes(const ModelLayout& layout) {
  std::vector<std::uint64_t> all;
  for (const FragmentLayout& fragment : layout.fragments) all.push_back(fragment.elements);
  return all;
}

const std::string kTransformer =
    R"({"architecture":"transformer","layers":5,"width":8,"heads":2,"vocabulary":16,"tied":false)";

}  // namespace

TEST_CASE("whatever the cut, fragments hold every tensor once, back to back, in model order") {
  for (const std::string model :
       {R"({"architecture":"mlp","inputs":9,"outputs":2,"hidden":[70,3,5,8])",
        R"({"architecture":"resnet","width":4,"groups":2,"blocks":[2,2,2])", R"({"architecture":"cnn")",
        R"({"architecture":"linear","inputs":5,"outputs":2)", kTransformer.c_str()}) {
    for (const std::string pattern : {"strided", "sequential"}) {
      for (int count = 1; count <= 8; ++count) {
        const auto built = build_layout(nlohmann::json::parse(model + ",\"fragments\":" + std::to_string(count) +
                                                              ",\"fragment_pattern\":\"" + pattern + "\"}"));
        if (!built.ok()) {
          CHECK_THAT(built.error().message, Catch::Contains("model.fragments"));
          continue;
        }
        CAPTURE(model, pattern, count);
        REQUIRE(built->fragments.size() == static_cast<std::size_t>(count));
        std::vector<int> seen(built->tensors.size(), 0);
        std::uint64_t parameters = 0;
        for (std::size_t f = 0; f < built->fragments.size(); ++f) {
          const FragmentLayout& fragment = built->fragments[f];
          CHECK(!fragment.tensors.empty());
          CHECK(std::is_sorted(fragment.tensors.begin(), fragment.tensors.end()));
          std::uint64_t offset = 0;
          for (const std::size_t index : fragment.tensors) {
            ++seen[index];
            CHECK(built->tensors[index].fragment == f);
            CHECK(built->tensors[index].offset == offset);
            offset += built->tensors[index].elements;
          }
          CHECK(offset == fragment.elements);
          parameters += fragment.elements;
        }
        CHECK(seen == std::vector<int>(built->tensors.size(), 1));
        CHECK(parameters == built->parameters);
      }
    }
  }
}

TEST_CASE("strided fragments take every N-th decoder layer, and the ends go where there is room") {
  const ModelLayout layout = layout_of(kTransformer + R"(,"fragments":2})");
  const std::string layer = "model.layers.";
  for (const char n : {'0', '2', '4'}) CHECK(fragment_of(layout, layer + n + ".mlp.up_proj.weight") == "f0");
  for (const char n : {'1', '3'}) CHECK(fragment_of(layout, layer + n + ".mlp.up_proj.weight") == "f1");
  // f1 has two layers of 1040 elements against three, so it gets the 128 of the embedding, the norm's 8 and the head.
  CHECK(fragment_of(layout, "model.embed_tokens.weight") == "f1");
  CHECK(fragment_of(layout, "model.norm.weight") == "f1");
  CHECK(fragment_of(layout, "lm_head.weight") == "f1");
  CHECK(sizes(layout) == std::vector<std::uint64_t>{3 * 1040, 2 * 1040 + 128 + 8 + 128});
}

TEST_CASE("sequential fragments are contiguous runs of about equal size") {
  const ModelLayout transformer = layout_of(kTransformer + R"(,"fragments":2,"fragment_pattern":"sequential"})");
  CHECK(fragment_of(transformer, "model.layers.1.mlp.up_proj.weight") == "f0");
  CHECK(fragment_of(transformer, "model.layers.2.mlp.up_proj.weight") == "f1");
  CHECK(fragment_of(transformer, "model.layers.4.mlp.up_proj.weight") == "f1");

  const ModelLayout cnn = layout_of(R"({"architecture":"cnn","fragments":2})");
  CHECK(sizes(cnn) == std::vector<std::uint64_t>{416 + 12'832, 65'664 + 1'290});
}

TEST_CASE("a sequential cut leaves no fragment empty even where one layer outweighs all others") {
  const ModelLayout front =
      layout_of(R"({"architecture":"mlp","inputs":1000,"outputs":1,"hidden":[50,2,2],"fragments":4})");
  CHECK(fragment_of(front, "layers.0.weight") == "f0");
  CHECK(fragment_of(front, "layers.3.weight") == "f3");
  const ModelLayout back =
      layout_of(R"({"architecture":"mlp","inputs":1,"outputs":1000,"hidden":[2,2,50],"fragments":3})");
  CHECK(fragment_of(back, "layers.1.weight") == "f0");
  CHECK(fragment_of(back, "layers.2.weight") == "f1");
  CHECK(fragment_of(back, "layers.3.weight") == "f2");
}

TEST_CASE("linear can be cut in two: its weight and its bias") {
  const ModelLayout layout = layout_of(R"({"architecture":"linear","inputs":5,"outputs":2,"fragments":2})");
  CHECK(describe_layout(layout) == "weight [2, 5] uniform(0.447214) f0+0\nbias [2] zeros f1+0\n");
}

TEST_CASE("personal and frozen tensors have fragments of their own, and the cut is made from what remains") {
  const ModelLayout layout = layout_of(
      R"({"architecture":"mlp","inputs":3,"outputs":2,"hidden":[4,5,6],"fragments":2,"personal":["layers.3.*"],
          "frozen":["layers.0.weight","layers.0.bias"]})");
  CHECK(describe_layout(layout) ==
        "layers.0.weight [4, 3] uniform(1.41421) frozen+0\nlayers.0.bias [4] zeros frozen+12\n"
        "layers.1.weight [5, 4] uniform(1.22474) f0+0\nlayers.1.bias [5] zeros f0+20\n"
        "layers.2.weight [6, 5] uniform(1.09545) f1+0\nlayers.2.bias [6] zeros f1+30\n"
        "layers.3.weight [2, 6] uniform(0.408248) personal+0\nlayers.3.bias [2] zeros personal+12\n");
  REQUIRE(layout.fragments.size() == 4);
  CHECK(layout.fragments[1].role == FragmentRole::kExchanged);
  CHECK(layout.fragments[2].role == FragmentRole::kFrozen);
  CHECK(layout.fragments[3].role == FragmentRole::kPersonal);
  CHECK(layout.shared_fragments() == 3);
  CHECK(layout.parameters == 16 + 25 + 36 + 14);
}

TEST_CASE("what `only` leaves out is frozen, unless it is personal") {
  const ModelLayout layout = layout_of(
      R"({"architecture":"mlp","inputs":3,"outputs":2,"hidden":[4,4],"only":["layers.1.bias"],"personal":["layers.2.*"]})");
  CHECK(layout.find_fragment("all")->elements == 4);
  CHECK(layout.find_fragment("frozen")->elements == 16 + 16);
  CHECK(layout.find_fragment("personal")->elements == 10);
  // A part of a layer that stands alone in its fragment needs no whole layer.
  const ModelLayout end = layout_of(R"({"architecture":"transformer","only":["model.norm.weight"]})");
  CHECK(end.find_fragment("all")->elements == 128);
}

TEST_CASE("a control fragment is the twin of an exchanged one: its tensors, zeros at first") {
  const ModelLayout layout = layout_of(
      R"({"architecture":"mlp","inputs":3,"outputs":2,"hidden":[4],"fragments":2,"control":true,"personal":["layers.1.bias"]})");
  std::vector<std::string> names;
  for (const FragmentLayout& fragment : layout.fragments) names.push_back(fragment.name);
  CHECK(names == std::vector<std::string>{"f0", "f1", "f0-control", "f1-control", "personal"});
  for (std::size_t i = 0; i < 2; ++i) {
    CHECK(layout.fragments[2 + i].role == FragmentRole::kControl);
    CHECK(layout.fragments[2 + i].twin == i);
    CHECK(layout.fragments[2 + i].tensors == layout.fragments[i].tensors);
    CHECK(layout.fragments[2 + i].elements == layout.fragments[i].elements);
  }
  CHECK(layout.parameters == 16 + 10);
  CHECK(layout.shared_fragments() == 4);
}

TEST_CASE("roles that cannot be are refused with the pattern and the tensor") {
  const auto refused = [](const std::string& roles) {
    const auto layout = build_layout(
        nlohmann::json::parse(R"({"architecture":"mlp","inputs":3,"outputs":2,"hidden":[4],)" + roles + "}"));
    return layout.ok() ? "no error" : layout.error().message;
  };
  CHECK(refused(R"("personal":["layer.0.*"])") == "model.personal: pattern \"layer.0.*\" fits no tensor of the model");
  CHECK(refused(R"("personal":["*.bias"],"frozen":["layers.0.*"])") ==
        "model.frozen: pattern \"layers.0.*\" makes tensor \"layers.0.bias\" frozen, but model.personal makes it "
        "personal");
  CHECK(refused(R"("personal":["*.bias"],"only":["layers.0.*"])") ==
        "model.only: pattern \"layers.0.*\" has tensor \"layers.0.bias\" exchanged, but model.personal makes it "
        "personal");
  CHECK(refused(R"("frozen":["*.bias"],"only":["layers.0.*"])") ==
        "model.only and model.frozen are both given; what model.only leaves out is frozen already");
  CHECK(refused(R"("personal":["*"])") == "model.personal and model.frozen leave no tensor to exchange");
  CHECK(refused(R"("frozen":["layers.0.*"],"fragments":2)") ==
        "model.fragments is 2, must be in [1, 1]: the model has 1 layers that are exchanged");
}

}  // namespace skerry
