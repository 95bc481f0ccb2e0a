// Runs of other shapes than the synchronous round of a whole model, and trainers of other makes.
#include <catch2/catch.hpp>

#include <cstdlib>

#include "tests/support/federation.h"

namespace skerry::test {
namespace {

using nlohmann::json;

std::string source(const std::string& path) {
  const char* root = std::getenv("SKERRY_SOURCE");
  return std::string(root != nullptr ? root : ".") + "/" + path;
}

TEST_CASE("two fragments that take turns, bf16 in both directions: each is exchanged on its own and the model learns") {
  Federation federation;
  for (const char* node : {"alder", "birch"}) federation.add_node(node);
  RunText run;
  run.model = "architecture = \"mlp\"\ninputs = 4\nhidden = [32, 32]\noutputs = 2\n";
  run.exchange = "fragments = 2\nschedule = \"staggered\"\nup = \"bf16\"\ndown = \"bf16\"\n";
  run.evaluation = "every = 1\n";
  run.rounds = 6;
  const std::string id = federation.submit(run);
  const json detail = federation.wait_for_status(id, "completed");
  REQUIRE(detail.at("fragments").size() == 2);
  for (const json& fragment : detail.at("fragments")) CHECK(Federation::number(fragment.at("version")) == 6);
  for (const char* node : {"alder", "birch"}) CHECK(Federation::number(Federation::participant(detail, node).at("counted")) == 12);
  const json metrics = federation.ask({"run", "metrics", id});
  std::map<std::string, std::vector<std::uint64_t>> exchanges;
  for (const json& row : metrics.at("rows"))
    if (row.at("kind") == "exchange") exchanges[row.at("fragment")].push_back(Federation::number(row.at("exchange")));
  REQUIRE(exchanges.size() == 2);
  const auto& one = exchanges.begin()->second;
  const auto& other = exchanges.rbegin()->second;
  REQUIRE((one.size() == 6 && other.size() == 6));
  for (std::size_t i = 0; i < 6; ++i) CHECK(std::max(one[i], other[i]) == std::min(one[i], other[i]) + 1);
  const auto losses = federation.metric_rows(id, "evaluation", "loss");
  REQUIRE(losses.size() >= 2);
  CHECK(losses.back() < losses.front());
}

TEST_CASE("an asynchronous run does not wait for its slow daemon, and counts its late updates") {
  Federation federation;
  for (const char* node : {"alder", "birch"}) federation.add_node(node, {.scripted = true}).script({{"task_ms", 20}});
  Node& slow = federation.add_node("slow", {.scripted = true});
  slow.script({{"hold", true}});
  RunText run;
  run.participation = "mode = \"asynchronous\"\nbuffer = 2\nstart_nodes = 3\nmaximum_staleness = 1000\n";
  run.rounds = 40;
  const std::string id = federation.submit(run);
  federation.wait_for(id, "rounds without the slow one", [](const json& detail) { return Federation::number(detail.at("summary").at("round")) >= 5; });
  CHECK(Federation::number(Federation::participant(federation.show(id), "slow").at("counted")) == 0);
  slow.script({{"task_ms", 200}});
  const json detail = federation.wait_for_status(id, "completed");
  const auto fast = Federation::number(Federation::participant(detail, "alder").at("counted"));
  const auto late = Federation::number(Federation::participant(detail, "slow").at("counted"));
  CHECK(late >= 1);
  CHECK(fast > late);
  std::uint64_t all = 0;
  for (const char* node : {"alder", "birch", "slow"}) all += Federation::number(Federation::participant(detail, node).at("counted"));
  CHECK(all == 2 * 40);  // every exchange counted exactly its buffer
}

TEST_CASE("an update that is too stale for an asynchronous run is discarded and both sides say why") {
  Federation federation;
  federation.add_node("alder", {.scripted = true}).script({{"task_ms", 10}});
  Node& slow = federation.add_node("slow", {.scripted = true});
  slow.script({{"hold", true}});
  RunText run;
  run.participation = "mode = \"asynchronous\"\nbuffer = 1\nstart_nodes = 2\nmaximum_staleness = 2\n";
  run.rounds = 100'000;
  const std::string id = federation.submit(run);
  federation.wait_for(id, "five exchanges", [](const json& detail) { return Federation::number(detail.at("summary").at("round")) >= 5; });
  slow.script({{"hold", false}});
  CHECK(slow.wait_for_log("exchanges old, 2 are allowed"));
  CHECK(federation.wait_for_server_log("exchanges old, 2 are allowed"));
  const json detail = federation.wait_for(id, "the discard", [](const json& now) { return !now.at("discarded").empty(); });
  CHECK(Federation::number(Federation::participant(detail, "slow").at("discarded")) >= 1);
}

TEST_CASE("a trainer in Python and the one in C++ train one model together, and its loss falls") {
  Federation federation;
  federation.add_node("alder");
  federation.add_node("birch", {.trainer = {"/usr/bin/python3", source("examples/python_trainer/numpy_trainer.py")}});
  RunText run;
  run.evaluation = "every = 1\n";
  run.rounds = 10;
  const std::string id = federation.submit(run);
  const json detail = federation.wait_for_status(id, "completed");
  for (const char* node : {"alder", "birch"}) CHECK(Federation::number(Federation::participant(detail, node).at("counted")) == 10);
  const auto losses = federation.metric_rows(id, "evaluation", "loss");
  REQUIRE(losses.size() >= 2);
  CHECK(losses.back() < 0.9 * losses.front());
}

TEST_CASE("inside bubblewrap the trainer works as outside of it, where this machine lets it start") {
  if (!run_program({"/usr/bin/bwrap", "--ro-bind", "/", "/", "/bin/true"}).ok()) {
    WARN("skipped: bubblewrap cannot start here (user namespaces)");
    return;
  }
  Federation federation;
  federation.add_node("alder", {.sandbox = "bubblewrap"});
  RunText run;
  run.participation = "start_nodes = 1\nquorum = 1\n";
  run.rounds = 3;
  const std::string id = federation.submit(run);
  const json detail = federation.wait_for_status(id, "completed");
  CHECK(Federation::number(Federation::participant(detail, "alder").at("counted")) == 3);
}

}  // namespace
}  // namespace skerry::test
