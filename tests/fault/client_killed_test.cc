// A data holder's machine that loses its power at the worst moments.
#include <catch2/catch.hpp>

#include "common/os/files.h"
#include "tests/support/connect_proxy.h"
#include "tests/support/federation.h"

namespace skerry::test {
namespace {

using nlohmann::json;

constexpr std::uint64_t kChunk = 4 << 20;
// 4 · (4·1700 + 1700 + 1700·1700 + 1700 + 2·1700 + 2) bytes: three chunks of cargo.
constexpr const char* kThreeChunks = "architecture = \"mlp\"\ninputs = 4\nhidden = [1700, 1700]\noutputs = 2\n";
constexpr std::uint64_t kUpdateBytes = 4ull * (4 * 1700 + 1700 + 1700 * 1700 + 1700 + 2 * 1700 + 2);

std::uint64_t counted(const json& detail, const char* node) {
  const json participant = Federation::participant(detail, node);
  return participant.is_object() ? Federation::number(participant.at("counted")) : 0;
}

TEST_CASE("a client that is killed in the middle of a task comes back, does it, and is counted once") {
  Federation federation;
  federation.add_node("alder", {.scripted = true});
  Node& birch = federation.add_node("birch", {.scripted = true});
  birch.script({{"hold", true}});
  RunText run;
  run.rounds = 3;
  const std::string id = federation.submit(run);
  federation.wait_for(id, "birch training", [](const json& detail) {
    const json birch_now = Federation::participant(detail, "birch");
    return birch_now.is_object() && birch_now.at("state") == "training" && Federation::number(birch_now.at("of")) > 0;
  });
  birch.kill();
  federation.wait_for_node("birch", "offline");
  CHECK(federation.status_of(id) == "running");  // it is waited for
  birch.script({{"hold", false}});
  birch.start();
  const json detail = federation.wait_for_status(id, "completed");
  for (const char* node : {"alder", "birch"}) CHECK(counted(detail, node) == 3);
  CHECK(detail.at("discarded").empty());
  CHECK(birch.command({"egress", "verify"}).ok());
}

TEST_CASE("a client that is killed between training and its receipt offers the same update again, and it is counted once") {
  Federation federation;
  federation.add_node("alder", {.scripted = true}).script({{"hold", true}});
  Node& birch = federation.add_node("birch", {.scripted = true});
  RunText run;
  run.rounds = 1;
  const std::string id = federation.submit(run);
  federation.wait_for(id, "birch's update", [](const json& detail) { return detail.at("fragments").at(0).at("accepted") == 1; });
  birch.kill();
  birch.start();
  federation.wait_for_node("birch");
  REQUIRE(eventually([&] {
    const json status = birch.status();
    return status.is_object() && status.value("outbox", json::array()).size() == 1 && status["outbox"][0].value("phase", "") == "accepted";
  }));
  federation.node("alder").script({{"hold", false}});
  const json detail = federation.wait_for_status(id, "completed");
  for (const char* node : {"alder", "birch"}) CHECK(counted(detail, node) == 1);
  // The receipt empties the outbox.
  CHECK(eventually([&] {
    const json status = birch.status();
    return status.is_object() && status.value("outbox", json::array()).empty();
  }));
  CHECK(federation.metric("skerry_updates_accepted_total") == 2);
}

TEST_CASE("a client that is killed in the middle of an upload goes on where it was, and its update is counted once") {
  ConnectProxy proxy;
  Federation federation;
  Node& alder = federation.add_node("alder", {.scripted = true, .proxy = proxy.url()});
  RunText run;
  run.model = kThreeChunks;
  run.participation = "start_nodes = 1\nquorum = 1\n";
  run.rounds = 1;
  proxy.limit_up(4'000'000);
  const std::string id = federation.submit(run);
  // Kill it once the first two chunks are there.
  const std::uint64_t before = proxy.bytes_up();
  REQUIRE(eventually([&] { return proxy.bytes_up() - before > 2 * kChunk + kChunk / 2; }, 30'000));
  alder.kill();
  const std::uint64_t sent = proxy.bytes_up() - before;
  REQUIRE(sent < kUpdateBytes);
  CHECK(federation.show(id).at("fragments").at(0).at("accepted") == 0);

  proxy.limit_up(0);
  const std::uint64_t again = proxy.bytes_up();
  alder.start();
  const json detail = federation.wait_for_status(id, "completed");
  CHECK(counted(detail, "alder") == 1);
  CHECK(detail.at("discarded").empty());
  // Two chunks were not sent again; a whole upload would be more than kUpdateBytes.
  CHECK(proxy.bytes_up() - again < kUpdateBytes - 2 * kChunk + 200'000);
  // Nothing was trained a second time: the update in the outbox is the one that was counted.
  const Finished ledger = alder.command({"egress", "list", "--json"});
  unsigned updates = 0;
  for (const json& row : json::parse(ledger.out)) updates += row.at("kind") == "update" ? 1 : 0;
  CHECK(updates == 1);
}

TEST_CASE("an upload whose connection breaks is resumed by the daemon itself") {
  ConnectProxy proxy;
  Federation federation;
  federation.add_node("alder", {.scripted = true, .proxy = proxy.url()});
  RunText run;
  run.model = kThreeChunks;
  run.participation = "start_nodes = 1\nquorum = 1\n";
  run.rounds = 1;
  proxy.limit_up(4'000'000);
  const std::string id = federation.submit(run);
  const std::uint64_t before = proxy.bytes_up();
  REQUIRE(eventually([&] { return proxy.bytes_up() - before > kChunk + kChunk / 2; }, 30'000));
  proxy.cut();
  proxy.limit_up(0);
  const json detail = federation.wait_for_status(id, "completed");
  CHECK(counted(detail, "alder") == 1);
  CHECK(proxy.bytes_up() - before < kUpdateBytes + kChunk);  // the first chunk went once
}

TEST_CASE("a client that is killed while it downloads the model goes on where it was") {
  Federation federation;
  Node& alder = federation.add_node("alder", {.scripted = true});
  RunText run;
  run.model = kThreeChunks;
  run.participation = "start_nodes = 1\nquorum = 1\n";
  run.rounds = 2;
  const std::string id = federation.submit(run);
  const std::string cache = alder.home() + "/runs/" + id + "/cache";
  REQUIRE(eventually([&] {
    const auto files = list_directory(cache);
    return files.ok() && !files->empty();
  }));
  alder.kill();
  alder.start();
  const json detail = federation.wait_for_status(id, "completed");
  CHECK(counted(detail, "alder") == 2);
}

}  // namespace
}  // namespace skerry::test
