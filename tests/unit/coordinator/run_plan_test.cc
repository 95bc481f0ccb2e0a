#include "server/coordinator/run_plan.h"

#include <catch2/catch.hpp>

#include "common/crypto/content_id.h"
#include "common/model/fragment_file.h"
#include "common/model/initialise.h"
#include "common/tensor/safetensors.h"
#include "strategies/catalogue.h"
#include "tests/support/temp_dir.h"

namespace skerry::server {
namespace {

// A linear model of `inputs` · 2 weights and 2 biases.
std::string spec(int inputs, const std::string& model_lines = "") {
  return R"(
name = "t"
purpose = "test"
seed = 3
[model]
architecture = "linear"
outputs = 2
inputs = )" +
         std::to_string(inputs) + "\n" + model_lines + R"(
[data]
kind = "csv"
schema = { features = ["a"], label = "y", classes = 2 }
[training]
learning_rate = 0.1
steps = 1
epochs = 0
)";
}

RunPlan plan(const std::string& toml) {
  auto parsed = parse_run_spec(toml, strategies::spec_catalogue());
  if (!parsed.ok()) FAIL(parsed.error().message);
  return RunPlan::from_spec(std::move(parsed).value()).value();
}

std::vector<float> initial_values(const RunPlan& plan) {
  std::vector<float> values(plan.shapes[0].elements);
  REQUIRE(initialise_fragment(plan.layout, "all", 3, 0, values).ok());
  return values;
}

}  // namespace

TEST_CASE(
    "a small model's initial version is kept inline, a large one's in cargo, both as the initialisers draw them") {
  const test::TempDir home;
  const auto cargo = CargoStore::open(home.path()).value();

  const RunPlan small = plan(spec(10));
  const auto inline_versions = make_initial_versions(small, *cargo).value();
  REQUIRE(inline_versions.size() == 1);
  const std::string& bytes = inline_versions[0].whole.bytes;
  CHECK(bytes.size() == small.shapes[0].file_bytes);
  CHECK(content_id(bytes) == inline_versions[0].whole.content_id);
  const std::vector<float> expected = initial_values(small);
  CHECK(std::memcmp(bytes.data() + small.shapes[0].data_offset, expected.data(), 4 * expected.size()) == 0);

  const RunPlan large = plan(spec(300'000));  // several blocks
  const auto stored = make_initial_versions(large, *cargo).value();
  CHECK(stored[0].whole.bytes.empty());
  CHECK(cargo->verify_cargo(stored[0].whole.content_id).ok());
  const auto file = FragmentFile::open(cargo->cargo_path(stored[0].whole.content_id), large.layout, "all").value();
  std::vector<float> values(large.shapes[0].elements);
  REQUIRE(file.read(0, values).ok());
  CHECK(values == initial_values(large));
}

TEST_CASE("a run may start from an uploaded model, whatever the order of its tensors") {
  const test::TempDir home;
  const auto cargo = CargoStore::open(home.path()).value();
  const RunPlan drawn = plan(spec(10));
  std::vector<TensorSpec> tensors;
  for (auto tensor = drawn.layout.tensors.rbegin(); tensor != drawn.layout.tensors.rend(); ++tensor)
    tensors.push_back({tensor->name, DType::kF32, tensor->shape});
  const std::string path = cargo->scratch_path();
  std::vector<std::vector<float>> written;
  {
    auto writer = SafetensorsWriter::create(path, tensors).value();
    float next = 1;
    for (auto tensor = drawn.layout.tensors.rbegin(); tensor != drawn.layout.tensors.rend(); ++tensor) {
      std::vector<float> values(tensor->elements);
      for (float& value : values) value = next++;
      REQUIRE(writer.append(std::as_bytes(std::span<const float>(values))).ok());
      written.insert(written.begin(), values);
    }
    REQUIRE(writer.finish().ok());
  }
  const std::string id = content_id(read_file(path, 1 << 20).value());
  REQUIRE(cargo->adopt_file(path, id).ok());

  const RunPlan uploaded = plan(spec(10, "initial = \"" + id + "\""));
  const auto versions = make_initial_versions(uploaded, *cargo);
  REQUIRE(versions.ok());
  std::vector<float> expected;
  for (const auto& values : written) expected.insert(expected.end(), values.begin(), values.end());
  CHECK(std::memcmp((*versions)[0].whole.bytes.data() + uploaded.shapes[0].data_offset, expected.data(),
                    4 * expected.size()) == 0);
}

TEST_CASE("an uploaded model that does not fit is refused with the tensor's name") {
  const test::TempDir home;
  const auto cargo = CargoStore::open(home.path()).value();
  const RunPlan other = plan(spec(11));
  const std::string path = cargo->scratch_path();
  REQUIRE(write_fragment_file(path, other.layout, "all", std::vector<float>(other.shapes[0].elements)).ok());
  const std::string id = content_id(read_file(path, 1 << 20).value());
  REQUIRE(cargo->adopt_file(path, id).ok());
  const auto versions = make_initial_versions(plan(spec(10, "initial = \"" + id + "\"")), *cargo);
  REQUIRE_FALSE(versions.ok());
  CHECK_THAT(versions.error().message, Catch::Contains(other.layout.tensors[0].name));
}

}  // namespace skerry::server
