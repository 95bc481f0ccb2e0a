// Who takes part: more nodes than are needed, and every node on its own clock.
#include <catch2/catch.hpp>

#include <algorithm>

#include "tests/support/federation.h"

namespace skerry::test {
namespace {

using nlohmann::json;

std::uint64_t counted(const json& detail, const char* node) {
  return Federation::number(Federation::participant(detail, node).at("counted"));
}

TEST_CASE("with over-selection a round ends when its goal is reached, and those who are late are told so") {
  Federation federation;
  for (const char* name : {"alder", "birch"}) federation.add_node(name, {.scripted = true}).script({{"task_ms", 20}});
  for (const char* name : {"cedar", "dogwood"}) federation.add_node(name, {.scripted = true}).script({{"hold", true}});
  RunText run;
  run.participation = "start_nodes = 4\nquorum = 2\ncohort_size = 2\nover_selection = 2\n";
  run.rounds = 5;
  const std::string id = federation.submit(run);
  const json detail = federation.wait_for_status(id, "completed");
  for (const char* name : {"alder", "birch"}) CHECK(counted(detail, name) == 5);
  for (const char* name : {"cedar", "dogwood"}) {
    CAPTURE(name);
    CHECK(counted(detail, name) == 0);
    CHECK(federation.node(name).wait_for_log("was completed without this update: the goal was reached"));
  }
}

TEST_CASE("an asynchronous run takes each update as it comes, and goes on where it was when the coordinator is killed") {
  Federation federation;
  federation.add_node("alder", {.scripted = true}).script({{"task_ms", 20}});
  federation.add_node("birch", {.scripted = true}).script({{"task_ms", 150}});
  RunText run;
  run.top = "strategy = \"fedasync\"\npurpose = \"test\"\n";
  run.participation = "start_nodes = 2\nmaximum_staleness = 50\n";
  run.rounds = 40;
  const std::string id = federation.submit(run);
  federation.wait_for(id, "updates of both", [](const json& detail) {
    return Federation::participant(detail, "alder").is_object() && counted(detail, "alder") >= 5 &&
           counted(detail, "birch") >= 1;
  });
  federation.kill_server();
  federation.start_server();
  federation.reconnect();
  const json detail = federation.wait_for_status(id, "completed");
  CHECK(counted(detail, "alder") + counted(detail, "birch") == 40);  // one update an exchange
  CHECK(counted(detail, "alder") > counted(detail, "birch"));
  CHECK(counted(detail, "birch") >= 1);
}

}  // namespace
}  // namespace skerry::test
