#include "client/trainer/tokenizer.h"
#include "client/trainer/tokenizer_training.h"

#include <catch2/catch.hpp>

#include <cstdlib>
#include <string>
#include <vector>

#include "common/crypto/content_id.h"
#include "common/os/files.h"

using namespace skerry;
using namespace skerry::trainer;

namespace {

const std::string kText =
    "the quick brown fox jumps over the lazy dog\nthe dog sleeps\n\nthe fox, being quick, runs 1234 miles\n";

std::string trained(std::uint64_t vocabulary, bool bpe = true, const std::string& text = kText) {
  const std::string_view documents[] = {text};
  auto model = train_tokenizer(documents, {vocabulary, bpe});
  INFO((model.ok() ? "" : model.error().message));
  REQUIRE(model.ok());
  return *model;
}

std::vector<std::int64_t> tokens_of(const Tokenizer& tokenizer, std::string_view text) {
  std::vector<std::int64_t> tokens;
  REQUIRE(tokenizer.encode(text, tokens).ok());
  return tokens;
}

}  // namespace

TEST_CASE("bytes are their own tokens") {
  const auto bytes = Tokenizer::bytes();
  CHECK(bytes->id() == "bytes");
  CHECK(bytes->size() == 256);
  const std::string text("a\xFF\0z", 4);
  CHECK(tokens_of(*bytes, text) == std::vector<std::int64_t>{'a', 255, 0, 'z'});
  CHECK(bytes->decode(tokens_of(*bytes, text)) == text);
  CHECK(bytes->text_bytes()[255] == 1);
  CHECK(bytes->text_bytes()[256] == 0);
}

TEST_CASE("a trained tokenizer loses nothing of any text, and its tokens account for every byte") {
  for (const bool bpe : {true, false}) {
    const auto tokenizer = Tokenizer::from_model(trained(bpe ? 300 : 295, bpe), "test");
    REQUIRE(tokenizer.ok());
    for (const std::string& text :
         {kText, std::string("  two  spaces \t tab\r\n\n\nend "), std::string("\xE2\x82\xAC \xF0\x9F\x98\x80 unseen"),
          std::string("zero\0byte", 9), std::string(), std::string("</s><s><unk><0x0A>")}) {
      const auto tokens = tokens_of(**tokenizer, text);
      CHECK((*tokenizer)->decode(tokens) == text);
      std::size_t bytes = 0;
      for (const std::int64_t token : tokens) bytes += (*tokenizer)->text_bytes()[static_cast<std::size_t>(token)];
      CHECK(bytes == text.size());
    }
    CHECK(tokens_of(**tokenizer, kText).size() < kText.size() * 4 / 5);
  }
}

TEST_CASE("the same text and options train the same bytes") {
  CHECK(trained(300) == trained(300));
  CHECK(trained(295, false) == trained(295, false));
  CHECK(trained(300) != trained(301));
}

TEST_CASE("a tokenizer is known by its file's content id") {
  const std::string model = trained(300);
  const auto tokenizer = Tokenizer::from_model(model, "test");
  REQUIRE(tokenizer.ok());
  CHECK((*tokenizer)->id() == content_id(std::string_view(model)));
  CHECK((*tokenizer)->size() == 300);
  CHECK((*tokenizer)->end_of_text() == 2);
}

TEST_CASE("what is not UTF-8 is refused with its place") {
  const auto tokenizer = Tokenizer::from_model(trained(300), "test");
  REQUIRE(tokenizer.ok());
  std::vector<std::int64_t> tokens;
  const auto encoded = (*tokenizer)->encode("good \xFF", tokens);
  REQUIRE_FALSE(encoded.ok());
  CHECK(encoded.error().message == "not UTF-8 at byte 5");
}

TEST_CASE("a long text is cut into pieces without losing anything") {
  const auto tokenizer = Tokenizer::from_model(trained(300), "test");
  REQUIRE(tokenizer.ok());
  std::string text;
  while (text.size() < (5 << 20)) text += kText;
  std::string one_line;
  while (one_line.size() < (5 << 20)) one_line += "caf\xC3\xA9 ";
  for (const std::string& whole : {text, one_line}) CHECK((*tokenizer)->decode(tokens_of(**tokenizer, whole)) == whole);
}

TEST_CASE("too little text for a vocabulary is an error that says so") {
  const std::string_view documents[] = {"ab"};
  const auto model = train_tokenizer(documents, {50000, true});
  REQUIRE_FALSE(model.ok());
  CHECK_THAT(model.error().message, Catch::Contains("vocab"));
  const std::string_view empty[] = {""};
  CHECK_FALSE(train_tokenizer(empty, {300, true}).ok());
}

TEST_CASE("a changed model file is refused or works, and never ends the process") {
  const std::string model = trained(300);
  int accepted = 0;
  for (std::size_t at = 0; at < model.size(); at += 3) {
    for (const unsigned flip : {0x01u, 0x80u, 0xFFu}) {
      std::string changed = model;
      changed[at] = static_cast<char>(static_cast<unsigned char>(changed[at]) ^ flip);
      const auto tokenizer = Tokenizer::from_model(changed, "test");
      if (!tokenizer.ok()) continue;
      ++accepted;
      std::vector<std::int64_t> tokens;
      REQUIRE((*tokenizer)->encode(kText, tokens).ok());
      (void)(*tokenizer)->decode(tokens);
      for (const std::int64_t token : tokens) REQUIRE(static_cast<std::uint64_t>(token) < (*tokenizer)->size());
    }
  }
  CHECK(accepted > 0);
}

TEST_CASE("tinyshakespeare survives tokenization, in fewer than half as many tokens") {
  const char* data = std::getenv("SKERRY_DATA");
  const auto text = data == nullptr ? Result<std::string>(not_found(""))
                                    : read_file(std::string(data) + "/tinyshakespeare.txt", 1 << 24);
  if (!text.ok()) {
    WARN("no data in SKERRY_DATA: skipped");
    return;
  }
  const auto tokenizer = Tokenizer::from_model(trained(1024, true, *text), "test");
  REQUIRE(tokenizer.ok());
  const auto tokens = tokens_of(**tokenizer, *text);
  CHECK((*tokenizer)->decode(tokens) == *text);
  CHECK(tokens.size() < text->size() / 2);
}

TEST_CASE("tokens are those that the SentencePiece library gives") {
  const char* data = std::getenv("SKERRY_DATA");
  const auto read = data == nullptr ? Result<std::string>(not_found(""))
                                    : read_file(std::string(data) + "/tinyshakespeare.txt", 1 << 24);
  const std::string text = read.ok() ? read->substr(0, 200'000) : kText;
  std::vector<std::string> samples{"  two  spaces \t tab\r\n\n\nend ", "\xE2\x82\xAC \xF0\x9F\x98\x80 unseen 12345",
                                   " ", "   ", "a"};
  for (std::size_t at = 0; at + 400 < text.size(); at += 1'001) samples.push_back(text.substr(at, 400));
  for (const bool bpe : {true, false}) {
    const std::string model = trained(read.ok() ? 700 : 295, bpe, text);
    const auto tokenizer = Tokenizer::from_model(model, "test");
    REQUIRE(tokenizer.ok());
    for (const std::string& sample : samples) {
      INFO(sample);
      CHECK(tokens_of(**tokenizer, sample) == library_tokens(model, sample).value());
    }
  }
}
