// Who has what: clients of one divided data set, and clients of a directory's files.
#include "server/sim/population.h"

#include <catch2/catch.hpp>

#include <set>

#include "common/os/files.h"
#include "tests/support/temp_dir.h"

using namespace skerry;
using namespace skerry::sim;
using skerry::test::TempDir;

namespace {

RunSpec table_spec() {
  RunSpec spec;
  spec.seed = 1;
  spec.model_json = R"({"architecture":"linear","inputs":1,"outputs":2})";
  spec.data = {.kind = "csv", .schema_json = R"({"features":["a"],"label":"y","classes":2})", .train_split = "train"};
  spec.evaluation.split = "holdout";
  return spec;
}

// Rows 0 … count − 1: a is the row's number, y alternates.
void put_table(const std::string& path, int count) {
  std::string text = "a,y\n";
  for (int i = 0; i < count; ++i) text += std::to_string(i) + "," + std::to_string(i % 2) + "\n";
  REQUIRE(write_file_atomic(path, text).ok());
}

trainer::Batch rows_of(const ClientPlan& client, const std::string& split) {
  const auto data = client.open_data().value();
  std::vector<std::uint64_t> numbers(data->examples(split).value());
  for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = i;
  trainer::Batch batch;
  REQUIRE(data->fill(split, numbers, 0, batch).ok());
  return batch;
}

}  // namespace

TEST_CASE("a divided data set leaves its last part to the test and the rest to the clients") {
  const TempDir directory;
  put_table(directory / "t.csv", 100);
  const Population population =
      make_population({.data = directory / "t.csv", .clients = 9, .holdout = 0.2, .test_share = 0.1}, table_spec()).value();
  REQUIRE(population.clients.size() == 9);
  CHECK(population.clients.front().name == "client-0");
  std::multiset<float> rows;
  for (const ClientPlan& client : population.clients) {
    CHECK(client.examples == 8);
    CHECK(client.holdout_examples == 2);
    for (const char* split : {"train", "holdout"})
      for (const float row : rows_of(client, split).inputs) rows.insert(row);
  }
  CHECK(rows.size() == 90);
  CHECK(std::set<float>(rows.begin(), rows.end()).size() == 90);
  CHECK(*rows.rbegin() == 89);
  CHECK(population.test_part.rows.front() == 90);
  CHECK(population.test_part.rows.size() == 10);
}

TEST_CASE("clients of files are called like them and keep their rows' order") {
  const TempDir directory;
  REQUIRE(make_directories(directory / "data").ok());
  put_table(directory / "data/birch.csv", 10);
  put_table(directory / "data/alder.csv", 5);
  const Population population = make_population({.data = directory / "data", .partition = parse_partition("files").value()}, table_spec()).value();
  REQUIRE(population.clients.size() == 2);
  CHECK(population.clients[0].name == "alder");
  CHECK(population.clients[1].name == "birch");
  CHECK(population.clients[1].examples == 9);
  CHECK(rows_of(population.clients[1], "train").inputs == std::vector<float>{0, 1, 2, 3, 4, 5, 6, 7, 8});
}

TEST_CASE("hostile clients are drawn, and poisoned labels are the mirror image") {
  const TempDir directory;
  put_table(directory / "t.csv", 100);
  Scenario scenario{.data = directory / "t.csv"};
  scenario.attack = parse_attack("label_flip:3").value();
  const Population population = make_population(scenario, table_spec()).value();
  int hostile = 0;
  for (const ClientPlan& client : population.clients) {
    hostile += client.hostile ? 1 : 0;
    const trainer::Batch batch = rows_of(client, "train");
    for (std::size_t i = 0; i < batch.rows; ++i) {
      const auto honest = static_cast<std::int64_t>(batch.inputs[i]) % 2;
      CHECK(batch.labels[i] == (client.hostile ? 1 - honest : honest));
    }
  }
  CHECK(hostile == 3);
}

TEST_CASE("the node that a rule trusts is there, honest, with rows of its own") {
  const TempDir directory;
  put_table(directory / "t.csv", 100);
  RunSpec spec = table_spec();
  spec.aggregation.parameters["trusted"] = std::string("root");
  Scenario scenario{.data = directory / "t.csv", .clients = 4, .trusted_examples = 20};
  scenario.attack = parse_attack("sign_flip:4").value();
  const Population population = make_population(scenario, spec).value();
  REQUIRE(population.clients.size() == 5);
  CHECK(population.clients.back().name == "root");
  CHECK_FALSE(population.clients.back().hostile);
  CHECK(population.clients.back().examples == 18);
}

TEST_CASE("data that cannot be divided as asked is refused with the setting's name") {
  const TempDir directory;
  put_table(directory / "t.csv", 10);
  const auto fault = [&](const Scenario& scenario) { return make_population(scenario, table_spec()).error().message; };
  CHECK(fault({}) == "data: say where the data is, with --data PATH or in the scenario");
  CHECK(fault({.data = directory / "t.csv", .clients = 11}) == "partition: 11 clients with at least 1 rows each need more than the 10 rows there are");
  CHECK_FALSE(make_population({.data = directory / "absent.csv"}, table_spec()).ok());
}
