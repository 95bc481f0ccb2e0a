#include "server/coordinator/run_host.h"

#include <catch2/catch.hpp>

#include <map>
#include <memory>

#include "common/crypto/content_id.h"
#include "common/os/random.h"
#include "strategies/catalogue.h"
#include "tests/support/manual_clock.h"
#include "tests/support/temp_dir.h"

namespace skerry::server {
namespace {

constexpr const char* kSpec = R"(name = "test"
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
[participation]
quorum = 2
[evaluation]
every = 0
)";

// One run on a store of its own; what nodes are told lies in `told`.
struct World {
  test::TempDir home;
  test::ManualClock clock;
  SystemRandom random;
  Store store = Store::open(home.path(), random, {.now_ms = 1}).value();
  std::unique_ptr<CargoStore> cargo = CargoStore::open(home.path()).value();
  CommitGroup commit{store, *cargo, clock};
  CoreLoop core{clock, [] { return std::uint64_t{0}; }};
  CoreLoop bulk{clock, [] { return std::uint64_t{0}; }};
  AggregationEngine engine{{.threads = 1}};
  Metrics metrics;
  std::vector<std::pair<std::string, v1::ToNode>> told;
  unsigned refusals = 0;
  RunServices services{clock,
                       store,
                       *cargo,
                       commit,
                       core,
                       bulk,
                       engine,
                       metrics,
                       std::string(32, 'k'),
                       [this](const std::string& node, v1::ToNode message) { told.emplace_back(node, std::move(message)); },
                       [](const std::string&) { return NodeSession{"s", "thumb"}; },
                       [](const std::string&) {},
                       [](const RunHost&) {},
                       [this](const std::string&) { ++refusals; }};

  std::unique_ptr<RunHost> begin(const std::string& run_id) {
    RunPlan plan = RunPlan::from_spec(parse_run_spec(kSpec, strategies::spec_catalogue()).value()).value();
    auto versions = make_initial_versions(plan, *cargo).value();
    RunRecord record;
    record.run_id = run_id;
    record.name = "test";
    record.created_ms = 1;
    record.spec_hash = plan.spec.hash;
    record.spec_json = plan.spec.canonical_json;
    auto run = RunHost::create(services, std::move(record), std::move(plan), std::move(versions));
    run->start();
    settle();
    return run;
  }

  void settle() {
    clock.advance_ms(CommitGroup::kLingerMs);
    commit.settle();
    REQUIRE_FALSE(commit.fatal());
  }

  // Lets two nodes join; their tasks, by node.
  std::map<std::string, std::string> join(RunHost& run) {
    told.clear();
    for (const char* node : {"alder", "birch"}) run.handle(NodeJoined{.node = node, .data_set = "d", .examples = 100});
    settle();
    std::map<std::string, std::string> tasks;
    for (const auto& [to, message] : told)
      if (message.has_task()) tasks[to] = message.task().task_id();
    return tasks;
  }

  void offer(RunHost& run, const std::string& node, const std::string& task, float value = 1.0f) {
    const FragmentShape& shape = run.plan().shapes.front();
    const std::vector<float> delta(shape.elements, value);
    v1::UpdateBody body;
    body.set_task_id(task);
    body.set_run_id(run.record().run_id);
    body.set_spec_hash(run.plan().spec.hash);
    body.set_node(node);
    body.set_kind(v1::TASK_TRAIN);
    body.set_examples(10);
    body.set_steps(10);
    v1::FragmentUpdate& fragment = *body.add_fragments();
    fragment.set_fragment(shape.name);
    fragment.set_encoding("f32");
    fragment.mutable_data()->set_inline_data(std::string(reinterpret_cast<const char*>(delta.data()), 4 * delta.size()));
    fragment.mutable_data()->set_size(fragment.data().inline_data().size());
    fragment.mutable_data()->set_content_id(content_id(fragment.data().inline_data()));
    v1::SignedUpdate message;
    message.set_body(body.SerializeAsString());
    run.offered(node, std::move(body), std::move(message));
  }

  std::vector<v1::UpdateState> states(const std::string& node, const std::string& task) {
    std::vector<v1::UpdateState> found;
    for (const auto& [to, message] : told)
      if (to == node && message.has_receipt() && message.receipt().task_id() == task) found.push_back(message.receipt().state());
    return found;
  }
};

constexpr auto kDiscarded = v1::UPDATE_DISCARDED;

}  // namespace

TEST_CASE("an update that is offered again after it was discarded is told so again, and recorded once") {
  World world;
  const auto run = world.begin("r-1");
  const std::string task = world.join(*run).at("alder");
  run->invalid(task, "alder", invalid_argument("not finite"));
  world.offer(*run, "alder", task);  // in the same commit
  world.settle();
  const std::uint64_t receipts = world.store.chain_length();
  world.offer(*run, "alder", task);  // and after it
  world.offer(*run, "alder", task);
  world.settle();
  CHECK(world.states("alder", task) == std::vector<v1::UpdateState>(4, kDiscarded));
  CHECK(world.store.chain_length() == receipts);
  CHECK(world.store.task(task).value()->reason == "not finite");
}

TEST_CASE("no node can decide a task of another run, or one that was never given out") {
  World world;
  const auto one = world.begin("r-1");
  const auto other = world.begin("r-2");
  const std::string task = world.join(*one).at("alder");
  for (const std::string& name : {task, std::string("r-9.x.1"), std::string("../../x")}) {
    world.offer(*other, "birch", name);
    other->invalid(name, "birch", invalid_argument("x"));
    world.settle();
    CHECK_FALSE(world.store.task(name).value().has_value());
  }
  CHECK(world.refusals >= 6);
  world.told.clear();
  world.offer(*one, "alder", task);
  world.settle();
  CHECK(world.states("alder", task) == std::vector<v1::UpdateState>{v1::UPDATE_ACCEPTED});
}

TEST_CASE("a run goes on from what was accepted, also under the epoch of a restored backup") {
  World world;
  auto run = world.begin("r-1");
  auto tasks = world.join(*run);
  const std::string first = tasks.at("alder");
  const std::string second = tasks.at("birch");
  world.offer(*run, "alder", first, 1.0f);
  world.settle();
  run.reset();
  world.store = Store::open(world.home.path(), world.random, {.restored = true, .now_ms = 2}).value();
  auto restored = RunHost::restore(world.services, world.store.runs().value().front());
  if (!restored.ok()) FAIL(restored.error().message);
  run = std::move(restored).value();
  run->start();
  tasks = world.join(*run);
  CHECK(tasks.count("alder") == 0);
  CHECK(tasks.at("birch") == second);
  world.told.clear();
  world.offer(*run, "birch", second, 3.0f);
  world.settle();
  CHECK(world.states("alder", first) == std::vector<v1::UpdateState>{v1::UPDATE_COUNTED});
  CHECK(world.states("birch", second).back() == v1::UPDATE_COUNTED);
  CHECK(run->detail().fragments(0).version() == 1);
}

}  // namespace skerry::server
