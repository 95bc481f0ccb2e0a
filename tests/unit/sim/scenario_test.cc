// Scenario files: the same settings as the flags, and errors that name file and line.
#include "server/sim/scenario.h"

#include <catch2/catch.hpp>

#include <cstdlib>
#include <string>

#include "common/os/files.h"
#include "tests/support/temp_dir.h"

using namespace skerry;
using namespace skerry::sim;
using skerry::test::TempDir;

TEST_CASE("a scenario file sets what it names, with paths relative to itself") {
  const TempDir directory;
  const std::string path = directory / "s.toml";
  REQUIRE(write_file_atomic(path, R"(data = "mnist"
clients = 100
partition = "dirichlet:0.5"
test = 0.1
speed = "file:speeds.csv"
attack = "alie:4"
dropout = 0.05
drop_updates = 0.3
kill = 3
initial = "warm.safetensors"
test_every = 20
)").ok());
  Scenario scenario;
  REQUIRE(apply_scenario_file(path, scenario).ok());
  CHECK(scenario.data == directory / "mnist");
  CHECK(scenario.clients == 100);
  CHECK(scenario.partition.kind == PartitionPlan::Kind::kDirichlet);
  CHECK(scenario.test_share == 0.1);
  CHECK(scenario.speed.path == directory / "speeds.csv");
  CHECK(scenario.attack.hostile(100) == 4);
  CHECK(scenario.dropout == 0.05);
  CHECK(scenario.drop_updates == 0.3);
  CHECK(scenario.kill_every == 3);
  CHECK(scenario.initial == directory / "warm.safetensors");
  CHECK(scenario.test_every == 20);
  CHECK(scenario.holdout == 0.1);  // the default
}

TEST_CASE("a scenario's faults are named by file, line and value") {
  const TempDir directory;
  const std::string path = directory / "s.toml";
  const auto fault = [&](const std::string& text) {
    REQUIRE(write_file_atomic(path, text).ok());
    Scenario scenario;
    const auto applied = apply_scenario_file(path, scenario);
    REQUIRE_FALSE(applied.ok());
    return applied.error().message;
  };
  CHECK(fault("clients = 5\ndropout = 2\n") == path + " line 2: dropout: \"2\" must be a number from 0 to 1");
  CHECK(fault("clients = 1.5\n") == path + " line 1: clients: \"1.5\" must be a whole number");
  CHECK(fault("client = 5\n").find(path + " line 1: there is no setting \"client\"; known are data, clients, ") == 0);
  CHECK(fault("clients = \n").find(path + " line 1: ") == 0);
  Scenario scenario;
  CHECK(apply_scenario_file(directory / "absent.toml", scenario).error().code == Code::kNotFound);
}

TEST_CASE("docs/simulation.md describes every setting") {
  const char* source = std::getenv("SKERRY_SOURCE");
  REQUIRE(source != nullptr);
  const std::string text = read_file(std::string(source) + "/docs/simulation.md", 1 << 20).value();
  for (const Setting& setting : settings()) {
    CAPTURE(setting.name);
    CHECK(text.find("| `" + std::string(setting.name) + "` |") != std::string::npos);
  }
}
