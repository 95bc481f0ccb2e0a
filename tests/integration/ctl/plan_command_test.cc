// `skerry plan`, as an operator without a coordinator sees it, and docs/scale.md, which shows what it prints.
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "tests/integration/ctl/printed.h"

using nlohmann::json;

namespace {

std::string source(const std::string& path) {
  const char* root = std::getenv("SKERRY_SOURCE");
  REQUIRE(root != nullptr);
  return std::string(root) + "/" + path;
}

std::string seven() { return source("examples/scale/7b.toml"); }

}  // namespace

TEST_CASE("plan prints bytes, bandwidth, what is held and the time") {
  const auto printed = skerry_prints("plan " + seven() + " --nodes 8 --step-seconds 12 --up-mbps 500 --down-mbps 500");
  CHECK(printed.code == 0);
  for (const char* part :
       {"7.24 B parameters", "8 nodes, 12 s a step, 500 Mbit/s up", "a node, each round", "coordinator, whole run",
        "data-parallel", "streaming, overlap, FP4", "each island", "Compute utilisation", "The run takes"})
    CHECK(contains(printed.text, part));
}

TEST_CASE("plan in JSON has every figure in bytes, bits a second and seconds") {
  const auto printed = skerry_prints("--json plan " + seven() + " --latency-ms 20");
  REQUIRE(printed.code == 0);
  const json plan = json::parse(printed.text);
  CHECK(plan.at("assumed").at("nodes") == 8);  // participation.start_nodes
  CHECK(plan.at("assumed").at("latency_seconds") == 0.02);
  const double parameters = plan.at("model").at("parameters");
  const double up = plan.at("bytes").at("node_up_per_round");
  CHECK(up / parameters == Approx(1.02).margin(0.02));
  CHECK(plan.at("bytes").at("coordinator_in_per_round") == 8 * up);
  CHECK(plan.at("methods").size() == 6);
  for (const json& method : plan.at("methods")) CHECK(method.at("bandwidth").size() == 5);
  const json& time = plan.at("time");
  CHECK(time.at("utilisation").get<double>() ==
        Approx(1200 / 1200.0 * 100 / (100 + time.at("stall_seconds").get<double>())).epsilon(1e-6));
}

TEST_CASE("plan says what is wrong with a spec or an assumption, as wrong input") {
  CHECK(skerry_prints("plan " + seven() + " --nodes 2").code == 2);
  CHECK(contains(skerry_prints("plan " + seven() + " --nodes 2").text, "cannot be the quorum of 6"));
  CHECK(contains(skerry_prints("plan " + seven() + " --up-mbps 0").text,
                 "a node's bandwidth up must be a number above 0"));
  CHECK(skerry_prints("plan /nowhere.toml").code == 5);
}

// SKERRY_WRITE_DOCS=1 plan_command_test writes what the commands print instead of comparing.
TEST_CASE("docs/scale.md shows what skerry plan prints") {
  const std::string path = source("docs/scale.md");
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  const std::string doc = text.str();
  const std::string begin = "```console\n$ skerry plan ", end = "```\n";
  std::string out;
  std::size_t at = 0, commands = 0;
  for (std::size_t found; (found = doc.find(begin, at)) != std::string::npos; ++commands) {
    const auto line = doc.find('\n', found + begin.size());
    const auto last = doc.find(end, line);
    REQUIRE(last != std::string::npos);
    std::string arguments = doc.substr(found + begin.size(), line - found - begin.size());
    const auto printed = skerry_prints("plan " + source(arguments));
    CHECK(printed.code == 0);
    out += doc.substr(at, line + 1 - at) + printed.text;
    at = last;
  }
  out += doc.substr(at);
  CHECK(commands >= 3);
  if (std::getenv("SKERRY_WRITE_DOCS") != nullptr)
    std::ofstream(path) << out;
  else if (out != doc)
    FAIL("docs/scale.md differs: run this test with SKERRY_WRITE_DOCS=1; it must read:\n" << out);
}
