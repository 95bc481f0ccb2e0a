#include <string>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "common/model/layout.h"

namespace skerry {
namespace {

using nlohmann::json;

json resolved(const char* model) {
  const auto result = resolve_model(json::parse(model));
  if (!result.ok()) FAIL(result.error().message);
  return *result;
}

// The section with the members that every architecture has besides its sizes.
json with_roles(const char* sizes) {
  json section = json::parse(sizes);
  for (const char* role : {"personal", "frozen", "only"}) section[role] = json::array();
  section["control"] = false;
  return section;
}

std::string refusal(const std::string& model) {
  const auto result = resolve_model(json::parse(model));
  REQUIRE(!result.ok());
  CHECK(result.error().code == Code::kInvalidArgument);
  return result.error().message;
}

}  // namespace

TEST_CASE("a resolved model section has every member written out") {
  CHECK(
      resolved(R"({"architecture":"linear","inputs":3,"outputs":2})") ==
      with_roles(
          R"({"architecture":"linear","inputs":3,"outputs":2,"bias":true,"fragments":1,"fragment_pattern":"sequential"})"));
  CHECK(resolved(R"({"architecture":"mlp","inputs":3,"outputs":2})") ==
        with_roles(R"({"architecture":"mlp","inputs":3,"outputs":2,"hidden":[128],"activation":"relu","fragments":1,
                        "fragment_pattern":"sequential"})"));
  CHECK(resolved(R"({"architecture":"cnn"})") ==
        with_roles(
            R"({"architecture":"cnn","shape":[1,28,28],"classes":10,"channels":[16,32],"kernel":5,"padding":"valid",
                        "hidden":128,"fragments":1,"fragment_pattern":"sequential"})"));
  CHECK(resolved(R"({"architecture":"resnet"})") ==
        with_roles(R"({"architecture":"resnet","shape":[3,32,32],"classes":10,"width":16,"blocks":[1,1,1],"groups":8,
                        "fragments":1,"fragment_pattern":"sequential"})"));
  CHECK(resolved(R"({"architecture":"transformer"})") ==
        with_roles(
            R"({"architecture":"transformer","layers":4,"width":128,"heads":4,"kv_heads":4,"hidden":352,"context":128,
                        "vocabulary":256,"tied":true,"qk_norm":false,"rope_theta":10000,"norm_epsilon":1e-5,"initial_std":0.02,"fragments":1,
                        "fragment_pattern":"strided"})"));
}

TEST_CASE("resolving a resolved section changes nothing") {
  for (const char* model :
       {R"({"architecture":"linear","inputs":3,"outputs":2})", R"({"architecture":"mlp","inputs":3,"outputs":2})",
        R"({"architecture":"cnn"})", R"({"architecture":"resnet","width":12})",
        R"({"architecture":"transformer","width":96,"fragments":2})"}) {
    const json once = resolved(model);
    CHECK(*resolve_model(once) == once);
    CHECK(*resolve_model(json::parse(once.dump())) == once);
  }
}

TEST_CASE("a transformer's hidden size follows from its width: 8/3 of it, rounded up to 32") {
  CHECK(resolved(R"({"architecture":"transformer","width":96})")["hidden"] == 256);
  CHECK(resolved(R"({"architecture":"transformer","width":100,"heads":5})")["hidden"] == 288);
}

TEST_CASE("an unknown architecture or member is refused with what there is") {
  CHECK(refusal(R"({"architecture":"gpt"})") ==
        "model.architecture is \"gpt\", must be one of cnn, linear, mlp, mpt, resnet, transformer");
  CHECK(refusal(R"({})") ==
        "model.architecture is missing or not text, must be one of cnn, linear, mlp, mpt, resnet, transformer");
  CHECK(refusal(R"([1])") == "model is [1], must be a table");
  CHECK(refusal(R"({"architecture":"linear","inputs":1,"outputs":1,"widht":3})") ==
        "model.widht is not a member of architecture linear, which has architecture, bias, control, "
        "fragment_pattern, fragments, frozen, inputs, only, outputs, personal");
  CHECK(refusal(R"({"architecture":"linear","inputs":1,"outputs":1,"frozen":"bias"})") ==
        "model.frozen is \"bias\", must be a list of patterns of tensor names");
}

TEST_CASE("a missing, mistyped or absurd size is refused with its name, value and range") {
  const std::pair<const char*, const char*> cases[] = {
      {R"({"architecture":"linear","outputs":1})", "model.inputs is missing, it has no default"},
      {R"({"architecture":"linear","inputs":0,"outputs":1})",
       "model.inputs is 0, must be a whole number in [1, 16777216]"},
      {R"({"architecture":"linear","inputs":18446744073709551615,"outputs":1})",
       "model.inputs is 18446744073709551615, must be a whole number in [1, 16777216]"},
      {R"({"architecture":"linear","inputs":2.5,"outputs":1})",
       "model.inputs is 2.5, must be a whole number in [1, 16777216]"},
      {R"({"architecture":"linear","inputs":1,"outputs":1,"bias":1})", "model.bias is 1, must be true or false"},
      {R"({"architecture":"mlp","inputs":1,"outputs":1,"hidden":[3,-4]})",
       "model.hidden[1] is -4, must be a whole number in [1, 16777216]"},
      {R"({"architecture":"mlp","inputs":1,"outputs":1,"hidden":3})",
       "model.hidden is 3, must be a list of whole numbers"},
      {R"({"architecture":"mlp","inputs":1,"outputs":1,"activation":"sin"})",
       "model.activation is \"sin\", must be one of relu, tanh, gelu"},
      {R"({"architecture":"cnn","channels":[1]})", "model.channels has 1 entries, must have 2"},
      {R"({"architecture":"cnn","kernel":4})", "model.kernel is 4, must be odd"},
      {R"({"architecture":"cnn","shape":[1,9,28]})",
       "model.shape is [1, 9, 28], too small for two convolutions of kernel 5 and two poolings; choose a larger shape, "
       "a smaller "
       "kernel or padding \"same\""},
      {R"({"architecture":"resnet","groups":3})", "model.groups is 3, must divide model.width 16"},
      {R"({"architecture":"transformer","heads":3})",
       "model.heads is 3, must divide model.width 128 into heads of even size"},
      {R"({"architecture":"transformer","kv_heads":3})", "model.kv_heads is 3, must divide model.heads 4"},
      {R"({"architecture":"transformer","rope_theta":0})",
       "model.rope_theta is 0, must be a number above 0 and at most 1000000000.0"},
      {R"({"architecture":"transformer","fragments":5})",
       "model.fragments is 5, must be in [1, 4]: the model has 4 layers"},
      {R"({"architecture":"transformer","fragment_pattern":"random"})",
       "model.fragment_pattern is \"random\", must be one of strided, sequential"},
  };
  for (const auto& [model, message] : cases) CHECK(refusal(model) == message);
}

TEST_CASE("a model with more parameters than can be counted safely is refused, naming the tensor") {
  CHECK_THAT(refusal(R"({"architecture":"linear","inputs":16777216,"outputs":16777216})"),
             Catch::Contains("more than 4398046511104 parameters with tensor \"weight\" [16777216, 16777216]"));
  CHECK_THAT(
      refusal(
          R"({"architecture":"cnn","shape":[1024,4096,4096],"channels":[65536,65536],"hidden":1048576,"padding":"same"})"),
      Catch::Contains("\"fc1.weight\""));
  CHECK_THAT(refusal(R"({"architecture":"transformer","layers":1024,"width":65536,"heads":64,"hidden":1048576})"),
             Catch::Contains("choose smaller sizes"));
}

TEST_CASE("text that is not UTF-8 in a section is an error, not an exception") {
  const json broken{{"architecture", "transformer"}, {"tied", "\xff\xfe"}};
  const auto result = resolve_model(broken);
  REQUIRE(!result.ok());
  CHECK(result.error().code == Code::kInvalidArgument);
}

}  // namespace skerry
