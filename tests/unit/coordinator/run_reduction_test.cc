#include "server/coordinator/run_reduction.h"

#include <catch2/catch.hpp>

#include <cstring>

#include "common/crypto/content_id.h"
#include "strategies/catalogue.h"
#include "tests/support/temp_dir.h"

namespace skerry::server {
namespace {

std::string spec(const std::string& more) {
  return R"(name = "t"
)" + more + R"(
[model]
architecture = "mlp"
inputs = 2
hidden = [3]
outputs = 2
[data]
kind = "csv"
schema = { features = ["a", "b"], label = "y", classes = 2 }
)";
}

// A run's plan with its versions, and updates whose values are all the same.
struct World {
  explicit World(const std::string& more)
      : plan(RunPlan::from_spec(parse_run_spec(spec(more), strategies::spec_catalogue()).value()).value()) {
    auto initial = make_initial_versions(plan, *cargo).value();
    for (std::uint32_t fragment = 0; fragment < initial.size(); ++fragment) versions[{fragment, 0}] = std::move(initial[fragment]);
    for (FragmentIndex i = 0; i < plan.shapes.size(); ++i)
      if (plan.shapes[i].role != FragmentRole::kFrozen) command.fragments.push_back({i, 0, 1});
  }

  void add(const std::string& node, const std::map<FragmentIndex, float>& values, std::uint64_t base = 0) {
    ReduceInput input;
    input.task = "r.1." + std::to_string(command.inputs.size() + 1);
    input.node = node;
    input.examples = 10;
    input.steps = 5;
    auto update = std::make_shared<AcceptedUpdate>();
    for (const auto& [fragment, value] : values) {
      const std::vector<float> delta(plan.shapes[fragment].elements, value);
      std::string bytes(reinterpret_cast<const char*>(delta.data()), 4 * delta.size());
      update->payloads.push_back({fragment, base, content_id(bytes), bytes.size(), bytes});
      input.base_versions[fragment] = base;
    }
    accepted[input.task] = std::move(update);
    command.inputs.push_back(std::move(input));
  }

  std::vector<Reduction> reduce() {
    const auto find = [this](std::uint32_t fragment, std::uint64_t number) -> const VersionRecord* {
      const auto found = versions.find({fragment, number});
      return found == versions.end() ? nullptr : &found->second;
    };
    auto work = plan_reduction(command, plan, "r", accepted, find, *cargo, engine);
    if (!work.ok()) FAIL(work.error().message);
    auto reductions = work->run();
    if (!reductions.ok()) FAIL(reductions.error().message);
    return std::move(reductions).value();
  }

  std::vector<float> values(FragmentIndex fragment, const VersionRecord& version) const {
    std::vector<float> all(plan.shapes[fragment].elements);
    std::memcpy(all.data(), version.whole.bytes.data() + plan.shapes[fragment].data_offset, 4 * all.size());
    return all;
  }

  test::TempDir home;
  std::unique_ptr<CargoStore> cargo = CargoStore::open(home.path()).value();
  AggregationEngine engine{{.threads = 1}};
  RunPlan plan;
  std::map<std::pair<std::uint32_t, std::uint64_t>, VersionRecord> versions;
  AcceptedUpdates accepted;
  Reduce command{.exchange = 1};
};

const std::string kSteps = "[training]\nlearning_rate = 0.1\nsteps = 5\n";

}  // namespace

TEST_CASE("a fragment that no update carries stays as it was under the next number, and the others move") {
  World world("strategy = \"diloco\"\n" + kSteps + "[exchange]\nfragments = 2\n");
  world.add("a", {{1, 0.5f}});
  const auto reductions = world.reduce();
  REQUIRE(reductions.size() == 2);
  const VersionRecord& still = reductions[0].version;
  CHECK(still.version == 1);
  CHECK(still.exchange == 1);
  CHECK(still.whole.content_id == world.versions.at({0, 0}).whole.content_id);
  CHECK(reductions[1].version.whole.content_id != world.versions.at({1, 0}).whole.content_id);
}

TEST_CASE("an adaptive optimizer's first step of a fragment is its first, however many exchanges passed the fragment by") {
  World world("strategy = \"fedadam\"\n" + kSteps + "[aggregation]\nrule = \"module_mean\"\n[exchange]\nfragments = 2\n");
  world.add("a", {{0, 0.5f}, {1, 0.5f}});
  const auto at_once = world.values(1, world.reduce()[1].version);

  World later("strategy = \"fedadam\"\n" + kSteps + "[aggregation]\nrule = \"module_mean\"\n[exchange]\nfragments = 2\n");
  later.add("a", {{0, 0.5f}});
  const auto first = later.reduce();
  for (std::uint32_t fragment = 0; fragment < 2; ++fragment) {
    later.versions[{fragment, 1}] = first[fragment].version;
    later.command.fragments[fragment] = {fragment, 1, 2};
  }
  later.accepted.clear();
  later.command.inputs.clear();
  later.add("a", {{0, 0.5f}, {1, 0.5f}}, 1);
  const auto reductions = later.reduce();
  CHECK(reductions[1].version.version == 2);
  CHECK(later.values(1, reductions[1].version) == at_once);
}

TEST_CASE("a rule is told who sent an update, its metrics, its discount and which exchange this is") {
  World world(kSteps);
  world.add("a", {{0, 1.0f}});
  world.command.inputs[0].factor = 0.5;
  world.command.inputs[0].metrics = {2.5};
  world.command.fragments[0] = {0, 0, 1};
  std::vector<strategies::Contribution> seen;
  std::uint64_t step = 0;
  world.plan.rule.next = [&](const strategies::Cohort& cohort, std::span<const strategies::Table>) -> Result<strategies::Pass> {
    seen.assign(cohort.contributions.begin(), cohort.contributions.end());
    step = cohort.step;
    return strategies::Pass(strategies::LinearOutput{{1.0}});
  };
  world.reduce();
  REQUIRE(seen.size() == 1);
  CHECK(seen[0].node == "a");
  CHECK(seen[0].metrics == std::vector<double>{2.5});
  CHECK(seen[0].factor == 0.5);
  CHECK(seen[0].steps == 5);
  CHECK(step == 1);
}

TEST_CASE("an update measured against an older version counts from there to where the model is now") {
  World world("strategy = \"fedasync\"\n" + kSteps);
  const std::vector<float> then = world.values(0, world.versions.at({0, 0}));
  VersionRecord current = world.versions.at({0, 0});
  std::vector<float> now = then;
  for (float& value : now) value += 1.0f;
  std::memcpy(current.whole.bytes.data() + world.plan.shapes[0].data_offset, now.data(), 4 * now.size());
  current.version = 1;
  world.versions[{0, 1}] = current;
  world.command.fragments = {{0, 1, 2}};
  world.add("slow", {{0, 0.0f}}, 0);  // it trained, and came back to where it began
  const auto next = world.values(0, world.reduce()[0].version);
  for (std::size_t i = 0; i < next.size(); ++i) CHECK(next[i] == Approx(now[i] - 0.6f * (now[i] - then[i])).margin(1e-6));
}

TEST_CASE("control variates move by the sum of their changes over all nodes that consented") {
  World world("strategy = \"scaffold\"\n[training]\nlearning_rate = 0.1\nsteps = 5\n");
  REQUIRE(world.plan.shapes[1].role == FragmentRole::kControl);
  world.command.nodes = 8;
  world.add("a", {{0, 0.0f}, {1, -1.0f}});
  world.add("b", {{0, 0.0f}, {1, -3.0f}});
  world.command.inputs[0].examples = 1000;  // weighs nothing here
  const auto reductions = world.reduce();
  for (const float value : world.values(1, reductions[1].version)) CHECK(value == Approx(0.5));  // (1 + 3) / 8
}

TEST_CASE("a version that an update builds on and that is gone fails the reduction in words") {
  World world(kSteps);
  world.add("a", {{0, 1.0f}});
  world.command.fragments = {{0, 7, 8}};
  const auto nothing = [](std::uint32_t, std::uint64_t) -> const VersionRecord* { return nullptr; };
  const auto work = plan_reduction(world.command, world.plan, "r", world.accepted, nothing, *world.cargo, world.engine);
  REQUIRE_FALSE(work.ok());
  CHECK(work.error().message == "run r: version 7 of fragment 'all' is missing from the store");
}

}  // namespace skerry::server
