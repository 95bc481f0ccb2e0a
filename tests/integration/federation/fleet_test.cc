// As many clients as a large federation has, each with a certificate and a session of its own.
#include <catch2/catch.hpp>

#include "common/os/files.h"
#include "tests/support/federation.h"

namespace skerry::test {
namespace {

using nlohmann::json;

TEST_CASE("200 clients at once complete a run, and every update of every one counts") {
  Federation federation;
  RunText run;
  run.participation = "start_nodes = 200\nquorum = 200\n";
  run.rounds = 3;
  const Finished fleet = run_program({program("skerry-bench"), "fleet", "--home", federation.directory() / "fleet", "--profile",
                                      federation.operator_profile(), "--clients", "200", "--submit", federation.spec_file(run), "--seconds", "90"},
                                     {}, {}, 100'000);
  INFO(fleet.err << federation.logs());
  REQUIRE(fleet.ok());
  const json report = json::parse(fleet.out);
  INFO(report.dump(1));
  CHECK(report.at("clients") == 200);
  CHECK(report.at("timed_out") == false);
  const json runs = federation.ask({"run", "list"}).at("runs");
  REQUIRE(runs.size() == 1);
  CHECK(runs[0].at("status") == "completed");
  const json detail = federation.show(runs[0].at("run_id"));
  REQUIRE(detail.at("participants").size() == 200);
  for (const json& participant : detail.at("participants")) CHECK(Federation::number(participant.at("counted")) == 3);
  CHECK(detail.at("discarded").empty());
}

}  // namespace
}  // namespace skerry::test
