// Text as windows of tokens: where documents begin and end, what counts, what is refused.
#include <catch2/catch.hpp>

#include <cstdlib>
#include <numeric>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "client/trainer/data_set.h"
#include "client/trainer/documents.h"
#include "client/trainer/text_commands.h"
#include "client/trainer/tokenizer.h"
#include "client/trainer/tokenizer_training.h"
#include "common/model/token_file.h"
#include "common/os/files.h"
#include "tests/support/temp_dir.h"

using namespace skerry;
using namespace skerry::trainer;
using Catch::Contains;
using nlohmann::json;
using skerry::test::TempDir;

namespace {

constexpr std::int64_t kEnd = 256;  // bytes' end-of-text token

void write(const std::string& path, std::string_view content) {
  REQUIRE(make_directories(parent_directory(path)).ok());
  REQUIRE(write_file_atomic(path, content).ok());
}

std::unique_ptr<DataSet> open(const json& section, std::uint64_t context) {
  auto set = DataSet::open(section.dump(), context);
  INFO((set.ok() ? "" : set.error().message));
  REQUIRE(set.ok());
  return std::move(*set);
}

std::string why_not(const json& section) {
  const auto set = DataSet::open(section.dump(), 4);
  REQUIRE_FALSE(set.ok());
  return set.error().message;
}

Batch all_of(const DataSet& set, const std::string& split = "train") {
  std::vector<std::uint64_t> numbers(set.examples(split).value());
  std::iota(numbers.begin(), numbers.end(), std::uint64_t{0});
  Batch batch;
  REQUIRE(set.fill(split, numbers, 0, batch).ok());
  return batch;
}

std::vector<std::int64_t> bytes(const std::string& text) {
  std::vector<std::int64_t> tokens;
  for (const char c : text) tokens.push_back(c == '|' ? kEnd : static_cast<unsigned char>(c));
  return tokens;
}

std::string trained_model(const TempDir& directory) {
  const std::string path = directory.path() + "/text.model";
  const std::string text = "the quick brown fox jumps over the lazy dog\nthe dog sleeps\n";
  const std::string_view documents[] = {text};
  write(path, train_tokenizer(documents, {300, true}).value());
  return path;
}

}  // namespace

TEST_CASE("JSON lines are documents with an end-of-text token before, between and after them") {
  const TempDir directory;
  write(directory.path() + "/lines/a.jsonl", "{\"text\":\"ab\"}\n\n{\"text\":\"\"}\r\n{\"n\":1,\"text\":\"c\\u0064\"}");
  write(directory.path() + "/lines/b.ndjson", "{\"text\":\"e\"}\n");
  write(directory.path() + "/lines/notes.txt", "not JSON");
  const auto set = open({{"kind", "jsonl"}, {"path", directory.path() + "/lines"}}, 8);
  CHECK(set->size() == 9);
  CHECK(set->shape().classes == 257);
  const Batch batch = all_of(*set);
  CHECK(batch.tokens == bytes("|ab|cd|e|"));
  CHECK(batch.labels.empty());
  CHECK(batch.counted == 8);
  CHECK(batch.text_bytes == 5);
}

TEST_CASE("a bad line is named by file and line") {
  const TempDir directory;
  const std::string path = directory.path() + "/a.jsonl";
  const json section = {{"kind", "jsonl"}, {"path", path}};
  write(path, "{\"text\":\"a\"}\n\n{\"text\":\"b\"\n");
  CHECK_THAT(why_not(section), Contains("a.jsonl line 3: not a JSON object"));
  write(path, "{\"text\":\"a\"}\n[1]\n");
  CHECK_THAT(why_not(section), Contains("a.jsonl line 2: not a JSON object"));
  write(path, "{\"content\":\"a\"}\n");
  CHECK_THAT(why_not(section), Contains("a.jsonl line 1: has no member \"text\""));
  write(path, "{\"text\":7}\n");
  CHECK_THAT(why_not(section), Contains("a.jsonl line 1: member \"text\" is not a text"));
  write(path, "{\"text\":\"\xFF\"}\n");
  CHECK_THAT(why_not(section), Contains("a.jsonl line 1: not a JSON object"));
  write(path, "\n");
  CHECK_THAT(why_not(section), Contains("holds no JSON lines"));
  write(path, "{\"content\":\"abcdefg\"}\n");
  const auto named = open({{"kind", "jsonl"}, {"path", path}, {"schema", {{"field", "content"}}}}, 4);
  CHECK(named->size() == 9);
}

TEST_CASE("with packing documents no window holds two documents, and only real tokens count") {
  const TempDir directory;
  write(directory.path() + "/a.jsonl", "{\"text\":\"abcdef\"}\n{\"text\":\"g\"}\n");
  const auto set = open({{"kind", "jsonl"}, {"path", directory.path()}, {"packing", "documents"}}, 4);
  CHECK(set->shifts() == 1);
  REQUIRE(set->examples("train").value() == 3);
  const Batch batch = all_of(*set);
  CHECK(batch.rows == 3);
  // |abcd predicts abcd; def| goes on with ef|; |g| is the second document.
  CHECK(batch.tokens == bytes("|abcd"
                              "def||"
                              "|g|||"));
  const std::int64_t no = kIgnored;
  CHECK(batch.labels == std::vector<std::int64_t>{'a', 'b', 'c', 'd', 'e', 'f', kEnd, no, 'g', kEnd, no, no});
  CHECK(batch.counted == 9);
  CHECK(batch.text_bytes == 7);
}

TEST_CASE("every token but the first is predicted exactly once, however windows are cut") {
  const TempDir directory;
  std::string lines;
  std::uint64_t size = 0, documents = 0;
  for (int i = 1; i < 60; ++i, ++documents) {
    lines +=
        json{{"text", std::string(static_cast<std::size_t>(i * 7 % 23 + 1), static_cast<char>('a' + i % 26))}}.dump() +
        "\n";
    size += static_cast<std::uint64_t>(i * 7 % 23 + 1);
  }
  write(directory.path() + "/a.jsonl", lines);
  for (const std::uint64_t context : {1, 2, 5, 16, 64}) {
    const auto set = open({{"kind", "jsonl"},
                           {"path", directory.path()},
                           {"packing", "documents"},
                           {"splits", {{"train", {{"to", 0.7}}}, {"holdout", {{"from", 0.7}}}}}},
                          context);
    const Batch train = all_of(*set), holdout = all_of(*set, "holdout");
    CHECK(train.counted + holdout.counted == size + documents);
    CHECK(train.text_bytes + holdout.text_bytes == size);
    // No document is in both.
    CHECK(train.labels.back() != holdout.labels.front());
  }
}

TEST_CASE("a tokenizer's set holds the text's tokens, and counts their bytes") {
  const TempDir directory;
  const std::string model = trained_model(directory);
  const auto tokenizer = Tokenizer::open(model).value();
  write(directory.path() + "/data/1.txt", "the dog sleeps\n");
  write(directory.path() + "/data/2.txt", "the fox \xE2\x82\xAC");
  std::vector<std::int64_t> expected{2};
  REQUIRE(tokenizer->encode("the dog sleeps\n", expected).ok());
  expected.push_back(2);
  REQUIRE(tokenizer->encode("the fox \xE2\x82\xAC", expected).ok());
  expected.push_back(2);
  const auto set =
      open({{"kind", "text"}, {"path", directory.path() + "/data"}, {"tokenizer", model}}, expected.size() - 1);
  CHECK(set->shape().classes == 300);
  const Batch batch = all_of(*set);
  CHECK(batch.tokens == expected);
  CHECK(batch.text_bytes == 15 + 11);

  write(directory.path() + "/data/3.txt", "caf\xE9");
  CHECK_THAT(why_not({{"kind", "text"}, {"path", directory.path() + "/data"}, {"tokenizer", model}}),
             Contains("3.txt: not UTF-8 at byte 3"));
  CHECK_THAT(why_not({{"kind", "text"}, {"path", directory.path()}, {"tokenizer", directory.path() + "/data/1.txt"}}),
             Contains("not a SentencePiece model"));
}

TEST_CASE("a token file gives the same windows as the text it was made from") {
  const TempDir directory;
  const std::string model = trained_model(directory);
  std::string lines;
  for (int i = 0; i < 40; ++i)
    lines += json{{"text", "the dog number " + std::to_string(i * i) + " sleeps\n"}}.dump() + "\n";
  write(directory.path() + "/text/a.jsonl", lines);
  for (const std::string& tokenizer : {std::string(), model}) {
    for (const char* packing : {"stream", "documents"}) {
      const std::string out = directory.path() + "/tokens/all.tokens";
      REQUIRE(make_directories(directory.path() + "/tokens").ok());
      const auto said = tokens_command({"--input", directory.path() + "/text", "--kind", "jsonl", "--out", out,
                                        "--tokenizer", tokenizer.empty() ? "bytes" : tokenizer});
      INFO((said.ok() ? *said : said.error().message));
      REQUIRE(said.ok());
      json section = {{"kind", "jsonl"}, {"path", directory.path() + "/text"}, {"packing", packing}};
      if (!tokenizer.empty()) section["tokenizer"] = tokenizer;
      const Batch from_text = all_of(*open(section, 16));
      section["kind"] = "tokens";
      section["path"] = directory.path() + "/tokens";
      const Batch from_tokens = all_of(*open(section, 16));
      CHECK(from_tokens.tokens == from_text.tokens);
      CHECK(from_tokens.labels == from_text.labels);
      CHECK(from_tokens.text_bytes == from_text.text_bytes);
      CHECK(from_tokens.counted == from_text.counted);
    }
  }
}

TEST_CASE("token files go to shards document by document, and a directory of them is one set") {
  const TempDir directory;
  write(directory.path() + "/a.jsonl", "{\"text\":\"ab\"}\n{\"text\":\"cd\"}\n{\"text\":\"ef\"}\n");
  REQUIRE(make_directories(directory.path() + "/out").ok());
  REQUIRE(tokens_command({"--input", directory.path() + "/a.jsonl", "--kind", "jsonl", "--shards", "2", "--out",
                          directory.path() + "/out/part.tokens"})
              .ok());
  CHECK(all_of(*open({{"kind", "tokens"}, {"path", directory.path() + "/out/part-0.tokens"}}, 6)).tokens ==
        bytes("|ab|ef|"));
  CHECK(all_of(*open({{"kind", "tokens"}, {"path", directory.path() + "/out/part-1.tokens"}}, 3)).tokens ==
        bytes("|cd|"));
  CHECK(all_of(*open({{"kind", "tokens"}, {"path", directory.path() + "/out"}}, 10)).tokens == bytes("|ab|ef||cd|"));
}

TEST_CASE("a token file that is not what it says is refused by name") {
  const TempDir directory;
  const std::string path = directory.path() + "/a.tokens";
  const json section = {{"kind", "tokens"}, {"path", path}};
  const auto file = [&](TokenFileHeader header, std::vector<std::uint16_t> tokens) {
    header.count = tokens.size();
    std::string content = write_token_file_header(header).value();
    for (const std::uint16_t token : tokens) content += {static_cast<char>(token), static_cast<char>(token >> 8)};
    return content;
  };
  TokenFileHeader header{2, 0, 257, 256, "bytes"};
  const std::string good = file(header, {256, 'a', 'b', 'c', 256});
  write(path, good);
  CHECK(open(section, 4)->size() == 5);
  write(path, good.substr(0, good.size() - 1));
  CHECK_THAT(why_not(section), Contains("a.tokens: its header promises 5 tokens, the file has 4"));
  write(path, file(header, {256, 300, 256}));
  CHECK_THAT(why_not(section), Contains("holds token 300 of a vocabulary of 257"));
  write(path, "hello");
  CHECK_THAT(why_not(section), Contains("not a token file"));
  header.tokenizer = "b2-" + std::string(64, 'a');
  write(path, file(header, {256, 'a', 256}));
  CHECK_THAT(why_not(section), Contains("its tokens are of tokenizer b2-aaa"));
  for (std::size_t size = 0; size < 64; ++size) CHECK_FALSE(parse_token_file_header(good.substr(0, size), size).ok());
}

TEST_CASE("a token file's header is what its specification says") {
  const TokenFileHeader header{4, 3, 70000, 2, "b2-" + std::string(62, '0') + "ff"};
  const std::string bytes_of = write_token_file_header(header).value();
  REQUIRE(bytes_of.size() == 64);
  CHECK(bytes_of.substr(0, 8) == "skerrytk");
  CHECK(bytes_of.substr(8, 8) == std::string("\1\0\0\0\4\0\0\0", 8));
  CHECK(bytes_of.substr(16, 8) == std::string("\3\0\0\0\0\0\0\0", 8));
  CHECK(bytes_of.substr(24, 8) == std::string("\x70\x11\1\0\2\0\0\0", 8));
  CHECK(bytes_of.back() == '\xFF');
  CHECK(parse_token_file_header(bytes_of, 64 + 12).value() == header);
}

TEST_CASE("what a command cannot do with its arguments it says before it reads anything") {
  CHECK(tokenizer_command({}, train_tokenizer).error().code == Code::kOutOfRange);
  CHECK(tokenizer_command({"train", "--input", "/nowhere"}, train_tokenizer).error().code == Code::kOutOfRange);
  CHECK_THAT(
      tokenizer_command({"train", "--input", "x", "--out", "y", "--vocabulary", "12"}, train_tokenizer).error().message,
      Contains("must be a whole number in [260, 1048576]"));
  CHECK_THAT(tokens_command({"--input", "x", "--out", "y", "--kind", "csv"}).error().message,
             Contains("must be text or jsonl"));
  const TempDir directory;
  const std::string out = directory.path() + "/out.tokens";
  CHECK(tokens_command({"--input", "/nowhere", "--out", out}).error().code == Code::kNotFound);
  CHECK(list_directory(directory.path())->empty());
}
