// Between a daemon and its coordinator: proxies, broken lines, and somebody else with the same identity.
#include <catch2/catch.hpp>

#include "common/os/files.h"
#include "tests/support/connect_proxy.h"
#include "tests/support/federation.h"

namespace skerry::test {
namespace {

using nlohmann::json;

constexpr const char* kLargeModel = "architecture = \"mlp\"\ninputs = 4\nhidden = [400, 400]\noutputs = 2\n";  // 163,202 parameters: cargo

std::uint64_t round_of(const json& detail) { return Federation::number(detail.at("summary").at("round")); }
std::uint64_t counted(const json& detail, const char* node) { return Federation::number(Federation::participant(detail, node).at("counted")); }

TEST_CASE("joining, the session and cargo in both directions go through a CONNECT proxy, and outlive its breaking") {
  ConnectProxy proxy;
  Federation federation;
  federation.add_node("alder", {.scripted = true, .proxy = proxy.url()});
  const unsigned joined_by = proxy.tunnels();
  CHECK(joined_by >= 2);  // the enrolment and the session
  RunText run;
  run.model = kLargeModel;
  run.participation = "start_nodes = 1\nquorum = 1\n";
  run.rounds = 3;
  const std::string first = federation.submit(run);
  federation.wait_for_status(first, "completed");
  CHECK(proxy.tunnels() > joined_by);
  CHECK(proxy.bytes_up() > 3 * 4 * 163'202);
  CHECK(proxy.bytes_down() > 3 * 4 * 163'202);

  run.name = "endless";
  run.rounds = 100'000;
  federation.node("alder").script({{"task_ms", 50}});
  const std::string second = federation.submit(run);
  federation.wait_for(second, "a round", [](const json& detail) { return round_of(detail) >= 1; });
  proxy.cut();
  CHECK(federation.node("alder").wait_for_log("no session with the coordinator"));
  const auto round = round_of(federation.show(second));
  const json later = federation.wait_for(second, "rounds after the break", [&](const json& detail) { return round_of(detail) >= round + 3; });
  CHECK(counted(later, "alder") == round_of(later));
}

TEST_CASE("a stale copy of a home is refused in clear words and noted, and the honest machine does not feel it") {
  Federation federation;
  Node& alder = federation.add_node("alder", {.scripted = true});
  federation.add_node("birch", {.scripted = true}).script({{"task_ms", 20}});
  alder.script({{"task_ms", 20}});
  // Copied some time ago: between then and now the daemon had another session.
  alder.stop();
  const std::string copied_home = federation.directory() / "copy";
  REQUIRE(run_program({"/bin/cp", "-r", alder.home(), copied_home}).ok());
  alder.start();
  federation.wait_for_node("alder");

  RunText run;
  run.rounds = 100'000;
  const std::string id = federation.submit(run);
  federation.wait_for(id, "round 2", [](const json& detail) { return round_of(detail) >= 2; });
  Node& copy = federation.adopt_home("copy", copied_home, alder);
  copy.start();
  CHECK(copy.wait_for_log("another machine uses the identity of node 'alder'"));
  CHECK(federation.wait_for_server_log("its identity may have been copied"));
  CHECK(federation.metric("skerry_identity_conflicts_total", "node=\"alder\"") >= 1);

  const auto round = round_of(federation.show(id));
  const json later = federation.wait_for(id, "rounds after it", [&](const json& detail) { return round_of(detail) >= round + 3; });
  CHECK(alder.log().find("no session with the coordinator") == std::string::npos);
  CHECK(counted(later, "alder") == round_of(later));
  CHECK(copy.log().find("is accepted with data set") == std::string::npos);  // it never heard of the run
}

TEST_CASE("a fresh copy of a home cannot work beside the original unnoticed: one of the two is refused and told why") {
  Federation federation;
  Node& alder = federation.add_node("alder", {.scripted = true});
  federation.add_node("birch", {.scripted = true}).script({{"task_ms", 20}});
  alder.script({{"task_ms", 20}});
  RunText run;
  run.rounds = 100'000;
  run.participation = "start_nodes = 2\nquorum = 1\n";
  const std::string id = federation.submit(run);
  federation.wait_for(id, "round 2", [](const json& detail) { return round_of(detail) >= 2; });
  const std::string copied_home = federation.directory() / "copy";
  alder.daemon().freeze();  // files that change while they are copied are a damaged home, not a copy
  REQUIRE(run_program({"/bin/cp", "-r", alder.home(), copied_home}).ok());
  alder.daemon().thaw();
  Node& copy = federation.adopt_home("copy", copied_home, alder);
  copy.start();
  const auto complains = [](const Node& node) {
    const std::string log = node.log();
    return log.find("took over") != std::string::npos || log.find("uses the identity") != std::string::npos;
  };
  CHECK(eventually([&] { return complains(alder) || complains(copy); }, 20'000));
  const auto round = round_of(federation.show(id));
  federation.wait_for(id, "rounds after it", [&](const json& detail) { return round_of(detail) >= round + 3; });
}

}  // namespace
}  // namespace skerry::test
