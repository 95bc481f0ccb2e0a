#include <nlohmann/json.hpp>

#include <cstdio>
#include <memory>

#include "server/ctl/commands.h"
#include "server/ctl/console.h"
#include "strategies/presets.h"

namespace skerry::ctl {
namespace {

std::string value_text(const FieldValue& value) {
  if (const auto* number = std::get_if<double>(&value)) return human_number(*number);
  if (const auto* flag = std::get_if<bool>(&value)) return *flag ? "true" : "false";
  if (const auto* text = std::get_if<std::string>(&value)) return *text;
  if (const auto* texts = std::get_if<std::vector<std::string>>(&value)) {
    std::string joined;
    for (const std::string& one : *texts) joined += (joined.empty() ? "" : ", ") + one;
    return joined;
  }
  return "-";
}

nlohmann::json to_json(const SpecCatalogue::Preset& preset) {
  nlohmann::json fields = nlohmann::json::object();
  for (const auto& [path, value] : preset.fields) fields[path] = value_text(value);
  return {{"name", preset.name}, {"meaning", preset.meaning}, {"fields", fields}};
}

Result<void> list(const Context& context) {
  nlohmann::json json = nlohmann::json::array();
  Table table({"STRATEGY", "WHAT IT IS"});
  for (const SpecCatalogue::Preset& preset : strategies::spec_catalogue().presets) {
    json.push_back(to_json(preset));
    table.add({preset.name, preset.meaning});
  }
  std::printf("%s", context.json ? (json.dump(2) + "\n").c_str() : table.text().c_str());
  return {};
}

Result<void> show(const Context& context, const std::string& name) {
  const SpecCatalogue& catalogue = strategies::spec_catalogue();
  std::string known;
  for (const SpecCatalogue::Preset& preset : catalogue.presets) {
    known += (known.empty() ? "" : ", ") + preset.name;
    if (preset.name != name) continue;
    if (context.json) {
      std::printf("%s\n", to_json(preset).dump(2).c_str());
      return {};
    }
    std::printf("%s: %s\n\nIt sets (a run spec may set each anew):\n", preset.name.c_str(), preset.meaning.c_str());
    Table set({"FIELD", "VALUE"});
    for (const auto& [path, value] : preset.fields) set.add({path, value_text(value)});
    std::printf("%s\nParameters of its parts:\n", set.text().c_str());
    Table parameters({"PARAMETER", "OF", "DEFAULT", "MEANING"});
    for (const SpecCatalogue::Parts& parts : catalogue.parts) {
      const auto chosen = preset.fields.find(parts.section + "." + parts.selector);
      const std::string part = chosen == preset.fields.end() ? parts.fallback : value_text(chosen->second);
      for (const Field& field : parts.parameters)
        if (field.when == part) parameters.add({field.path, part, value_text(field.fallback), field.meaning});
    }
    std::printf("%s", parameters.text().c_str());
    return {};
  }
  return not_found("there is no strategy '" + name + "'; there are " + known);
}

}  // namespace

void add_strategy_commands(CLI::App& app, Context& context) {
  CLI::App* strategy = app.add_subcommand("strategy", "The strategies a run spec can name")->require_subcommand(1);
  strategy->add_subcommand("list", "All of them")->callback([&context] {
    context.chosen = [&context] { return list(context); };
  });
  auto name = std::make_shared<std::string>();
  CLI::App* show_command = strategy->add_subcommand("show", "What one sets, and its parameters");
  show_command->add_option("NAME", *name, "For example diloco")->required();
  show_command->callback([&context, name] { context.chosen = [&context, name] { return show(context, *name); }; });
}

}  // namespace skerry::ctl
