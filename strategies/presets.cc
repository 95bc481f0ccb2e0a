#include "strategies/presets.h"

#include <algorithm>
#include <array>
#include <utility>

#include "strategies/aggregation/weighted_mean.h"
#include "strategies/outer/outer_optimizer.h"

namespace skerry::strategies {

// Federated averaging: the new model is the mean of what came back (McMahan et al., arXiv 1602.05629, algorithm 1, E =
// 5).
Preset fedavg() {
  return {.name = "fedavg",
          .meaning = "federated averaging (arXiv 1602.05629)",
          .participation = everyone(),
          .exchange = whole_model({.epochs = 5}),
          .aggregation = weighted_mean(Weights::kExamples),
          .outer = sgd({.learning_rate = 1.0}),
          .evaluation = on_holdouts()};
}

// Federated averaging with server momentum (Hsu et al., arXiv 1909.06335, §4.3): v ← βv + Δ; w ← w − v.
Preset fedavgm() {
  return {.name = "fedavgm",
          .meaning = "federated averaging with server momentum (arXiv 1909.06335)",
          .participation = everyone(),
          .exchange = whole_model({.epochs = 1}),
          .aggregation = weighted_mean(Weights::kExamples),
          .outer = momentum({.learning_rate = 1.0, .momentum = 0.9}),
          .evaluation = on_holdouts()};
}

// FedAdam (Reddi et al., arXiv 2003.00295, algorithm 2): the paper's pseudo-gradient is new − old and is added; ours is
// old − new and is subtracted, which is the same step.
Preset fedadam() {
  return {.name = "fedadam",
          .meaning = "adaptive federated optimization with Adam on the server (arXiv 2003.00295)",
          .participation = everyone(),
          .exchange = whole_model({.epochs = 1}),
          .aggregation = weighted_mean(Weights::kExamples),
          .outer = adam({.learning_rate = 0.1, .beta1 = 0.9, .beta2 = 0.99, .epsilon = 1e-3}),
          .evaluation = on_holdouts()};
}

// DiLoCo: H inner steps on every island, then one outer Nesterov step (arXiv 2311.08105, algorithm 1; weights by
// examples as §6.1 advises for shards that differ).
Preset diloco() {
  return {.name = "diloco",
          .meaning = "H inner steps on every island, then one outer Nesterov step (arXiv 2311.08105)",
          .participation = everyone(),
          .exchange = whole_model({.inner_steps = 500}),
          .aggregation = weighted_mean(Weights::kExamples),
          .outer = nesterov({.learning_rate = 0.7, .momentum = 0.9}),
          .evaluation = on_holdouts()};
}

std::span<const Preset> presets() {
  static const std::array<Preset, 4> all = {diloco(), fedadam(), fedavg(), fedavgm()};
  return all;
}

namespace {

FieldValue field_value(const Value& value) {
  return std::visit([](const auto& known) -> FieldValue { return known; }, value);
}

void put_part(const Part& part, const std::string& section, const std::string& selector,
              std::map<std::string, FieldValue>& fields) {
  fields[section + "." + selector] = part.name;
  for (const auto& [name, value] : part.parameters) fields[section + "." + name] = field_value(value);
}

SpecCatalogue::Preset as_fields(const Preset& preset) {
  SpecCatalogue::Preset out{preset.name, preset.meaning, {}};
  auto& fields = out.fields;
  const auto& participation = preset.participation;
  if (participation.mode == ParticipationSpec::Mode::kAsynchronous) {
    fields["participation.mode"] = std::string("asynchronous");
    fields["participation.buffer"] = static_cast<double>(participation.buffer);
    fields["participation.maximum_staleness"] = static_cast<double>(participation.maximum_staleness);
  } else if (participation.cohort_fraction < 1) {
    fields["participation.cohort_fraction"] = participation.cohort_fraction;
  }
  const auto& exchange = preset.exchange;
  fields["training.steps"] = static_cast<double>(exchange.inner_steps);
  fields["training.epochs"] = exchange.epochs;
  if (exchange.fragments > 1) fields["exchange.fragments"] = static_cast<double>(exchange.fragments);
  if (exchange.schedule == ExchangeSpec::Schedule::kStaggered) fields["exchange.schedule"] = std::string("staggered");
  fields["exchange.up"] = exchange.up;
  fields["exchange.down"] = exchange.down;
  put_part(preset.aggregation, "aggregation", "rule", fields);
  put_part(preset.outer, "outer", "optimizer", fields);
  fields["evaluation.every"] = static_cast<double>(preset.evaluation.every);
  fields["evaluation.split"] = preset.evaluation.split;
  return out;
}

Field as_field(const ParameterInfo& info, const std::string& section, const std::string& part) {
  Field field;
  field.path = section + "." + info.name;
  field.fallback = field_value(info.fallback);
  field.type = std::holds_alternative<bool>(info.fallback) ? Field::Type::kBoolean
               : std::holds_alternative<double>(info.fallback)
                   ? (info.whole ? Field::Type::kWhole : Field::Type::kNumber)
                   : Field::Type::kText;
  field.minimum = info.minimum;
  field.maximum = info.maximum;
  field.above_minimum = info.above_minimum;
  field.below_maximum = info.below_maximum;
  field.choices = info.choices;
  field.meaning = info.meaning;
  field.when = part;
  return field;
}

SpecCatalogue::Parts as_parts(std::string section, std::string selector, std::string fallback,
                              std::span<const PartInfo> catalogue) {
  SpecCatalogue::Parts parts{section, std::move(selector), std::move(fallback), {}, {}};
  for (const auto& info : catalogue) {
    parts.names.push_back(info.name);
    for (const auto& parameter : info.parameters) parts.parameters.push_back(as_field(parameter, section, info.name));
  }
  return parts;
}

}  // namespace

const SpecCatalogue& spec_catalogue() {
  static const SpecCatalogue catalogue = [] {
    SpecCatalogue out;
    for (const auto& preset : presets()) out.presets.push_back(as_fields(preset));
    out.parts = {as_parts("aggregation", "rule", "weighted_mean", aggregation_catalogue()),
                 as_parts("outer", "optimizer", "sgd", outer_catalogue())};
    out.fallback_preset = "fedavg";
    return out;
  }();
  return catalogue;
}

Part aggregation_part(const RunSpec& spec) { return {spec.aggregation.name, spec.aggregation.parameters}; }

Part outer_part(const RunSpec& spec) { return {spec.outer.name, spec.outer.parameters}; }

Surroundings surroundings(const RunSpec& spec) {
  const auto& participation = spec.participation;
  const bool asynchronous = participation.mode == ParticipationSpec::Mode::kAsynchronous;
  Surroundings out;
  out.all_clients = !asynchronous && participation.grace_s < 0 && participation.deadline_s == 0;
  out.fewest_updates = static_cast<std::size_t>(asynchronous ? participation.buffer : participation.quorum);
  if (!asynchronous && participation.cohort_size > 0)
    out.most_updates = static_cast<std::size_t>(participation.cohort_size);
  return out;
}

Result<void> check_needs(const Rule& rule, const Surroundings& offered) {
  const std::string who = "aggregation.rule " + rule.name;
  if (rule.needs.individual_updates && !offered.individual_updates)
    return invalid_argument(who +
                            " must see single updates, but the exchange sums them secretly: choose weighted_mean or an "
                            "exchange without secure sums");
  if (!rule.needs.linear && offered.only_sums)
    return invalid_argument(who + " is not linear, but only weighted sums of updates are known: choose weighted_mean");
  if (rule.needs.all_clients && !offered.all_clients)
    return invalid_argument(who +
                            " needs every invited node, but this run commits without some: set participation.mode to "
                            "synchronous, grace_s to -1 and deadline_s to 0");
  if (rule.needs.minimum_updates > offered.fewest_updates)
    return invalid_argument(who + " needs at least " + std::to_string(rule.needs.minimum_updates) +
                            " updates, but an exchange may be committed with " +
                            std::to_string(offered.fewest_updates) +
                            ": raise participation.quorum (asynchronous: participation.buffer)");
  if (rule.needs.maximum_updates < offered.fewest_updates)
    return invalid_argument(who + " takes at most " + std::to_string(rule.needs.maximum_updates) +
                            " updates, but an exchange has at least " + std::to_string(offered.fewest_updates) +
                            ": lower participation.quorum and set participation.cohort_size");
  return {};
}

Result<void> check_combination(const RunSpec& spec) {
  SKERRY_ASSIGN(const Rule rule, make_rule(aggregation_part(spec)));
  SKERRY_TRY(make_outer_optimizer(outer_part(spec)));
  return check_needs(rule, surroundings(spec));
}

double update_weight(const RunSpec& spec, std::uint64_t examples, std::uint64_t tokens, std::uint64_t steps) {
  const auto found = spec.aggregation.parameters.find("weights");
  const auto* weights = found == spec.aggregation.parameters.end() ? nullptr : std::get_if<std::string>(&found->second);
  if (weights == nullptr || *weights == "uniform") return 1;
  return static_cast<double>(*weights == "tokens" ? tokens : *weights == "steps" ? steps : examples);
}

}  // namespace skerry::strategies
