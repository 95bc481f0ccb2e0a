#include "common/codec/encoding.h"

#include <bit>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include "common/os/files.h"
#include "common/tensor/dtype.h"
#include "common/tensor/kernels.h"

namespace skerry {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

std::vector<std::byte> encoded(const Encoding& encoding, const std::vector<float>& values) {
  std::vector<std::byte> payload(encoding.encoded_bytes(values.size()));
  encoding.encode(values, 0, 0, payload);
  return payload;
}

// Values of every size and sign, the same on every call.
std::vector<float> sample(std::size_t count) {
  std::vector<float> values;
  std::uint64_t state = 88172645463325252u;
  while (values.size() < count) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    const float value = std::bit_cast<float>(static_cast<std::uint32_t>(state >> 16));
    if (std::isfinite(value)) values.push_back(value);
  }
  return values;
}

std::string hex_bytes(const std::vector<std::byte>& bytes) {
  std::string text;
  for (const std::byte b : bytes) {
    char digits[4];
    std::snprintf(digits, sizeof digits, "%02x", std::to_integer<unsigned>(b));
    text += (text.empty() ? "" : " ") + std::string(digits);
  }
  return text;
}

struct Vector {
  std::string encoding;
  float value = 0.0f;
  std::string payload;
};

std::string trimmed(const std::string& text) {
  const auto first = text.find_first_not_of(' ');
  return first == std::string::npos ? "" : text.substr(first, text.find_last_not_of(' ') - first + 1);
}

// The rows "| words | 8 hex digits | bytes |" below each heading "## `name`".
std::vector<Vector> vectors_of(const std::string& page) {
  std::vector<Vector> vectors;
  std::string encoding;
  for (std::size_t begin = 0; begin < page.size();) {
    const std::size_t end = std::min(page.find('\n', begin), page.size());
    const std::string line = page.substr(begin, end - begin);
    begin = end + 1;
    if (line.rfind("## ", 0) == 0) encoding = line.rfind("## `", 0) == 0 ? line.substr(4, line.find('`', 4) - 4) : "";
    if (encoding.empty() || line.rfind("| ", 0) != 0) continue;
    std::vector<std::string> cells;
    for (std::size_t at = 1; at < line.size();) {
      const std::size_t bar = line.find('|', at);
      cells.push_back(trimmed(line.substr(at, bar - at)));
      at = bar + 1;
    }
    if (cells.size() != 3 || cells[1].size() != 8 ||
        cells[1].find_first_not_of("0123456789abcdef") != std::string::npos)
      continue;
    const auto bits = static_cast<std::uint32_t>(std::stoul(cells[1], nullptr, 16));
    vectors.push_back({encoding, std::bit_cast<float>(bits), cells[2]});
  }
  return vectors;
}

}  // namespace

TEST_CASE("every vector of docs/encodings.md is what the code encodes") {
  const char* source = std::getenv("SKERRY_SOURCE");
  REQUIRE(source != nullptr);
  const auto page = read_file(std::string(source) + "/docs/encodings.md", 1 << 20);
  REQUIRE(page.ok());
  const std::vector<Vector> vectors = vectors_of(*page);
  std::size_t of_each[2] = {0, 0};
  for (const Vector& vector : vectors) {
    const auto encoding = find_encoding(vector.encoding);
    REQUIRE(encoding.ok());
    CHECK(hex_bytes(encoded(**encoding, {vector.value})) == vector.payload);
    ++of_each[vector.encoding == "bf16"];
  }
  CHECK(of_each[0] == 6);
  CHECK(of_each[1] == 18);
}

TEST_CASE("an encoding is found by its name, and an unknown name is answered with the known ones") {
  CHECK(known_encodings() == std::vector<std::string_view>{"f32", "bf16"});
  for (const std::string_view name : known_encodings()) CHECK((*find_encoding(name))->name() == name);
  const auto unknown = find_encoding("int8");
  REQUIRE(!unknown.ok());
  CHECK(unknown.error().code == Code::kInvalidArgument);
  CHECK(unknown.error().message == "encoding \"int8\" is not known, only f32, bf16");
}

TEST_CASE("a decoded value differs from the encoded one by no more than the stated bound") {
  const std::vector<float> values = sample(100'003);
  for (const std::string_view name : known_encodings()) {
    const Encoding& encoding = **find_encoding(name);
    std::vector<float> decoded(values.size());
    encoding.decode(encoded(encoding, values), decoded);
    const ErrorBound bound = encoding.error_bound();
    std::size_t outside = 0;
    for (std::size_t i = 0; i < values.size(); ++i) {
      const double error = std::abs(double{decoded[i]} - double{values[i]});
      outside += error > bound.relative * std::abs(double{values[i]}) + bound.absolute ? 1 : 0;
    }
    CAPTURE(name);
    CHECK(outside == 0);
  }
}

TEST_CASE("bf16's vector loop rounds every finite value as the scalar definition does, saturating at the top") {
  std::vector<float> values;
  for (std::uint32_t upper = 0; upper < 0x10000u; ++upper)  // every bf16, and what lies around its ties
    for (const std::uint32_t lower : {0x0000u, 0x0001u, 0x7FFFu, 0x8000u, 0x8001u, 0xFFFFu})
      values.push_back(std::bit_cast<float>((upper << 16) | lower));
  std::vector<std::byte> payload(2 * values.size());
  round_to_bf16(values, payload);
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    std::uint16_t expected = f32_to_bf16(values[i]);
    if (std::isfinite(values[i]) && (expected & 0x7FFFu) == 0x7F80u) --expected;
    const auto actual = static_cast<std::uint16_t>(std::to_integer<unsigned>(payload[2 * i]) |
                                                   (std::to_integer<unsigned>(payload[2 * i + 1]) << 8));
    wrong += actual != expected ? 1 : 0;
  }
  CHECK(wrong == 0);
}

TEST_CASE("a vector encoded in pieces has the same bytes as in one, and any part decodes alone") {
  const std::vector<float> values = sample(1'037);
  for (const std::string_view name : known_encodings()) {
    const Encoding& encoding = **find_encoding(name);
    const std::vector<std::byte> whole = encoded(encoding, values);
    std::vector<std::byte> pieces(whole.size());
    for (std::size_t first = 0; first < values.size();) {
      const std::size_t count = std::min<std::size_t>(first % 7 + 1, values.size() - first);
      encoding.encode(std::span(values).subspan(first, count), first, 0,
                      std::span(pieces).subspan(encoding.encoded_bytes(first), encoding.encoded_bytes(count)));
      first += count;
    }
    CHECK(pieces == whole);

    std::vector<float> all(values.size());
    encoding.decode(whole, all);
    std::vector<float> part(100);
    decode_at(encoding, whole, 513, part);
    CHECK(part == std::vector<float>(all.begin() + 513, all.begin() + 613));
  }
}

TEST_CASE("a payload at an odd address encodes and decodes to the same bytes") {
  const std::vector<float> values = sample(77);
  const Encoding& bf16 = **find_encoding("bf16");
  const std::vector<std::byte> aligned = encoded(bf16, values);
  std::vector<std::byte> shifted(aligned.size() + 1);
  bf16.encode(values, 0, 0, std::span(shifted).subspan(1));
  CHECK(std::vector<std::byte>(shifted.begin() + 1, shifted.end()) == aligned);
  std::vector<float> from_aligned(values.size());
  std::vector<float> from_shifted(values.size());
  bf16.decode(aligned, from_aligned);
  bf16.decode(std::span<const std::byte>(shifted).subspan(1), from_shifted);
  CHECK(from_aligned == from_shifted);
}

TEST_CASE("a payload of the wrong size is refused with both sizes") {
  const Encoding& bf16 = **find_encoding("bf16");
  const std::vector<std::byte> payload(7);
  const auto checked = bf16.validate(payload, 0, 3);
  REQUIRE(!checked.ok());
  CHECK(checked.error().code == Code::kInvalidArgument);
  CHECK(checked.error().message == "bf16 payload of 3 elements has 7 bytes, must have 6");
}

TEST_CASE("a payload with NaN or infinity is refused, naming the first such element and its value") {
  for (const std::string_view name : known_encodings()) {
    const Encoding& encoding = **find_encoding(name);
    for (const std::size_t at : {0u, 1u, 63u, 64u, 200u, 299u}) {
      std::vector<float> values(300, 1.5f);
      values[at] = -kInfinity;
      values[299] = at == 299 ? -kInfinity : kNaN;
      const auto checked = encoding.validate(encoded(encoding, values), 1000, values.size());
      REQUIRE(!checked.ok());
      CHECK(checked.error().code == Code::kInvalidArgument);
      CHECK(checked.error().message ==
            std::string(name) + " payload: element " + std::to_string(1000 + at) + " is -infinity, must be finite");
    }
    CHECK(encoding.validate(encoded(encoding, sample(1000)), 0, 1000).ok());
    const auto nan = encoding.validate(encoded(encoding, {kNaN}), 0, 1);
    REQUIRE(!nan.ok());
    CHECK(nan.error().message == std::string(name) + " payload: element 0 is NaN, must be finite");
  }
}

TEST_CASE("an empty vector has an empty payload") {
  for (const std::string_view name : known_encodings()) {
    const Encoding& encoding = **find_encoding(name);
    CHECK(encoding.encoded_bytes(0) == 0);
    encoding.encode({}, 0, 0, {});
    encoding.decode({}, {});
    CHECK(encoding.validate({}, 0, 0).ok());
  }
}

}  // namespace skerry
