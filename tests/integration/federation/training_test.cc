// A federation that trains, and the people who steer it.
#include <catch2/catch.hpp>

#include <algorithm>

#include "common/os/files.h"
#include "tests/support/federation.h"

namespace skerry::test {
namespace {

using nlohmann::json;

TEST_CASE("two holders who joined with tokens train a model together, and both can account for what left") {
  Federation federation;
  federation.add_node("alder");
  federation.add_node("birch");
  RunText run;
  run.name = "first";
  run.evaluation = "every = 1\n";
  run.rounds = 8;
  const std::string id = federation.submit(run);
  const json detail = federation.wait_for_status(id, "completed");

  CHECK(Federation::number(detail.at("summary").at("round")) == 8);
  for (const char* node : {"alder", "birch"}) {
    CAPTURE(node);
    const json participant = Federation::participant(detail, node);
    REQUIRE(participant.is_object());
    CHECK(Federation::number(participant.at("counted")) == 8);
    CHECK(Federation::number(participant.at("discarded")) == 0);
  }
  const auto losses = federation.metric_rows(id, "evaluation", "loss");
  REQUIRE(losses.size() >= 2);
  CHECK(losses.back() < 0.9 * losses.front());

  {
    INFO("the egress ledger holds every update and verifies");
    const Finished verified = federation.node("alder").command({"egress", "verify"});
    CHECK(verified.ok());
    const Finished listed = federation.node("alder").command({"egress", "list", "--json"});
    const json ledger = json::parse(listed.out);
    const auto updates = std::count_if(ledger.begin(), ledger.end(), [](const json& row) { return row.at("kind") == "update"; });
    CHECK(updates == 8);
  }
  {
    INFO("holder and operator can fetch the model, and it is the same");
    const std::string fetched = federation.directory() / "fetched";
    const Finished fetch = federation.node("birch").command({"model", "fetch", "first", "-o", fetched});
    INFO(fetch.err);
    CHECK(fetch.ok());
    const std::string exported = federation.directory() / "exported";
    const Finished exporting = federation.skerry({"model", "export", "first", "--output", exported});
    INFO(exporting.err);
    CHECK(exporting.ok());
    CHECK(federation.final_model(id).size() == 1);
  }
  {
    INFO("the run's figures leave as CSV and as a table");
    const Finished csv = federation.skerry({"run", "metrics", "first", "--csv"});
    CHECK(csv.ok());
    CHECK(csv.out.starts_with("kind,exchange,version,fragment,node,time_ms,updates,"));
    CHECK(federation.skerry({"run", "show", "first"}).out.find("completed") != std::string::npos);
    CHECK(federation.skerry({"run", "watch", "first"}).out.find("completed") != std::string::npos);
  }
  {
    INFO("a coordinator that was stopped in order still knows the run, and everything is as it was written");
    CHECK(federation.stop_server().clean());
    const Finished verified = run_program({program("skerry-server"), "verify", "--home", federation.server_home()});
    INFO(verified.err);
    CHECK(verified.ok());
    federation.start_server();
    CHECK(federation.status_of(id) == "completed");
    CHECK(Federation::number(federation.show(id).at("summary").at("round")) == 8);
  }
}

TEST_CASE("two runs share the same daemons, and an operator pauses, resumes and stops one without touching the other") {
  Federation federation;
  for (const char* name : {"alder", "birch"}) federation.add_node(name, {.scripted = true}).script({{"task_ms", 20}});
  RunText endless;
  endless.name = "endless";
  endless.rounds = 100'000;
  RunText finite;
  finite.name = "finite";
  finite.rounds = 30;
  const std::string first = federation.submit(endless);
  const std::string second = federation.submit(finite);
  const auto round = [&](const std::string& run) { return Federation::number(federation.show(run).at("summary").at("round")); };

  // Both advance side by side.
  federation.wait_for(first, "round 3", [](const json& run) { return Federation::number(run.at("summary").at("round")) >= 3; });
  federation.wait_for(second, "round 3", [](const json& run) { return Federation::number(run.at("summary").at("round")) >= 3; });

  CHECK(federation.skerry({"run", "pause", first, "--reason", "maintenance"}).ok());
  const json paused = federation.wait_for(first, "pause", [](const json& run) {
    return run.at("summary").at("status") == "paused" && std::none_of(run.at("fragments").begin(), run.at("fragments").end(), [](const json& fragment) {
             return fragment.value("outstanding", 0) > 0;
           });
  });
  CHECK(paused.at("summary").at("status_reason").get<std::string>().find("maintenance") != std::string::npos);
  const auto paused_at = round(first);
  federation.wait_for_status(second, "completed");
  CHECK(round(first) <= paused_at + 1);  // what was under way when the pause came is accepted

  const auto stood_at = round(first);
  CHECK(federation.skerry({"run", "resume", first}).ok());
  federation.wait_for(first, "going on", [&](const json& run) { return Federation::number(run.at("summary").at("round")) > stood_at + 1; });

  CHECK(federation.skerry({"run", "stop", first, "--reason", "enough"}).ok());
  const json stopped = federation.wait_for_status(first, "stopped");
  CHECK(stopped.at("summary").at("status_reason").get<std::string>().find("enough") != std::string::npos);
  CHECK(federation.final_model(first).size() == 1);
  for (const char* name : {"alder", "birch"}) CHECK(federation.node(name).wait_for_log("run " + first + " stopped: enough"));

  // What is over cannot be changed, and the command says so.
  const Finished again = federation.skerry({"run", "resume", first});
  CHECK(again.status.code != 0);
  CHECK(again.err.find("is over") != std::string::npos);
  const Finished unknown = federation.skerry({"run", "show", "nobody-knows"});
  CHECK(unknown.status.code == 5);
  CHECK(unknown.err.find("there is no run 'nobody-knows'") != std::string::npos);
}

TEST_CASE("a holder pauses, resumes and leaves, and the run goes on with the others") {
  Federation federation;
  for (const char* name : {"alder", "birch", "cedar"}) federation.add_node(name, {.scripted = true}).script({{"task_ms", 20}});
  RunText run;
  run.rounds = 100'000;
  run.participation = "start_nodes = 3\nquorum = 2\n";
  const std::string id = federation.submit(run);
  const auto counted = [&](const char* node) { return Federation::number(Federation::participant(federation.show(id), node).at("counted")); };
  federation.wait_for(id, "cedar's third update", [](const json& detail) {
    const json cedar = Federation::participant(detail, "cedar");
    return cedar.is_object() && Federation::number(cedar.at("counted")) >= 3;
  });

  CHECK(federation.node("cedar").command({"pause"}).ok());
  federation.wait_for_node("cedar", "paused");
  federation.wait_for(id, "cedar at rest", [](const json& detail) { return Federation::participant(detail, "cedar").at("state") == "paused"; });
  const auto cedar_before = counted("cedar");
  const auto alder_before = counted("alder");
  federation.wait_for(id, "five rounds without cedar", [&](const json& detail) {
    return Federation::number(Federation::participant(detail, "alder").at("counted")) >= alder_before + 5;
  });
  CHECK(counted("cedar") <= cedar_before + 1);

  CHECK(federation.node("cedar").command({"resume"}).ok());
  federation.wait_for(id, "cedar back at work", [&](const json& detail) {
    return Federation::number(Federation::participant(detail, "cedar").at("counted")) > cedar_before + 1;
  });

  // A pause survives a restart of the daemon.
  CHECK(federation.node("birch").command({"pause"}).ok());
  federation.node("birch").stop();
  federation.wait_for_node("birch", "offline");
  federation.node("birch").start();
  federation.wait_for_node("birch", "paused");
  CHECK(federation.node("birch").command({"resume"}).ok());
  federation.wait_for_node("birch", "connected");

  const Finished left = federation.node("cedar").command({"leave", "--reason", "moving house"});
  INFO(left.out + left.err);
  CHECK(left.ok());
  CHECK(federation.node("cedar").daemon().wait(10'000).has_value());
  CHECK(federation.wait_for_server_log("moving house"));
  const auto alder_then = counted("alder");
  federation.wait_for(id, "rounds without cedar", [&](const json& detail) {
    return Federation::number(Federation::participant(detail, "alder").at("counted")) >= alder_then + 3;
  });
  CHECK(federation.skerry({"run", "stop", id}).ok());
}

}  // namespace
}  // namespace skerry::test
