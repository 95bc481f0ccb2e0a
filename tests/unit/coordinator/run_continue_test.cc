// Runs that continue another one, and the versions that stay for them.
#include <cstring>

#include "common/model/philox.h"
#include "tests/unit/coordinator/world.h"

namespace skerry::server {
namespace {

// Sixteen clients of which four are drawn for each round, with a schedule, momentum on the server, and steps that are encoded.
std::string photon(const std::string& rest) {
  return R"(name = "photon"
strategy = "photon-nesterov"
seed = 5
[model]
architecture = "linear"
inputs = 4
outputs = 2
[data]
kind = "idx"
schema = { shape = [4], classes = 2 }
[training]
learning_rate = 0.1
steps = 10
optimizer_state = "reset"
[participation]
start_nodes = 16
cohort_size = 4
quorum = 4
[exchange]
down = "bf16"
)" + rest;
}

// What a client whose inner state is reset would send: it depends on what it read, its seed and its place in the schedule.
std::vector<float> trained(const v1::Task& task, const VersionRecord& base, std::uint64_t data_offset) {
  std::vector<float> values((base.whole.bytes.size() - data_offset) / 4);
  std::memcpy(values.data(), base.whole.bytes.data() + data_offset, 4 * values.size());
  const PhiloxStream draws(task.seed(), task.first_step());
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = 0.1f * values[i] + static_cast<float>(uniform_from(draws.word(i)) - 0.5);
  return values;
}

struct Played {
  std::map<std::string, std::map<std::uint64_t, std::string>> models;  // by fragment and version
  std::vector<std::set<std::string>> cohorts;
};

// Plays the run to its end, or to a round; every version's bytes and every round's cohort.
Played play(World& world, RunHost& run, std::uint64_t until) {
  Played played;
  const auto look = [&] {
    for (const FragmentShape& shape : run.plan().shapes)
      if (const auto latest = world.store.latest_version(run.record().run_id, shape.name).value())
        played.models[shape.name][latest->version] = latest->whole.bytes;
  };
  look();
  world.told.clear();
  for (int i = 0; i < 16; ++i)
    run.handle(NodeJoined{.node = "client-" + std::to_string(i), .data_set = "d", .examples = 100});
  world.settle();
  while (!run.finished() && run.detail().summary().round() < until) {
    std::set<std::string> cohort;
    for (const auto& [node, message] : std::exchange(world.told, {})) {
      if (!message.has_task()) continue;
      const v1::Task& task = message.task();
      std::map<std::string, std::vector<float>> deltas;
      std::map<std::string, std::uint64_t> bases;
      for (const FragmentShape& shape : run.plan().shapes) {
        if (std::find(task.write().begin(), task.write().end(), shape.name) == task.write().end()) continue;
        const auto base = world.store.latest_version(run.record().run_id, shape.name).value();
        deltas[shape.name] = trained(task, *base, shape.data_offset);
        bases[shape.name] = base->version;
      }
      cohort.insert(node);
      world.offer(run, node, task.task_id(), deltas, bases);
    }
    REQUIRE_FALSE(cohort.empty());
    played.cohorts.push_back(cohort);
    for (int i = 0; i < 3; ++i) world.settle();
    look();
  }
  return played;
}

Played played_to_end(World& world, const std::string& run_id, const std::string& toml) {
  const auto run = world.begin(run_id, toml);
  return play(world, *run, 1000);
}

std::vector<std::uint64_t> stored(World& world, const std::string& run_id) {
  std::vector<std::uint64_t> numbers;
  const auto versions = world.store.versions(run_id).value();
  for (const VersionRecord& version : versions) numbers.push_back(version.version);
  return numbers;
}

std::string refusal(World& world, const std::string& toml) {
  auto plan = RunPlan::from_spec(parse_run_spec(toml, strategies::spec_catalogue()).value());
  const auto versions = continued_versions(*plan, world.store);
  return versions.ok() ? "" : versions.error().message;
}

std::string start(const std::string& run, int round) {
  return "[start]\nrun = \"" + run + "\"\nround = " + std::to_string(round) + "\n";
}

}  // namespace

TEST_CASE("a run that continues another one gives the bytes of the one that was never interrupted") {
  for (const std::string fragments : {"", "fragments = 2\nschedule = \"staggered\"\n"}) {
    World world;
    const std::string rest = fragments + "[evaluation]\nevery = 0\nkeep_every = 5\n[stop]\nrounds = 12\n";
    const Played whole = played_to_end(world, "r-1", photon(rest));
    const Played continued = played_to_end(world, "r-2", photon(rest + start("r-1", 5)));
    for (const auto& [fragment, models] : continued.models) {
      CHECK(models.begin()->first == 5);
      CHECK(models.rbegin()->first == 12);
      for (const auto& [version, bytes] : models) CHECK(bytes == whole.models.at(fragment).at(version));
    }
  }
}

TEST_CASE("a continued run can be continued, and each is told apart") {
  World world;
  const std::string rest = "[evaluation]\nevery = 0\nkeep_every = 4\n[stop]\nrounds = 10\n";
  const Played whole = played_to_end(world, "r-1", photon(rest));
  played_to_end(world, "r-2", photon(rest + start("r-1", 4)));
  const Played third = played_to_end(world, "r-3", photon(rest + start("r-2", 8)));
  CHECK(third.models.at("all").at(10) == whole.models.at("all").at(10));
  CHECK(refusal(world, photon(rest + start("r-2", 4))).empty());  // where it began itself
}

TEST_CASE("every so many-th round's version stays, with its optimizer state, and the newest two") {
  World world;
  const Played all = played_to_end(world, "r-1", photon("[evaluation]\nevery = 0\nkeep_every = 3\n[stop]\nrounds = 8\n"));
  CHECK(stored(world, "r-1") == std::vector<std::uint64_t>{3, 6, 7, 8});
  CHECK(world.store.version("r-1", "all", 3).value()->state_size > 0);
}

TEST_CASE("of sixteen clients four train in each round, and all have their turns") {
  World world;
  const Played all = played_to_end(world, "r-1", photon("[evaluation]\nevery = 0\n[stop]\nrounds = 20\n"));
  REQUIRE(all.cohorts.size() == 20);
  std::set<std::string> trained_once;
  for (const auto& cohort : all.cohorts) {
    CHECK(cohort.size() == 4);
    trained_once.insert(cohort.begin(), cohort.end());
  }
  CHECK(trained_once.size() == 16);
}

TEST_CASE("what cannot be continued is said with what is there") {
  World world;
  const std::string rest = "[evaluation]\nevery = 0\n[stop]\nrounds = 8\n";
  const auto run = world.begin("r-1", photon(rest));
  play(world, *run, 6);
  CHECK(refusal(world, photon(rest + start("r-9", 2))).find("there is no run of this id") != std::string::npos);
  CHECK(refusal(world, photon(rest + start("r-1", 7))).find("has finished 6 rounds, not 7") != std::string::npos);
  CHECK(refusal(world, photon(rest + start("r-1", 2))).find("evaluation.keep_every") != std::string::npos);
  CHECK(refusal(world, photon("[outer]\noptimizer = \"adam\"\n" + rest + start("r-1", 6))).find("[outer]") !=
        std::string::npos);
  CHECK(refusal(world, photon(rest + start("r-1", 6))).empty());
}

TEST_CASE("a coordinator that restarts goes on with a continued run") {
  World world;
  const std::string rest = "[evaluation]\nevery = 0\nkeep_every = 4\n[stop]\nrounds = 10\n";
  const Played whole = played_to_end(world, "r-1", photon(rest));
  {
    const auto run = world.begin("r-2", photon(rest + start("r-1", 4)));
    play(world, *run, 7);
  }
  auto restored = RunHost::restore(world.services, world.store.run("r-2").value().value());
  if (!restored.ok()) FAIL(restored.error().message);
  (*restored)->start();
  const Played rest_of_it = play(world, **restored, 1000);
  CHECK(rest_of_it.models.at("all").at(10) == whole.models.at("all").at(10));
}

}  // namespace skerry::server
