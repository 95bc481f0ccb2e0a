#include "common/codec/encoding.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include "common/codec/int8.h"
#include "common/crypto/content_id.h"
#include "common/os/files.h"
#include "common/tensor/dtype.h"
#include "common/tensor/kernels.h"

namespace skerry {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

std::vector<std::byte> encoded(const Encoding& encoding, const std::vector<float>& values) {
  std::vector<std::byte> payload(encoding.encoded_bytes(values.size()));
  encoding.encode(values, 0, {}, payload);
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
  std::vector<float> values;
  std::vector<std::string> cells;  // those after the values
};

std::string trimmed(const std::string& text) {
  const auto first = text.find_first_not_of(' ');
  return first == std::string::npos ? "" : text.substr(first, text.find_last_not_of(' ') - first + 1);
}

std::vector<std::string> words_of(const std::string& text) {
  std::vector<std::string> words;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t space = std::min(text.find(' ', at), text.size());
    if (space > at) words.push_back(text.substr(at, space - at));
    at = space + 1;
  }
  return words;
}

bool is_f32_bits(const std::string& word) {
  return word.size() == 8 && word.find_first_not_of("0123456789abcdef") == std::string::npos;
}

float f32_of_bits(const std::string& word) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(std::stoul(word, nullptr, 16)));
}

std::vector<std::string> cells_of(const std::string& line) {
  std::vector<std::string> cells;
  for (std::size_t at = 1; at < line.size();) {
    const std::size_t bar = line.find('|', at);
    cells.push_back(trimmed(line.substr(at, bar - at)));
    at = bar + 1;
  }
  return cells;
}

// The rows "| words | f32 bits… | … |" below each heading "## `name`".
std::vector<Vector> vectors_of(const std::string& page) {
  std::vector<Vector> vectors;
  std::string encoding;
  for (std::size_t begin = 0; begin < page.size();) {
    const std::size_t end = std::min(page.find('\n', begin), page.size());
    const std::string line = page.substr(begin, end - begin);
    begin = end + 1;
    if (line.rfind("## ", 0) == 0) encoding = line.rfind("## `", 0) == 0 ? line.substr(4, line.find('`', 4) - 4) : "";
    if (encoding.empty() || line.rfind("| ", 0) != 0) continue;
    std::vector<std::string> cells = cells_of(line);
    if (cells.size() < 3) continue;
    const std::vector<std::string> words = words_of(cells[1]);
    if (words.empty() || !std::all_of(words.begin(), words.end(), is_f32_bits)) continue;
    Vector vector{encoding, {}, {cells.begin() + 2, cells.end()}};
    for (const std::string& word : words) vector.values.push_back(f32_of_bits(word));
    vectors.push_back(std::move(vector));
  }
  return vectors;
}

std::string encodings_page() {
  const char* source = std::getenv("SKERRY_SOURCE");
  REQUIRE(source != nullptr);
  auto page = read_file(std::string(source) + "/docs/encodings.md", 1 << 20);
  REQUIRE(page.ok());
  return std::move(page).value();
}

}  // namespace

TEST_CASE("every vector of docs/encodings.md is what the code encodes") {
  std::map<std::string, std::size_t> of_each;
  for (const Vector& vector : vectors_of(encodings_page())) {
    const auto encoding = find_encoding(vector.encoding);
    REQUIRE(encoding.ok());
    ++of_each[vector.encoding];
    if (vector.encoding == "int8") continue;  // its own test
    CHECK(hex_bytes(encoded(**encoding, vector.values)) == vector.cells[0]);
  }
  CHECK(of_each == std::map<std::string, std::size_t>{{"f32", 6}, {"bf16", 18}, {"f16", 16}, {"int8", 9}, {"int8_block", 9}, {"int4", 7}, {"e3m0", 8}, {"topk2", 5}, {"sign", 6}});
}

TEST_CASE("every vector of int8 in docs/encodings.md has the codebook and the codes that the code makes") {
  const Encoding& int8 = **find_encoding("int8");
  for (const Vector& vector : vectors_of(encodings_page())) {
    if (vector.encoding != "int8") continue;
    const std::vector<std::byte> payload = encoded(int8, vector.values);
    std::vector<float> codebook(256, 0.0f);
    for (const std::string& entry : words_of(vector.cells[0])) {
      if (entry == "zeros") continue;
      codebook[std::stoul(entry.substr(0, 2), nullptr, 16)] = f32_of_bits(entry.substr(3));
    }
    CHECK(std::memcmp(payload.data(), codebook.data(), 1024) == 0);
    CHECK(hex_bytes({payload.begin() + 1024, payload.end()}) == vector.cells[1]);
  }
}

TEST_CASE("the longer vectors of docs/encodings.md encode to the content ids it tells") {
  const std::string page = encodings_page();
  const auto check = [&](std::string_view name, std::size_t count, bool stochastic) {
    std::vector<float> values;
    for (std::uint32_t i = 0; i < count; ++i) {
      const float u = static_cast<float>((i * 2654435761u) >> 8) / 8388608.0f - 1.0f;
      values.push_back(std::ldexp(u, -static_cast<int>(i % 8)));
    }
    const Encoding& encoding = **find_encoding(name);
    std::vector<std::byte> payload(encoding.encoded_bytes(count));
    encoding.encode(values, 0, {stochastic, 7, rounding_stream("f0")}, payload);
    const std::string row = "| `" + std::string(name) + (stochastic ? "` at random | " : "` | ") + std::to_string(count) + " | " +
                            std::to_string(payload.size()) + " | `" + content_id(payload) + "` |";
    CAPTURE(row);
    CHECK(page.find(row) != std::string::npos);
  };
  for (const std::string_view name : known_encodings()) {
    if (name == "f32") continue;
    if (name != "bf16") check(name, 1'000, false);
    if (name != "bf16") check(name, 70'000, false);
    check(name, 70'000, true);
  }
}

TEST_CASE("an encoding is found by its name, and an unknown name is answered with the known ones") {
  CHECK(known_encodings() == std::vector<std::string_view>{"f32", "bf16", "f16", "int8", "int8_block", "int4", "e3m0", "topk2", "sign"});
  for (const std::string_view name : known_encodings()) CHECK((*find_encoding(name))->name() == name);
  const auto unknown = find_encoding("int7");
  REQUIRE(!unknown.ok());
  CHECK(unknown.error().code == Code::kInvalidArgument);
  CHECK(unknown.error().message == "encoding \"int7\" is not known, only f32, bf16, f16, int8, int8_block, int4, e3m0, topk2, sign");
}

TEST_CASE("a decoded value differs from the encoded one by no more than the stated bound") {
  const std::vector<float> values = sample(100'003);
  for (const std::string_view name : known_encodings()) {
    const Encoding& encoding = **find_encoding(name);
    std::vector<float> decoded(values.size());
    encoding.decode(encoded(encoding, values), decoded);
    const ErrorBound bound = encoding.error_bound(false);
    std::size_t outside = 0;
    double largest = 0;
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (i % encoding.block_elements() == 0) {
        largest = 0;
        for (std::size_t j = i; j < std::min<std::size_t>(i + encoding.block_elements(), values.size()); ++j) {
          largest = std::max(largest, std::abs(double{values[j]}));
        }
      }
      const double error = std::abs(double{decoded[i]} - double{values[i]});
      if (std::abs(double{values[i]}) > bound.reach) continue;
      outside += error > bound.relative * std::abs(double{values[i]}) + bound.absolute + bound.of_largest * largest ? 1 : 0;
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
  const std::vector<float> values = sample(140'037);
  for (const std::string_view name : known_encodings()) {
    const Encoding& encoding = **find_encoding(name);
    const std::vector<std::byte> whole = encoded(encoding, values);
    std::vector<std::byte> pieces(whole.size());
    for (std::size_t first = 0; first < values.size();) {
      const std::size_t count =
          std::min<std::size_t>((first % 7 + 1) * encoding.block_elements(), values.size() - first);
      encoding.encode(std::span(values).subspan(first, count), first, {},
                      std::span(pieces).subspan(encoding.encoded_bytes(first), encoding.encoded_bytes(count)));
      first += count;
    }
    CHECK(pieces == whole);

    std::vector<float> all(values.size());
    encoding.decode(whole, all);
    for (const std::size_t about : {0u, 513u, 65'400u, 131'072u}) {  // also across a block's end
      const std::size_t first = about / encoding.part_elements() * encoding.part_elements();
      std::vector<float> part(encoding.part_elements() * (256 / encoding.part_elements()));
      decode_at(encoding, whole, first, part);
      CHECK((part == std::vector<float>(all.begin() + static_cast<std::ptrdiff_t>(first),
                                        all.begin() + static_cast<std::ptrdiff_t>(first + part.size()))));
    }
  }
}

TEST_CASE("a payload at an odd address encodes and decodes to the same bytes") {
  const std::vector<float> values = sample(77);
  for (const std::string_view name : known_encodings()) {
    const Encoding& encoding = **find_encoding(name);
    const std::vector<std::byte> aligned = encoded(encoding, values);
    std::vector<std::byte> shifted(aligned.size() + 1);
    encoding.encode(values, 0, {}, std::span(shifted).subspan(1));
    CHECK(std::vector<std::byte>(shifted.begin() + 1, shifted.end()) == aligned);
    std::vector<float> from_aligned(values.size());
    std::vector<float> from_shifted(values.size());
    encoding.decode(aligned, from_aligned);
    encoding.decode(std::span<const std::byte>(shifted).subspan(1), from_shifted);
    CHECK(from_aligned == from_shifted);
  }
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
  for (const std::string_view name : {"f32", "bf16"}) {
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
    encoding.encode({}, 0, {}, {});
    encoding.decode({}, {});
    CHECK(encoding.validate({}, 0, 0).ok());
  }
}

TEST_CASE("int8 errs by at most a bucket within its range, keeps a block's mean, and takes one byte and little more") {
  const Encoding& int8 = **find_encoding("int8");
  std::vector<float> values;
  std::uint32_t state = 1;
  for (std::size_t i = 0; i < Int8::kBlock; ++i) {  // about normal, σ about 1e-3
    double sum = 0;
    for (int j = 0; j < 12; ++j) sum += (state = state * 1664525u + 1013904223u) / 4294967296.0;
    values.push_back(static_cast<float>(1e-3 * (sum - 6.0)));
  }
  values[7] = 1.0f;  // an outlier goes to the last bucket, with few others
  std::vector<float> decoded(values.size());
  int8.decode(encoded(int8, values), decoded);
  double squares = 0;
  double mean_before = 0;
  double mean_after = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    squares += double{values[i]} * double{values[i]};
    mean_before += values[i];
    mean_after += decoded[i];
  }
  const double deviation = std::sqrt(squares / static_cast<double>(values.size() - 1));
  std::size_t outside = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (std::abs(values[i]) > 2.97 * deviation) continue;
    outside += std::abs(double{decoded[i]} - double{values[i]}) > 0.0235 * deviation ? 1 : 0;
  }
  CHECK(outside == 0);
  CHECK(mean_after == Approx(mean_before));
  CHECK(static_cast<double>(int8.encoded_bytes(100'000'000)) < 1.02 * 100'000'000);
}

TEST_CASE("int8_block errs by at most half a step, but for the largest numbers there are") {
  const Encoding& block = **find_encoding("int8_block");
  const std::vector<float> values = sample(100'000);
  std::vector<float> decoded(values.size());
  block.decode(encoded(block, values), decoded);
  std::size_t outside = 0;
  for (std::size_t first = 0; first < values.size(); first += Int8Block::kBlock) {
    const std::size_t end = std::min<std::size_t>(first + Int8Block::kBlock, values.size());
    double largest = 0;
    for (std::size_t i = first; i < end; ++i) largest = std::max(largest, std::abs(double{values[i]}));
    if (largest > 3.37e38) continue;
    for (std::size_t i = first; i < end; ++i) {
      const double error = std::abs(double{decoded[i]} - double{values[i]});
      outside += error > largest / 254 * (1 + 0x1p-22) + std::abs(double{values[i]}) * 0x1p-23 + 0x1p-149 ? 1 : 0;
    }
  }
  CHECK(outside == 0);
  CHECK(static_cast<double>(block.encoded_bytes(100'000'000)) < 1.02 * 100'000'000);
}

TEST_CASE("a hostile codebook or scale is refused by name, and what is not finite is never encoded as something else") {
  const Encoding& int8 = **find_encoding("int8");
  std::vector<std::byte> payload = encoded(int8, std::vector<float>(65'540, 0.5f));
  CHECK(int8.validate(payload, 0, 65'540).ok());
  std::memcpy(payload.data() + 1024 + 65'536 + 4 * 9, &kNaN, 4);  // code 9 of the second block, which nobody uses
  CHECK(int8.validate(payload, 65'536, 65'540).error().message ==
        "int8 payload: in the codebook of elements 131072 to 131075 code 9 is NaN, must be finite");

  const Encoding& block = **find_encoding("int8_block");
  std::vector<std::byte> scaled = encoded(block, std::vector<float>(300, 0.5f));
  CHECK(block.validate(scaled, 0, 300).ok());
  for (const float bad : {kNaN, kInfinity, -1.0f, -0.0f, 1e38f}) {
    std::memcpy(scaled.data() + 260, &bad, 4);
    const auto checked = block.validate(scaled, 256, 300);
    REQUIRE(!checked.ok());
    CHECK(checked.error().code == Code::kInvalidArgument);
    CHECK(checked.error().message.find("the scale of elements 512 to 555 is ") != std::string::npos);
  }

  for (const std::string_view name : {"int8", "int8_block"}) {
    for (const float bad : {kNaN, kInfinity, -kInfinity}) {
      std::vector<float> values(300, 1.5f);
      values[299] = bad;
      CHECK_FALSE((*find_encoding(name))->validate(encoded(**find_encoding(name), values), 0, 300).ok());
    }
  }
}

}  // namespace skerry
