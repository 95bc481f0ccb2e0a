// Stores that earlier versions of the code wrote open, are brought up to date, and say what they said.
//
// tests/fixtures/store-v<schema> holds what a coordinator left after a small run; tests/fixtures/record.sh makes one.
#include <catch2/catch.hpp>

#include <sys/stat.h>

#include <cstdlib>

#include <nlohmann/json.hpp>

#include "common/os/files.h"
#include "common/os/random.h"
#include "server/store/store.h"
#include "tests/support/federation.h"

namespace skerry::test {
namespace {

using nlohmann::json;
using namespace skerry::server;

std::string fixtures() {
  const char* source = std::getenv("SKERRY_SOURCE");
  REQUIRE(source != nullptr);
  return std::string(source) + "/tests/fixtures";
}

/// What a store says of its runs, in a form that does not depend on the schema.
json story(Store& store) {
  json out = {{"epoch", store.epoch()}, {"receipts", store.chain_length()}, {"chain_head", store.chain_head()}, {"runs", json::array()}};
  const std::vector<RunRecord> runs = store.runs().value();
  for (const RunRecord& run : runs) {
    const std::vector<VersionRecord> versions = store.versions(run.run_id).value();
    const std::map<std::string, std::uint64_t> counted = store.counted_by_node(run.run_id).value();
    json told = {{"id", run.run_id}, {"name", run.name}, {"status", run.status}, {"spec_hash", run.spec_hash}};
    for (const VersionRecord& version : versions)
      told["versions"].push_back({version.fragment, version.version, version.whole.content_id, version.counted_digest, version.chain});
    for (const auto& [node, updates] : counted) told["counted"][node] = updates;
    told["metrics"] = store.metrics(run.run_id)->size();
    told["accepted"] = store.accepted_updates(run.run_id)->size();
    out["runs"].push_back(std::move(told));
  }
  return out;
}

}  // namespace

TEST_CASE("the stores of all schemas so far open and say what they said") {
  SystemRandom random;
  unsigned found = 0;
  const std::vector<DirectoryEntry> entries = list_directory(fixtures()).value();
  for (const DirectoryEntry& entry : entries) {
    if (!entry.is_directory || !entry.name.starts_with("store-v")) continue;
    INFO(entry.name);
    ++found;
    TempDir dir;
    const std::string home = dir / "home";
    REQUIRE(run_program({"/bin/cp", "-r", fixtures() + "/" + entry.name, home}).ok());
    REQUIRE(run_program({"/bin/chmod", "-R", "u+w", home}).ok());
    const json expected = json::parse(*read_file(home + "/story.json", 1 << 20));
    for (int opening = 0; opening < 2; ++opening) {
      auto store = Store::open(home, random);
      if (!store.ok()) FAIL(to_string(store.error()));
      const auto cargo = CargoStore::open(home);
      CHECK(story(*store) == expected);
      CHECK(store->verify(**cargo).ok());
    }
  }
  CHECK(found >= 2);
}

TEST_CASE("a store of a later schema is refused, and both numbers are said") {
  SystemRandom random;
  TempDir dir;
  REQUIRE(Store::open(dir.path(), random).ok());
  {
    auto database = sqlite::Database::open(dir / "skerry.db");
    REQUIRE(database->execute("PRAGMA user_version = 99").ok());
  }
  const auto store = Store::open(dir.path(), random);
  REQUIRE_FALSE(store.ok());
  CHECK(store.error().code == Code::kFailedPrecondition);
  CHECK_THAT(store.error().message, Catch::Contains("schema version 99") && Catch::Contains("use the newer program"));
}

// Run by tests/fixtures/record.sh with the programs of the version to record.
TEST_CASE("record what this version's coordinator leaves", "[.record]") {
  const char* target = std::getenv("SKERRY_RECORD");
  REQUIRE(target != nullptr);
  Federation federation;
  for (const char* node : {"alder", "birch"}) federation.add_node(node, {.scripted = true});
  RunText run;
  run.name = "finished";
  run.rounds = 3;
  run.outer = "optimizer = \"nesterov\"\nlearning_rate = 0.7\nmomentum = 0.9\n";
  const std::string finished = federation.submit(run);
  federation.wait_for_status(finished, "completed");
  run.name = "open";
  federation.node("birch").script({{"hold", true}});
  const std::string open = federation.submit(run);
  federation.wait_for(open, "an accepted update", [](const json& detail) { return detail.at("fragments").at(0).at("accepted") == 1; });
  federation.stop_server();
  REQUIRE(make_directories(target).ok());
  // Keys stay out of the repository.
  const std::vector<DirectoryEntry> entries = list_directory(federation.server_home()).value();
  for (const DirectoryEntry& entry : entries)
    if (entry.name.starts_with("skerry.db") || entry.name == "chain.head" || entry.name == "cargo" || entry.name == "spool")
      REQUIRE(run_program({"/bin/cp", "-r", join_path(federation.server_home(), entry.name), target}).ok());
  SystemRandom random;
  const std::string copy = federation.directory() / "copy";
  REQUIRE(run_program({"/bin/cp", "-r", target, copy}).ok());
  auto store = Store::open(copy, random);
  REQUIRE(store.ok());
  REQUIRE(write_file_atomic(std::string(target) + "/story.json", story(*store).dump(1) + "\n", 0644).ok());
}

}  // namespace skerry::test
