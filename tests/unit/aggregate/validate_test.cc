#include "server/aggregate/validate.h"

#include <limits>

#include "tests/unit/aggregate/world.h"

namespace skerry::server {

TEST_CASE("a good update is measured") {
  const std::vector<float> values = {3.0f, -4.0f};
  CHECK(validate_update("f32", Payload::in_memory(bytes_of(values)), 2)->norm == 5.0);
  CHECK(validate_update("bf16", Payload::in_memory(bf16_of(values)), 2)->norm == 5.0);
}

TEST_CASE("a norm's bits depend neither on file or memory nor on the SIMD target") {
  const auto values = some_values(2'000'003, 1);
  const std::string bytes = bytes_of(values);
  const test::TempDir directory;
  REQUIRE(write_file_atomic(directory / "u", bytes).ok());
  const double norm = validate_update("f32", Payload::in_memory(bytes), values.size())->norm;
  double squares = 0;
  for (const float value : values) squares += static_cast<double>(value) * static_cast<double>(value);
  CHECK(norm == Approx(std::sqrt(squares)).epsilon(1e-12));
  on_every_target([&] { CHECK(validate_update("f32", Payload::file(directory / "u"), values.size())->norm == norm); });
}

TEST_CASE("an update of the wrong size is refused with both sizes") {
  const auto result = validate_update("bf16", Payload::in_memory("1234567"), 4);
  REQUIRE(!result.ok());
  CHECK(result.error().code == Code::kInvalidArgument);
  CHECK(result.error().message == "the update has 7 bytes; 4 elements in bf16 have 8");
}

TEST_CASE("the first value that is not finite is named by element and tensor") {
  auto values = some_values(40000, 1);
  values[30005] = std::numeric_limits<float>::quiet_NaN();
  values[30009] = std::numeric_limits<float>::infinity();
  const std::vector<strategies::TensorRange> tensors = {{"embed", 0, 30000}, {"head", 30000, 10000}};
  const std::string bytes = bytes_of(values);
  CHECK(validate_update("f32", Payload::in_memory(bytes), 40000, 0, tensors).error().message ==
        "the update's element 30005 (tensor head, its element 5) is NaN, must be finite");
  const std::string halves = bf16_of(values);
  CHECK(validate_update("bf16", Payload::in_memory(halves), 40000).error().message ==
        "the update's element 30005 is NaN, must be finite");
}

TEST_CASE("a norm above the limit is refused, one at the limit is not") {
  const std::string bytes = bytes_of({3.0f, -4.0f});
  CHECK(validate_update("f32", Payload::in_memory(bytes), 2, 5.0).ok());
  CHECK(validate_update("f32", Payload::in_memory(bytes), 2, 4.99).error().message ==
        "the update's norm is 5, must be at most 4.99");
}

TEST_CASE("an unknown encoding and a missing file are refused") {
  CHECK(validate_update("f7", Payload::in_memory("1234"), 1).error().code == Code::kInvalidArgument);
  CHECK(validate_update("f32", Payload::file("/nowhere/at/all"), 1).error().code == Code::kNotFound);
}

TEST_CASE("a scale or codebook that is not finite is refused, also where no value uses it") {
  std::string scaled("\0\0\x80\x7f\0\0\0", 7);  // infinity times three zeros
  CHECK(validate_update("int8_block", Payload::in_memory(scaled), 3).error().message.find("the scale of elements 0 to 2 is "
                                                                                         "+infinity") != std::string::npos);
  std::string coded(1024 + 3, '\x80');
  std::fill_n(coded.begin(), 1024, '\0');
  CHECK(validate_update("int8", Payload::in_memory(coded), 3)->norm == 0.0);
  coded.replace(1020, 4, std::string("\0\0\xc0\x7f", 4));
  CHECK(validate_update("int8", Payload::in_memory(coded), 3).error().message.find("code 255 is NaN") != std::string::npos);
}

}  // namespace skerry::server
