// One run on a store of its own, with nodes that a test speaks for.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <catch2/catch.hpp>

#include "common/crypto/content_id.h"
#include "common/os/random.h"
#include "server/coordinator/run_host.h"
#include "strategies/catalogue.h"
#include "tests/support/manual_clock.h"
#include "tests/support/temp_dir.h"

namespace skerry::server {

inline constexpr const char* kSpec = R"(name = "test"
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

  std::unique_ptr<RunHost> begin(const std::string& run_id, const std::string& toml = kSpec) {
    auto spec = parse_run_spec(toml, strategies::spec_catalogue());
    if (!spec.ok()) FAIL(spec.error().message);
    RunPlan plan = RunPlan::from_spec(std::move(spec).value()).value();
    auto initial = plan.spec.start.run.empty() ? make_initial_versions(plan, *cargo) : continued_versions(plan, store);
    if (!initial.ok()) FAIL(initial.error().message);
    auto versions = std::move(initial).value();
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

  // An update whose values are all the same, of the first fragment.
  void offer(RunHost& run, const std::string& node, const std::string& task, float value = 1.0f) {
    const FragmentShape& shape = run.plan().shapes.front();
    offer(run, node, task, {{shape.name, std::vector<float>(shape.elements, value)}}, {});
  }

  // One of these values by fragment, measured from these versions (0 where none is said).
  void offer(RunHost& run, const std::string& node, const std::string& task,
             const std::map<std::string, std::vector<float>>& deltas, const std::map<std::string, std::uint64_t>& bases) {
    v1::UpdateBody body;
    body.set_task_id(task);
    body.set_run_id(run.record().run_id);
    body.set_spec_hash(run.plan().spec.hash);
    body.set_node(node);
    body.set_kind(v1::TASK_TRAIN);
    body.set_examples(10);
    body.set_steps(10);
    for (const auto& [name, delta] : deltas) {
      v1::FragmentUpdate& fragment = *body.add_fragments();
      fragment.set_fragment(name);
      fragment.set_encoding("f32");
      if (const auto base = bases.find(name); base != bases.end()) fragment.set_base_version(base->second);
      v1::Blob& data = *fragment.mutable_data();
      data.set_inline_data(std::string(reinterpret_cast<const char*>(delta.data()), 4 * delta.size()));
      data.set_size(data.inline_data().size());
      data.set_content_id(content_id(data.inline_data()));
    }
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

}  // namespace skerry::server
