// skerry-sim as a developer calls it.
#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <csignal>
#include <string>
#include <vector>

#include "common/os/files.h"
#include "tests/support/child.h"
#include "tests/support/temp_dir.h"

namespace skerry::test {
namespace {

using nlohmann::json;

constexpr const char* kSpec = R"(name = "small"
seed = 3
[model]
architecture = "linear"
inputs = 2
outputs = 2
[data]
kind = "csv"
schema = { features = ["a", "b"], label = "y", classes = 2 }
[training]
optimizer = "sgd"
learning_rate = 0.1
batch = 8
epochs = 1
[participation]
quorum = 2
[stop]
rounds = 4
)";

// A directory with a run spec and a table.
struct Place {
  TempDir directory;
  Place() {
    std::string table = "a,b,y\n";
    for (int i = 0; i < 300; ++i)
      table += std::to_string(i * 7 % 100) + "e-2," + std::to_string(i * 13 % 100) + "e-2," + (i * 7 % 100 > i * 13 % 100 ? "1" : "0") + "\n";
    put("table.csv", table);
    put("run.toml", kSpec);
  }
  void put(const std::string& name, const std::string& text) { REQUIRE(write_file_atomic(directory / name, text).ok()); }

  Finished simulate(const std::vector<std::string>& words) {
    std::vector<std::string> command{program("skerry-sim"), directory / "run.toml"};
    if (std::find(words.begin(), words.end(), "--data") == words.end()) command.insert(command.end(), {"--data", directory / "table.csv"});
    command.insert(command.end(), words.begin(), words.end());
    return run_program(command);
  }
  std::string read(const std::string& name) { return read_file(directory / name, 1 << 20).value(); }
};

}  // namespace

TEST_CASE("two simulations write the same bytes, whatever the number of workers") {
  Place place;
  const auto run = [&](const std::string& out, const std::string& workers) {
    const Finished finished = place.simulate({"--clients", "8", "--partition", "dirichlet:0.5,4", "--test", "0.2", "--speed", "lognormal:1",
                                              "--availability", "random:0.7", "--dropout", "0.2", "--attack", "alie:2", "--latency-ms", "50",
                                              "--workers", workers, "--out", place.directory / out, "--set", "participation.deadline_s=30",
                                              "--set", "participation.grace_s=0.5"});
    INFO(finished.err);
    REQUIRE(finished.ok());
  };
  run("one", "1");
  run("two", "3");
  for (const char* file : {"rounds.csv", "clients.csv", "summary.json", "model/all.safetensors"}) {
    CAPTURE(file);
    const std::string bytes = place.read("one/" + std::string(file));
    CHECK_FALSE(bytes.empty());
    CHECK(bytes == place.read("two/" + std::string(file)));
  }
  CHECK(place.read("one/rounds.csv").find("test_accuracy") != std::string::npos);
}

TEST_CASE("an asynchronous run with slow clients ends, and says what became of every update") {
  Place place;
  const Finished finished =
      place.simulate({"--clients", "6", "--speed", "uniform:0.1,2", "--set", "participation.mode=asynchronous", "--set",
                      "participation.buffer=2", "--set", "participation.maximum_staleness=3", "--rounds", "12", "--json", "-q"});
  INFO(finished.err);
  REQUIRE(finished.ok());
  const json summary = json::parse(finished.out);
  CHECK(summary.at("status") == "completed");
  CHECK(summary.at("exchanges") == 12);
}

TEST_CASE("hostile clients change the model, and are named") {
  Place place;
  const auto summary = [&](std::vector<std::string> words) {
    words.insert(words.end(), {"--json", "-q", "--clients", "8", "--test", "0.2"});
    const Finished finished = place.simulate(words);
    INFO(finished.err);
    REQUIRE(finished.ok());
    return json::parse(finished.out);
  };
  const json honest = summary({});
  const json attacked = summary({"--attack", "sign_flip:3"});
  CHECK(honest.at("hostile").empty());
  CHECK(attacked.at("hostile").size() == 3);
  CHECK(attacked.at("test").at("loss") > honest.at("test").at("loss"));
  const json defended = summary({"--attack", "sign_flip:3", "--set", "aggregation.rule=median"});
  CHECK(defended.at("test").at("loss") < attacked.at("test").at("loss"));
}

TEST_CASE("wrong usage and wrong input end with 2 and say what is wrong and where") {
  Place place;
  const auto fault = [&](const std::vector<std::string>& words) {
    const Finished finished = place.simulate(words);
    CHECK(finished.status.code == 2);
    return finished.err;
  };
  CHECK(fault({"--partition", "even"}).find("skerry-sim: --partition: \"even\" is no partition") == 0);
  CHECK(fault({"--dropout", "1.5"}).find("--dropout: \"1.5\" must be a number from 0 to 1") != std::string::npos);
  CHECK(fault({"--clients", "1000"}).find("partition: 1000 clients with at least 1 rows") != std::string::npos);
  CHECK(fault({"--set", "outer.momentum"}).find("--set outer.momentum: must be KEY=VALUE") != std::string::npos);
  CHECK(fault({"--set", "stop.rounds=0"}).find("stop.rounds") != std::string::npos);
  CHECK(fault({"--data", place.directory / "absent.csv"}).find("absent.csv") != std::string::npos);
  CHECK(fault({"--unknown"}).find("--unknown") != std::string::npos);
  place.put("s.toml", "clients = 3\nspeeed = \"constant:1\"\n");
  CHECK(fault({"--scenario", place.directory / "s.toml"}).find("s.toml line 2: there is no setting \"speeed\"") != std::string::npos);
  place.put("run.toml", std::string(kSpec) + "wrong = 1\n");
  const std::string line = fault({});
  CHECK(line.find("run.toml line ") != std::string::npos);
  CHECK(line.find("wrong") != std::string::npos);
}

TEST_CASE("Ctrl-C ends a simulation with the results so far") {
  Place place;
  auto child = Child::start({program("skerry-sim"), place.directory / "run.toml", "--data", place.directory / "table.csv", "--rounds", "1000000",
                             "--out", place.directory / "out"});
  REQUIRE(child.ok());
  REQUIRE(child->wait_for_log("round ", 60'000));
  ::kill(child->pid(), SIGINT);
  const auto status = child->wait(20'000);
  REQUIRE(status);
  CHECK(status->code == 130);
  CHECK(json::parse(place.read("out/summary.json")).at("status") == "interrupted");
  CHECK(place.read("out/rounds.csv").find("\n1,all,1,") != std::string::npos);
}

TEST_CASE("a simulation in which nobody will come any more says so instead of waiting for ever") {
  Place place;
  place.put("there.csv", "client,from_s,to_s\nclient-0,0,1\nclient-1,0,1\nclient-2,0,1\n");
  const Finished finished = place.simulate({"--clients", "3", "--availability", "file:" + (place.directory / "there.csv"), "--rounds", "100", "--json", "-q"});
  CHECK(finished.status.code == 1);
  CHECK(json::parse(finished.out).at("status") == "stuck");
}

}  // namespace skerry::test
