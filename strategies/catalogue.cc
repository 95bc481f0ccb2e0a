#include "strategies/catalogue.h"

#include <map>
#include <string>
#include <utility>

#include "strategies/aggregation/rule.h"
#include "strategies/outer/outer_optimizer.h"
#include "strategies/presets.h"

namespace skerry::strategies {
namespace {

using Fields = std::map<std::string, FieldValue>;

FieldValue field_value(const Value& value) {
  return std::visit([](const auto& known) -> FieldValue { return known; }, value);
}

void put_part(const Part& part, const std::string& section, const std::string& selector, Fields& fields) {
  fields[section + "." + selector] = part.name;
  for (const auto& [name, value] : part.parameters) fields[section + "." + name] = field_value(value);
}

/// The part without what its defaults say anyway.
Part brief(const Part& part, std::span<const PartInfo> catalogue) {
  Part out{part.name, {}};
  const auto usual = resolve({part.name, {}}, "part", catalogue);
  for (const auto& [name, value] : part.parameters)
    if (!usual.ok() || usual->parameters.at(name) != value) out.parameters[name] = value;
  return out;
}

/// Sets `path` where the preset says something else than every preset does.
template <typename T>
void put_unless(const T& value, const T& usual, const char* path, Fields& fields) {
  if (value == usual) return;
  if constexpr (std::is_integral_v<T> && !std::is_same_v<T, bool>)
    fields[path] = static_cast<double>(value);
  else
    fields[path] = value;
}

void put_participation(const Participation& participation, Fields& fields) {
  const Participation usual;
  if (participation.mode == ParticipationSpec::Mode::kAsynchronous) {
    fields["participation.mode"] = std::string("asynchronous");
    fields["participation.buffer"] = static_cast<double>(participation.buffer);
    fields["participation.maximum_staleness"] = static_cast<double>(participation.maximum_staleness);
    fields["participation.staleness_exponent"] = participation.staleness_exponent;
  }
  put_unless(participation.quorum, usual.quorum, "participation.quorum", fields);
  put_unless(participation.cohort_fraction, usual.cohort_fraction, "participation.cohort_fraction", fields);
  put_unless(participation.minimum_completion, usual.minimum_completion, "participation.minimum_completion", fields);
  if (participation.adaptive_grace) fields["participation.grace"] = std::string("adaptive");
  if (participation.work == ParticipationSpec::Work::kDylu) fields["participation.work"] = std::string("dylu");
  if (participation.work == ParticipationSpec::Work::kFedCompass)
    fields["participation.work"] = std::string("fedcompass");
}

void put_exchange(const Exchange& exchange, Fields& fields) {
  const Exchange usual;
  put_unless(exchange.inner_steps, usual.inner_steps, "training.steps", fields);
  put_unless(exchange.epochs, usual.epochs, "training.epochs", fields);
  put_unless(exchange.fragments, usual.fragments, "exchange.fragments", fields);
  if (exchange.schedule == ExchangeSpec::Schedule::kStaggered) fields["exchange.schedule"] = std::string("staggered");
  put_unless(exchange.up, usual.up, "exchange.up", fields);
  put_unless(exchange.down, usual.down, "exchange.down", fields);
  put_unless(exchange.overlap, usual.overlap, "exchange.overlap", fields);
  put_unless(exchange.merge, usual.merge, "exchange.merge", fields);
  if (!exchange.block) fields["exchange.on_late"] = std::string("on_arrival");
}

void put_objective(const Objective& objective, Fields& fields) {
  const Objective usual;
  put_unless(objective.optimizer, usual.optimizer, "training.optimizer", fields);
  put_unless(objective.schedule, usual.schedule, "training.schedule", fields);
  put_unless(objective.final_fraction, usual.final_fraction, "training.final_fraction", fields);
  put_unless(objective.clip_norm, usual.clip_norm, "training.clip_norm", fields);
  put_unless(objective.proximal, usual.proximal, "training.proximal", fields);
  put_unless(objective.control_variates, usual.control_variates, "training.control_variates", fields);
  if (!objective.start_loss) return;
  fields["training.start_loss"] = true;
  fields["limits.metrics"] = std::vector<std::string>{"accuracy", "loss", "perplexity", "start_loss", "train_loss"};
}

SpecCatalogue::Preset as_fields(const Preset& preset) {
  SpecCatalogue::Preset out{preset.name, preset.meaning + " (" + preset.source + ")", {}};
  put_participation(preset.participation, out.fields);
  put_exchange(preset.exchange, out.fields);
  put_objective(preset.objective, out.fields);
  put_part(brief(preset.aggregation, aggregation_catalogue()), "aggregation", "rule", out.fields);
  put_part(preset.outer, "outer", "optimizer", out.fields);
  put_unless(preset.evaluation.every, Evaluation().every, "evaluation.every", out.fields);
  put_unless(preset.evaluation.split, Evaluation().split, "evaluation.split", out.fields);
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

SpecCatalogue spec_catalogue(const RuleCatalogue& rules) {
  SpecCatalogue out;
  for (const auto& preset : presets()) out.presets.push_back(as_fields(preset));
  out.parts = {as_parts("aggregation", "rule", "weighted_mean", rules.infos()),
               as_parts("outer", "optimizer", "sgd", outer_catalogue())};
  out.fallback_preset = "fedavg";
  return out;
}

const SpecCatalogue& spec_catalogue() {
  static const SpecCatalogue catalogue = spec_catalogue(RuleCatalogue());
  return catalogue;
}

Part aggregation_part(const RunSpec& spec) { return {spec.aggregation.name, spec.aggregation.parameters}; }

Part outer_part(const RunSpec& spec) { return {spec.outer.name, spec.outer.parameters}; }

}  // namespace skerry::strategies
