#include "common/model/fragment_file.h"

#include <numeric>
#include <string>
#include <vector>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "common/model/initialise.h"
#include "tests/support/temp_dir.h"

namespace skerry {
namespace {

// weight [2, 3], bias [2]: eight elements.
ModelLayout small_layout() {
  return *build_layout(nlohmann::json::parse(R"({"architecture":"linear","inputs":3,"outputs":2})"));
}

std::vector<float> counting(std::size_t count) {
  std::vector<float> values(count);
  std::iota(values.begin(), values.end(), 1.0f);
  return values;
}

void write_file(const std::string& path, const std::vector<TensorSpec>& tensors, const std::vector<float>& values) {
  auto writer = SafetensorsWriter::create(path, tensors);
  REQUIRE(writer.ok());
  REQUIRE(writer->append(std::as_bytes(std::span(values))).ok());
  REQUIRE(writer->finish().ok());
}

std::string refusal(const std::string& path) {
  const auto file = FragmentFile::open(path, small_layout(), "all");
  REQUIRE(!file.ok());
  CHECK(file.error().code == Code::kInvalidArgument);
  return file.error().message.substr(path.size() + 2);
}

}  // namespace

TEST_CASE("a fragment file is its header and then the vector, and reads back in place") {
  const test::TempDir dir;
  const ModelLayout layout = small_layout();
  const std::vector<float> values = counting(8);
  REQUIRE(write_fragment_file(dir / "all", layout, "all", values).ok());
  const std::string header = *fragment_header(layout, "all");
  CHECK(header.size() % 64 == 0);
  CHECK(*read_file(dir / "all", 1 << 20) == header + std::string(as_text(std::as_bytes(std::span(values)))));

  const auto file = FragmentFile::open(dir / "all", layout, "all");
  REQUIRE(file.ok());
  REQUIRE(file->values().has_value());
  CHECK(std::vector<float>(file->values()->begin(), file->values()->end()) == values);
}

TEST_CASE("tensors in another order than the layout's are read in the layout's") {
  const test::TempDir dir;
  write_file(dir / "all", {{"bias", DType::kF32, {2}}, {"weight", DType::kF32, {2, 3}}}, {7, 8, 1, 2, 3, 4, 5, 6});
  const auto file = FragmentFile::open(dir / "all", small_layout(), "all");
  REQUIRE(file.ok());
  CHECK(!file->values().has_value());
  const std::vector<float> expected = counting(8);
  for (std::size_t first = 0; first <= 8; ++first) {
    for (std::size_t count = 0; first + count <= 8; ++count) {
      std::vector<float> part(count);
      REQUIRE(file->read(first, part).ok());
      CHECK(part == std::vector<float>(expected.begin() + static_cast<std::ptrdiff_t>(first),
                                       expected.begin() + static_cast<std::ptrdiff_t>(first + count)));
    }
  }
  std::vector<float> part(2);
  CHECK(file->read(7, part).error().code == Code::kOutOfRange);
}

TEST_CASE("a fragment file with a missing, surplus, misshapen or mistyped tensor is refused, naming it") {
  const test::TempDir dir;
  const std::string path = dir / "all";
  const TensorSpec weight{"weight", DType::kF32, {2, 3}};
  const TensorSpec bias{"bias", DType::kF32, {2}};
  write_file(path, {weight}, counting(6));
  CHECK(refusal(path) == "tensor \"bias\" is missing, fragment \"all\" has it");
  write_file(path, {weight, bias, {"extra", DType::kF32, {1}}}, counting(9));
  CHECK(refusal(path) == "tensor \"extra\" does not belong to fragment \"all\"");
  write_file(path, {{"weight", DType::kF32, {3, 2}}, bias}, counting(8));
  CHECK(refusal(path) == "tensor \"weight\" has shape [3, 2], must be [2, 3]");
  write_file(path, {{"weight", DType::kF64, {2, 3}}, bias}, counting(14));
  CHECK(refusal(path) == "tensor \"weight\" is F64, must be F32");
}

TEST_CASE("a control fragment's file has its twin's header, and zeros at first") {
  const test::TempDir dir;
  const ModelLayout layout = *build_layout(
      nlohmann::json::parse(R"({"architecture":"linear","inputs":3,"outputs":2,"fragments":2,"control":true})"));
  CHECK(*fragment_header(layout, "f1-control") == *fragment_header(layout, "f1"));
  REQUIRE(write_initial_fragment(layout, "f0-control", 7, dir / "c").ok());
  const auto file = FragmentFile::open(dir / "c", layout, "f0-control");
  REQUIRE(file.ok());
  const auto values = file->values();
  REQUIRE(values.has_value());
  CHECK(std::vector<float>(values->begin(), values->end()) == std::vector<float>(6, 0.0f));
}

TEST_CASE("a vector of another length than the fragment's is not written") {
  const test::TempDir dir;
  const auto written = write_fragment_file(dir / "all", small_layout(), "all", counting(7));
  REQUIRE(!written.ok());
  CHECK_THAT(written.error().message, Catch::Contains("fragment \"all\" has 8 elements, was given 7"));
  CHECK(!path_exists(dir / "all"));
  CHECK(write_fragment_file(dir / "all", small_layout(), "f1", counting(8)).error().code == Code::kNotFound);
}

}  // namespace skerry
