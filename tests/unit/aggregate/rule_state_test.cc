// What a rule keeps from exchange to exchange, which exchange it is in, and updates measured against older versions.
#include "server/aggregate/engine.h"

#include "server/aggregate/outer_state.h"
#include "tests/unit/aggregate/world.h"

namespace skerry::server {
namespace {

using strategies::Block;
using strategies::Cohort;
using strategies::LinearOutput;
using strategies::Pass;
using strategies::Rule;
using strategies::StatisticsPass;
using strategies::Table;
using strategies::ValueOutput;

// Half the mean of the updates and half the last outer gradient.
Rule lagging_rule() {
  Rule rule;
  rule.name = "lagging";
  rule.state_vectors = {"last"};
  rule.next = [](const Cohort& cohort, std::span<const Table>) -> Result<Pass> {
    std::vector<double> coefficients(cohort.size(), 0.5 / static_cast<double>(cohort.size()));
    coefficients.push_back(0.5);
    return Pass(LinearOutput{coefficients});
  };
  return rule;
}

// Gives the first update; keeps the sum of all it has given and the number of the exchange.
Rule summing_rule() {
  Rule rule;
  rule.name = "summing";
  rule.state_vectors = {"sum", "number"};
  rule.next = [](const Cohort& cohort, std::span<const Table>) -> Result<Pass> {
    const auto step = static_cast<float>(cohort.step);
    return Pass(ValueOutput{[step](const Block& block, std::span<float> out, std::span<float* const> state) {
      for (std::size_t i = 0; i < block.count; ++i) {
        out[i] = block.updates[0][i];
        state[0][i] = block.state[0][i] + out[i];
        state[1][i] = step;
      }
    }});
  };
  return rule;
}

// A vector of a state file.
std::vector<float> state_vector(const std::string& state, const std::string& name) {
  const auto header = decode_outer_state_header(as_bytes_of(state), "state");
  REQUIRE(header.ok());
  for (std::size_t v = 0; v < header->vectors.size(); ++v) {
    if (header->vectors[v] != name) continue;
    return floats_of(std::string_view(state).substr(outer_state_vector_offset(*header, v), 4 * header->elements));
  }
  return {};
}

}  // namespace

TEST_CASE("a linear rule's state vector is a further column, and becomes the outer gradient") {
  World world({0.0f, 10.0f});
  world.rule = lagging_rule();
  world.update("a", std::vector<float>{4.0f, 8.0f}, 1).update("b", std::vector<float>{0.0f, 8.0f}, 1);
  advance(world);  // Δ = (1, 4)
  CHECK(values_of(world.base) == std::vector<float>{-1.0f, 6.0f});
  CHECK(state_vector(world.state, "rule.last") == std::vector<float>{1.0f, 4.0f});
  advance(world);  // Δ = (1, 4) + (0.5, 2)
  CHECK(values_of(world.base) == std::vector<float>{-2.5f, 0.0f});
  CHECK(state_vector(world.state, "rule.last") == std::vector<float>{1.5f, 6.0f});
}

TEST_CASE("a rule's vectors and the optimizer's stand in one state, each updated by its owner") {
  World world({0.0f}, strategies::momentum({.learning_rate = 1.0, .momentum = 0.5}));
  world.rule = summing_rule();
  world.update("a", std::vector<float>{2.0f}, 1);
  advance(world);
  advance(world);
  CHECK(state_vector(world.state, "velocity") == std::vector<float>{3.0f});
  CHECK(state_vector(world.state, "rule.sum") == std::vector<float>{4.0f});
  CHECK(state_vector(world.state, "rule.number") == std::vector<float>{2.0f});
}

TEST_CASE("statistics see the rule's vectors, block by block") {
  const std::size_t count = 300'001;
  World world(std::vector<float>(count, 0.0f));
  world.rule = lagging_rule();
  world.update("a", std::vector<float>(count, 2.0f), 1);
  advance(world);  // last = 1
  double seen = 0;
  world.rule.next = [&seen](const Cohort&, std::span<const Table> tables) -> Result<Pass> {
    if (tables.empty()) {
      return Pass(StatisticsPass{1, 1, [](const Block& block, Table& sum) {
                                   for (std::size_t i = 0; i < block.count; ++i) sum.at(0, 0) += block.state[0][i];
                                 }});
    }
    seen = tables[0].at(0, 0);
    return Pass(LinearOutput{{1.0, 0.0}});
  };
  advance(world);
  CHECK(seen == static_cast<double>(count));
}

TEST_CASE("a rule's state in a file, of any number of threads, gives the bytes of one in memory") {
  const std::size_t count = 1'300'000;  // two chunks
  World world(some_values(count, 1), strategies::nesterov());
  world.rule = summing_rule();
  world.tensors = {{"a", 0, 70'000}, {"b", 70'000, count - 70'000}};
  world.rule.needs.tensors = true;  // pieces of blocks
  world.update("a", some_values(count, 2), 1).update("b", some_values(count, 3), 2);
  advance(world);
  const auto expected = reduced(world.job(), 1);
  const test::TempDir directory;
  const auto outcome = reduced(world.job_in_files(directory), 3);
  CHECK((outcome.fragment.bytes == expected.fragment.bytes));
  CHECK((outcome.state.bytes == expected.state.bytes));
}

TEST_CASE("a state without the rule's vectors opens with zeros, and one with another rule's leaves them out") {
  World world({0.0f}, strategies::momentum());
  world.update("a", std::vector<float>{2.0f}, 1);
  advance(world);
  world.rule = summing_rule();
  CHECK(advance(world).outer_step == 2);
  CHECK(state_vector(world.state, "rule.sum") == std::vector<float>{2.0f});
  world.rule = lagging_rule();
  CHECK(advance(world).outer_step == 3);
  CHECK(state_vector(world.state, "rule.last") == std::vector<float>{1.0f});
  CHECK(state_vector(world.state, "rule.sum").empty());
}

TEST_CASE("a rule's vector that was damaged or would not be finite is an error that names it") {
  World world({0.0f}, strategies::sgd({.learning_rate = 0.001}));
  world.rule = summing_rule();
  world.update("a", std::vector<float>{2e38f}, 1);
  advance(world);
  AggregationEngine engine({.threads = 1});
  CHECK(engine.reduce(world.job()).error().message.find("the aggregation rule's sum of fragment all: element 0 would be "
                                                        "+infinity") != std::string::npos);
  world.payloads[0].bytes = bytes_of({1.0f});
  world.state[256] = static_cast<char>(world.state[256] ^ 1);
  const auto damaged = engine.reduce(world.job());
  REQUIRE(!damaged.ok());
  CHECK(damaged.error().code == Code::kDataLoss);
  CHECK(damaged.error().message.find("the aggregation rule's sum is damaged") != std::string::npos);
}

TEST_CASE("coefficients that do not fit updates and state vectors are the rule's mistake") {
  World world({0.0f});
  world.rule = lagging_rule();
  world.update("a", std::vector<float>{1.0f}, 1);
  AggregationEngine engine({.threads = 1});
  world.rule.next = [](const Cohort&, std::span<const Table>) -> Result<Pass> { return Pass(LinearOutput{{1.0}}); };
  CHECK(engine.reduce(world.job()).error().message ==
        "aggregation rule lagging gave 1 coefficients for 1 updates and 1 state vectors");
}

TEST_CASE("the exchange's number reaches rule and optimizer: the job's, or one more than the state's") {
  World world({0.0f});
  world.rule = summing_rule();
  std::uint64_t seen = 0;
  world.outer.step = [&seen](const strategies::OuterBlock& block) {
    seen = block.step;
    block.change[0] = 0.0f;
  };
  world.update("a", std::vector<float>{1.0f}, 1);
  auto job = world.job();
  job.step = 7;
  auto outcome = reduced(job);
  CHECK(outcome.outer_step == 7);
  CHECK(seen == 7);
  CHECK(state_vector(outcome.state.bytes, "rule.number") == std::vector<float>{7.0f});
  world.state = outcome.state.bytes;
  CHECK(reduced(world.job()).outer_step == 8);
  CHECK(seen == 8);
}

TEST_CASE("a rule that is rebased sees (current - then) + update, rounded once") {
  World world({10.0f, 1.0f, 0.0f});
  world.rule.needs.rebased = true;
  world.update("a", std::vector<float>{1.0f, 0x1p-24f, -3.0f}, 1);
  const std::string then = std::string(World::kHeader, 'o') + bytes_of({8.0f, 0.0f, 3.0f});
  auto job = world.job();
  job.updates[0].measured_base = Payload::in_memory(then);
  // (2 + 1, 1 + 2⁻²⁴ → 1 in f32, −3 − 3)
  CHECK(values_of(reduced(job).fragment.bytes) == std::vector<float>{7.0f, 0.0f, 6.0f});
  world.rule.needs.rebased = false;
  auto as_sent = world.job();
  as_sent.updates[0].measured_base = Payload::in_memory(then);
  CHECK(values_of(reduced(as_sent).fragment.bytes) == std::vector<float>{9.0f, 1.0f - 0x1p-24f, 3.0f});
}

TEST_CASE("rebased updates give the same bytes from files and memory, in every encoding, on every target") {
  const std::size_t count = 1'100'000;
  World world(some_values(count, 1));
  world.rule.needs.rebased = true;
  world.update("a", some_values(count, 2), 1)
      .update("b", bf16_of(some_values(count, 3)), 2, "bf16")
      .update("c", some_values(count, 4), 3);
  const test::TempDir directory;
  const std::string then = std::string(World::kHeader, 'o') + bytes_of(some_values(count, 9));
  {
    auto file = File::open(directory / "then", OpenMode::kCreateOrEmpty);
    REQUIRE(file.ok());
    REQUIRE(file->pwrite(as_bytes_of(then), 0).ok());
  }
  auto job = world.job();
  job.updates[0].measured_base = Payload::in_memory(then);
  job.updates[1].measured_base = Payload::in_memory(then);
  const std::string expected = reduced(job, 1).fragment.bytes;
  auto in_files = world.job_in_files(directory);
  in_files.updates[0].measured_base = Payload::file(directory / "then");
  in_files.updates[1].measured_base = Payload::file(directory / "then");
  CHECK((reduced(in_files).fragment.bytes == expected));
  on_every_target([&] { CHECK((reduced(job).fragment.bytes == expected)); });
}

TEST_CASE("an older base of another size is data loss that names fragment and task") {
  World world({1.0f});
  world.rule.needs.rebased = true;
  world.update("a", std::vector<float>{1.0f}, 1);
  auto job = world.job();
  job.updates[0].measured_base = Payload::in_memory("short");
  AggregationEngine engine({.threads = 1});
  const auto outcome = engine.reduce(job);
  REQUIRE(!outcome.ok());
  CHECK(outcome.error().code == Code::kDataLoss);
  CHECK(outcome.error().message.find("the older version of fragment all of task a has 5 bytes, must have 132") !=
        std::string::npos);
}

}  // namespace skerry::server
