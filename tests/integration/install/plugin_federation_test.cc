// Plug-ins in real coordinators: loaded by hash, used by runs, gone after a restart, crashing in the middle.
#include <catch2/catch.hpp>

#include <string>

#include "common/os/files.h"
#include "tests/support/federation.h"

namespace skerry::test {
namespace {

using nlohmann::json;

// The lines for server.toml, as `skerry-server plugin check` prints them.
std::string checked(const std::string& path) {
  const Finished check = run_program({program("skerry-server"), "plugin", "check", path});
  INFO(check.err);
  REQUIRE(check.ok());
  return check.out;
}

RunText three_rounds(const std::string& rule) {
  RunText run;
  run.participation = "start_nodes = 2\nquorum = 2\n";
  run.aggregation = "rule = \"" + rule + "\"\n";
  run.rounds = 3;
  return run;
}

TEST_CASE("a rule built out of tree aggregates a real run, and a run waits for the bytes it was submitted with") {
  const std::string lines = checked(EXAMPLE);
  CHECK(lines.find("#   clipped_mean: mean of updates, none much longer than the median one") != std::string::npos);
  CHECK(lines.find("#     multiple = 1.0: ") != std::string::npos);
  Federation federation({.plugins = lines});
  federation.add_node("alder", {.scripted = true});
  federation.add_node("birch", {.scripted = true});
  const std::string done = federation.submit(three_rounds("clipped_mean"));
  federation.wait_for_status(done, "completed");
  CHECK(federation.wait_for_server_log("plug-in clipped-mean 1.0.0 offers clipped_mean"));

  RunText wrong = three_rounds("clipped_mean");
  wrong.aggregation += "multiple = 0\n";
  const Finished refused = federation.skerry({"run", "submit", federation.spec_file(wrong)});
  CHECK(refused.err.find("aggregation.multiple is 0, must be in (0, 1000]") != std::string::npos);

  RunText endless = three_rounds("clipped_mean");
  endless.name = "endless";
  endless.rounds = 100'000;
  const std::string run = federation.submit(endless);
  const auto round_of = [](const json& detail) { return Federation::number(detail.at("summary").at("round")); };
  const auto before = round_of(federation.wait_for(run, "a round", [&](const json& detail) { return round_of(detail) >= 1; }));

  // Without the plug-in the coordinator starts, and says why the run stands still.
  federation.stop_server();
  federation.configure_server({});
  federation.start_server();
  federation.reconnect();
  const json paused = federation.show(run);
  CHECK(paused.at("summary").at("status") == "paused");
  CHECK(std::string(paused.at("summary").at("status_reason")).find("aggregation is \"clipped_mean\", must be one of") != std::string::npos);
  CHECK(federation.skerry({"run", "resume", run}).err.find("[[plugins]] in server.toml") != std::string::npos);

  // With it the run goes on where it was.
  federation.stop_server();
  federation.configure_server({.plugins = lines});
  federation.start_server();
  federation.reconnect();
  federation.wait_for(run, "rounds after the restart", [&](const json& detail) { return round_of(detail) >= before + 2; });
}

TEST_CASE("a coordinator does not start with a plug-in of another hash, and says how to get the right one") {
  std::string lines = checked(EXAMPLE);
  const std::size_t at = lines.find("sha256 = \"") + 10;
  lines[at] = lines[at] == '0' ? '1' : '0';
  Federation federation;
  federation.stop_server();
  federation.configure_server({.plugins = lines});
  const Finished started = run_program({program("skerry-server"), "run", "--home", federation.server_home()});
  CHECK(!started.ok());
  CHECK(started.err.find("has the SHA-256 ") != std::string::npos);
  CHECK(started.err.find("`skerry-server plugin check ") != std::string::npos);
  federation.configure_server({});
  federation.start_server();
}

TEST_CASE("a rule that crashes fails its run with the reason, and other runs and the coordinator go on") {
  Federation federation({.plugins = checked(TEST_RULES) + "deadline_ms = 2000\n"});
  federation.add_node("alder", {.scripted = true});
  federation.add_node("birch", {.scripted = true});
  for (const char* how : {"segfault", "hang", "throw"}) {
    RunText bad = three_rounds("faulty");
    bad.name = how;
    bad.aggregation += "how = \"" + std::string(how) + "\"\n";
    const std::string run = federation.submit(bad);
    const json detail = federation.wait_for_status(run, "failed");
    const std::string reason = detail.at("summary").at("status_reason");
    CHECK(reason.find("exchange 1 could not be reduced: the aggregation rule failed: plug-in ") != std::string::npos);
    INFO(reason);
    RunText good = three_rounds("midrange");
    good.name = std::string("after-") + how;
    federation.wait_for_status(federation.submit(good), "completed");
  }
}

}  // namespace
}  // namespace skerry::test
