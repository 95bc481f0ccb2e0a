// Every way to exchange gives the parameters of tests/oracle/exchange.py, an independent reference in one process.
#include <catch2/catch.hpp>

#include <cmath>
#include <cstdio>
#include <cstdlib>

#include <spdlog/spdlog.h>
#include <nlohmann/json.hpp>

#include "common/config/run_spec.h"
#include "common/model/fragment_file.h"
#include "common/model/initialise.h"
#include "common/os/files.h"
#include "server/coordinator/run_plan.h"
#include "server/sim/draws.h"
#include "server/sim/simulation.h"
#include "strategies/catalogue.h"
#include "strategies/participation.h"
#include "tests/support/temp_dir.h"

namespace skerry::sim {
namespace {

using nlohmann::json;
using test::TempDir;

constexpr unsigned kRows = 6;

/// Everything that the simulation and the reference are told.
struct Case {
  unsigned islands = 3;
  unsigned exchanges = 5;
  bool together = false;  ///< one island has all rows
  std::string run;        ///< lines of the run spec: sections other than [model], [data] and [stop]
  Scenario scenario = {};
  json reference = json::object();
};

std::string number(double value) {
  char text[40];
  std::snprintf(text, sizeof text, "%.9g", value);
  return text;
}

/// An island's rows: three features and a target, each exactly a float.
json data_of(unsigned island) {
  json rows = json::array(), targets = json::array();
  std::uint32_t state = 77 + island;
  const auto next = [&] { return static_cast<double>((state = state * 1664525u + 1013904223u) >> 8) / 0x1p23 - 1.0; };
  for (unsigned i = 0; i < kRows; ++i) {
    const double a = static_cast<float>(next()), b = static_cast<float>(next()), c = static_cast<float>(next());
    rows.push_back({a, b, c});
    targets.push_back(static_cast<double>(static_cast<float>(a * b - c + 0.3 * island)));
  }
  return {{"rows", rows}, {"targets", targets}};
}

void write_tables(const Case& given, const std::string& directory) {
  REQUIRE(make_directories(directory).ok());
  std::string text = "a,b,c,y\n";
  for (unsigned island = 0; island < given.islands; ++island) {
    const json data = data_of(island);
    for (unsigned i = 0; i < kRows; ++i) {
      for (const json& value : data["rows"][i]) text += number(value) + ",";
      text += number(data["targets"][i]) + "\n";
    }
    if (given.together && island + 1 < given.islands) continue;
    REQUIRE(write_file_atomic(join_path(directory, "island-" + std::to_string(island) + ".csv"), text).ok());
    text = "a,b,c,y\n";
  }
}

RunSpec spec_of(const Case& given, unsigned exchanges) {
  const std::string count = std::to_string(given.islands);
  const std::string text =
      "name = \"exchange\"\n[model]\narchitecture = \"mlp\"\ninputs = 3\nhidden = [4, 3]\noutputs = 1\nactivation = "
      "\"tanh\"\n"
      "[data]\nkind = \"csv\"\nschema = { features = [\"a\", \"b\", \"c\"], label = \"y\", classes = 0 }\n"
      "[evaluation]\nevery = 0\n[stop]\nrounds = " +
      std::to_string(exchanges) + "\n" + given.run;
  auto spec = parse_run_spec(text, strategies::spec_catalogue());
  INFO((spec.ok() ? "" : spec.error().message));
  REQUIRE(spec.ok());
  return *std::move(spec);
}

/// The final model of a simulation, by fragment.
std::map<std::string, std::vector<float>> simulated(const Case& given, unsigned exchanges) {
  const TempDir directory;
  write_tables(given, directory / "tables");
  REQUIRE(make_directories(directory / "scratch").ok());
  Scenario scenario = given.scenario;
  scenario.data = directory / "tables";
  scenario.partition.kind = PartitionPlan::Kind::kFiles;
  scenario.holdout = 0;
  spdlog::set_level(spdlog::level::off);
  const RunSpec spec = spec_of(given, exchanges);
  const auto result = simulate({.spec = spec, .scenario = scenario, .workers = 1, .scratch = directory / "scratch"});
  INFO((result.ok() ? result->status_reason : result.error().message));
  REQUIRE(result.ok());
  REQUIRE(result->status == "completed");
  auto plan = server::RunPlan::from_spec(spec);
  REQUIRE(plan.ok());
  std::map<std::string, std::vector<float>> model;
  for (const ModelFragment& fragment : result->model) {
    auto file = FragmentFile::open(fragment.path, plan->layout, fragment.name);
    REQUIRE(file.ok());
    model[fragment.name].resize(file->elements());
    REQUIRE(file->read(0, model[fragment.name]).ok());
  }
  return model;
}

json outer_of(const RunSpec& spec) {
  json outer = {{"optimizer", spec.outer.name}};
  for (const auto& [name, value] : spec.outer.parameters)
    std::visit([&](const auto& known) { outer[name] = known; }, value);
  return outer;
}

/// What the reference is told: the model's first tensors, the data, and how it is trained and exchanged.
json case_of(const Case& given) {
  const RunSpec spec = spec_of(given, given.exchanges);
  auto plan = server::RunPlan::from_spec(spec);
  REQUIRE(plan.ok());
  json tensors = json::array(), fragments = json::array(), islands = json::array();
  for (const FragmentLayout& fragment : plan->layout.fragments) fragments.push_back(fragment.tensors);
  for (const TensorLayout& tensor : plan->layout.tensors) {
    std::vector<float> values(tensor.elements);
    REQUIRE(initialise_fragment(plan->layout, plan->layout.fragments[tensor.fragment].name, spec.seed, tensor.offset,
                                values)
                .ok());
    tensors.push_back({{"shape", tensor.shape}, {"values", values}});
  }
  for (unsigned island = 0; island < given.islands; ++island) islands.push_back(data_of(island));
  json told = {{"mode", "synchronous"},
               {"tensors", tensors},
               {"fragments", fragments},
               {"islands", islands},
               {"steps", spec.training.steps},
               {"exchanges", given.exchanges},
               {"inner", json::parse(spec.training_json)},
               {"outer", outer_of(spec)},
               {"schedule", spec.exchange.schedule == ExchangeSpec::Schedule::kStaggered ? "staggered" : "whole"},
               {"overlap", spec.exchange.overlap},
               {"merge", spec.exchange.merge},
               {"alpha", spec.exchange.alpha},
               {"up", spec.exchange.up},
               {"feedback", spec.exchange.up_feedback}};
  told.update(given.reference);
  return told;
}

bool have_numpy() { return std::system("/usr/bin/python3 -c 'import numpy' 2>/dev/null") == 0; }

/// What the reference found: of each exchange the fragments that it changed.
json reference(const json& told) {
  const TempDir directory;
  REQUIRE(write_file_atomic(directory / "case.json", told.dump()).ok());
  const char* source = std::getenv("SKERRY_SOURCE");
  REQUIRE(source != nullptr);
  const std::string command = std::string("/usr/bin/python3 '") + source + "/tests/oracle/exchange.py' < '" +
                              (directory / "case.json") + "' > '" + (directory / "models.json") + "'";
  REQUIRE(std::system(command.c_str()) == 0);
  auto text = read_file(directory / "models.json", std::uint64_t{1} << 26);
  REQUIRE(text.ok());
  return json::parse(*text);
}

/// Every tensor after every exchange (of staggered fragments: after every round).
void same_as(const json& expected, const Case& given, double tolerance) {
  const RunSpec spec = spec_of(given, given.exchanges);
  const auto fragments = static_cast<unsigned>(spec.exchange.fragments);
  const bool staggered = spec.exchange.schedule == ExchangeSpec::Schedule::kStaggered;
  const unsigned stride = staggered ? fragments : 1;
  REQUIRE(expected.size() == given.exchanges);
  for (unsigned exchange = stride; exchange <= given.exchanges; exchange += stride) {
    const auto model = simulated(given, exchange / stride);
    for (unsigned f = 0; f < fragments; ++f) {
      const auto& values = model.at(fragments == 1 ? "all" : "f" + std::to_string(f));
      const json& wanted = expected[staggered ? exchange - fragments + f : exchange - 1].at(std::to_string(f));
      REQUIRE(wanted.size() == values.size());
      for (std::size_t i = 0; i < values.size(); ++i) {
        CAPTURE(exchange, f, i);
        const double value = wanted[i];
        REQUIRE(std::abs(values[i] - value) <= tolerance * (1 + std::abs(value)));
      }
    }
  }
}

void same_as_the_reference(const Case& given, double tolerance = 2e-5) {
  if (have_numpy())
    same_as(reference(case_of(given)), given, tolerance);
  else
    WARN("skipped: /usr/bin/python3 has no NumPy");
}

/// Six rows are every island's all: the order of the data does not matter.
std::string training(unsigned steps, const std::string& inner = "optimizer = \"sgd\"\nlearning_rate = 0.05") {
  return "[training]\nbatch = 6\nsteps = " + std::to_string(steps) + "\n" + inner + "\n";
}

const std::string kAdamW = "optimizer = \"adamw\"\nlearning_rate = 0.01\nweight_decay = 0.1\nepsilon = 1e-6";
const std::string kNesterov = "[outer]\noptimizer = \"nesterov\"\n";
const std::string kAll = "[participation]\nstart_nodes = 3\nquorum = 1\n";

std::string fragments(unsigned count, const std::string& pattern, unsigned overlap, const std::string& merge,
                      double alpha) {
  return "[exchange]\nschedule = \"staggered\"\nfragments = " + std::to_string(count) + "\npattern = \"" + pattern +
         "\"\noverlap = " + std::to_string(overlap) + "\nmerge = \"" + merge + "\"\nalpha = " + number(alpha) + "\n";
}

}  // namespace

TEST_CASE("DiLoCo gives the reference's parameters, with SGD and with AdamW inside") {
  same_as_the_reference({.run = kNesterov + kAll + training(4)});
  same_as_the_reference({.run = kNesterov + kAll + training(4, kAdamW)}, 2e-4);
}

TEST_CASE("DiLoCo with one island and with one step a round gives the reference's parameters") {
  same_as_the_reference({.islands = 1, .run = kNesterov + training(4)});
  same_as_the_reference({.run = kNesterov + kAll + training(1)});
}

TEST_CASE("Photon's averaging, FedMom and Nesterov give the reference's parameters") {
  same_as_the_reference({.run = "[outer]\noptimizer = \"sgd\"\nlearning_rate = 1\n" + kAll + training(3)});
  same_as_the_reference({.run = "[outer]\noptimizer = \"momentum\"\nlearning_rate = 0.5\n" + kAll + training(3)});
  same_as_the_reference(
      {.run = "[outer]\noptimizer = \"nesterov\"\nform = \"fedmom\"\nlearning_rate = 1\nmomentum = 0.5\n" + kAll +
              training(3)});
}

TEST_CASE("where updates are lost the others are averaged, as in the reference") {
  Case given{.run = kNesterov + kAll + training(3)};
  given.scenario.drop_updates = 0.35;
  json lost = json::object();
  for (unsigned exchange = 1; exchange <= given.exchanges; ++exchange)
    for (unsigned island = 0; island < given.islands; ++island) {
      const auto seed = strategies::task_seed(1, "island-" + std::to_string(island), exchange);
      if (Draws(seed, "loss", exchange - 1).uniform() < 0.35) lost[std::to_string(exchange)].push_back(island);
    }
  REQUIRE_FALSE(lost.empty());
  given.reference["lost"] = lost;
  same_as_the_reference(given);
}

TEST_CASE("fragments one after another give the reference's parameters, strided and sequential") {
  for (const char* pattern : {"strided", "sequential"})
    for (const unsigned count : {1u, 2u, 3u})
      same_as_the_reference(
          {.exchanges = 2 * count, .run = kNesterov + kAll + training(3) + fragments(count, pattern, 0, "lerp", 0.5)});
}

// tests/golden/exchange/streaming.json holds what the reference said; SKERRY_WRITE_GOLDEN=1 writes it anew.
TEST_CASE("streaming gives the golden parameters for fragments, overlaps and mixing factors") {
  const std::string path = std::string(std::getenv("SKERRY_SOURCE")) + "/tests/golden/exchange/streaming.json";
  const bool write = std::getenv("SKERRY_WRITE_GOLDEN") != nullptr;
  json golden = json::object();
  if (!write) golden = json::parse(read_file(path, std::uint64_t{1} << 22).value());
  for (const unsigned count : {1u, 2u, 3u})
    for (const unsigned overlap : {0u, 1u, 3u})
      for (const double alpha : {0.0, 0.5, 1.0}) {
        const Case given{.exchanges = 2 * count,
                         .run = kNesterov + kAll + training(3) + fragments(count, "strided", overlap, "lerp", alpha)};
        const std::string name =
            std::to_string(count) + " fragments, overlap " + std::to_string(overlap) + ", alpha " + number(alpha);
        if (write) golden[name] = reference(case_of(given));
        INFO(name);
        same_as(golden.at(name), given, 2e-5);
      }
  if (write) REQUIRE(write_file_atomic(path, golden.dump() + "\n", 0644).ok());
}

TEST_CASE("streaming with AdamW inside gives the reference's parameters") {
  same_as_the_reference(
      {.exchanges = 6, .run = kNesterov + kAll + training(3, kAdamW) + fragments(3, "sequential", 2, "lerp", 0.5)},
      2e-4);
}

TEST_CASE("delayed and eager updates across a whole round give the reference's parameters") {
  same_as_the_reference({.run = kNesterov + kAll + training(3) + "[exchange]\noverlap = 3\nmerge = \"replace\"\n"});
  for (const double alpha : {0.5, 1.0})
    same_as_the_reference({.run = kNesterov + kAll + training(3) +
                                  "[exchange]\noverlap = 3\nmerge = \"eager\"\nalpha = " + number(alpha) + "\n"});
}

TEST_CASE("int8, and topk2 with error feedback, give the reference's parameters") {
  same_as_the_reference({.run = kNesterov + kAll + training(3) + "[exchange]\nup = \"int8\"\n"});
  same_as_the_reference({.exchanges = 8,
                         .run = "[outer]\noptimizer = \"sgd\"\nlearning_rate = 1\n" + kAll + training(3) +
                                "[exchange]\nup = \"topk2\"\n"});
  same_as_the_reference(
      {.exchanges = 6,
       .run = kNesterov + kAll + training(3) + fragments(3, "strided", 2, "lerp", 0.5) + "up = \"topk2\"\n"});
}

TEST_CASE("delayed Nesterov on islands of different speeds gives the reference's parameters") {
  const TempDir directory;
  REQUIRE(write_file_atomic(directory / "speeds.csv", "client,speed\nisland-0,1\nisland-1,0.83\nisland-2,0.37\n").ok());
  Case given{.exchanges = 9,
             .run =
                 "[outer]\noptimizer = \"delayed_nesterov\"\ndelay = 3\n"
                 "[participation]\nmode = \"asynchronous\"\nbuffer = 1\nstart_nodes = 3\nstaleness_exponent = 0\n" +
                 training(4)};
  given.scenario.speed = parse_speed("file:" + (directory / "speeds.csv")).value();
  given.reference = {{"mode", "asynchronous"}, {"speeds", {1, 0.83, 0.37}}};
  same_as_the_reference(given);
}

TEST_CASE("SGD inside and SGD(1) outside with one step a round is large-batch training") {
  const std::string outer = "[outer]\noptimizer = \"sgd\"\nlearning_rate = 1\n";
  const auto federated = simulated({.run = outer + kAll + training(1)}, 6).at("all");
  const std::string whole = "[training]\nbatch = 18\nsteps = 1\noptimizer = \"sgd\"\nlearning_rate = 0.05\n";
  const auto one = simulated({.together = true, .run = outer + whole}, 6).at("all");
  for (std::size_t i = 0; i < one.size(); ++i) REQUIRE(federated[i] == Approx(one[i]).margin(1e-6));
}

}  // namespace skerry::sim
