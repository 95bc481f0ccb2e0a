#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#include <catch2/catch.hpp>

#include "common/os/files.h"
#include "common/tensor/safetensors.h"
#include "tests/support/temp_dir.h"

namespace skerry {
namespace {

// The message for a file of the corpus that tests/golden/safetensors/make_golden.py wrote.
std::string refusal(const std::string& name) {
  const char* source = std::getenv("SKERRY_SOURCE");
  const std::string path = std::string(source != nullptr ? source : ".") + "/tests/fuzz/corpus/safetensors/" + name;
  const auto content = read_file(path, 1 << 20);
  REQUIRE(content.ok());
  const auto parsed = parse_safetensors_header(as_bytes_of(*content), content->size());
  REQUIRE(!parsed.ok());
  CHECK(parsed.error().code == Code::kInvalidArgument);
  return parsed.error().message;
}

}  // namespace

TEST_CASE("every malformed file is refused with the tensor and the value that is wrong") {
  const std::pair<const char*, const char*> expected[] = {
      {"empty_file", "the file has 0 bytes, a safetensors file has at least 8"},
      {"seven_bytes", "the file has 7 bytes, a safetensors file has at least 8"},
      {"header_beyond_file", "the header claims 100 bytes, the file has only 2 after its length: it is truncated"},
      {"header_absurd",
       "the header claims 9223372036854775808 bytes, at most 100000000 are allowed; is this a safetensors file?"},
      {"not_object", "the header does not begin with {, it is not safetensors"},
      {"zero_byte", "the header has a zero byte at its byte 2"},
      {"duplicate_name", "tensor \"a\": the name is there twice"},
      {"duplicate_member", "tensor \"a\": dtype is there twice"},
      {"unknown_dtype", "tensor \"a\": dtype \"F8_E4M3\" is not supported, only F32, F16, BF16, F64, I32, I64, U8"},
      {"unknown_member", "tensor \"a\": member \"x\" is not one of dtype, shape, data_offsets"},
      {"missing_member", "tensor \"a\": data_offsets is missing"},
      {"negative_size", "tensor \"a\": shape contains -2, must contain whole numbers from 0"},
      {"fraction_size", "tensor \"a\": shape contains 2.0, must contain whole numbers from 0"},
      {"overflowing_shape",
       "tensor \"a\": shape [4294967296, 4294967296, 4294967296] of F32 is larger than any file can be"},
      {"overflowing_to_zero", "tensor \"a\": shape [4294967296, 4294967296] of F32 is larger than any file can be"},
      {"offsets_disagree", "tensor \"a\": data_offsets [0, 8] hold 8 bytes, but F32 [3] needs 12"},
      {"offsets_beyond", "tensor \"a\": data_offsets [0, 16] reach beyond the file's 8 bytes of data"},
      {"offsets_reversed", "tensor \"a\": data_offsets [8, 0] end before they begin"},
      {"offsets_one", "tensor \"a\": data_offsets has 1 numbers, must have two"},
      {"offsets_three", "tensor \"a\": data_offsets has more than two numbers"},
      {"overlap", "tensor \"b\": begins at byte 3 of the data, inside tensor \"a\" which ends at 4"},
      {"gap", "tensor \"b\": begins at byte 3 of the data, which leaves a gap from byte 2"},
      {"data_after_last", "the tensors end at byte 8 of the data, the file has 9; the last tensor is \"a\""},
      {"truncated_data", "tensor \"a\": data_offsets [0, 8] reach beyond the file's 7 bytes of data"},
      {"metadata_number", "metadata member \"a\" is 1, must be text"},
      {"deep_nesting", "tensor \"a\": is a list, must be an object"},
      {"many_dimensions", "tensor \"a\": shape has more than 32 dimensions"},
  };
  for (const auto& [name, message] : expected) {
    CAPTURE(name);
    CHECK(refusal(name) == message);
  }
  CHECK_THAT(refusal("not_json"), Catch::StartsWith("the header is not JSON at its byte"));
  CHECK_THAT(refusal("bad_utf8"), Catch::StartsWith("the header is not JSON at its byte"));
}

TEST_CASE("a name from a hostile file is cut and cleaned in the message") {
  const std::string text = "{\"" + std::string(100'000, 'x') + "\":1}";
  std::string file(8, '\0');
  const std::uint64_t length = text.size();
  std::memcpy(file.data(), &length, sizeof length);
  file += text;
  const auto parsed = parse_safetensors_header(as_bytes_of(file), file.size());
  REQUIRE(!parsed.ok());
  CHECK(parsed.error().message.size() < 300);
  CHECK_THAT(parsed.error().message,
             Catch::EndsWith("...\": is 1, must be an object") || Catch::EndsWith("...\"is 1, must be an object"));
}

TEST_CASE("opening a malformed file names the file before the tensor") {
  const test::TempDir dir;
  const std::string path = dir / "cut.safetensors";
  REQUIRE(write_file_atomic(path, std::string("\x02\0\0\0\0\0\0\0{}x", 11)).ok());
  const auto file = SafetensorsFile::open(path);
  REQUIRE(!file.ok());
  CHECK(file.error().message == path + ": the tensors end at byte 0 of the data, the file has 1");
}

}  // namespace skerry
