#include "strategies/plan/run_plan.h"

#include <cmath>
#include <string>

#include <catch2/catch.hpp>

#include "common/codec/encoding.h"
#include "strategies/catalogue.h"

using namespace skerry;
using namespace skerry::strategies;

namespace {

// 1,000 parameters: 999 weights and a bias. Sections that a test adds come after it.
constexpr char kThousand[] = R"(
name = "thousand"
[model]
architecture = "linear"
inputs = 999
outputs = 1
[data]
kind = "csv"
schema = { features = ["a"], label = "y", classes = 0 }
[training]
learning_rate = 0.1
steps = 10
optimizer = "adamw"
)";

RunSpec spec_of(const std::string& toml) {
  auto spec = parse_run_spec(toml, spec_catalogue());
  if (!spec.ok()) FAIL(spec.error().message << "\n" << toml);
  return std::move(spec).value();
}

RunCost cost_of(const std::string& sections, const PlanAssumptions& assumed = {}) {
  const auto cost = plan_run(spec_of(kThousand + sections), assumed);
  if (!cost.ok()) FAIL(cost.error().message);
  return *cost;
}

std::string error_of(const RunSpec& spec, const PlanAssumptions& assumed) {
  const auto cost = plan_run(spec, assumed);
  return cost.ok() ? "" : cost.error().message;
}

}  // namespace

TEST_CASE("a round moves every node's encoded update up and the encoded step down") {
  const RunCost cost = cost_of("[exchange]\nup = \"bf16\"\ndown = \"bf16\"\n[stop]\nrounds = 5\n", {.nodes = 4});
  CHECK(cost.parameters == 1000);
  CHECK(cost.cohort == 4);
  CHECK(cost.up_per_round == 2000);
  CHECK(cost.down_per_round == 2000);
  CHECK(cost.coordinator_in == 8000);
  CHECK(cost.coordinator_out == 8000);
  CHECK(cost.total_in == 40000);
  CHECK(cost.join > 4000);  // the fragment's file: its header, and four bytes an element
  CHECK(cost.join < 4400);
  CHECK(cost.total_out == 40000 + 4 * cost.join);
}

TEST_CASE("in f32 the whole file travels down, because a step would be as large") {
  const RunCost cost = cost_of("");
  CHECK(cost.up_per_round == 4000);
  CHECK(cost.down_per_round == cost.join);
}

TEST_CASE("whatever encodings there are can be planned with") {
  for (const auto name : known_encodings()) {
    const std::string text(name);
    const RunCost cost = cost_of("[exchange]\nup = \"" + text + "\"\ndown = \"" + text + "\"\n");
    CHECK(cost.up_per_round == static_cast<double>((*find_encoding(name))->encoded_bytes(1000)));
  }
}

TEST_CASE("staggered fragments divide what crosses the link at once, not what a round moves") {
  const std::string model = R"(
name = "letters"
[model]
architecture = "transformer"
layers = 8
[data]
kind = "text"
[training]
learning_rate = 1e-3
steps = 10
[exchange]
up = "bf16"
down = "bf16"
)";
  const auto whole = plan_run(spec_of(model), {});
  const auto staggered = plan_run(spec_of(model + "fragments = 4\nschedule = \"staggered\"\n"), {});
  REQUIRE(whole.ok());
  REQUIRE(staggered.ok());
  CHECK(staggered->lanes == 4);
  CHECK(staggered->up_per_round == whole->up_per_round);
  CHECK(staggered->up_at_once == Approx(whole->up_at_once / 4).epsilon(0.1));
}

TEST_CASE("a node that is drawn now and then fetches the whole model unless it evaluates every version") {
  const std::string drawn =
      "[participation]\ncohort_size = 4\nstart_nodes = 16\n[exchange]\nup = \"bf16\"\ndown = \"bf16\"\n";
  const RunCost evaluating = cost_of(drawn, {.nodes = 16});
  CHECK(evaluating.cohort == 4);
  CHECK(evaluating.down_per_round == 2000);
  CHECK(evaluating.coordinator_in == 4 * 2000);
  CHECK(evaluating.coordinator_out == 16 * 2000);
  const RunCost silent = cost_of(drawn + "[evaluation]\nevery = 0\n", {.nodes = 16});
  CHECK(silent.down_per_round == Approx(0.25 * 2000 + 0.75 * silent.join));
  CHECK(silent.coordinator_out == Approx(4 * silent.down_per_round));
}

TEST_CASE("an exchange takes its steps, its transfers one after another, the messages and the reduction") {
  // 2,000 bytes are 16,000 bits: 2 s up at 8 kbit/s and 1 s down at 16 kbit/s; four messages of 0.1 s; 4,000 bytes of
  // model at 8,000 a second.
  const PlanAssumptions slow = {.nodes = 2,
                                .step_seconds = 0.5,
                                .node = {8e3, 16e3},
                                .coordinator = {1e9, 1e9},
                                .latency_seconds = 0.1,
                                .reduce_rate = 8000};
  const RunCost cost = cost_of("[exchange]\nup = \"bf16\"\ndown = \"bf16\"\n[stop]\nrounds = 10\n", slow);
  CHECK(cost.transfer_seconds == Approx(2 + 1 + 0.4 + 0.5).epsilon(1e-3));
  CHECK(cost.exchange_seconds == Approx(5 + 3.9).epsilon(1e-3));
  CHECK(cost.utilisation == Approx(5 / 8.9).epsilon(1e-3));
  CHECK(cost.total_seconds == Approx(10 * 8.9 + 8 * cost.join / 16e3).epsilon(1e-3));
}

TEST_CASE("the coordinator's link carries every node's bytes") {
  PlanAssumptions narrow = {.nodes = 10, .node = {1e6, 1e6}, .coordinator = {1e6, 1e6}, .latency_seconds = 0};
  narrow.reduce_rate = 1e12;
  const RunCost cost = cost_of("[exchange]\nup = \"bf16\"\ndown = \"bf16\"\n", narrow);
  CHECK(cost.transfer_seconds == Approx(10 * 2 * 0.016).epsilon(1e-3));
}

TEST_CASE("this run's bandwidth for a utilisation gives that utilisation on a link of that rate") {
  const std::string sections = "[exchange]\nup = \"bf16\"\ndown = \"bf16\"\n";
  PlanAssumptions assumed = {.nodes = 4, .step_seconds = 0.01, .latency_seconds = 0.0001};
  const auto rows = compare_methods(cost_of(sections, assumed), assumed);
  REQUIRE(rows.front().method == "this run");
  for (std::size_t i = 0; i < rows.front().bandwidth.size(); ++i) {
    assumed.node = {rows.front().bandwidth[i], rows.front().bandwidth[i]};
    CHECK(cost_of(sections, assumed).utilisation == Approx(kUtilisations[i]).epsilon(1e-3));
  }
}

TEST_CASE("an island holds the optimizer's state, the coordinator that of the outer optimizer") {
  const RunCost averaged = cost_of("");
  const RunCost momentum = cost_of("[outer]\noptimizer = \"nesterov\"\n");
  CHECK(averaged.island_memory == 28000);  // parameters, gradient, two moments; parameters and moments again
  CHECK(momentum.island_memory == averaged.island_memory);
  CHECK(momentum.coordinator_disk == averaged.coordinator_disk + 4 * 4000);  // the newest two versions, the best, and one being written
  CHECK(averaged.coordinator_memory < 100e6);
}

TEST_CASE("an asynchronous run's exchange takes as long as its buffer takes to fill") {
  const RunCost cost = cost_of("[participation]\nmode = \"asynchronous\"\nbuffer = 2\n", {.nodes = 8});
  CHECK(cost.cohort == 2);
  CHECK(cost.exchange_seconds == Approx((10 + cost.stall_seconds) / 4));
}

TEST_CASE("what cannot be planned is said") {
  const RunSpec steps = spec_of(kThousand);
  CHECK(error_of(steps, {.nodes = 0}) == "the number of nodes must be at least 1");
  CHECK(error_of(steps, {.step_seconds = 0}) == "the seconds of a step must be a number above 0");
  CHECK(error_of(spec_of(kThousand + std::string("[participation]\nquorum = 5\n")), {.nodes = 4}) ==
        "4 nodes cannot be the quorum of 5 that participation.quorum demands");
  std::string by_epochs = kThousand;
  by_epochs.replace(by_epochs.find("steps = 10"), 10, "epochs = 2");
  CHECK(error_of(spec_of(by_epochs), {}).find("say how many examples a node has") != std::string::npos);
  const auto cost = plan_run(spec_of(by_epochs), {.examples = 320});
  REQUIRE(cost.ok());
  CHECK(cost->steps == 20);
}
