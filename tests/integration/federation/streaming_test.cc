// Runs whose fragments travel while their nodes train on: streaming, eager and decoupled exchange by real processes.
#include <catch2/catch.hpp>

#include <csignal>
#include <cstdlib>
#include <fstream>
#include <functional>

#include "tests/support/federation.h"

namespace skerry::test {
namespace {

using nlohmann::json;

const std::vector<std::string> kNodes = {"alder", "birch", "cedar"};

RunText streaming() {
  RunText run;
  run.model = "architecture = \"mlp\"\ninputs = 4\nhidden = [32, 32]\noutputs = 2\n";
  run.training = "optimizer = \"adamw\"\nlearning_rate = 0.01\nbatch = 16\nsteps = 8\n";
  run.participation = "start_nodes = 3\nquorum = 3\n";
  run.exchange = "fragments = 2\nschedule = \"staggered\"\noverlap = 2\nmerge = \"lerp\"\nalpha = 0.5\n";
  run.evaluation = "every = 2\n";
  run.rounds = 8;
  return run;
}

RunText eager() {
  RunText run = streaming();
  run.exchange = "overlap = 8\nmerge = \"eager\"\n";
  return run;
}

/// What a run gives when nothing, or `meanwhile`, happens to its nodes.
struct Ended {
  json detail;
  std::map<std::string, std::string> model;
  std::vector<double> losses;
};

Ended run_to_its_end(const RunText& run, const std::function<void(Federation&, const std::string&)>& meanwhile = {}) {
  Federation federation;
  for (const std::string& node : kNodes) federation.add_node(node);
  const std::string id = federation.submit(run);
  if (meanwhile) meanwhile(federation, id);
  Ended ended;
  ended.detail = federation.wait_for_status(id, "completed", 120'000);
  ended.model = federation.final_model(id);
  ended.losses = federation.metric_rows(id, "evaluation", "loss");
  return ended;
}

void wait_for_round(Federation& federation, const std::string& id, std::uint64_t round) {
  federation.wait_for(id, "round " + std::to_string(round), [round](const json& detail) {
    return Federation::number(detail.at("summary").at("round")) >= round;
  });
}

TEST_CASE("two fragments stream while three nodes train on, and the result does not depend on the network or the clock") {
  const Ended first = run_to_its_end(streaming());
  REQUIRE(first.detail.at("fragments").size() == 2);
  for (const json& fragment : first.detail.at("fragments")) CHECK(Federation::number(fragment.at("version")) == 8);
  for (const std::string& node : kNodes)
    CHECK(Federation::number(Federation::participant(first.detail, node).at("counted")) == 16);
  REQUIRE(first.losses.size() >= 2);
  CHECK(first.losses.back() < first.losses.front());
  CHECK(run_to_its_end(streaming()).model == first.model);
}

TEST_CASE("eager updates across a whole round: every update counts and the model learns") {
  const Ended ended = run_to_its_end(eager());
  for (const std::string& node : kNodes)
    CHECK(Federation::number(Federation::participant(ended.detail, node).at("counted")) == 8);
  REQUIRE(ended.losses.size() >= 2);
  CHECK(ended.losses.back() < ended.losses.front());
  CHECK(run_to_its_end(eager()).model == ended.model);
}

TEST_CASE("a node that loses power while fragments are on their way comes back, and the result is the same") {
  RunText run = streaming();
  run.training = "optimizer = \"adamw\"\nlearning_rate = 0.002\nbatch = 64\nsteps = 150\n";
  run.rounds = 12;
  const Ended killed = run_to_its_end(run, [](Federation& federation, const std::string& id) {
    for (const std::uint64_t round : {1, 3, 5}) {
      wait_for_round(federation, id, round);
      REQUIRE(federation.status_of(id) == "running");
      Node& node = federation.node(kNodes[round % 3]);
      node.kill();
      node.start();
    }
  });
  CHECK(killed.model == run_to_its_end(run).model);
}

TEST_CASE("a trainer that is killed with a task goes on with it, and no other node notices") {
  RunText run = streaming();
  run.training = "optimizer = \"adamw\"\nlearning_rate = 0.002\nbatch = 64\nsteps = 150\n";
  const Ended killed = run_to_its_end(run, [](Federation& federation, const std::string& id) {
    wait_for_round(federation, id, 2);
    REQUIRE(federation.status_of(id) == "running");
    const std::string daemon = std::to_string(federation.node("birch").daemon().pid());
    std::ifstream children("/proc/" + daemon + "/task/" + daemon + "/children");
    pid_t trainer = 0;
    REQUIRE(children >> trainer);
    ::kill(trainer, SIGKILL);
  });
  CHECK(Federation::number(Federation::participant(killed.detail, "birch").at("counted")) == 16);
  CHECK(killed.model == run_to_its_end(run).model);
}

TEST_CASE("a trainer in Python takes part in an eager run beside those in C++") {
  const char* root = std::getenv("SKERRY_SOURCE");
  const std::string numpy = std::string(root != nullptr ? root : ".") + "/examples/python_trainer/numpy_trainer.py";
  Federation federation;
  federation.add_node("alder");
  federation.add_node("birch", {.trainer = {"/usr/bin/python3", numpy}});
  RunText run = eager();
  run.model = RunText().model;
  run.training = RunText().training;
  run.exchange = "overlap = 5\nmerge = \"eager\"\n";
  run.participation = RunText().participation;
  const std::string id = federation.submit(run);
  const json detail = federation.wait_for_status(id, "completed", 120'000);
  for (const char* node : {"alder", "birch"}) CHECK(Federation::number(Federation::participant(detail, node).at("counted")) == 8);
  const auto losses = federation.metric_rows(id, "evaluation", "loss");
  REQUIRE(losses.size() >= 2);
  CHECK(losses.back() < losses.front());
}

}  // namespace
}  // namespace skerry::test
