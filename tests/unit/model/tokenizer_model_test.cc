#include "common/model/tokenizer_model.h"

#include <catch2/catch.hpp>

#include <cstring>
#include <limits>
#include <string>

using namespace skerry;

namespace {

// Protocol Buffers by hand: fields of numbers below 16 are one byte of key.
std::string varint(std::uint64_t value) {
  std::string out;
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  return out + static_cast<char>(value);
}
std::string number(unsigned field, std::uint64_t value) { return varint(field << 3) + varint(value); }
std::string bytes(unsigned field, const std::string& value) {
  return varint(field << 3 | 2) + varint(value.size()) + value;
}
std::string piece(const std::string& text, unsigned type, float score = 0) {
  std::string bits(4, '\0');
  std::memcpy(bits.data(), &score, 4);
  return bytes(1, bytes(1, text) + varint(2 << 3 | 5) + bits + number(3, type));
}

struct Parts {
  std::string tokens = piece("<unk>", 2) + piece("<s>", 3) + piece("</s>", 3);
  std::string more = piece("\xE2\x96\x81", 1) + piece("\xE2\x96\x81the", 1);
  std::string trainer = number(3, 2) + number(35, 1);
  std::string normaliser = bytes(1, "identity") + number(4, 0);
  std::string rest;

  std::string model() const {
    std::string all = tokens;
    for (unsigned byte = 0; byte < 256; ++byte) {
      char text[8];
      std::snprintf(text, sizeof text, "<0x%02X>", byte);
      all += piece(text, 6);
    }
    return all + more + bytes(2, trainer) + bytes(3, normaliser) + rest;
  }
};

std::string why_refused(const Parts& parts) {
  const auto model = parse_tokenizer_model(parts.model());
  REQUIRE_FALSE(model.ok());
  CHECK(model.error().code == Code::kInvalidArgument);
  return model.error().message;
}

}  // namespace

TEST_CASE("a lossless model's tokens say how many bytes of text they stand for") {
  const auto model = parse_tokenizer_model(Parts().model());
  REQUIRE(model.ok());
  CHECK(model->kind == TokenizerModel::Kind::kBpe);
  CHECK(model->size() == 3 + 256 + 2);
  CHECK(model->end_of_text == 2);
  CHECK(model->unknown == 0);
  CHECK(model->has_begin);
  CHECK(model->tokens[2].text_bytes == 0);
  CHECK(model->tokens[3 + 10].byte == 10);
  CHECK(model->tokens[3 + 256].text_bytes == 1);  // a space
  CHECK(model->tokens[3 + 257].text_bytes == 4);  // " the"
}

TEST_CASE("a model that would lose something of a text, or could harm its library, is refused with the reason") {
  using Catch::Contains;
  Parts parts;
  parts.trainer = number(3, 2);
  CHECK_THAT(why_refused(parts), Contains("no byte fallback"));
  parts = {};
  parts.trainer = number(3, 3) + number(35, 1);
  CHECK_THAT(why_refused(parts), Contains("neither unigram nor bpe"));
  parts = {};
  parts.normaliser = bytes(2, std::string(100, 'x')) + number(4, 0);
  CHECK_THAT(why_refused(parts), Contains("it normalises text"));
  parts = {};
  parts.rest = bytes(5, bytes(2, "x"));
  CHECK_THAT(why_refused(parts), Contains("it normalises text"));
  parts = {};
  parts.normaliser.clear();
  CHECK_THAT(why_refused(parts), Contains("removes spaces"));
  parts = {};
  parts.tokens = piece("<unk>", 2) + piece("<s>", 3);
  CHECK_THAT(why_refused(parts), Contains("no end-of-text token"));
  parts = {};
  parts.more += piece("a", 1) + piece("a", 1);
  CHECK_THAT(why_refused(parts), Contains("token 262 is there twice"));
  parts = {};
  parts.more += piece("a", 1, std::numeric_limits<float>::quiet_NaN());
  CHECK_THAT(why_refused(parts), Contains("not finite"));
  parts = {};
  parts.more += piece(std::string(513, 'a'), 1);
  CHECK_THAT(why_refused(parts), Contains("longer than 512 bytes"));
  parts = {};
  parts.more += piece("a", 7);
  CHECK_THAT(why_refused(parts), Contains("unknown type"));
}

TEST_CASE("a cut or changed model file is an error, never an accident") {
  const std::string whole = Parts().model();
  for (std::size_t size = 0; size < whole.size(); size += 7) (void)parse_tokenizer_model(whole.substr(0, size)).ok();
  for (std::size_t at = 0; at < whole.size(); at += 5) {
    std::string changed = whole;
    changed[at] = static_cast<char>(changed[at] ^ 0x5A);
    (void)parse_tokenizer_model(changed).ok();
  }
  CHECK_FALSE(parse_tokenizer_model("").ok());
  CHECK_FALSE(parse_tokenizer_model("hello").ok());
}
