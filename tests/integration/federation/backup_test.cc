// The programs: a backup of a coordinator at work, and a federation that goes on from it.
#include <catch2/catch.hpp>

#include "common/os/files.h"
#include "tests/support/federation.h"

namespace skerry::test {
namespace {

using nlohmann::json;

Finished server_program(std::vector<std::string> words) {
  words.insert(words.begin(), program("skerry-server"));
  return run_program(words);
}

/// Another home takes the coordinator's place.
void replace_home(Federation& federation, const std::string& home) {
  REQUIRE(remove_tree(federation.server_home()).ok());
  REQUIRE(run_program({"/bin/mv", home, federation.server_home()}).ok());
}

}  // namespace

TEST_CASE("a run goes on from a backup that was made while it ran, in a new epoch, and every update counts once") {
  Federation federation;
  for (const char* node : {"alder", "birch"}) federation.add_node(node, {.scripted = true}).script({{"task_ms", 40}});
  RunText run;
  run.model = "architecture = \"mlp\"\ninputs = 4\nhidden = [130, 130]\noutputs = 2\n";
  run.rounds = 20;
  const std::string id = federation.submit(run);
  const auto round = [&](std::uint64_t least) {
    return federation.wait_for(id, "round " + std::to_string(least),
                               [&](const json& detail) { return Federation::number(detail.at("summary").at("round")) >= least; });
  };
  round(4);
  const std::string backup = federation.directory() / "backup";
  const Finished made = server_program({"backup", "--home", federation.server_home(), backup, "--with-keys", "--json"});
  INFO(made.err);
  REQUIRE(made.ok());
  const json summary = json::parse(made.out);
  CHECK(summary.at("receipts") >= 8);
  round(10);
  federation.kill_server();

  CHECK(server_program({"verify", "--backup", backup}).ok());
  const std::string home = federation.directory() / "restored";
  const Finished restored = server_program({"restore", backup, "--home", home, "--json"});
  INFO(restored.err);
  REQUIRE(restored.ok());
  CHECK(json::parse(restored.out).at("epoch") != summary.at("epoch"));
  CHECK(server_program({"restore", backup, "--home", home}).status.code == 1);  // nothing is overwritten
  CHECK(server_program({"verify", "--home", home}).ok());

  replace_home(federation, home);
  federation.start_server();
  federation.reconnect();
  const json detail = federation.wait_for_status(id, "completed");
  CHECK(Federation::number(detail.at("summary").at("round")) == 20);
  for (const char* node : {"alder", "birch"}) {
    CHECK(Federation::number(Federation::participant(detail, node).at("counted")) == 20);
    CHECK(federation.node(node).command({"egress", "verify"}).ok());
  }
  federation.stop_server();
  CHECK(server_program({"verify", "--home", federation.server_home()}).ok());
}

TEST_CASE("a coordinator with a damaged file does not start, names it, and goes on when the file is back") {
  Federation federation;
  for (const char* node : {"alder", "birch"}) federation.add_node(node, {.scripted = true});
  RunText run;
  run.model = "architecture = \"mlp\"\ninputs = 4\nhidden = [130, 130]\noutputs = 2\n";
  run.rounds = 2;
  const std::string id = federation.submit(run);
  federation.wait_for_status(id, "completed");
  const auto model = federation.final_model(id);
  federation.stop_server();
  const std::string& content_id = model.begin()->second;
  const std::string path = federation.server_home() + "/cargo/" + content_id.substr(3, 2) + "/" + content_id;
  const std::string good = *read_file(path, 1 << 24);
  std::string damaged = good;
  damaged[1000] = static_cast<char>(damaged[1000] ^ 16);
  REQUIRE(write_file_atomic(path, damaged, 0440).ok());

  const Finished refused = server_program({"run", "--home", federation.server_home()});
  CHECK(refused.status.code == 1);
  CHECK_THAT(refused.err, Catch::Contains(path + " is damaged"));
  const Finished verified = server_program({"verify", "--home", federation.server_home(), "--json"});
  CHECK(verified.status.code == 1);
  CHECK_THAT(json::parse(verified.out).at("findings").dump(), Catch::Contains(path));

  REQUIRE(write_file_atomic(path, good, 0440).ok());
  federation.start_server();
  federation.reconnect();
  CHECK(federation.final_model(id) == model);
}

}  // namespace skerry::test
