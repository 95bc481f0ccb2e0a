// Every outer optimizer through the engine: its state travels from exchange to exchange and the schedule goes on.
#include "tests/unit/aggregate/world.h"

namespace skerry::server {
namespace {

constexpr std::size_t kElements = 1000;

strategies::Part scheduled(strategies::Part part) {
  strategies::put_schedule({.kind = strategies::Schedule::Kind::kCosine, .warmup_steps = 1, .schedule_steps = 5}, part);
  return part;
}

}  // namespace

TEST_CASE("the engine's model after four exchanges is the optimizer's own, bit for bit") {
  for (const auto& info : strategies::outer_catalogue()) {
    for (const strategies::Part& part : {strategies::Part{info.name, {}}, scheduled({info.name, {}})}) {
      INFO(part.name << (part.parameters.empty() ? "" : " with a schedule"));
      World world(some_values(kElements, 1), part);
      std::vector<float> expected = some_values(kElements, 1);
      std::vector<std::vector<float>> state(world.outer.state_vectors.size(), std::vector<float>(kElements));
      std::vector<float*> pointers;
      for (auto& vector : state) pointers.push_back(vector.data());
      for (std::uint64_t step = 1; step <= 4; ++step) {
        const auto delta = some_values(kElements, static_cast<unsigned>(step) + 10);
        std::vector<float> change(kElements);
        world.outer.step({.step = step,
                          .count = kElements,
                          .delta = delta.data(),
                          .base = expected.data(),
                          .state = pointers,
                          .change = change.data()});
        for (std::size_t i = 0; i < kElements; ++i) expected[i] += change[i];

        world.payloads.clear();
        world.update("a", delta, 1);
        ReduceJob job = world.job();
        job.step = step;
        const auto outcome = AggregationEngine().reduce(job);
        if (!outcome.ok()) FAIL(outcome.error().message);
        world.base = outcome->fragment.bytes;
        world.state = outcome->state.bytes;
        REQUIRE(values_of(world.base) == expected);
      }
    }
  }
}

}  // namespace skerry::server
