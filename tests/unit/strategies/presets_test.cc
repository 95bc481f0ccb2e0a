#include "strategies/presets.h"

#include <algorithm>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include "common/config/run_spec.h"
#include "strategies/catalogue.h"
#include "strategies/combination.h"

using namespace skerry;
using namespace skerry::strategies;

namespace {

const Preset& preset(const std::string& name) {
  const Preset* found = find_preset(name);
  if (found == nullptr) FAIL("there is no preset " << name);
  return *found;
}

RunSpec spec_of(const std::string& toml) {
  auto spec = parse_run_spec(toml, spec_catalogue());
  if (!spec.ok()) FAIL(spec.error().message << "\n" << toml);
  return std::move(spec).value();
}

}  // namespace

TEST_CASE("every preset's minimal run spec is one that its parts can carry out") {
  for (const auto& one : presets()) {
    const RunSpec spec = spec_of(minimal_run_spec(one));
    CHECK(spec.strategy == one.name);
    CHECK(aggregation_part(spec).name == one.aggregation.name);
    CHECK(outer_part(spec).name == one.outer.name);
    const auto possible = check_combination(spec);
    if (!possible.ok()) FAIL(one.name << ": " << possible.error().message);
    CHECK(combination_notes(spec).empty());
  }
}

TEST_CASE("every preset's resolved document reads back to the same run") {
  for (const auto& one : presets()) {
    const RunSpec spec = spec_of(minimal_run_spec(one));
    const auto again = parse_resolved_spec(spec.canonical_json);
    if (!again.ok()) FAIL(one.name << ": " << again.error().message);
    CHECK(again->hash == spec.hash);
    CHECK(again->aggregation == spec.aggregation);
    CHECK(again->outer == spec.outer);
  }
}

TEST_CASE("every field that a preset sets is a field of run specs") {
  for (const auto& one : spec_catalogue().presets) {
    for (const auto& [path, value] : one.fields) {
      const auto named = [&path = path](const Field& field) { return field.path == path; };
      const auto fields = run_spec_fields();
      bool known = std::any_of(fields.begin(), fields.end(), named);
      for (const auto& parts : spec_catalogue().parts) {
        known = known || path == parts.section + "." + parts.selector ||
                std::any_of(parts.parameters.begin(), parts.parameters.end(), named);
      }
      INFO(one.name << " sets " << path);
      CHECK(known);
    }
  }
}

TEST_CASE("what a preset leaves out of its fields is what the fields say by themselves") {
  const auto fallback = [](const std::string& path) {
    for (const Field& field : run_spec_fields())
      if (field.path == path) return field.fallback;
    FAIL("there is no field " << path);
    return FieldValue{};
  };
  const Participation participation;
  CHECK(fallback("participation.mode") == FieldValue(std::string("synchronous")));
  CHECK(fallback("participation.quorum") == FieldValue(static_cast<double>(participation.quorum)));
  CHECK(fallback("participation.cohort_fraction") == FieldValue(participation.cohort_fraction));
  CHECK(fallback("participation.minimum_completion") == FieldValue(participation.minimum_completion));
  CHECK(fallback("participation.grace") == FieldValue(std::string("fixed")));
  CHECK(fallback("participation.work") == FieldValue(std::string("equal")));
  const Exchange exchange;
  CHECK(fallback("exchange.fragments") == FieldValue(static_cast<double>(exchange.fragments)));
  CHECK(fallback("exchange.schedule") == FieldValue(std::string("whole")));
  CHECK(fallback("exchange.up") == FieldValue(exchange.up));
  CHECK(fallback("exchange.down") == FieldValue(exchange.down));
  CHECK(fallback("exchange.overlap") == FieldValue(static_cast<double>(exchange.overlap)));
  CHECK(fallback("exchange.merge") == FieldValue(exchange.merge));
  CHECK(fallback("exchange.on_late") == FieldValue(std::string("block")));
  const Evaluation evaluation;
  CHECK(fallback("evaluation.every") == FieldValue(static_cast<double>(evaluation.every)));
  CHECK(fallback("evaluation.split") == FieldValue(evaluation.split));
  const Objective objective;
  CHECK(fallback("training.schedule") == FieldValue(objective.schedule));
  CHECK(fallback("training.final_fraction") == FieldValue(objective.final_fraction));
  CHECK(fallback("training.clip_norm") == FieldValue(objective.clip_norm));
  CHECK(fallback("training.proximal") == FieldValue(objective.proximal));
  CHECK(fallback("training.control_variates") == FieldValue(objective.control_variates));
}

TEST_CASE("presets are listed by name, each once, with its source and when to use it") {
  const auto all = presets();
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (i > 0) CHECK(all[i - 1].name < all[i].name);
    CHECK_FALSE(all[i].meaning.empty());
    CHECK_FALSE(all[i].source.empty());
    CHECK(all[i].when_to_use.back() == '.');
  }
  CHECK(find_preset("fedsgd") == nullptr);
}

TEST_CASE("presets have the settings of their papers") {
  CHECK(preset("fedavg").outer == Part{"sgd", {{"learning_rate", 1.0}}});
  CHECK(preset("fedavg").exchange.epochs == 5);
  CHECK(preset("fedavgm").outer == Part{"momentum", {{"learning_rate", 1.0}, {"momentum", 0.9}}});
  CHECK(preset("diloco").outer == Part{"nesterov", {{"learning_rate", 0.7}, {"momentum", 0.9}}});
  CHECK(preset("diloco").exchange.inner_steps == 500);
  for (const char* name : {"fedadam", "fedyogi"}) {
    const auto& parameters = preset(name).outer.parameters;
    CHECK(std::get<double>(parameters.at("beta2")) == 0.99);
    CHECK(std::get<double>(parameters.at("epsilon")) == 1e-3);
    CHECK(std::get<double>(parameters.at("initial_accumulator")) == 1e-6);  // τ²
    CHECK_FALSE(std::get<bool>(parameters.at("bias_correction")));
  }
  CHECK(preset("scaffold").objective.control_variates);
  CHECK(preset("fault-tolerant-fedavg").participation.minimum_completion == 0.5);
}

TEST_CASE("presets for language models have the settings of their papers") {
  const RunSpec streaming = spec_of(minimal_run_spec(preset("streaming-diloco")));
  CHECK(streaming.exchange.schedule == ExchangeSpec::Schedule::kStaggered);
  CHECK(streaming.exchange.pattern == "strided");
  CHECK(streaming.exchange.fragments * streaming.training.steps == 100);  // H
  CHECK(streaming.exchange.overlap == 1);
  CHECK(streaming.exchange.merge == "lerp");
  CHECK(streaming.exchange.alpha == 0.5);
  CHECK(streaming.exchange.block);
  CHECK(streaming.exchange.up == "e3m0");
  CHECK(preset("streaming-diloco").outer == Part{"nesterov", {{"learning_rate", 0.4}, {"momentum", 0.9}}});

  const RunSpec eager = spec_of(minimal_run_spec(preset("eager-diloco")));
  CHECK(eager.exchange.overlap == eager.training.steps);
  CHECK(eager.exchange.merge == "eager");
  CHECK(eager.exchange.alpha == 1);

  const RunSpec decoupled = spec_of(minimal_run_spec(preset("decoupled-diloco")));
  CHECK(decoupled.participation.mode == ParticipationSpec::Mode::kAsynchronous);
  CHECK(decoupled.participation.buffer == 2);
  CHECK(decoupled.participation.adaptive_grace);
  CHECK(decoupled.exchange.merge == "replace");
  CHECK_FALSE(decoupled.exchange.block);
  CHECK(decoupled.aggregation.name == "radial_directional");
  CHECK(decoupled.aggregation.parameters.at("weights") == Value(std::string("token_rate")));

  const RunSpec prime = spec_of(minimal_run_spec(preset("prime")));
  CHECK(prime.exchange.up == "int8");
  CHECK(prime.exchange.down == "int8");
  CHECK(prime.training.steps == 100);
  CHECK(preset("prime").outer == preset("diloco").outer);

  const RunSpec sparse = spec_of(minimal_run_spec(preset("sparseloco")));
  CHECK(sparse.exchange.up == "topk2");
  CHECK(sparse.exchange.up_feedback == 0.95);
  CHECK(sparse.outer.name == "sgd");
  CHECK(sparse.training.steps == 30);
}

TEST_CASE("Photon's presets share its recipe and differ in the server's optimizer") {
  for (const char* name : {"photon", "photon-nesterov", "photon-fedmom"}) {
    const RunSpec spec = spec_of(minimal_run_spec(preset(name)));
    CHECK(spec.training.steps == 128);
    CHECK(spec.training.batch == 32);
    for (const char* part : {"\"schedule\":\"cosine\"", "\"final_fraction\":0.1", "\"clip_norm\":1,"})
      CHECK(spec.training_json.find(part) != std::string::npos);
  }
  CHECK(preset("photon").outer == Part{"sgd", {{"learning_rate", 1.0}}});
  CHECK(preset("photon-nesterov").outer == Part{"nesterov", {{"learning_rate", 0.7}, {"momentum", 0.7}}});
  CHECK(std::get<std::string>(preset("photon-fedmom").outer.parameters.at("form")) == "fedmom");
}
