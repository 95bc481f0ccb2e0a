#include "client/daemon/data/catalogue.h"

#include <catch2/catch.hpp>
#include <zlib.h>

#include "common/model/token_file.h"
#include "common/os/files.h"
#include "tests/support/temp_dir.h"

using namespace skerry;
using namespace skerry::client;

namespace {

void write(const std::string& path, const std::string& content) { REQUIRE(write_file_atomic(path, content).ok()); }

std::string idx(std::vector<unsigned> extents, const std::string& values) {
  std::string bytes{'\0', '\0', '\x08', static_cast<char>(extents.size())};
  for (const unsigned extent : extents)
    for (int shift = 24; shift >= 0; shift -= 8) bytes += static_cast<char>((extent >> shift) & 0xFF);
  return bytes + values;
}

void write_gz(const std::string& path, const std::string& content) {
  gzFile file = gzopen(path.c_str(), "wb");
  REQUIRE(file != nullptr);
  REQUIRE(gzwrite(file, content.data(), static_cast<unsigned>(content.size())) == static_cast<int>(content.size()));
  gzclose(file);
}

DataSetRequest request(const std::string& kind, const std::string& path) { return {"set", kind, path, 0.2, "", ""}; }

}  // namespace

TEST_CASE("a table's header, rows and classes are found out") {
  test::TempDir dir;
  write(dir / "t.csv", "a,b,y\n1,2,0\n3,4.5,1\n-1,0,2\n\n5,6,1\n7,8,0\n");
  const auto set = inspect_data_set(request("csv", dir / "t.csv"), 0);
  REQUIRE(set.ok());
  CHECK(set->total == 5);
  CHECK(set->schema_json == R"({"classes":3,"features":["a","b"],"label":"y"})");
  CHECK(set->examples().at("train") == 4);
  CHECK(set->examples().at("holdout") == 1);
}

TEST_CASE("a table's measured label has no classes") {
  test::TempDir dir;
  write(dir / "t.csv", "a,y\n1,0.5\n3,1.25\n");
  const auto set = inspect_data_set(request("csv", dir / "t.csv"), 0);
  REQUIRE(set.ok());
  CHECK(set->schema_json == R"({"classes":0,"features":["a"],"label":"y"})");
}

TEST_CASE("a bad table is an error that names the line") {
  test::TempDir dir;
  write(dir / "t.csv", "a,y\n1,0\nx,1\n");
  const auto bad = inspect_data_set(request("csv", dir / "t.csv"), 0);
  REQUIRE_FALSE(bad.ok());
  CHECK_THAT(bad.error().message, Catch::Contains("line 3") && Catch::Contains("\"a\""));
  write(dir / "u.csv", "a,y\n1\n");
  CHECK_THAT(inspect_data_set(request("csv", dir / "u.csv"), 0).error().message, Catch::Contains("has 1 fields"));
  CHECK_FALSE(inspect_data_set(request("csv", dir / "absent.csv"), 0).ok());
}

TEST_CASE("a given schema must fit the data") {
  test::TempDir dir;
  write(dir / "t.csv", "a,b,y\n1,2,0\n3,4,1\n");
  auto wanted = request("csv", dir / "t.csv");
  wanted.schema_json = R"({"features":["a"],"label":"y","classes":4})";
  const auto set = inspect_data_set(wanted, 0);
  REQUIRE(set.ok());
  CHECK(set->schema_json == R"({"classes":4,"features":["a"],"label":"y"})");
  wanted.schema_json = R"({"features":["c"]})";
  CHECK_THAT(inspect_data_set(wanted, 0).error().message, Catch::Contains("\"c\""));
  wanted.schema_json = R"({"classes":1})";
  CHECK_FALSE(inspect_data_set(wanted, 0).ok());
  wanted.schema_json = R"({"colour":"red"})";
  CHECK_THAT(inspect_data_set(wanted, 0).error().message, Catch::Contains("colour"));
}

TEST_CASE("images and labels are counted, also from gzip, and their lengths are checked") {
  test::TempDir dir;
  write(dir / "train-images-idx3-ubyte", idx({3, 2, 2}, std::string(12, 'x')));
  write_gz(dir / "train-labels-idx1-ubyte.gz", idx({3}, std::string("\x00\x05\x02", 3)));
  const auto set = inspect_data_set(request("idx", dir.path()), 0);
  REQUIRE(set.ok());
  CHECK(set->total == 3);
  CHECK(set->schema_json == R"({"classes":6,"shape":[1,2,2]})");
  write(dir / "train-images-idx3-ubyte", idx({3, 2, 2}, std::string(11, 'x')));
  CHECK_THAT(inspect_data_set(request("idx", dir.path()), 0).error().message, Catch::Contains("ends after 11 of 12"));
  write(dir / "train-images-idx3-ubyte", idx({4, 2, 2}, std::string(16, 'x')));
  CHECK_THAT(inspect_data_set(request("idx", dir.path()), 0).error().message, Catch::Contains("3 labels for 4 images"));
}

TEST_CASE("an index file picks rows, each once and within the data") {
  test::TempDir dir;
  write(dir / "t.csv", "a,y\n1,0\n2,1\n3,0\n4,1\n");
  write(dir / "rows", "0\n2\n3\n");
  auto wanted = request("csv", dir / "t.csv");
  wanted.indices = dir / "rows";
  REQUIRE(inspect_data_set(wanted, 0).ok());
  CHECK(inspect_data_set(wanted, 0)->total == 3);
  write(dir / "rows", "0\n4\n");
  CHECK_THAT(inspect_data_set(wanted, 0).error().message, Catch::Contains("line 2"));
  write(dir / "rows", "1\n1\n");
  CHECK_THAT(inspect_data_set(wanted, 0).error().message, Catch::Contains("twice"));
}

TEST_CASE("text is counted in bytes, and in windows where a model's context is known") {
  test::TempDir dir;
  REQUIRE(make_directories(dir / "t/sub").ok());
  write(dir / "t/a.txt", std::string(600, 'a'));
  write(dir / "t/sub/b.txt", std::string(400, 'b'));
  write(dir / "t/.hidden", std::string(999, 'c'));
  const auto set = inspect_data_set(request("text", dir / "t"), 0);
  REQUIRE(set.ok());
  CHECK(set->total == 1000);
  CHECK(set->files == 2);
  CHECK(set->examples().at("train") == 800);
  CHECK(set->examples(100).at("train") == 7);
  CHECK(set->examples(100).at("holdout") == 1);
}

TEST_CASE("JSON lines are counted by the bytes of their text, and a bad one is named") {
  test::TempDir dir;
  REQUIRE(make_directories(dir / "t/sub").ok());
  write(dir / "t/a.jsonl", "{\"text\":\"" + std::string(700, 'a') + "\"}\n\n");
  write(dir / "t/sub/b.ndjson", "{\"text\":\"" + std::string(300, 'b') + "\",\"n\":1}");
  write(dir / "t/readme.md", "no JSON");
  const auto set = inspect_data_set(request("jsonl", dir / "t"), 0);
  REQUIRE(set.ok());
  CHECK(set->total == 1000);
  CHECK(set->files == 2);
  CHECK(set->schema_json == R"({"field":"text"})");
  CHECK(set->is_text());
  CHECK(set->examples(100).at("train") == 7);
  CHECK(set->examples(100, /*bytes=*/false).at("train") == 1);  // four bytes a token
  CHECK(check_data_set(*set, 0).ok());

  auto wanted = request("jsonl", dir / "t/a.jsonl");
  wanted.schema_json = R"({"field":"body"})";
  CHECK_THAT(inspect_data_set(wanted, 0).error().message, Catch::Contains("a.jsonl line 1: has no member \"body\""));
  write(dir / "t/c.jsonl", "{\"text\":\"a\"}\n{\"text\":[]}\n");
  CHECK_THAT(inspect_data_set(request("jsonl", dir / "t"), 0).error().message, Catch::Contains("c.jsonl line 2: member \"text\""));
}

TEST_CASE("token files are counted by their headers, and all are of one tokenizer") {
  test::TempDir dir;
  REQUIRE(make_directories(dir / "t").ok());
  const std::string id = "b2-" + std::string(64, 'c');
  const auto file = [](const std::string& tokenizer, std::uint64_t count) {
    return write_token_file_header({2, count, 300, 2, tokenizer}).value() + std::string(2 * count, '\1');
  };
  write(dir / "t/a.tokens", file(id, 600));
  write(dir / "t/b.tokens", file(id, 400));
  const auto set = inspect_data_set(request("tokens", dir / "t"), 0);
  REQUIRE(set.ok());
  CHECK(set->total == 1000);
  CHECK(set->schema_json == "{\"tokenizer\":\"" + id + "\"}");
  CHECK(set->examples(100, /*bytes=*/false).at("train") == 7);
  write(dir / "t/c.tokens", file("bytes", 10));
  CHECK_THAT(inspect_data_set(request("tokens", dir / "t"), 0).error().message, Catch::Contains("c.tokens: its tokens are of tokenizer bytes"));
  write(dir / "t/c.tokens", "text");
  CHECK_THAT(inspect_data_set(request("tokens", dir / "t"), 0).error().message, Catch::Contains("c.tokens: not a token file"));
}

TEST_CASE("a changed data set is noticed by check") {
  test::TempDir dir;
  write(dir / "t.csv", "a,y\n1,0\n2,1\n");
  const auto set = inspect_data_set(request("csv", dir / "t.csv"), 0);
  REQUIRE(set.ok());
  CHECK(check_data_set(*set, 1).ok());
  write(dir / "t.csv", "a,y\n1,0\n2,1\n3,1\n");
  CHECK_THAT(check_data_set(*set, 1).error().message, Catch::Contains("had 2 examples") && Catch::Contains("has 3 now"));
}

TEST_CASE("the catalogue is kept in its file") {
  test::TempDir dir;
  write(dir / "t.csv", "a,y\n1,0\n2,1\n");
  auto catalogue = Catalogue::load(dir / "catalogue.json");
  REQUIRE(catalogue.ok());
  REQUIRE(catalogue->add(*inspect_data_set(request("csv", dir / "t.csv"), 5)).ok());
  CHECK(catalogue->add(*inspect_data_set(request("csv", dir / "t.csv"), 5)).error().code == Code::kAlreadyExists);
  REQUIRE(catalogue->save().ok());
  auto again = Catalogue::load(dir / "catalogue.json");
  REQUIRE(again.ok());
  REQUIRE(again->find("set") != nullptr);
  CHECK(again->find("set")->schema_json == catalogue->find("set")->schema_json);
  CHECK(again->find("set")->splits_json() == R"({"holdout":{"from":0.8,"to":1.0},"train":{"from":0.0,"to":0.8}})");
  CHECK_THAT(again->remove("other").error().message, Catch::Contains("known: set"));
  REQUIRE(again->remove("set").ok());
  write(dir / "catalogue.json", "{");
  CHECK(Catalogue::load(dir / "catalogue.json").error().code == Code::kDataLoss);
}
