#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstdio>
#include <limits>
#include <memory>
#include <utility>

#include "server/ctl/commands.h"
#include "server/ctl/console.h"
#include "strategies/catalogue.h"
#include "strategies/outer/outer_optimizer.h"
#include "strategies/presets.h"
#include "strategies/reference.h"

namespace skerry::ctl {
namespace {

using nlohmann::json;

// ---- values and fields ----

json to_json(const FieldValue& value) {
  if (const auto* number = std::get_if<double>(&value)) return *number;
  if (const auto* flag = std::get_if<bool>(&value)) return *flag;
  if (const auto* text = std::get_if<std::string>(&value)) return *text;
  if (const auto* texts = std::get_if<std::vector<std::string>>(&value)) return *texts;
  return nullptr;
}

std::string value_text(const FieldValue& value) {
  if (const auto* number = std::get_if<double>(&value)) return human_number(*number);
  const json as_json = to_json(value);
  if (as_json.is_null()) return "-";
  return as_json.is_string() ? "\"" + as_json.get<std::string>() + "\"" : as_json.dump();
}

std::string without_marks(std::string markdown) {
  markdown.erase(std::remove(markdown.begin(), markdown.end(), '`'), markdown.end());
  return markdown;
}

// A field with the value it has where the run spec is silent.
struct Parameter {
  Field field;
  FieldValue value;
  bool set = false;  // by the preset
};

Parameter parameter_of(const Field& field, const std::map<std::string, FieldValue>& preset) {
  const auto set = preset.find(field.path);
  return set == preset.end() ? Parameter{field, field.fallback} : Parameter{field, set->second, true};
}

json to_json(const Parameter& parameter) {
  const Field& field = parameter.field;
  static constexpr const char* kTypes[] = {"whole", "number", "boolean", "text",
                                           "texts"};  // in the order of Field::Type
  json out = {{"path", field.path},
              {"type", kTypes[static_cast<std::size_t>(field.type)]},
              {"value", to_json(parameter.value)},
              {"set", parameter.set},
              {"default", to_json(field.fallback)},
              {"values", without_marks(allowed_values(field))},
              {"meaning", without_marks(field.meaning)}};
  if (!field.absent.empty()) out["default"] = without_marks(field.absent);
  if (!field.choices.empty()) out["choices"] = field.choices;
  if (field.type != Field::Type::kWhole && field.type != Field::Type::kNumber) return out;
  out["minimum"] = field.minimum;
  if (field.maximum < std::numeric_limits<double>::max()) out["maximum"] = field.maximum;
  out["above_minimum"] = field.above_minimum;
  out["below_maximum"] = field.below_maximum;
  return out;
}

json to_json(const std::vector<Parameter>& parameters) {
  json out = json::array();
  for (const Parameter& parameter : parameters) out.push_back(to_json(parameter));
  return out;
}

void print(const std::vector<Parameter>& parameters) {
  if (parameters.empty()) {
    std::printf("  no parameters\n");
    return;
  }
  Table table({"  PARAMETER", "VALUE", "ALLOWED", "MEANING"});
  for (const auto& [field, value, set] : parameters) {
    const bool silent = std::holds_alternative<std::monostate>(value);
    table.add({(set ? "* " : "  ") + field.path, silent ? without_marks(field.absent) : value_text(value),
               without_marks(allowed_values(field)), without_marks(field.meaning)});
  }
  std::printf("%s", table.text().c_str());
}

void print(const json& document) { std::printf("%s\n", document.dump(2).c_str()); }

// ---- rules and optimizers ----

const SpecCatalogue::Parts& parts_of(const std::string& section) {
  const auto& all = strategies::spec_catalogue().parts;
  return *std::find_if(all.begin(), all.end(), [&](const auto& parts) { return parts.section == section; });
}

const strategies::PartInfo* find_part(std::span<const strategies::PartInfo> catalogue, const std::string& name) {
  for (const auto& info : catalogue)
    if (info.name == name) return &info;
  return nullptr;
}

/// The parameters of a part; values that `preset` sets come from it.
std::vector<Parameter> parameters_of(const std::string& section, const std::string& part,
                                     const std::map<std::string, FieldValue>& preset = {}) {
  std::vector<Parameter> out;
  for (const Field& field : parts_of(section).parameters) {
    if (field.when == part) out.push_back(parameter_of(field, preset));
  }
  return out;
}

/// Of the rule as the preset sets it; else, or where the run spec must say something, as it usually is.
std::vector<std::string> needs_of(const strategies::PartInfo& info, const strategies::Part& part) {
  auto rule = strategies::make_rule(part);
  if (!rule.ok()) rule = strategies::usual_rule(info);
  if (!rule.ok()) return {rule.error().message};
  auto needs = strategies::needs_of(*rule);
  for (auto& need : needs) need = without_marks(std::move(need));
  return needs;
}

std::vector<std::string> kept_by(const strategies::PartInfo& optimizer) {
  const auto made = strategies::make_outer_optimizer({optimizer.name, {}});
  return made.ok() ? made->state_vectors : std::vector<std::string>{};
}

std::string listed(const std::vector<std::string>& items) {
  std::string out;
  for (const std::string& item : items) out += (out.empty() ? "" : "; ") + item;
  return out.empty() ? "nothing" : out;
}

json rule_json(const strategies::PartInfo& rule) {
  return {{"name", rule.name},
          {"meaning", rule.meaning},
          {"needs", needs_of(rule, {rule.name, {}})},
          {"parameters", to_json(parameters_of("aggregation", rule.name))}};
}

json optimizer_json(const strategies::PartInfo& optimizer) {
  return {{"name", optimizer.name},
          {"meaning", optimizer.meaning},
          {"state_vectors", kept_by(optimizer)},
          {"parameters", to_json(parameters_of("outer", optimizer.name))}};
}

Result<void> list_rules(const Context& context) {
  json all = json::array();
  Table table({"RULE", "WHAT IT DOES", "NEEDS"});
  for (const auto& rule : strategies::aggregation_catalogue()) {
    all.push_back(rule_json(rule));
    table.add({rule.name, rule.meaning, listed(needs_of(rule, {rule.name, {}}))});
  }
  context.json ? print(all) : void(std::printf("%s", table.text().c_str()));
  return {};
}

Result<void> list_optimizers(const Context& context) {
  json all = json::array();
  Table table({"OPTIMIZER", "WHAT IT DOES", "KEEPS"});
  for (const auto& optimizer : strategies::outer_catalogue()) {
    all.push_back(optimizer_json(optimizer));
    table.add({optimizer.name, optimizer.meaning, listed(kept_by(optimizer))});
  }
  context.json ? print(all) : void(std::printf("%s", table.text().c_str()));
  return {};
}

// ---- presets ----

/// The preset's fields of the sections that belong to one part, with every other field of [section].
std::vector<Parameter> section_of(const std::string& section, const std::map<std::string, FieldValue>& preset,
                                  bool only_set = false) {
  std::vector<Parameter> out;
  for (const Field& field : run_spec_fields()) {
    if (field.path.rfind(section + ".", 0) != 0) continue;
    if (!only_set || preset.count(field.path) != 0) out.push_back(parameter_of(field, preset));
  }
  return out;
}

struct Described {
  const strategies::Preset& preset;
  std::map<std::string, FieldValue> fields;
  const strategies::PartInfo& rule;
  const strategies::PartInfo& optimizer;
};

/// The five parts, each with what it is called and its parameters.
std::vector<std::pair<std::string, std::vector<Parameter>>> sections(const Described& of) {
  std::vector<Parameter> training = section_of("training", of.fields, /*only_set=*/true);
  for (auto& metric : section_of("limits", of.fields, /*only_set=*/true)) training.push_back(std::move(metric));
  return {
      {"Participation", section_of("participation", of.fields)},
      {"Exchange", section_of("exchange", of.fields)},
      {"Aggregation: " + of.rule.name + ", " + of.rule.meaning, parameters_of("aggregation", of.rule.name, of.fields)},
      {"Outer optimizer: " + of.optimizer.name + ", " + of.optimizer.meaning,
       parameters_of("outer", of.optimizer.name, of.fields)},
      {"Evaluation", section_of("evaluation", of.fields)},
      {"What trainers are told besides", std::move(training)}};
}

Result<void> show_preset(const Context& context, const Described& of) {
  const auto& preset = of.preset;
  const std::string spec = strategies::minimal_run_spec(preset);
  if (context.json) {
    json fields = json::object();
    for (const auto& [path, value] : of.fields) fields[path] = to_json(value);
    json parameters = json::array();
    for (const auto& section : sections(of))
      for (const Parameter& parameter : section.second) parameters.push_back(to_json(parameter));
    print(json{{"name", preset.name},
               {"meaning", preset.meaning},
               {"source", preset.source},
               {"when_to_use", preset.when_to_use},
               {"rule", of.rule.name},
               {"optimizer", of.optimizer.name},
               {"needs", needs_of(of.rule, preset.aggregation)},
               {"state_vectors", kept_by(of.optimizer)},
               {"sets", fields},
               {"parameters", parameters},
               {"run_spec", spec}});
    return {};
  }
  std::printf("%s: %s\n", preset.name.c_str(), preset.meaning.c_str());
  std::printf("Source: %s\n%s\n", preset.source.c_str(), preset.when_to_use.c_str());
  std::printf("The rule needs: %s\n", listed(needs_of(of.rule, preset.aggregation)).c_str());
  std::printf("The optimizer keeps, each as large as the model: %s\n", listed(kept_by(of.optimizer)).c_str());
  std::printf("Values are those of a run spec that is silent; * marks what the preset sets.\n");
  for (const auto& [title, parameters] : sections(of)) {
    std::printf("\n%s\n", title.c_str());
    print(parameters);
  }
  std::printf("\nA run spec to start from:\n\n%s", spec.c_str());
  return {};
}

Result<void> show_part(const Context& context, const json& part, const std::string& section, const std::string& kind,
                       const std::string& demand) {
  if (context.json) {
    print(part);
    return {};
  }
  const std::string name = part.at("name");
  std::printf("%s: %s\n%s %s\n\n", name.c_str(), part.at("meaning").get<std::string>().c_str(), demand.c_str(),
              listed(part.at(kind).get<std::vector<std::string>>()).c_str());
  print(parameters_of(section, name));
  std::printf("\nIn a run spec:\n\n[%s]\n%s = \"%s\"\n", section.c_str(), parts_of(section).selector.c_str(),
              name.c_str());
  return {};
}

Result<void> list(const Context& context) {
  json all = json::array();
  Table table({"STRATEGY", "WHAT IT IS", "SOURCE"});
  for (const auto& preset : strategies::presets()) {
    all.push_back({{"name", preset.name},
                   {"meaning", preset.meaning},
                   {"source", preset.source},
                   {"when_to_use", preset.when_to_use}});
    table.add({preset.name, preset.meaning, preset.source});
  }
  context.json ? print(all) : void(std::printf("%s", table.text().c_str()));
  return {};
}

Result<void> show(const Context& context, const std::string& name) {
  const auto rules = strategies::aggregation_catalogue();
  const auto optimizers = strategies::outer_catalogue();
  if (const auto* preset = strategies::find_preset(name)) {
    const auto& all = strategies::spec_catalogue().presets;
    const auto fields = std::find_if(all.begin(), all.end(), [&](const auto& one) { return one.name == name; });
    return show_preset(context, {*preset, fields->fields, *find_part(rules, preset->aggregation.name),
                                 *find_part(optimizers, preset->outer.name)});
  }
  if (const auto* rule = find_part(rules, name))
    return show_part(context, rule_json(*rule), "aggregation", "needs", "Needs:");
  if (const auto* optimizer = find_part(optimizers, name))
    return show_part(context, optimizer_json(*optimizer), "outer", "state_vectors",
                     "Keeps, each as large as the model:");
  return not_found("there is no strategy, rule or optimizer '" + name +
                   "'; skerry strategy list, rules and optimizers print what there is");
}

}  // namespace

void add_strategy_commands(CLI::App& app, Context& context) {
  CLI::App* strategy = app.add_subcommand("strategy", "The strategies a run spec can name; no coordinator is asked")
                           ->require_subcommand(1);
  const auto add_list = [&](const char* name, const char* help, Result<void> (*run)(const Context&)) {
    strategy->add_subcommand(name, help)->callback([&context, run] {
      context.chosen = [&context, run] { return run(context); };
    });
  };
  add_list("list", "All presets", list);
  add_list("rules", "All aggregation rules, with what they need", list_rules);
  add_list("optimizers", "All outer optimizers, with what they keep", list_optimizers);
  auto name = std::make_shared<std::string>();
  CLI::App* show_command = strategy->add_subcommand(
      "show", "A preset's parts with every parameter, or a rule's or an optimizer's parameters");
  show_command->add_option("NAME", *name, "For example diloco, geometric_median or yogi")->required();
  show_command->callback([&context, name] { context.chosen = [&context, name] { return show(context, *name); }; });
}

}  // namespace skerry::ctl
