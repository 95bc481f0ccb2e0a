// A coordinator that loses its power in the middle of an exchange, and the promise that the same accepted updates give the
// same bytes, whatever happened around them.
#include <catch2/catch.hpp>

#include "tests/support/federation.h"

namespace skerry::test {
namespace {

using nlohmann::json;

constexpr unsigned kRounds = 30;  // so many that the run is not over before a node is frozen

/// Three holders with the C++ trainer on one thread, a model that is cargo and several blocks long, momentum on the server.
struct World {
  Federation federation;
  RunText run;

  World() : federation({.threads = 2}) {
    for (const char* node : {"alder", "birch", "cedar"}) federation.add_node(node);
    run.top = "purpose = \"test\"\nstrategy = \"diloco\"\nseed = 5\n";
    run.model = "architecture = \"mlp\"\ninputs = 4\nhidden = [500, 450]\noutputs = 2\n";  // 229,352 parameters
    run.training = "optimizer = \"sgd\"\nlearning_rate = 0.05\nmomentum = 0.9\nbatch = 16\nsteps = 3\noptimizer_state = \"reset\"\n";
    run.participation = "start_nodes = 3\nquorum = 3\n";
    run.rounds = kRounds;
  }

  std::map<std::string, std::string> finished(const std::string& id) {
    const json detail = federation.wait_for_status(id, "completed");
    for (const char* node : {"alder", "birch", "cedar"}) CHECK(Federation::number(Federation::participant(detail, node).at("counted")) == kRounds);
    CHECK(detail.at("discarded").empty());
    return federation.final_model(id);
  }

  /// Until all but `frozen` have delivered, and so nothing moves: its own task may have been done before it froze.
  void wait_for_all_but(const std::string& frozen, const std::string& id) {
    federation.wait_for(id, "all but " + frozen + " accepted", [&](const json& detail) {
      return detail.at("fragments").at(0).at("accepted") == 2 && Federation::participant(detail, frozen).at("state") == "training";
    });
  }
};

TEST_CASE("the same accepted updates give the same model bytes: after kill -9 in an exchange, with other threads, in another order of arrival") {
  World world;
  Federation& federation = world.federation;
  const auto undisturbed = world.finished(federation.submit(world.run));
  REQUIRE(undisturbed.size() == 1);

  {
    INFO("a coordinator that is killed after two of three updates were accepted");
    const std::string id = federation.submit(world.run);
    federation.wait_for(id, "the second round", [](const json& detail) { return Federation::number(detail.at("summary").at("round")) >= 1; });
    federation.node("cedar").daemon().freeze();
    world.wait_for_all_but("cedar", id);
    federation.kill_server();
    federation.start_server();
    const json restarted = federation.show(id);
    CHECK(restarted.at("fragments").at(0).at("accepted") == 2);  // what was accepted is not asked for again
    federation.node("cedar").daemon().thaw();
    federation.reconnect();
    CHECK(world.finished(id) == undisturbed);
    CHECK(federation.server_log().find("goes on") != std::string::npos);
  }
  {
    INFO("one thread aggregates instead of two, and the slowest node comes first");
    federation.stop_server();
    federation.configure_server({.threads = 1});
    federation.start_server();
    federation.reconnect();
    const std::string id = federation.submit(world.run);
    federation.wait_for(id, "the second round", [](const json& detail) { return Federation::number(detail.at("summary").at("round")) >= 1; });
    federation.node("alder").daemon().freeze();
    world.wait_for_all_but("alder", id);
    federation.node("alder").daemon().thaw();
    CHECK(world.finished(id) == undisturbed);
  }
  {
    INFO("three threads, and the coordinator is stopped in order in the middle");
    federation.stop_server();
    federation.configure_server({.threads = 3});
    federation.start_server();
    federation.reconnect();
    const std::string id = federation.submit(world.run);
    federation.wait_for(id, "the second round", [](const json& detail) { return Federation::number(detail.at("summary").at("round")) >= 1; });
    federation.stop_server();
    federation.start_server();
    federation.reconnect();
    CHECK(world.finished(id) == undisturbed);
  }
  const Finished verified = [&] {
    federation.stop_server();
    return run_program({program("skerry-server"), "verify", "--home", federation.server_home()});
  }();
  INFO(verified.err);
  CHECK(verified.ok());
}

TEST_CASE("a coordinator killed again and again at any moment of a run loses and repeats nothing") {
  Federation federation;
  for (const char* node : {"alder", "birch"}) federation.add_node(node, {.scripted = true}).script({{"task_ms", 15}});
  RunText run;
  run.rounds = 40;
  run.evaluation = "every = 10\n";
  const std::string id = federation.submit(run);
  for (unsigned kill = 1; kill <= 6; ++kill) {
    const std::uint64_t until = 5 * kill;
    federation.wait_for(id, "round " + std::to_string(until), [&](const json& detail) { return Federation::number(detail.at("summary").at("round")) >= until; });
    federation.kill_server();
    federation.start_server();
    federation.reconnect();
  }
  const json detail = federation.wait_for_status(id, "completed");
  for (const char* node : {"alder", "birch"}) CHECK(Federation::number(Federation::participant(detail, node).at("counted")) == 40);
  CHECK(detail.at("discarded").empty());
  const auto updates = federation.metric_rows(id, "exchange", "train_loss");
  CHECK(updates.size() == 40);
  for (const char* node : {"alder", "birch"}) CHECK(federation.node(node).command({"egress", "verify"}).ok());
}

}  // namespace
}  // namespace skerry::test
