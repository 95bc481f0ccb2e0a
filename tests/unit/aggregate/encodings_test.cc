// Updates and steps of every encoding, fused with the sums or decoded first, from memory, maps and files read piece by piece.
#include "common/codec/encoding.h"

#include <algorithm>

#include "tests/unit/aggregate/world.h"

namespace skerry::server {
namespace {

using strategies::Block;
using strategies::Cohort;
using strategies::LinearOutput;
using strategies::Pass;
using strategies::Table;
using strategies::ValueOutput;

std::string encoded(std::string_view name, const std::vector<float>& values) {
  const Encoding& encoding = **find_encoding(name);
  std::string payload(encoding.encoded_bytes(values.size()), '\0');
  encoding.encode(values, 0, {}, std::as_writable_bytes(std::span(payload)));
  return payload;
}

std::vector<float> decoded(std::string_view name, std::string_view payload, std::size_t count) {
  std::vector<float> values(count);
  (*find_encoding(name))->decode(as_bytes_of(payload), values);
  return values;
}

// The update of each encoding in turn, or what it decodes to.
World world_of(std::size_t count, std::size_t updates, bool as_f32) {
  World world(some_values(count, 1));
  const std::string_view names[] = {"int8", "int8_block", "f32", "int8", "int8_block", "bf16", "e3m0", "topk2", "sign", "int4", "f16"};
  for (std::size_t k = 0; k < updates; ++k) {
    const std::string_view name = names[k % std::size(names)];
    std::string payload = encoded(name, some_values(count, static_cast<unsigned>(k + 2)));
    const std::string task = "task-" + std::to_string(k);
    if (as_f32) {
      world.update(task, decoded(name, payload, count), k % 7 + 1);
    } else {
      world.update(task, std::move(payload), k % 7 + 1, std::string(name));
    }
  }
  return world;
}

strategies::Rule highest_rule() {
  strategies::Rule rule;
  rule.name = "highest";
  rule.next = [](const Cohort&, std::span<const Table>) -> Result<Pass> {
    return Pass(ValueOutput{[](const Block& block, std::span<float> out, std::span<float* const>) {
      for (std::size_t i = 0; i < block.count; ++i) {
        out[i] = block.updates[0][i];
        for (const float* update : block.updates) out[i] = std::max(out[i], update[i]);
      }
    }});
  };
  return rule;
}

std::string fragment_of(const ReduceJob& job, unsigned threads = 2) {
  AggregationEngine engine({.threads = threads});
  auto outcome = engine.reduce(job);
  if (!outcome.ok()) FAIL(outcome.error().message);
  return std::move(outcome->fragment.bytes);
}

}  // namespace

TEST_CASE("updates of any encoding give the bytes that what they decode to gives, under every kind of rule and target") {
  const std::size_t count = 1'150'001;  // several blocks of int8 and two chunks
  World encoded_world = world_of(count, 11, false);
  World plain_world = world_of(count, 11, true);
  for (World* world : {&encoded_world, &plain_world}) {
    world->tensors = {{"a", 0, 300}, {"b", 300, 70'001}, {"c", 70'301, count - 70'301}};
  }
  const auto same = [&] { CHECK((fragment_of(encoded_world.job()) == fragment_of(plain_world.job(), 1))); };
  on_every_target(same);
  encoded_world.rule = plain_world.rule = highest_rule();
  same();
  strategies::Rule per_tensor;
  per_tensor.name = "per_tensor";
  per_tensor.needs.tensors = true;
  per_tensor.next = [](const Cohort& cohort, std::span<const Table>) -> Result<Pass> {
    LinearOutput output;
    for (std::size_t at = 0; at < 3 * cohort.size(); ++at) output.coefficients.push_back(0.01 * static_cast<double>(at + 1));
    return Pass(output);
  };
  encoded_world.rule = plain_world.rule = per_tensor;
  same();
}

TEST_CASE("norms and cosines of encoded updates are those of what they decode to") {
  const std::size_t count = 140'000;
  AggregationEngine engine({.threads = 2});
  auto of_encoded = world_of(count, 6, false);
  auto of_plain = world_of(count, 6, true);
  auto encoded_job = of_encoded.job();
  auto plain_job = of_plain.job();
  encoded_job.measure_updates = plain_job.measure_updates = true;
  const auto a = engine.measure(encoded_job);
  const auto b = engine.measure(plain_job);
  REQUIRE(a.ok());
  REQUIRE(b.ok());
  CHECK(a->update_norms == b->update_norms);
  CHECK(a->cosines == b->cosines);
}

TEST_CASE("a step of any encoding is what everybody adds, with any number of threads, whatever the rule's blocks") {
  const std::size_t count = 1'150'001;
  for (const std::string_view down : {"int8", "int8_block", "e3m0", "topk2"}) {
    World world(some_values(count, 1), strategies::nesterov());
    world.down = down;
    for (unsigned k = 0; k < 40; ++k) {  // blocks of a rule side by side are smaller than those of int8
      world.update("task-" + std::to_string(k), some_values(count, k % 3 + 2), k + 1);
    }
    for (const bool side_by_side : {false, true}) {
      if (side_by_side) world.rule = highest_rule();
      AggregationEngine engine({.threads = 2});
      const auto outcome = engine.reduce(world.job());
      REQUIRE(outcome.ok());
      const std::vector<float> change = decoded(down, outcome->step.bytes, count);
      const std::vector<float> before = values_of(world.base);
      std::vector<float> after;
      for (std::size_t i = 0; i < count; ++i) after.push_back(before[i] + change[i]);
      CHECK((values_of(outcome->fragment.bytes) == after));
      CHECK((*find_encoding(down))->validate(as_bytes_of(outcome->step.bytes), 0, count).ok());
      CHECK((fragment_of(world.job(), 1) == outcome->fragment.bytes));
    }
  }
}

TEST_CASE("what a step's encoding lost goes into the next step, with any number of threads") {
  const std::size_t count = 1'150'001;
  for (const std::string_view down : {"topk2", "e3m0", "int8"}) {
    CAPTURE(std::string(down));
    const Encoding& encoding = **find_encoding(down);
    constexpr double kShare = 0.9;
    World world(some_values(count, 1));  // plain SGD with learning rate 1
    world.down = down;
    std::vector<float> model = values_of(world.base);
    std::vector<float> residual(count);
    std::string states[2];
    for (std::uint64_t exchange = 1; exchange <= 3; ++exchange) {
      const std::vector<float> update = some_values(count, static_cast<unsigned>(exchange + 1));
      world.payloads.clear();
      world.update("task-" + std::to_string(exchange), update, 1);
      const Rounding rounding{exchange == 2, 77, rounding_stream(world.job().fragment)};
      for (std::size_t i = 0; i < count; ++i)
        residual[i] = static_cast<float>(kShare * static_cast<double>(residual[i]) - static_cast<double>(update[i]));
      std::string payload(encoding.encoded_bytes(count), '\0');
      encoding.encode(residual, 0, rounding, std::as_writable_bytes(std::span(payload)));
      const std::vector<float> change = decoded(down, payload, count);
      for (std::size_t i = 0; i < count; ++i) {
        residual[i] -= change[i];
        model[i] += change[i];
      }
      std::string next;
      for (const unsigned threads : {1u, 2u}) {
        AggregationEngine engine({.threads = threads});
        ReduceJob job = world.job();
        job.down_feedback = kShare;
        job.down_stochastic = rounding.stochastic;
        job.seed = rounding.seed;
        job.state = Payload::in_memory(states[threads - 1]);
        auto outcome = engine.reduce(job);
        if (!outcome.ok()) FAIL(outcome.error().message);
        CHECK((outcome->step.bytes == payload));
        CHECK((values_of(outcome->fragment.bytes) == model));
        states[threads - 1] = std::move(outcome->state.bytes);
        next = std::move(outcome->fragment.bytes);
      }
      CHECK((states[0] == states[1]));
      world.base = next;
    }
    // Without feedback the residual is left out.
    AggregationEngine engine({.threads = 1});
    ReduceJob job = world.job();
    job.state = Payload::in_memory(states[0]);
    const auto outcome = engine.reduce(job);
    REQUIRE(outcome.ok());
    CHECK(outcome->state.size == 0);
  }
}

TEST_CASE("ten thousand updates, most of them in files that are opened piece by piece, give the bytes that memory gives") {
  const std::size_t count = 700;
  const World world = world_of(count, 10'000, false);
  const test::TempDir directory;
  ReduceJob in_files = world.job_in_files(directory);
  ReduceJob in_memory = world.job();
  const strategies::Rule highest = highest_rule();
  CHECK((fragment_of(in_files) == fragment_of(in_memory)));
  in_files.rule = in_memory.rule = &highest;
  CHECK((fragment_of(in_files) == fragment_of(in_memory)));
}

}  // namespace skerry::server
