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

}  // namespace skerry
