// What encodings lose, and error feedback carries on, through machines that die: nothing of it is sent twice or forgotten.
#include <chrono>
#include <cmath>
#include <cstring>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include <catch2/catch.hpp>

#include "common/os/files.h"
#include "tests/support/federation.h"

namespace skerry::test {
namespace {

using nlohmann::json;

// 10 parameters, of which topk2 sends one: most of a model's way goes through the residuals.
RunText lossy_run() {
  RunText run;
  run.exchange = "up = \"topk2\"\ndown = \"topk2\"\ndown_feedback = 0.9\nup_rounding = \"stochastic\"\n";
  run.rounds = 12;
  return run;
}

std::vector<std::string> residuals_of(const Node& node, const std::string& run) {
  std::vector<std::string> paths;
  const std::string directory = node.home() + "/runs/" + run + "/residuals";
  if (const auto files = list_directory(directory); files.ok())
    for (const auto& file : *files)
      if (file.name.find(".b2-") != std::string::npos) paths.push_back(join_path(directory, file.name));
  return paths;
}

double norm_of_file(const std::string& path) {
  const auto bytes = read_file(path, 1 << 20);
  if (!bytes.ok()) return -1;
  double squares = 0;
  for (std::size_t at = 0; at + 4 <= bytes->size(); at += 4) {
    float value;
    std::memcpy(&value, bytes->data() + at, sizeof value);
    squares += static_cast<double>(value) * static_cast<double>(value);
  }
  return std::sqrt(squares);
}

}  // namespace

TEST_CASE("a daemon and a coordinator that die again and again end with the model that nobody's death would have given") {
  std::map<std::string, std::string> undisturbed;
  {
    Federation federation;
    for (const char* node : {"alder", "birch"}) federation.add_node(node, {.scripted = true});
    const std::string id = federation.submit(lossy_run());
    federation.wait_for_status(id, "completed");
    undisturbed = federation.final_model(id);
  }
  Federation federation;
  Node& alder = federation.add_node("alder", {.scripted = true});
  Node& birch = federation.add_node("birch", {.scripted = true});
  alder.script({{"hold", true}});
  birch.script({{"task_ms", 60}});
  const std::string id = federation.submit(lossy_run());
  // Between training and receipt: alder is waited for.
  federation.wait_for(id, "birch's update", [](const json& detail) { return detail.at("fragments").at(0).at("accepted") == 1; });
  birch.kill();
  birch.start();
  federation.wait_for_node("birch");
  alder.script({{"task_ms", 60}});
  const auto pause = [](std::int64_t ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); };
  // At moments of their own in the tasks of both, and in the exchange.
  for (const std::int64_t after : {35, 75, 110, 55, 95, 140}) {
    pause(after);
    birch.kill();
    birch.start();
    federation.wait_for_node("birch");
    if (after == 110 || after == 140) {
      federation.kill_server();
      federation.start_server();
      federation.reconnect();
    }
  }
  const json detail = federation.wait_for_status(id, "completed");
  CHECK(detail.at("discarded").empty());
  CHECK(federation.final_model(id) == undisturbed);
}

TEST_CASE("a discarded update goes back into what its node carries on") {
  Federation federation;
  Node& alder = federation.add_node("alder", {.scripted = true});
  RunText run;
  run.participation = "start_nodes = 1\nquorum = 1\n";
  run.exchange = "up = \"int8_block\"\nup_feedback = 1.0\n";
  run.limits = "maximum_update_norm = 1e-6\n";  // which no update keeps
  run.rounds = 1;
  alder.script({{"task_ms", 400}});
  const std::string id = federation.submit(run);
  const auto norms = [&] {
    std::vector<double> found;
    const Finished ledger = alder.command({"egress", "list", "--json"});
    if (!ledger.ok()) return found;
    for (const json& row : json::parse(ledger.out))
      if (row.at("kind") == "update") found.push_back(row.at("norm").get<double>());
    return found;
  };
  // Its residual is then the whole of what was encoded, not the small part that int8_block lost of it.
  std::vector<double> sent;
  double carried = 0;
  REQUIRE(eventually([&] {
    sent = norms();
    const auto paths = residuals_of(alder, id);
    if (sent.empty() || paths.size() != 1) return false;
    carried = norm_of_file(paths.front());
    return std::abs(carried - sent.back()) < 1e-5 * sent.back();
  }));
  CHECK(sent.back() > 1e-3);
  // Also after a death in the next task.
  alder.kill();
  const auto paths = residuals_of(alder, id);
  REQUIRE(!paths.empty());
  alder.start();
  REQUIRE(eventually([&] {
    const auto now = norms();
    return now.size() > sent.size();
  }));
}

TEST_CASE("a run that is stopped leaves nothing of what its updates' encoding lost, discarded updates neither") {
  Federation federation;
  Node& alder = federation.add_node("alder", {.scripted = true});
  Node& birch = federation.add_node("birch", {.scripted = true});
  birch.script({{"hold", true}});
  const std::string id = federation.submit(lossy_run());
  federation.wait_for(id, "alder's update", [](const json& detail) { return detail.at("fragments").at(0).at("accepted") == 1; });
  const std::string directory = alder.home() + "/runs/" + id + "/residuals";
  REQUIRE(residuals_of(alder, id).size() == 1);
  CHECK(federation.skerry({"run", "stop", id}).ok());  // discards what was accepted
  REQUIRE(eventually([&] { return !path_exists(directory); }));
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  CHECK(!path_exists(directory));
}

}  // namespace skerry::test
