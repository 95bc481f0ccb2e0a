#include <unistd.h>

#include <limits>

#include "tests/unit/aggregate/world.h"

namespace skerry::server {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

Error refusal(const ReduceJob& job, unsigned threads = 2) {
  AggregationEngine engine({.threads = threads});
  auto outcome = engine.reduce(job);
  REQUIRE(!outcome.ok());
  return std::move(outcome).error();
}

}  // namespace

TEST_CASE("a value that is not finite is blamed on its task, element and tensor") {
  World world(std::vector<float>(20000, 0.0f));
  world.tensors = {{"body", 0, 17000}, {"head", 17000, 3000}};
  auto values = some_values(20000, 1);
  world.update("good", values, 1);
  values[17003] = -kInfinity;
  world.update("bad", values, 1);
  const Error error = refusal(world.job());
  CHECK(error.code == Code::kInvalidArgument);
  CHECK(error.message ==
        "update of task bad: element 17003 (tensor head, its element 3) is -infinity, must be finite; discard it");
}

TEST_CASE("a model that would overflow is an error that names the element") {
  World world({3e38f, -3e38f, 0.0f});
  world.update("a", std::vector<float>{0.0f, 3e38f, 0.0f}, 1);
  const Error error = refusal(world.job());
  CHECK(error.code == Code::kInvalidArgument);
  CHECK(error.message.find("the new model of fragment all: element 1 would be -infinity") != std::string::npos);
}

TEST_CASE("the engine refuses an update of the wrong size, with both sizes") {
  World world({1.0f, 2.0f});
  world.update("a", std::vector<float>{1.0f, 2.0f, 3.0f}, 1);
  CHECK(refusal(world.job()).message == "update of task a has 12 bytes; 2 elements in f32 have 8");
}

TEST_CASE("one task counts once, whoever sends it") {
  World world({1.0f});
  world.update("a", std::vector<float>{1.0f}, 1).update("a", std::vector<float>{1.0f}, 1);
  auto job = world.job();
  job.updates[1].node = "another";
  CHECK(refusal(job).message == "the update of task a is there twice; each counts once");
}

TEST_CASE("tensors that do not cover the fragment are refused") {
  World world({1.0f, 2.0f});
  world.update("a", std::vector<float>{1.0f, 2.0f}, 1);
  world.tensors = {{"w", 0, 1}};
  CHECK(refusal(world.job()).message.find("must cover 2") != std::string::npos);
  world.tensors = {{"w", 0, 1}, {"b", 0, 1}};
  CHECK(refusal(world.job()).message.find("must cover 2") != std::string::npos);
}

TEST_CASE("a base of another size is data loss that names the fragment") {
  World world({1.0f, 2.0f});
  world.update("a", std::vector<float>{1.0f, 2.0f}, 1);
  world.base.pop_back();
  const Error error = refusal(world.job());
  CHECK(error.code == Code::kDataLoss);
  CHECK(error.message.find("fragment all has 135 bytes, must have 136") != std::string::npos);
}

TEST_CASE("a state whose vectors were damaged is data loss, and nothing is left behind") {
  World world(some_values(3000, 1), strategies::nesterov());
  world.update("a", some_values(3000, 2), 1);
  AggregationEngine engine({.threads = 2});
  const auto first = engine.reduce(world.job());
  REQUIRE(first.ok());
  world.base = first->fragment.bytes;
  for (const std::size_t at : {std::size_t{256}, std::size_t{5000}, std::size_t{256 + 4 * 3000 - 1}}) {
    world.state = first->state.bytes;
    world.state[at] = static_cast<char>(world.state[at] ^ 4);
    const test::TempDir directory;
    auto job = world.job_in_files(directory);
    job.output = {directory / "new", directory / "new-state", "", true};
    const Error error = refusal(job);
    CHECK(error.code == Code::kDataLoss);
    CHECK(error.message.find(directory / "state") != std::string::npos);
    CHECK(error.message.find("the outer optimizer's velocity is damaged between elements 0 and 3000") != std::string::npos);
    CHECK_FALSE(path_exists(directory / "new"));
    CHECK_FALSE(path_exists(directory / "new-state"));
  }
}

TEST_CASE("the state of another optimizer or fragment is refused") {
  World world({1.0f, 2.0f}, strategies::nesterov());
  world.update("a", std::vector<float>{1.0f, 2.0f}, 1);
  AggregationEngine engine({.threads = 1});
  const std::string state = engine.reduce(world.job())->state.bytes;

  World other({1.0f, 2.0f}, strategies::momentum());
  other.update("a", std::vector<float>{1.0f, 2.0f}, 1).state = state;
  CHECK(refusal(other.job()).code == Code::kFailedPrecondition);
  CHECK(refusal(other.job()).message.find("is of nesterov, this run uses momentum") != std::string::npos);

  World longer({1.0f, 2.0f, 3.0f}, strategies::nesterov());
  longer.update("a", std::vector<float>{1.0f, 2.0f, 3.0f}, 1).state = state;
  CHECK(refusal(longer.job()).code == Code::kFailedPrecondition);
  CHECK(refusal(longer.job()).message.find("is for 2 elements, fragment all has 3") != std::string::npos);
}

TEST_CASE("a file that is cut while it is read is data loss that names it") {
  const std::size_t count = 3'000'000;
  const test::TempDir directory;
  World world(std::vector<float>(count, 0.0f));
  world.update("a", std::vector<float>(count, 1.0f), 1).update("b", std::vector<float>(count, 1.0f), 1);
  const auto mean = world.rule.next;
  const std::string path = directory / "update-b";
  // The rule is asked for its pass after the inputs were opened and before they are read.
  world.rule.next = [&](const strategies::Cohort& cohort, std::span<const strategies::Table> tables) {
    REQUIRE(::truncate(path.c_str(), 4096) == 0);
    return mean(cohort, tables);
  };
  auto job = world.job_in_files(directory);
  job.output.fragment = directory / "new";
  // One thread: ThreadSanitizer takes the zeros mapped in place of an unreadable page for a write to what another reads.
  const Error error = refusal(job, 1);
  CHECK(error.code == Code::kDataLoss);
  CHECK(error.message.find(path) != std::string::npos);
  CHECK_FALSE(path_exists(directory / "new"));
}

TEST_CASE("a missing file and an unknown encoding are refused by task") {
  World world({1.0f});
  world.update("a", std::vector<float>{1.0f}, 1);
  auto job = world.job();
  job.updates[0].payload = Payload::file("/nowhere/at/all");
  CHECK(refusal(job).code == Code::kNotFound);
  CHECK(refusal(job).message.find("update of task a") != std::string::npos);
  job = world.job();
  job.updates[0].encoding = "f7";
  CHECK(refusal(job).code == Code::kInvalidArgument);
}

TEST_CASE("an output that cannot be written is an error that names it") {
  World world({1.0f});
  world.update("a", std::vector<float>{1.0f}, 1);
  auto job = world.job();
  job.output.fragment = "/nowhere/at/all";
  CHECK(refusal(job).message.find("/nowhere/at/all") != std::string::npos);
}

TEST_CASE("an exception inside a rule is an error, not the end of the process") {
  World world({1.0f});
  world.update("a", std::vector<float>{1.0f}, 1);
  world.rule.next = [](const strategies::Cohort&, std::span<const strategies::Table>) -> Result<strategies::Pass> {
    throw std::runtime_error("no tide today");
  };
  CHECK(refusal(world.job()).message == "the aggregation rule failed: no tide today");
  world.rule.next = [](const strategies::Cohort&, std::span<const strategies::Table>) -> Result<strategies::Pass> {
    return strategies::Pass(strategies::ValueOutput{
        [](const strategies::Block&, std::span<float>, std::span<float* const>) { throw std::runtime_error("nor tomorrow"); }});
  };
  CHECK(refusal(world.job()).message == "the aggregation rule failed: nor tomorrow");
}

TEST_CASE("a rule that never comes to an output is stopped") {
  World world({1.0f});
  world.update("a", std::vector<float>{1.0f}, 1);
  world.rule.next = [](const strategies::Cohort&, std::span<const strategies::Table>) -> Result<strategies::Pass> {
    return strategies::Pass(strategies::StatisticsPass{1, 1, [](const strategies::Block&, strategies::Table&) {}});
  };
  CHECK(refusal(world.job()).message.find("asked for more than 1000 passes") != std::string::npos);
}

}  // namespace skerry::server
