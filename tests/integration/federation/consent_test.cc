// What a holder allows, and how much of a refusal or a failure the operator hears.
#include <catch2/catch.hpp>

#include <algorithm>

#include "common/os/files.h"
#include "tests/support/federation.h"

namespace skerry::test {
namespace {

using nlohmann::json;

json verdict_of(const json& reply, const std::string& node) {
  for (const json& verdict : reply.at("nodes"))
    if (verdict.at("node") == node) return verdict;
  return nullptr;
}

bool holds(const json& text, const std::string& part) { return text.get<std::string>().find(part) != std::string::npos; }

TEST_CASE("a policy that refuses a run shows in the dry run and in the run, as far as that policy lets it be told") {
  Federation federation;
  federation.add_node("willing", {.scripted = true});
  federation.add_node("frank", {.purposes = {"research-*"}, .error_messages = "full", .scripted = true});
  federation.add_node("brief", {.purposes = {"research-*"}, .error_messages = "code", .scripted = true});
  federation.add_node("silent", {.purposes = {"research-*"}, .error_messages = "none", .scripted = true});
  federation.add_node("asleep", {.scripted = true, .start = false});
  RunText run;
  run.name = "advertising";
  run.top = "purpose = \"advertising\"\n";
  run.participation = "start_nodes = 1\nquorum = 1\n";
  run.rounds = 3;

  const json dry = federation.ask({"run", "submit", federation.spec_file(run), "--dry-run"});
  CHECK(dry.at("run_id") == "");
  CHECK(verdict_of(dry, "willing").at("takes_part") == true);
  CHECK(holds(verdict_of(dry, "willing").at("reason"), "table"));
  CHECK(verdict_of(dry, "frank").at("takes_part") == false);
  CHECK(holds(verdict_of(dry, "frank").at("reason"), "advertising"));
  CHECK(holds(verdict_of(dry, "frank").at("reason"), "research-*"));
  CHECK(verdict_of(dry, "brief").at("takes_part") == false);
  CHECK(holds(verdict_of(dry, "brief").at("reason"), "allow.purposes"));
  CHECK_FALSE(holds(verdict_of(dry, "brief").at("reason"), "research-*"));
  CHECK(verdict_of(dry, "silent").at("takes_part") == false);
  CHECK_FALSE(holds(verdict_of(dry, "silent").at("reason"), "purposes"));
  CHECK(holds(verdict_of(dry, "asleep").at("reason"), "offline"));
  CHECK(federation.ask({"run", "list"}).at("runs").empty());  // a dry run leaves nothing behind

  const std::string id = federation.submit(run);
  const json detail = federation.wait_for_status(id, "completed");
  CHECK(Federation::number(Federation::participant(detail, "willing").at("counted")) == 3);
  for (const char* node : {"frank", "brief", "silent"}) {
    CAPTURE(node);
    const json refused = Federation::participant(detail, node);
    REQUIRE(refused.is_object());
    CHECK(refused.at("state") == "refused");
    CHECK(holds(refused.at("detail"), "research-*") == (std::string(node) == "frank"));
  }
  // The holder itself always knows why.
  const Finished test = federation.node("silent").command({"policy", "test", federation.spec_file(run)});
  CHECK(test.status.code == 3);
  CHECK(test.out.find("research-*") != std::string::npos);
  CHECK(federation.node("silent").wait_for_log("research-*"));
}

TEST_CASE("a holder who changes the policy in the middle of a run is out at once, and in again after changing it back") {
  Federation federation;
  federation.add_node("alder", {.scripted = true}).script({{"task_ms", 20}});
  Node& birch = federation.add_node("birch", {.scripted = true});
  birch.script({{"task_ms", 20}});
  RunText run;
  run.rounds = 100'000;
  run.participation = "start_nodes = 2\nquorum = 1\n";
  const std::string id = federation.submit(run);
  const auto counted = [](const json& detail, const char* node) {
    const json participant = Federation::participant(detail, node);
    return participant.is_object() ? Federation::number(participant.at("counted")) : 0;
  };
  federation.wait_for(id, "birch at work", [&](const json& detail) { return counted(detail, "birch") >= 2; });

  const std::string policy = *read_file(birch.home() + "/policy.toml", 1 << 20);
  std::string stricter = policy;
  stricter.replace(stricter.find("purposes = [\"*\"]"), 16, "purposes = [\"none\"]");
  REQUIRE(write_file_atomic(birch.home() + "/policy.toml", stricter).ok());
  CHECK(birch.wait_for_log("policy and catalogue loaded"));
  const json out = federation.wait_for(id, "birch refuses", [&](const json& detail) {
    const json& all = detail.at("participants");
    return std::any_of(all.begin(), all.end(), [](const json& one) { return one.at("node") == "birch" && one.at("state") == "refused"; });
  });
  const auto alder_then = counted(out, "alder");
  federation.wait_for(id, "rounds without birch", [&](const json& detail) { return counted(detail, "alder") >= alder_then + 3; });

  // A policy with a mistake in it is not used; the one before stays in force.
  REQUIRE(write_file_atomic(birch.home() + "/policy.toml", "purpose = 1\n").ok());
  CHECK(birch.wait_for_log("is not used, the one before stays in force"));

  REQUIRE(write_file_atomic(birch.home() + "/policy.toml", policy).ok());
  const auto birch_then = counted(federation.show(id), "birch");
  federation.wait_for(id, "birch at work again", [&](const json& detail) { return counted(detail, "birch") > birch_then + 1; });
}

TEST_CASE("errors of a trainer reach the operator as far as the holder's policy allows, and the run goes on without that node") {
  Federation federation;
  for (const char* node : {"alder", "birch"}) federation.add_node(node, {.scripted = true}).script({{"task_ms", 10}});
  federation.add_node("frank", {.error_messages = "full", .scripted = true});
  federation.add_node("brief", {.error_messages = "code", .scripted = true});
  federation.add_node("silent", {.error_messages = "none", .scripted = true});
  federation.add_node("tardy", {.error_messages = "full", .task_seconds = 1, .scripted = true}).script({{"hold", true}});
  for (const char* node : {"frank", "brief", "silent"}) federation.node(node).script({{"mode", "error"}});
  RunText run;
  run.participation = "start_nodes = 6\nquorum = 2\n";
  run.rounds = 2;
  const std::string id = federation.submit(run);
  const json detail = federation.wait_for_status(id, "completed");

  const auto told = [&](const char* node) { return Federation::participant(detail, node).at("detail"); };
  CHECK(holds(told("frank"), "row 17 was strange"));
  CHECK_FALSE(holds(told("brief"), "row 17"));
  CHECK(holds(told("brief"), "code alone"));
  CHECK_FALSE(holds(told("silent"), "row 17"));
  CHECK_FALSE(holds(told("silent"), "FAILED_PRECONDITION"));
  CHECK(holds(told("tardy"), "was not done"));
  for (const char* node : {"frank", "brief", "silent", "tardy"}) {
    CAPTURE(node);
    CHECK(Federation::number(Federation::participant(detail, node).at("counted")) == 0);
  }
  CHECK(federation.server_log().find("row 17 was strange") != std::string::npos);
  CHECK(federation.metric("skerry_task_failures_total", "node=\"frank\"") >= 2);
  CHECK(federation.metric("skerry_task_failures_total", "node=\"alder\"") == 0);
  // The holder reads everything at home.
  for (const char* node : {"brief", "silent"}) CHECK(federation.node(node).log().find("row 17 was strange") != std::string::npos);
}

TEST_CASE("a trainer that crashes is started again, and its node does its share of the run") {
  Federation federation;
  federation.add_node("alder", {.scripted = true}).script({{"task_ms", 10}});
  Node& birch = federation.add_node("birch", {.scripted = true});
  birch.script({{"mode", "crash"}});
  RunText run;
  run.participation = "start_nodes = 2\nquorum = 2\n";
  run.rounds = 3;
  const std::string id = federation.submit(run);
  const json crashed = federation.wait_for(id, "the crash to be told", [](const json& detail) {
    const json birch_now = Federation::participant(detail, "birch");
    return birch_now.is_object() && holds(birch_now.at("detail"), "trainer");
  });
  CHECK(holds(Federation::participant(crashed, "birch").at("detail"), "signal"));
  birch.script({{"mode", "train"}});
  const json detail = federation.wait_for_status(id, "completed");
  CHECK(Federation::number(Federation::participant(detail, "birch").at("counted")) == 3);
}

}  // namespace
}  // namespace skerry::test
