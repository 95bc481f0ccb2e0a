// Data sets from files: what an example is, how splits divide them, and what is said of a damaged file.
#include <zlib.h>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "client/trainer/data_set.h"
#include "client/trainer/data_sources.h"
#include "common/os/files.h"
#include "tests/support/temp_dir.h"

using namespace skerry;
using namespace skerry::trainer;
using nlohmann::json;
using skerry::test::TempDir;

namespace {

void put(const std::string& path, const std::string& content) { REQUIRE(write_file_atomic(path, content).ok()); }

std::string idx(std::initializer_list<int> extents, const std::string& values) {
  std::string bytes{'\0', '\0', '\x08', static_cast<char>(extents.size())};
  for (const int extent : extents) {
    for (const int shift : {24, 16, 8, 0}) bytes += static_cast<char>(extent >> shift & 255);
  }
  return bytes + values;
}

void put_gz(const std::string& path, const std::string& content) {
  gzFile file = gzopen(path.c_str(), "wb");
  REQUIRE(gzwrite(file, content.data(), static_cast<unsigned>(content.size())) == static_cast<int>(content.size()));
  gzclose(file);
}

std::string table_error(const std::string& text, std::uint64_t classes = 2) {
  const auto table = parse_table(text, "t.csv", {"a", "b"}, "y", classes);
  REQUIRE_FALSE(table.ok());
  CHECK(table.error().code == Code::kInvalidArgument);
  return table.error().message;
}

}  // namespace

TEST_CASE("a table's columns are found by name, whatever their order and quoting") {
  const auto table =
      parse_table("y,\"b\",other,a\r\n1,2.5,\"x, \"\"y\"\"\",-3e1\r\n\r\n0,\" 4\",z,+5\n", "t.csv", {"a", "b"}, "y", 2);
  REQUIRE(table.ok());
  CHECK(table->values == std::vector<float>{-30, 2.5, 5, 4});
  CHECK(table->labels == std::vector<float>{1, 0});
}

TEST_CASE("a table with a fault is refused with its line and value") {
  CHECK(table_error("a,y\n1,0\n") == "t.csv: has no column \"b\"");
  CHECK(table_error("a,b\n1,0\n") == "t.csv: has no column \"y\"");
  CHECK(table_error("a,b,a,y\n") == "t.csv: column \"a\" stands twice in the header line");
  CHECK(table_error("a,b,y\n") == "t.csv: has no rows");
  CHECK(table_error("") == "t.csv: has no column \"a\"");
  CHECK(table_error("a,b,y\n1,2,0\n1,2\n") == "t.csv line 3: has 2 fields, the header has 3");
  CHECK(table_error("a,b,y\n1,two,0\n") == "t.csv line 2: b is \"two\", must be a finite number");
  CHECK(table_error("a,b,y\n1,nan,0\n") == "t.csv line 2: b is \"nan\", must be a finite number");
  CHECK(table_error("a,b,y\n1,1e300,0\n") == "t.csv line 2: b is \"1e300\", must be a finite number");
  CHECK(table_error("a,b,y\n1,,0\n") == "t.csv line 2: b is \"\", must be a finite number");
  CHECK(table_error("a,b,y\n1,2,2\n") == "t.csv line 2: y is \"2\", must be a whole number in [0, 1]");
  CHECK(table_error("a,b,y\n1,2,0.5\n") == "t.csv line 2: y is \"0.5\", must be a whole number in [0, 1]");
  CHECK(table_error("a,b,y\n1,\"2,0\n") == "t.csv line 2: a quote does not close");
}

TEST_CASE("a regression table takes any number as label") {
  const auto table = parse_table("a,b,y\n1,2,-0.75\n", "t.csv", {"a", "b"}, "y", 0);
  REQUIRE(table.ok());
  CHECK(table->labels == std::vector<float>{-0.75});
}

TEST_CASE("images are read from plain and compressed files, in the order of their names") {
  const TempDir dir;
  put_gz(dir.path() + "/a-images-idx3-ubyte.gz", idx({2, 1, 2}, std::string("\x00\xFF\x33\x66", 4)));
  put_gz(dir.path() + "/a-labels-idx1-ubyte.gz", idx({2}, std::string("\x03\x04")));
  put(dir.path() + "/b-images-idx3-ubyte", idx({1, 1, 2}, "\x11\x22"));
  put(dir.path() + "/b-labels-idx1-ubyte", idx({1}, "\x05"));
  const json section = {
      {"kind", "idx"},
      {"path", dir.path()},
      {"schema", {{"shape", {1, 1, 2}}, {"classes", 10}}},
      {"splits", {{"train", {{"from", 0.0}, {"to", 0.67}}}, {"holdout", {{"from", 0.67}, {"to", 1.0}}}}}};
  const auto data = DataSet::open(section.dump(), 0);
  REQUIRE(data.ok());
  CHECK((*data)->examples() == std::map<std::string, std::uint64_t>{{"train", 2}, {"holdout", 1}});
  Batch batch;
  REQUIRE((*data)->fill("train", std::vector<std::uint64_t>{1, 0}, 0, batch).ok());
  CHECK(batch.inputs == std::vector<float>{0x33 / 255.0f, 0x66 / 255.0f, 0.0f, 1.0f});
  CHECK(batch.labels == std::vector<std::int64_t>{4, 3});
  REQUIRE((*data)->fill("holdout", std::vector<std::uint64_t>{0}, 0, batch).ok());
  CHECK(batch.labels == std::vector<std::int64_t>{5});
}

TEST_CASE("an image file with a fault is refused with its name and what is wrong") {
  const TempDir dir;
  const std::string path = dir.path() + "/x-images-idx3-ubyte";
  const auto error = [&](const std::string& content) {
    put(path, content);
    const auto file = read_idx(path);
    REQUIRE_FALSE(file.ok());
    CHECK(file.error().code == Code::kInvalidArgument);
    CHECK(file.error().message.find(path) == 0);
    return file.error().message;
  };
  CHECK(error("\x01").find("shorter than an IDX header") != std::string::npos);
  CHECK(error(std::string("\0\0\x0D\x01\0\0\0\1", 8)).find("unsigned bytes") != std::string::npos);
  CHECK(error(std::string("\0\0\x08\x03\0\0", 6)).find("shorter than its IDX header") != std::string::npos);
  CHECK(error(idx({2, 2, 2}, "1234567")).find("ends after 7 of 8 values") != std::string::npos);
  CHECK(error(idx({2}, "123")).find("longer than the 2 values") != std::string::npos);
  CHECK(error(idx({2'000'000'000, 2'000'000'000}, "")).find("the limit is 2^31") != std::string::npos);
  CHECK(error(idx({2'000'000'000}, "1")).find("ends after 1 of") != std::string::npos);

  put_gz(path + ".gz", idx({1, 1, 1000}, std::string(1000, 'x')));
  std::string packed = *read_file(path + ".gz", 1 << 20);
  packed.resize(packed.size() / 2);
  put(path + ".gz", packed);
  CHECK_FALSE(read_idx(path + ".gz").ok());
  CHECK(read_idx(dir.path() + "/none").error().code == Code::kNotFound);
}

TEST_CASE("images, labels and schema must agree") {
  const TempDir dir;
  const std::string images = dir.path() + "/t-images-idx3-ubyte";
  const std::string labels = dir.path() + "/t-labels-idx1-ubyte";
  CHECK(read_images(dir.path(), {}, 10).error().message.find("no images") != std::string::npos);
  put(images, idx({2, 1, 1}, "ab"));
  CHECK(read_images(dir.path(), {}, 10).error().message.find("images but no labels") != std::string::npos);
  put(labels, idx({3}, std::string("\1\2\3")));
  CHECK(read_images(dir.path(), {}, 10).error().message.find("2 images but 3 labels") != std::string::npos);
  put(labels, idx({2}, std::string("\1\x0A")));
  CHECK(read_images(dir.path(), {}, 10).error().message.find("label 1 is 10, must be below 10") != std::string::npos);
  put(labels, idx({2}, std::string("\1\2")));
  CHECK(read_images(dir.path(), {1, 2, 2}, 10).error().message.find("are 1 × 1 × 1, expected 1 × 2 × 2") !=
        std::string::npos);
  CHECK(read_images(dir.path(), {1, 1, 1}, 10).ok());
}

TEST_CASE("text is every file below a directory, sorted by path, cut into windows with the byte after") {
  const TempDir dir;
  REQUIRE(make_directories(dir.path() + "/b").ok());
  put(dir.path() + "/b/one.txt", "efgh");
  put(dir.path() + "/a.txt", "abcd");
  put(dir.path() + "/c.txt", "ijk");
  put(dir.path() + "/.hidden", "zzzz");
  const json section = {{"kind", "text"}, {"path", dir.path()}, {"schema", {{"encoding", "bytes"}}}};
  const auto data = DataSet::open(section.dump(), 3);
  REQUIRE(data.ok());
  CHECK((*data)->examples() ==
        std::map<std::string, std::uint64_t>{{"train", 3}});  // 11 bytes: 3 windows of 3 and one next
  Batch batch;
  REQUIRE((*data)->fill("train", std::vector<std::uint64_t>{1, 0}, 0, batch).ok());
  CHECK(batch.tokens == std::vector<std::int64_t>{'d', 'e', 'f', 'g', 'a', 'b', 'c', 'd'});
  REQUIRE((*data)->fill("train", std::vector<std::uint64_t>{2}, 2, batch).ok());  // moved back to the end
  CHECK(batch.tokens == std::vector<std::int64_t>{'h', 'i', 'j', 'k'});
}

TEST_CASE("a text's splits are fractions of its bytes and share none") {
  const TempDir dir;
  put(dir.path() + "/t", "0123456789");
  const json section = {{"kind", "text"},
                        {"path", dir.path() + "/t"},
                        {"splits", {{"train", {{"to", 0.6}}}, {"holdout", {{"from", 0.6}}}}}};
  const auto data = DataSet::open(section.dump(), 2);
  REQUIRE(data.ok());
  CHECK((*data)->examples() == std::map<std::string, std::uint64_t>{{"train", 2}, {"holdout", 1}});
  Batch batch;
  REQUIRE((*data)->fill("train", std::vector<std::uint64_t>{1}, 1, batch).ok());
  CHECK(batch.tokens == std::vector<std::int64_t>{'3', '4', '5'});
  REQUIRE((*data)->fill("holdout", std::vector<std::uint64_t>{0}, 0, batch).ok());
  CHECK(batch.tokens == std::vector<std::int64_t>{'6', '7', '8'});
}

TEST_CASE("a large text is mapped and reads as the small ones do") {
  const TempDir dir;
  std::string big(2'500'000, ' ');
  for (std::size_t i = 0; i < big.size(); ++i) big[i] = static_cast<char>(i * 7 % 251);
  put(dir.path() + "/a", "start");
  put(dir.path() + "/b", big);
  put(dir.path() + "/c", "end");
  const auto text = Text::open(dir.path(), false);
  REQUIRE(text.ok());
  const std::string whole = "start" + big + "end";
  REQUIRE(text->size() == whole.size());
  std::string piece(100, '\0');
  for (const std::size_t at : {std::size_t{0}, std::size_t{1'000'000}, whole.size() - 100}) {
    text->copy(at, piece);
    CHECK(piece == whole.substr(at, 100));
  }
  CHECK(text->check().ok());
}

TEST_CASE("text that claims to be UTF-8 and is not is refused with the byte's position") {
  CHECK(first_not_utf8("plain and \xC3\xA9 and \xF0\x9F\x8C\x8A") ==
        std::string("plain and \xC3\xA9 and \xF0\x9F\x8C\x8A").size());
  CHECK(first_not_utf8("ab\xFF") == 2);
  CHECK(first_not_utf8("ab\xC3") == 2);
  CHECK(first_not_utf8("\xC0\xAF") == 0);          // overlong
  CHECK(first_not_utf8("a\xED\xA0\x80") == 1);     // a surrogate
  CHECK(first_not_utf8("\xF4\x90\x80\x80") == 0);  // above U+10FFFF
  const TempDir dir;
  put(dir.path() + "/a.txt", "ok\xFFno");
  const json section = {{"kind", "text"}, {"path", dir.path()}, {"schema", {{"encoding", "utf-8"}}}};
  CHECK(DataSet::open(section.dump(), 2).error().message == "data: " + dir.path() + "/a.txt: not UTF-8 at byte 2");
}

TEST_CASE("listed rows replace the whole set before it is split") {
  const TempDir dir;
  put(dir.path() + "/t.csv", "a,y\n0,0\n1,1\n2,0\n3,1\n");
  put(dir.path() + "/rows", "3\n1\n\n0\n");
  json section = {{"kind", "csv"},
                  {"path", dir.path() + "/t.csv"},
                  {"indices", dir.path() + "/rows"},
                  {"schema", {{"features", {"a"}}, {"label", "y"}, {"classes", 2}}}};
  const auto data = DataSet::open(section.dump(), 0);
  REQUIRE(data.ok());
  Batch batch;
  REQUIRE((*data)->fill("train", std::vector<std::uint64_t>{0, 1, 2}, 0, batch).ok());
  CHECK(batch.inputs == std::vector<float>{3, 1, 0});
  const auto error = [&](const std::string& rows) {
    put(dir.path() + "/rows", rows);
    return DataSet::open(section.dump(), 0).error().message;
  };
  CHECK(error("4\n").find("line 1: row 4 of a data set with 4") != std::string::npos);
  CHECK(error("0\nx\n").find("line 2: \"x\" is not a row number") != std::string::npos);
  CHECK(error("0\n0\n").find("line 2: row 0 is listed twice") != std::string::npos);
  CHECK(error("\n").find("lists no rows") != std::string::npos);
}

TEST_CASE("a data section that is wrong is refused with its member") {
  const auto error = [](const json& section) { return DataSet::open(section.dump(), 4).error(); };
  CHECK(error({{"path", "/x"}}).message == "data: member \"kind\" is missing");
  CHECK(error({{"kind", "xml"}, {"path", "/x"}}).message.find("must be text, jsonl, tokens, idx or csv") != std::string::npos);
  CHECK(error({{"kind", "text"}, {"path", "/does/not/exist"}}).code == Code::kNotFound);
  CHECK(error({{"kind", "csv"}, {"path", "/x"}}).message.find("schema.features") != std::string::npos);
  CHECK(error({{"kind", "idx"}, {"path", "/x"}, {"schema", {{"shape", {1, 0, 3}}}}}).message.find("schema.shape") !=
        std::string::npos);
  const TempDir dir;
  put(dir.path() + "/t", "0123456789");
  CHECK(error({{"kind", "text"}, {"path", dir.path() + "/t"}, {"splits", {{"train", {{"from", 0.7}, {"to", 0.1}}}}}})
            .message.find("\"from\" is greater") != std::string::npos);
  CHECK(error({{"kind", "text"}, {"path", dir.path() + "/t"}, {"splits", {{"train", {{"to", 1.5}}}}}})
            .message.find("split \"train\": member \"to\" is 1.5") != std::string::npos);
  const auto data = DataSet::open(json{{"kind", "text"}, {"path", dir.path() + "/t"}}.dump(), 4);
  REQUIRE(data.ok());
  CHECK((*data)->examples("holdout").error().message == "data has no split \"holdout\", it has train");
}

TEST_CASE("a part of a data set is a set of its own over the same memory") {
  const TempDir directory;
  put(directory / "t.csv", "a,y\n0,0\n1,1\n2,0\n3,1\n4,0\n");
  const json section = {{"kind", "csv"},
                        {"path", directory / "t.csv"},
                        {"schema", {{"features", {"a"}}, {"label", "y"}, {"classes", 2}}}};
  std::unique_ptr<DataSet> part;
  {
    const auto whole = DataSet::open(section.dump(), 0).value();
    part = whole->part({.rows = {4, 1, 3}, .splits = {{"train", {0, 0.67}}, {"holdout", {0.67, 1}}}}).value();
    const auto beyond = whole->part({.rows = {5}});
    REQUIRE_FALSE(beyond.ok());
    CHECK(beyond.error().message == "row 5 of a data set with 5");
  }
  CHECK(part->examples() == std::map<std::string, std::uint64_t>{{"holdout", 1}, {"train", 2}});
  Batch batch;
  REQUIRE(part->fill("train", std::vector<std::uint64_t>{0, 1}, 0, batch).ok());
  CHECK(batch.inputs == std::vector<float>{4, 1});
  REQUIRE(part->fill("holdout", std::vector<std::uint64_t>{0}, 0, batch).ok());
  CHECK(batch.inputs == std::vector<float>{3});
}

TEST_CASE("a part of a text begins and ends where it should") {
  const TempDir directory;
  put(directory / "t.txt", "abcdefghij");
  const json section = {{"kind", "text"}, {"path", directory / "t.txt"}};
  const auto whole = DataSet::open(section.dump(), 2).value();
  const auto part = whole->part({.first = 3, .count = 5, .splits = {{"train", {0, 1}}}}).value();  // defgh
  CHECK(part->size() == 5);
  CHECK(part->examples() == std::map<std::string, std::uint64_t>{{"train", 2}});
  Batch batch;
  REQUIRE(part->fill("train", std::vector<std::uint64_t>{1}, 0, batch).ok());
  CHECK(batch.tokens == std::vector<std::int64_t>{'f', 'g', 'h'});
  CHECK_FALSE(whole->part({.first = 8, .count = 3}).ok());
}
