#include "strategies/reference.h"

#include <limits>
#include <utility>

#include "strategies/catalogue.h"
#include "strategies/outer/outer_optimizer.h"
#include "strategies/presets.h"

namespace skerry::strategies {
namespace {

std::string joined(const std::vector<std::string>& items, const char* separator) {
  std::string out;
  for (const std::string& item : items) out += (out.empty() ? "" : separator) + item;
  return out;
}

std::string quoted_names(const PartInfo& info, std::size_t count) {
  std::vector<std::string> names;
  for (std::size_t i = 0; i < count; ++i) names.push_back("`" + info.parameters[i].name + "`");
  return names.empty() ? "none" : joined(names, ", ");
}

std::string preset_rows() {
  std::string out =
      "### Presets\n\n| preset | what it is | when to use it | aggregation | outer | source "
      "|\n|---|---|---|---|---|---|\n";
  for (const Preset& preset : presets())
    out += "| `" + preset.name + "` | " + preset.meaning + " | " + preset.when_to_use + " | `" +
           preset.aggregation.name + "` | `" + preset.outer.name + "` | " + preset.source + " |\n";
  return out;
}

std::string rule_rows() {
  std::string out = "\n### Aggregation rules\n\n| rule | what it does | needs | parameters |\n|---|---|---|---|\n";
  for (const PartInfo& info : aggregation_catalogue()) {
    const auto rule = usual_rule(info);
    out += "| `" + info.name + "` | " + info.meaning + " | " +
           (rule.ok() ? joined(needs_of(*rule), "; ") : rule.error().message) + " | " +
           quoted_names(info, info.parameters.size()) + " |\n";
  }
  return out;
}

std::string optimizer_rows() {
  const std::size_t of_schedules = schedule_parameters().size();
  std::string out =
      "\n### Outer optimizers\n\n| optimizer | what it does | keeps, each as large as the model | parameters besides "
      "the schedule's |\n|---|---|---|---|\n";
  for (const PartInfo& info : outer_catalogue()) {
    const auto optimizer = make_outer_optimizer({info.name, {}});
    std::string kept = optimizer.ok() ? joined(optimizer->state_vectors, ", ") : optimizer.error().message;
    out += "| `" + info.name + "` | " + info.meaning + " | " + (kept.empty() ? "nothing" : kept) + " | " +
           quoted_names(info, info.parameters.size() - of_schedules) + " |\n";
  }
  return out;
}

std::string schedule_rows() {
  std::string out = "\n### Learning-rate schedules\n\n| parameter of every outer optimizer | meaning |\n|---|---|\n";
  for (const ParameterInfo& info : schedule_parameters()) {
    out += "| `" + info.name + "` | " + info.meaning;
    for (std::size_t i = 0; i < info.choices.size(); ++i) out += (i == 0 ? ": `" : ", `") + info.choices[i] + "`";
    out += " |\n";
  }
  return out;
}

}  // namespace

Result<Rule> usual_rule(const PartInfo& info) {
  Part part{info.name, {}};
  for (const ParameterInfo& parameter : info.parameters) {
    const auto* text = std::get_if<std::string>(&parameter.fallback);
    if (text != nullptr && text->empty() && parameter.choices.empty()) part.parameters[parameter.name] = parameter.name;
  }
  return make_rule(part);
}

std::vector<std::string> needs_of(const Rule& rule) {
  const Needs& needs = rule.needs;
  std::vector<std::string> out;
  if (needs.individual_updates) out.push_back("single updates (not with secure sums)");
  if (needs.linear) out.push_back("weighted sums only (goes with secure sums)");
  if (needs.all_clients) out.push_back("every invited node");
  if (needs.minimum_updates > 1)
    out.push_back("at least " + std::to_string(needs.minimum_updates) + " updates" +
                  (needs.because.empty() ? "" : " (" + needs.because + ")"));
  if (needs.maximum_updates < std::numeric_limits<std::size_t>::max())
    out.push_back("at most " + std::to_string(needs.maximum_updates) + " updates");
  for (const std::string& node : needs.nodes) out.push_back("in every exchange, the node that `" + node + "` names");
  for (const std::string& metric : needs.metrics) out.push_back("the metric `" + metric + "` of every node");
  if (needs.rebased) out.push_back("older versions (late updates are moved onto the newest)");
  if (needs.partial_updates) out.push_back("not every fragment in every update");
  for (const std::string& vector : rule.state_vectors)
    out.push_back("room for `" + vector + "`, as large as the model");
  return out;
}

std::string strategy_reference() { return preset_rows() + rule_rows() + optimizer_rows() + schedule_rows(); }

}  // namespace skerry::strategies
