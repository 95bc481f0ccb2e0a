#include "common/os/files.h"
#include "tests/unit/coordinator/world.h"

namespace skerry::server {
namespace {

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

TEST_CASE("an update that the coordinator fails to check is no fault of its node's, and can be offered again") {
  World world;
  std::string spec = kSpec;
  spec.replace(spec.find("inputs = 4"), 10, "inputs = 40000");
  spec.replace(spec.find("[4]"), 3, "[40000]");
  const auto run = world.begin("r-1", spec);
  const std::string task = world.join(*run).at("alder");
  const FragmentShape& shape = run->plan().shapes.front();
  const std::string bytes(4 * shape.elements, '\0');
  const std::string id = content_id(bytes);
  const auto upload = [&] {
    auto writer = world.cargo->write_upload({task, "alder", id, bytes.size()}, 0);
    REQUIRE(writer.ok());
    REQUIRE(writer->write(as_bytes_of(bytes)).ok());
    REQUIRE(writer->finish().ok());
  };
  const auto offer = [&](bool lost) {
    v1::UpdateBody body;
    body.set_task_id(task);
    body.set_run_id("r-1");
    body.set_spec_hash(run->plan().spec.hash);
    body.set_node("alder");
    body.set_kind(v1::TASK_TRAIN);
    body.set_examples(10);
    v1::FragmentUpdate& fragment = *body.add_fragments();
    fragment.set_fragment(shape.name);
    fragment.set_encoding("f32");
    fragment.mutable_data()->set_content_id(id);
    fragment.mutable_data()->set_size(bytes.size());
    v1::SignedUpdate message;
    message.set_body(body.SerializeAsString());
    run->offered("alder", std::move(body), std::move(message));
    const std::string path = world.cargo->spool_file(task, id).value();
    if (lost) REQUIRE(rename_durable(path, path + ".away").ok());
    world.bulk.turn();
    world.core.turn();
    if (lost) REQUIRE(rename_durable(path + ".away", path).ok());
    world.settle();
  };
  upload();
  offer(/*lost=*/true);
  CHECK(world.refusals == 0);
  CHECK(world.states("alder", task) == std::vector<v1::UpdateState>{v1::UPDATE_STATE_UNSPECIFIED});
  offer(/*lost=*/false);
  CHECK(world.states("alder", task).back() == v1::UPDATE_ACCEPTED);
}

}  // namespace skerry::server
