#include "common/tensor/safetensors.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>

#include <catch2/catch.hpp>

#include "tests/support/temp_dir.h"

namespace skerry {
namespace {

std::string golden(const std::string& name) {
  const char* source = std::getenv("SKERRY_SOURCE");
  return std::string(source != nullptr ? source : ".") + "/tests/golden/safetensors/" + name + ".safetensors";
}

template <typename T>
std::vector<T> values_of(const SafetensorsFile& file, const char* name) {
  const TensorEntry* tensor = file.find(name);
  REQUIRE(tensor != nullptr);
  REQUIRE(tensor->bytes == tensor->elements * sizeof(T));
  std::vector<T> values(tensor->elements);
  std::memcpy(values.data(), file.bytes(*tensor).data(), tensor->bytes);
  return values;
}

std::vector<float> floats_of(const SafetensorsFile& file, const char* name) {
  const TensorEntry* tensor = file.find(name);
  REQUIRE(tensor != nullptr);
  std::vector<float> values(tensor->elements);
  const auto read = file.read_f32(*tensor, 0, values);
  REQUIRE(read.ok());
  return values;
}

const std::vector<TensorSpec> kAllDtypes{
    {"f32", DType::kF32, {2, 3}}, {"f16", DType::kF16, {4}}, {"bf16", DType::kBF16, {2, 2}}, {"f64", DType::kF64, {1}},
    {"i32", DType::kI32, {2}},    {"i64", DType::kI64, {2}}, {"u8", DType::kU8, {3}}};

void write_floats(const std::string& path, const std::vector<float>& values) {
  auto writer = SafetensorsWriter::create(path, std::vector<TensorSpec>{{"a", DType::kF32, {values.size()}}});
  REQUIRE(writer.ok());
  REQUIRE(writer->append(std::as_bytes(std::span(values))).ok());
  REQUIRE(writer->finish().ok());
}

}  // namespace

TEST_CASE("the golden file of all dtypes reads as the values its script wrote") {
  const auto file = SafetensorsFile::open(golden("all_dtypes"));
  REQUIRE(file.ok());
  CHECK(file->tensors().size() == 7);
  CHECK(file->metadata() == SafetensorsMetadata{{"format", "pt"}, {"note", "golden \"file\""}});
  CHECK(file->header().data_begin % 64 == 0);
  CHECK(values_of<float>(*file, "f32") == std::vector<float>{0.0f, -1.0f, 0.5f, 3.140625f, 1e-40f, 3e38f});
  CHECK(file->find("f32")->shape == std::vector<std::uint64_t>{2, 3});
  CHECK(floats_of(*file, "f16") == std::vector<float>{1.0f, -2.0f, 65504.0f, std::ldexp(1.0f, -24)});
  CHECK(floats_of(*file, "bf16") == std::vector<float>{1.0f, -2.5f, 3.140625f, bf16_to_f32(f32_to_bf16(1e30f))});
  CHECK(values_of<double>(*file, "f64") == std::vector<double>{0.1});
  CHECK(values_of<std::int32_t>(*file, "i32") == std::vector<std::int32_t>{-1, 2147483647});
  CHECK(values_of<std::int64_t>(*file, "i64") ==
        std::vector<std::int64_t>{std::numeric_limits<std::int64_t>::min(), 42});
  CHECK(values_of<std::uint8_t>(*file, "u8") == std::vector<std::uint8_t>{0, 7, 255});
  CHECK(file->check_finite().ok());
}

TEST_CASE("our writer makes the golden file bit for bit") {
  const test::TempDir dir;
  const auto file = SafetensorsFile::open(golden("all_dtypes"));
  REQUIRE(file.ok());
  const std::string path = dir / "again.safetensors";
  auto writer = SafetensorsWriter::create(path, kAllDtypes, {{"note", "golden \"file\""}, {"format", "pt"}});
  REQUIRE(writer.ok());
  for (const std::byte& byte : file->data()) REQUIRE(writer->append({&byte, 1}).ok());
  REQUIRE(writer->finish().ok());
  CHECK(*read_file(path, 1 << 20) == *read_file(golden("all_dtypes"), 1 << 20));
  CHECK(!path_exists(path + ".part"));
}

TEST_CASE("a file of another writer reads: header without padding, tensors in any order, empty and scalar ones") {
  const auto file = SafetensorsFile::open(golden("foreign"));
  REQUIRE(file.ok());
  CHECK(floats_of(*file, "z.last") == std::vector<float>{1.0f, 2.0f});
  CHECK(file->find("empty")->elements == 0);
  CHECK(floats_of(*file, "empty").empty());
  CHECK(file->find("scalar")->shape.empty());
  CHECK(floats_of(*file, "scalar") == std::vector<float>{2.5f});
  CHECK(values_of<std::uint8_t>(*file, "größe") == std::vector<std::uint8_t>{1, 2, 3});
  CHECK(file->find("missing") == nullptr);
}

TEST_CASE("a file without tensors is a file") {
  const auto file = SafetensorsFile::open(golden("no_tensors"));
  REQUIRE(file.ok());
  CHECK(file->tensors().empty());
  CHECK(file->data().empty());
}

TEST_CASE("a part of a tensor reads alone, and a part beyond its end is refused") {
  const auto file = SafetensorsFile::open(golden("all_dtypes"));
  REQUIRE(file.ok());
  std::vector<float> part(2);
  REQUIRE(file->read_f32(*file->find("f32"), 2, part).ok());
  CHECK(part == std::vector<float>{0.5f, 3.140625f});
  const auto beyond = file->read_f32(*file->find("f32"), 5, part);
  REQUIRE(!beyond.ok());
  CHECK(beyond.error().code == Code::kOutOfRange);
  CHECK_THAT(beyond.error().message, Catch::Contains("\"f32\" has 6 elements, asked for 2 from 5"));
  const auto integers = file->read_f32(*file->find("i32"), 0, part);
  REQUIRE(!integers.ok());
  CHECK_THAT(integers.error().message, Catch::Contains("\"i32\" is I32"));
}

TEST_CASE("data of every header we make starts at a multiple of 64 and its length word is right") {
  for (std::size_t length = 1; length < 80; ++length) {
    const auto header = make_safetensors_header(std::vector<TensorSpec>{{std::string(length, 'n'), DType::kU8, {0}}});
    REQUIRE(header.ok());
    CHECK(header->size() % 64 == 0);
    const auto parsed = parse_safetensors_header(as_bytes_of(*header), header->size());
    REQUIRE(parsed.ok());
    CHECK(parsed->data_begin == header->size());
  }
}

TEST_CASE("a writer refuses duplicate and reserved names, names that are not UTF-8, and sizes beyond any file") {
  const auto error_of = [](std::vector<TensorSpec> tensors) {
    const auto header = make_safetensors_header(tensors);
    REQUIRE(!header.ok());
    CHECK(header.error().code == Code::kInvalidArgument);
    return header.error().message;
  };
  CHECK(error_of({{"a", DType::kU8, {1}}, {"a", DType::kU8, {1}}}) == "tensor \"a\": the name is there twice");
  CHECK(error_of({{"__metadata__", DType::kU8, {1}}}) == "tensor \"__metadata__\": the name is reserved");
  CHECK_THAT(error_of({{"\xff", DType::kU8, {1}}}), Catch::Contains("UTF-8"));
  CHECK_THAT(error_of({{"big", DType::kF64, {std::uint64_t{1} << 60}}}), Catch::Contains("tensor \"big\""));
}

TEST_CASE("a writer takes exactly the declared bytes and leaves nothing behind without them") {
  const test::TempDir dir;
  const std::string path = dir / "a.safetensors";
  {
    auto writer = SafetensorsWriter::create(path, std::vector<TensorSpec>{{"a", DType::kU8, {4}}});
    REQUIRE(writer.ok());
    REQUIRE(writer->append(as_bytes_of("abc")).ok());
    const auto early = writer->finish();
    REQUIRE(!early.ok());
    CHECK(early.error().code == Code::kFailedPrecondition);
    CHECK_THAT(early.error().message, Catch::Contains("1 bytes of its tensors were not written"));
    const auto surplus = writer->append(as_bytes_of("de"));
    REQUIRE(!surplus.ok());
    CHECK(surplus.error().code == Code::kOutOfRange);
  }
  CHECK(!path_exists(path));
  CHECK(!path_exists(path + ".part"));
}

TEST_CASE("large and small appends give the same file, durable or scratch") {
  const test::TempDir dir;
  std::vector<float> values(400'000);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  write_floats(dir / "whole", values);
  auto writer = SafetensorsWriter::create(dir / "pieces", std::vector<TensorSpec>{{"a", DType::kF32, {values.size()}}},
                                          {}, Durability::kScratch);
  REQUIRE(writer.ok());
  const auto bytes = std::as_bytes(std::span(values));
  for (std::size_t at = 0; at < bytes.size();) {
    const std::size_t piece = std::min(bytes.size() - at, at % 3 == 0 ? std::size_t{1001} : std::size_t{300'000});
    REQUIRE(writer->append(bytes.subspan(at, piece)).ok());
    at += piece;
  }
  REQUIRE(writer->finish().ok());
  CHECK(*read_file(dir / "whole", 1 << 24) == *read_file(dir / "pieces", 1 << 24));
}

TEST_CASE("a value that is not finite is reported with tensor, index and value, in every floating dtype") {
  const test::TempDir dir;
  const std::string path = dir / "a.safetensors";
  std::vector<float> values(100, 1.0f);
  values[77] = std::numeric_limits<float>::quiet_NaN();
  write_floats(path, values);
  const auto nan = SafetensorsFile::open(path)->check_finite();
  REQUIRE(!nan.ok());
  CHECK(nan.error().message == path + ": tensor \"a\": element 77 is NaN, must be finite");

  const std::pair<DType, std::string> infinities[] = {{DType::kF16, std::string("\x00\xFC", 2)},
                                                      {DType::kBF16, std::string("\x80\xFF", 2)},
                                                      {DType::kF64, std::string("\0\0\0\0\0\0\xF0\xFF", 8)}};
  for (const auto& [dtype, bytes] : infinities) {
    auto writer = SafetensorsWriter::create(path, std::vector<TensorSpec>{{"a", dtype, {2}}});
    REQUIRE(writer.ok());
    REQUIRE(writer->append(as_bytes_of(std::string(bytes.size(), '\0') + bytes)).ok());
    REQUIRE(writer->finish().ok());
    const auto infinite = SafetensorsFile::open(path)->check_finite();
    REQUIRE(!infinite.ok());
    CHECK_THAT(infinite.error().message, Catch::Contains("element 1 is -infinity"));
  }
}

TEST_CASE("a missing file is NOT_FOUND and names its path") {
  const auto file = SafetensorsFile::open("/nonexistent/a.safetensors");
  REQUIRE(!file.ok());
  CHECK(file.error().code == Code::kNotFound);
  CHECK_THAT(file.error().message, Catch::Contains("/nonexistent/a.safetensors"));
}

}  // namespace skerry
