#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "common/config/canonical_json.h"
#include "common/config/run_spec.h"
#include "common/crypto/sha256.h"
#include "common/model/layout.h"
#include "strategies/catalogue.h"

using namespace skerry;
using nlohmann::json;

namespace {

const std::string kSmall = R"(name = "tiny"
strategy = "diloco"

[model]
architecture = "linear"
inputs = 4
outputs = 2

[data]
kind = "csv"
schema = { features = ["a", "b", "c", "d"], label = "y", classes = 2 }

[training]
learning_rate = 0.1
)";

Result<RunSpec> parsed(const std::string& toml) { return parse_run_spec(toml, strategies::spec_catalogue()); }

std::string error_of(const std::string& toml) {
  const auto spec = parsed(toml);
  return spec.ok() ? "no error" : spec.error().message;
}

json document_of(const RunSpec& spec) { return json::parse(spec.canonical_json); }

}  // namespace

TEST_CASE("a small run spec is filled by its preset and by defaults") {
  const auto spec = parsed(kSmall);
  if (!spec.ok()) FAIL(spec.error().message);
  CHECK(spec->name == "tiny");
  CHECK(spec->training.steps == 500);
  CHECK(spec->training.epochs == 0);
  CHECK(spec->training.batch == 32);
  CHECK(spec->outer.name == "nesterov");
  CHECK(std::get<double>(spec->outer.parameters.at("learning_rate")) == 0.7);
  CHECK(std::get<double>(spec->outer.parameters.at("momentum")) == 0.9);
  CHECK(spec->aggregation.name == "weighted_mean");
  CHECK(spec->participation.mode == ParticipationSpec::Mode::kSynchronous);
  CHECK(spec->exchange.up == "f32");
  CHECK(document_of(*spec).at("spec_version") == 1);
  CHECK(document_of(*spec).at("training").at("loss") == "cross_entropy");
  CHECK(spec->hash.size() == 64);
}

TEST_CASE("the model section reaches trainers resolved, with the exchange's fragments in it") {
  const auto spec = parsed(kSmall);
  REQUIRE(spec.ok());
  const auto layout = build_layout(json::parse(spec->model_json));
  REQUIRE(layout.ok());
  CHECK(layout->parameters == 10);
  CHECK(json::parse(spec->model_json).at("fragments") == 1);
  CHECK(json::parse(spec->training_json).at("optimizer") == "adamw");
}

TEST_CASE("the same spec in another order, with comments and with defaults written out has the same identity") {
  const std::string other = R"(# the same
strategy = "diloco"
name = "tiny"
seed = 1
[training]
batch = 32.0
learning_rate = 1e-1
[outer]
momentum = 0.9
optimizer = "nesterov"
[data]
schema = { classes = 2, label = "y", features = ["a", "b", "c", "d"] }
kind = "csv"
[model]
outputs = 2
inputs = 4
architecture = "linear"
)";
  REQUIRE(parsed(other).ok());
  CHECK(parsed(other)->hash == parsed(kSmall)->hash);
  CHECK(parsed(kSmall + "batch = 33\n")->hash != parsed(kSmall)->hash);
}

TEST_CASE("a resolved document reads back to the same run spec") {
  const auto spec = parsed(kSmall);
  const auto again = parse_resolved_spec(spec->canonical_json);
  if (!again.ok()) FAIL(again.error().message);
  CHECK(again->canonical_json == spec->canonical_json);
  CHECK(again->hash == spec->hash);
  CHECK(again->outer == spec->outer);
  CHECK(again->participation == spec->participation);
  CHECK(again->model_json == spec->model_json);
  CHECK(again->limits == spec->limits);
}

TEST_CASE("a resolved document from before a field existed has its default, and keeps its identity") {
  const auto spec = parsed(kSmall);
  json document = document_of(*spec);
  document["participation"].erase("grace_safety");
  document["training"].erase("proximal");
  document["model"].erase("control");
  document.erase("limits");
  const std::string older = canonical_json(document).value();
  const auto read = parse_resolved_spec(older);
  if (!read.ok()) FAIL(read.error().message);
  CHECK(read->participation == spec->participation);
  CHECK(read->training == spec->training);
  CHECK(read->limits == spec->limits);
  CHECK(read->canonical_json == older);
  CHECK(read->hash == sha256_hex(std::string_view(older)));
  CHECK(read->training_json == canonical_json(document["training"]).value());
}

TEST_CASE("a resolved document that was tampered with is refused") {
  const auto spec = parsed(kSmall);
  const auto changed = [&](auto change) {
    json document = document_of(*spec);
    change(document);
    return parse_resolved_spec(canonical_json(document).value());
  };
  CHECK_FALSE(parse_resolved_spec(" " + spec->canonical_json).ok());
  CHECK_FALSE(parse_resolved_spec("[]").ok());
  CHECK_FALSE(parse_resolved_spec("{").ok());
  CHECK_FALSE(changed([](json& d) { d["training"].erase("learning_rate"); }).ok());
  CHECK_FALSE(changed([](json& d) { d["stop"]["hours"] = 3; }).ok());
  CHECK_FALSE(changed([](json& d) { d["stop"] = 3; }).ok());
  CHECK_FALSE(changed([](json& d) { d["model"] = 3; }).ok());
  CHECK_FALSE(changed([](json& d) { d["model"].erase("inputs"); }).ok());
  CHECK_FALSE(changed([](json& d) { d["outer"]["momentum"] = json::array(); }).ok());
  CHECK_FALSE(changed([](json& d) { d["spec_version"] = 2; }).ok());
  CHECK_FALSE(changed([](json& d) { d["training"]["batch"] = 0; }).ok());
  CHECK(changed([](json& d) { d["training"]["batch"] = 64; }).ok());
}

TEST_CASE("errors name the line, the path, the value and what is allowed") {
  CHECK(error_of(kSmall + "[outer]\nmomentum = 1.3\n") == "run spec line 16: outer.momentum is 1.3, must be in [0, 1)");
  CHECK(error_of(kSmall + "batch = \"big\"\n") ==
        "run spec line 15: training.batch is \"big\", must be a whole number in [1, 10000000]");
  CHECK(error_of(kSmall + "batch = 2.5\n") ==
        "run spec line 15: training.batch is 2.5, must be a whole number in [1, 10000000]");
  CHECK(error_of(kSmall + "optimizer = \"adan\"\n") ==
        "run spec line 15: training.optimizer is \"adan\", must be one of sgd, adam, adamw");
  const std::string strategy = error_of("strategy = \"fedavgg\"\n");
  CHECK(strategy.find("run spec line 1: strategy is \"fedavgg\", must be one of async-diloco, ") == 0);
  CHECK(strategy.find("; did you mean fedavg?") != std::string::npos);
  CHECK(error_of("name = \"a\nb\"\n").rfind("run spec line 1: not TOML: ", 0) == 0);
  CHECK(error_of(kSmall + "[participation]\nquorum = 3\nstart_nodes = 2\n") ==
        "run spec line 17: participation.start_nodes is 2, must be at least participation.quorum (3)");
}

TEST_CASE("an unknown key is an error that names the nearest known one") {
  CHECK(error_of(kSmall + "learning_rat = 1\n") ==
        "run spec line 15: training.learning_rat is not known; did you mean training.learning_rate?");
  CHECK(error_of(kSmall + "quorum = 1\n") ==
        "run spec line 15: training.quorum is not known; did you mean participation.quorum?");
  CHECK(error_of(kSmall + "[outer]\nmomentun = 0.5\n") ==
        "run spec line 16: outer.momentun is not a parameter of nesterov (it has learning_rate, momentum, form, "
        "schedule, warmup_steps, schedule_steps, final_fraction, step_every, step_factor); did you mean momentum?");
  CHECK(error_of(kSmall + "[outer]\nbeta1 = 0.5\n").find("outer.beta1 is not a parameter of nesterov") !=
        std::string::npos);
  CHECK(error_of(kSmall + "[modle]\nx = 1\n").find("modle.x is not known") != std::string::npos);
}

TEST_CASE("a model's error carries its line, and fragments are said under exchange") {
  CHECK(error_of(R"(name = "m"
[model]
architecture = "linear"
inputs = -4
outputs = 2
[data]
kind = "idx"
schema = { shape = [4], classes = 2 }
[training]
learning_rate = 1
)")
            .rfind("run spec line 4: model.inputs is -4", 0) == 0);
  CHECK(error_of(kSmall + "[exchange]\nfragments = 9\n").rfind("run spec line 16: exchange.fragments is 9", 0) == 0);
}

TEST_CASE("what a node keeps, freezes and corrects reaches the trainer's sections") {
  const auto spec = parsed(R"(name = "own heads"
[model]
architecture = "mlp"
inputs = 4
outputs = 2
[data]
kind = "csv"
schema = { features = ["a", "b", "c", "d"], label = "y", classes = 2 }
[training]
learning_rate = 0.1
optimizer = "sgd"
proximal = 0.01
control_variates = true
start_loss = true
[exchange]
personal = ["layers.1.*"]
frozen = ["layers.0.bias"]
[limits]
metrics = ["start_loss"]
)");
  if (!spec.ok()) FAIL(spec.error().message);
  CHECK(spec->training.proximal == 0.01);
  CHECK(spec->training.control_variates);
  CHECK(spec->training.start_loss);
  CHECK(spec->exchange.personal == std::vector<std::string>{"layers.1.*"});
  CHECK(spec->exchange.frozen == std::vector<std::string>{"layers.0.bias"});
  CHECK(spec->exchange.only.empty());
  const auto layout = build_layout(json::parse(spec->model_json));
  REQUIRE(layout.ok());
  std::vector<std::string> fragments;
  for (const auto& fragment : layout->fragments) fragments.push_back(fragment.name);
  CHECK(fragments == std::vector<std::string>{"all", "all-control", "frozen", "personal"});
  const auto again = parse_resolved_spec(spec->canonical_json);
  REQUIRE(again.ok());
  CHECK(again->hash == spec->hash);

  json tampered = document_of(*spec);
  tampered["model"]["personal"] = json::array();
  const auto refused = parse_resolved_spec(*canonical_json(tampered));
  REQUIRE(!refused.ok());
  CHECK(refused.error().message == "resolved run spec: model.personal and exchange.personal differ");
}

TEST_CASE("objectives that cannot work are refused with what they need") {
  CHECK(error_of(kSmall + "control_variates = true\n") ==
        "run spec: training.optimizer is \"adamw\", must be \"sgd\" with training.control_variates");
  CHECK(error_of(kSmall + "control_variates = true\noptimizer = \"sgd\"\nmomentum = 0.5\n") ==
        "run spec line 17: training.momentum is 0.5, must be 0 with training.control_variates");
  CHECK(error_of(kSmall + "control_variates = true\noptimizer = \"sgd\"\n[participation]\nmode = \"asynchronous\"\n")
            .find("participation.mode is \"asynchronous\", must be \"synchronous\"") != std::string::npos);
  CHECK(error_of(kSmall + "start_loss = true\n").find("does not have \"start_loss\"") != std::string::npos);
  CHECK(error_of(kSmall + "proximal = -1\n") ==
        "run spec line 15: training.proximal is -1, must be a number of at least 0");
  CHECK(error_of(kSmall + "[exchange]\nfrozen = [\"head.*\"]\n") ==
        "run spec line 16: exchange.frozen: pattern \"head.*\" fits no tensor of the model");
}

TEST_CASE("ways of taking part that cannot work together are refused with the reason") {
  const auto refused = [](const std::string& participation) {
    return error_of(kSmall + "[participation]\n" + participation);
  };
  CHECK(refused("over_selection = 1.3\n") ==
        "run spec line 16: participation.over_selection is 1.3, but every ready node is invited: set cohort_size or "
        "cohort_fraction");
  CHECK(refused("over_selection = 1.3\ncohort_size = 3\nminimum_completion = 0.5\n")
            .find("some of the invited never count") != std::string::npos);
  CHECK(refused("minimum_completion = 0.5\ndeadline_s = 0\n").find("no exchange is given up") != std::string::npos);
  CHECK(refused("minimum_separation = 2\n").find("set cohort_size or cohort_fraction") != std::string::npos);
  CHECK(refused("minimum_separation = 2\ncohort_size = 1\nrequired_nodes = [\"a\"]\n")
            .find("must take part in every exchange") != std::string::npos);
  CHECK(refused("concurrency = 3\n").find("participation.mode is synchronous") != std::string::npos);
  CHECK(refused("mode = \"asynchronous\"\nwork = \"fedcompass\"\ngrace = \"adaptive\"\n").find("leave the grace window") !=
        std::string::npos);
  CHECK(refused("mode = \"asynchronous\"\nminimum_separation = 2\ngrace_s = 5\n").find("leave the grace window") !=
        std::string::npos);
  CHECK(refused("work = \"fedcompass\"\n").find("needs participation.mode asynchronous") != std::string::npos);
  CHECK(refused("work = \"dylu\"\nminimum_steps = 1000000\n").find("must be at most training.steps") !=
        std::string::npos);
}

TEST_CASE("all ways of taking part reach the spec") {
  const auto spec = parsed(kSmall +
                           "[participation]\ncohort_size = 4\nover_selection = 1.5\ngrace = \"adaptive\"\n"
                           "grace_safety = 2\nwork = \"dylu\"\nminimum_steps = 3\nrequired_nodes = [\"a\", \"b\"]\n");
  if (!spec.ok()) FAIL(spec.error().message);
  CHECK(spec->participation.over_selection == 1.5);
  CHECK(spec->participation.adaptive_grace);
  CHECK(spec->participation.grace_safety == 2);
  CHECK(spec->participation.work == ParticipationSpec::Work::kDylu);
  CHECK(spec->participation.minimum_steps == 3);
  CHECK(spec->participation.required_nodes == std::vector<std::string>{"a", "b"});
  CHECK(parse_resolved_spec(spec->canonical_json)->participation == spec->participation);
}

TEST_CASE("what is required and missing is named") {
  CHECK(error_of("") == "run spec: name is missing (what people call the run; 1 to 100 characters); add it");
  CHECK(error_of("name = \"x\"\n[data]\nkind = \"text\"\n").rfind("run spec: training.learning_rate is missing", 0) ==
        0);
}

TEST_CASE("choosing another outer optimizer leaves the preset's parameters behind") {
  const auto spec = parsed(kSmall + "[outer]\noptimizer = \"sgd\"\n");
  REQUIRE(spec.ok());
  CHECK(spec->outer.name == "sgd");
  CHECK(std::get<double>(spec->outer.parameters.at("learning_rate")) == 1.0);
  CHECK(spec->outer.parameters.count("momentum") == 0);
}

TEST_CASE("steps in the file replace the preset's epochs and the other way round") {
  const auto epochs = parsed(kSmall + "epochs = 2\n");
  REQUIRE(epochs.ok());
  CHECK(epochs->training.steps == 0);
  CHECK(epochs->training.epochs == 2);
  CHECK(error_of(kSmall + "epochs = 2\nsteps = 5\n").find("exactly one of them must be above 0") != std::string::npos);
}

TEST_CASE("a schedule without a length covers the run") {
  const auto spec = parsed(kSmall + "schedule = \"cosine\"\nsteps = 5\n[stop]\nrounds = 20\n");
  REQUIRE(spec.ok());
  CHECK(document_of(*spec).at("training").at("schedule_steps") == 100);
  CHECK(error_of(kSmall + "schedule = \"cosine\"\nepochs = 5\n").find("training.schedule_steps is 0") !=
        std::string::npos);
}

TEST_CASE("an outer schedule without a length covers the fragments' exchanges") {
  const auto spec = parsed(kSmall + "[outer]\nschedule = \"linear\"\n[stop]\nrounds = 20\n");
  REQUIRE(spec.ok());
  CHECK(document_of(*spec).at("outer").at("schedule_steps") == 20);
  CHECK(document_of(*parsed(kSmall)).at("outer").at("schedule_steps") == 0);
}

TEST_CASE("data that the model cannot read is refused before anybody trains") {
  CHECK(error_of(R"(name = "m"
[model]
architecture = "linear"
inputs = 4
outputs = 2
[data]
kind = "text"
[training]
learning_rate = 1
)")
            .find("does not read text") != std::string::npos);
  CHECK(error_of(R"(name = "m"
[model]
architecture = "linear"
inputs = 4
outputs = 2
[data]
kind = "idx"
schema = { shape = [0], classes = 2 }
[training]
learning_rate = 1
)") == "run spec line 8: data.schema.shape is [0], must be a list of sizes, for example [1, 28, 28]");
}

namespace {

std::string page_path() {
  const char* source = std::getenv("SKERRY_SOURCE");
  REQUIRE(source != nullptr);
  return std::string(source) + "/docs/run-spec.md";
}

std::string reference_page() {
  std::ifstream file(page_path());
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

}  // namespace

TEST_CASE("the example in docs/run-spec.md is a run spec") {
  const std::string doc = reference_page();
  const auto first = doc.find("```toml\n");
  REQUIRE(first != std::string::npos);
  const std::string example = doc.substr(first + 8, doc.find("```", first + 8) - first - 8);
  CHECK(error_of(example) == "no error");
}

// SKERRY_WRITE_DOCS=1 config_test writes what is generated instead of comparing.
TEST_CASE("docs/run-spec.md holds the reference that the table of fields generates") {
  const std::string begin = "<!-- reference: generated by run_spec_reference() -->\n";
  const std::string end = "<!-- end of the reference -->\n";
  const std::string doc = reference_page();
  const auto first = doc.find(begin);
  const auto last = doc.find(end);
  REQUIRE(first != std::string::npos);
  REQUIRE(last != std::string::npos);
  const std::string held = doc.substr(first + begin.size(), last - first - begin.size());
  const std::string generated = run_spec_reference(strategies::spec_catalogue());
  if (std::getenv("SKERRY_WRITE_DOCS") != nullptr)
    std::ofstream(page_path()) << doc.substr(0, first + begin.size()) << generated << doc.substr(last);
  else if (held != generated)
    FAIL("the reference differs: run this test with SKERRY_WRITE_DOCS=1; it must read:\n" << generated);
}

TEST_CASE("a run that continues another one says a round below its own, and steps that tell its place") {
  const std::string start = "[start]\nrun = \"r-1\"\nround = 4\n";
  const auto spec = parsed(kSmall + start);
  if (!spec.ok()) FAIL(spec.error().message);
  CHECK(spec->start == StartSpec{"r-1", 4});
  CHECK(spec->stop.rounds == 10);
  CHECK(error_of(kSmall + "[start]\nround = 4\n") == "run spec line 16: start.round is 4, but start.run names no run");
  CHECK(error_of(kSmall + start + "[stop]\nrounds = 4\n").find("must be below stop.rounds (4)") != std::string::npos);
  CHECK(error_of(kSmall + "epochs = 1\n" + start).find("only training.steps say") != std::string::npos);
  CHECK(error_of(kSmall + start + "[participation]\nmode = \"asynchronous\"\n").find("no round") != std::string::npos);
}
