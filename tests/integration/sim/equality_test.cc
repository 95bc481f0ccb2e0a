// The promise that makes a simulation worth something: the model of a real federation, byte for byte.
#include <catch2/catch.hpp>

#include <algorithm>
#include <cstdio>

#include "common/os/files.h"
#include "tests/support/federation.h"

namespace skerry::test {
namespace {

using nlohmann::json;

// A table that a line separates, with some rows on the wrong side; another one for each holder.
std::string table(unsigned holder, unsigned rows) {
  std::string text = "a,b,c,d,y\n";
  std::uint32_t state = 12345 + holder;
  const auto next = [&] {
    state = state * 1664525u + 1013904223u;
    return static_cast<double>(state >> 8) / 0x1p23 - 1.0;
  };
  for (unsigned i = 0; i < rows; ++i) {
    const double a = next(), b = next(), c = next(), d = next();
    char line[120];
    std::snprintf(line, sizeof line, "%.6f,%.6f,%.6f,%.6f,%d\n", a, b, c, d, a + 0.5 * b - c + 0.3 * next() > 0 ? 1 : 0);
    text += line;
  }
  return text;
}

struct Outcome {
  std::map<std::string, std::string> model;  ///< content ids by fragment
  std::vector<double> losses;
};

Outcome in_a_federation(Federation& federation, const RunText& run) {
  const std::string id = federation.submit(run);
  federation.wait_for_status(id, "completed");
  return {federation.final_model(id), federation.metric_rows(id, "evaluation", "loss")};
}

// The column's values, one for each exchange that has one (every fragment has a line of its own).
std::vector<double> column(const std::string& csv, const std::string& name) {
  std::vector<double> values;
  std::size_t place = 0;
  bool heading = true;
  std::string exchange;
  for (std::size_t at = 0; at < csv.size();) {
    const std::size_t end = csv.find('\n', at);
    std::vector<std::string> cells{""};
    for (const char c : csv.substr(at, end - at)) {
      if (c == ',') cells.emplace_back();
      else cells.back() += c;
    }
    if (heading) place = static_cast<std::size_t>(std::find(cells.begin(), cells.end(), name) - cells.begin());
    else if (cells[0] != exchange && !cells[place].empty()) values.push_back(std::stod(cells[place]));
    heading = false;
    exchange = cells[0];
    at = end + 1;
  }
  return values;
}

Outcome simulated(const Federation& federation, const RunText& run, const std::string& data) {
  const std::string out = federation.directory() / "simulated";
  const Finished finished = run_program({program("skerry-sim"), federation.spec_file(run), "--data", data, "--partition",
                                         "files", "--out", out, "--json", "--quiet"});
  INFO(finished.err);
  REQUIRE(finished.ok());
  Outcome outcome;
  const json summary = json::parse(finished.out);
  for (const auto& fragment : summary.at("model").items())
    outcome.model[fragment.key()] = fragment.value().at("content_id");
  outcome.losses = column(read_file(out + "/rounds.csv", 1 << 20).value(), "eval_loss");
  return outcome;
}

}  // namespace

TEST_CASE("a simulated synchronous run gives the bytes of the same run in a federation") {
  Federation federation;
  const std::string data = federation.directory() / "data";
  REQUIRE(make_directories(data).ok());
  unsigned holder = 0;
  for (const char* name : {"alder", "birch", "cedar"}) {
    const std::string path = data + "/" + name + ".csv";
    REQUIRE(write_file_atomic(path, table(holder, 150 + 40 * holder), 0644).ok());
    federation.add_node(name, {.path = path});
    ++holder;
  }
  RunText run;
  run.participation = "start_nodes = 3\nquorum = 3\n";
  run.evaluation = "every = 1\nminimum = 3\n";
  run.rounds = 6;

  SECTION("federated averaging of a linear model") { run.training += "momentum = 0.9\n"; }
  SECTION("an outer optimizer with state, encodings both ways, two fragments, an inner optimizer that keeps its state") {
    run.top = "purpose = \"test\"\nstrategy = \"diloco\"\nseed = 7\n";
    run.model = "architecture = \"mlp\"\ninputs = 4\nhidden = [16, 16]\noutputs = 2\n";
    run.training = "optimizer = \"adamw\"\nlearning_rate = 0.01\nbatch = 16\nepochs = 1.5\n";
    run.exchange = "fragments = 2\nup = \"bf16\"\ndown = \"bf16\"\n";
  }
  SECTION("control variates") {
    run.top = "purpose = \"test\"\nstrategy = \"scaffold\"\n";
  }

  const Outcome real = in_a_federation(federation, run);
  const Outcome virtual_one = simulated(federation, run, data);
  CHECK(real.model == virtual_one.model);
  CHECK(real.losses == virtual_one.losses);
}

}  // namespace skerry::test
