#include "server/plugin/answers.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <set>
#include <utility>

#include "common/base/encoding_text.h"
#include "server/plugin/wire.h"

namespace skerry::server {
namespace {

using nlohmann::json;
using strategies::ParameterInfo;

constexpr std::size_t kMaxAnswerBytes = 256 * 1024;
constexpr std::size_t kMaxItems = 64;  // rules, parameters, choices, needed names
constexpr std::size_t kMaxDepth = 8;
constexpr std::size_t kMaxText = 300;
constexpr std::size_t kMaxName = 63;

// Numbers as JSON has no literal for them: a host writes null for NaN and infinity, which then is no number.
struct Reader {
  const json& object;
  std::string where;  // "its description", "parameter bound"

  Error wrong(const std::string& key, const std::string& must) const {
    const auto found = object.find(key);
    const std::string value = found == object.end() ? "missing" : one_line(found->dump(-1, ' ', true, json::error_handler_t::replace), 60);
    return invalid_argument(where + ": " + key + " is " + value + ", must be " + must);
  }

  Result<void> knows(std::initializer_list<const char*> keys) const {
    if (!object.is_object()) return invalid_argument(where + " is no JSON object");
    for (const auto& member : object.items())
      if (std::none_of(keys.begin(), keys.end(), [&](const char* known) { return member.key() == known; }))
        return invalid_argument(where + " has the member '" + one_line(member.key(), 60) + "', which this version does not know");
    return {};
  }

  Result<std::string> text(const std::string& key, std::size_t most) const {
    const auto found = object.find(key);
    if (found == object.end() || !found->is_string()) return wrong(key, "a text");
    const auto& value = found->get_ref<const std::string&>();
    if (value.empty() || value.size() > most || one_line(value, most) != value)
      return wrong(key, "one line of 1 to " + std::to_string(most) + " bytes");
    return value;
  }

  // [a-z][a-z0-9_-]*: what may stand in a run spec and a metric.
  Result<std::string> name(const std::string& key) const {
    SKERRY_ASSIGN(std::string value, text(key, kMaxName));
    const auto fits = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '-'; };
    if (value.front() < 'a' || value.front() > 'z' || !std::all_of(value.begin(), value.end(), fits))
      return wrong(key, "a name of a-z, 0-9, '_' and '-'");
    return value;
  }

  Result<bool> flag(const std::string& key) const {
    const auto found = object.find(key);
    if (found == object.end()) return false;
    if (!found->is_boolean()) return wrong(key, "true or false");
    return found->get<bool>();
  }

  Result<double> number(const std::string& key, double fallback) const {
    const auto found = object.find(key);
    if (found == object.end()) return fallback;
    if (!found->is_number() || !std::isfinite(found->get<double>())) return wrong(key, "a finite number");
    return found->get<double>();
  }

  Result<std::size_t> whole(const std::string& key, std::size_t fallback, std::size_t least) const {
    const auto found = object.find(key);
    if (found == object.end()) return fallback;
    if (!found->is_number_unsigned() || found->get<std::uint64_t>() < least) return wrong(key, "a whole number of at least " + std::to_string(least));
    return found->get<std::size_t>();
  }

  Result<std::vector<std::string>> names(const std::string& key) const {
    std::vector<std::string> values;
    const auto found = object.find(key);
    if (found == object.end()) return values;
    if (!found->is_array() || found->size() > kMaxItems) return wrong(key, "a list of at most " + std::to_string(kMaxItems) + " texts");
    std::set<std::string> seen;
    for (const json& item : *found) {
      const bool fits = item.is_string() && !item.get_ref<const std::string&>().empty() && item.get_ref<const std::string&>().size() <= 128 &&
                        one_line(item.get_ref<const std::string&>(), 128) == item.get_ref<const std::string&>();
      if (!fits || !seen.insert(item.get<std::string>()).second) return wrong(key, "a list of different texts of 1 to 128 bytes");
      values.push_back(item.get<std::string>());
    }
    return values;
  }

  Result<const json*> list(const std::string& key) const {
    const auto found = object.find(key);
    if (found == object.end() || !found->is_array() || found->size() > kMaxItems) return wrong(key, "a list of at most " + std::to_string(kMaxItems));
    return &*found;
  }
};

Result<json> parse_json(std::string_view text, const std::string& where) {
  if (text.size() > kMaxAnswerBytes)
    return invalid_argument(where + " has " + std::to_string(text.size()) + " bytes, must have at most " + std::to_string(kMaxAnswerBytes));
  bool deep = false;
  const auto shallow = [&deep](int depth, json::parse_event_t, json&) { return !(deep = deep || depth > static_cast<int>(kMaxDepth)); };
  json document = json::parse(text, shallow, /*allow_exceptions=*/false);
  if (deep) return invalid_argument(where + " is nested deeper than " + std::to_string(kMaxDepth));
  if (document.is_discarded() || !document.is_object()) return invalid_argument(where + " is no JSON object: " + one_line(text, 60));
  return document;
}

Result<ParameterInfo> parse_parameter(const json& from, const std::string& rule) {
  const Reader reader{from, "a parameter of rule " + rule};
  SKERRY_TRY(reader.knows({"name", "meaning", "default", "minimum", "maximum", "above_minimum", "below_maximum", "whole", "choices"}));
  ParameterInfo info;
  SKERRY_ASSIGN(info.name, reader.name("name"));
  if (info.name == "rule" || info.name == "plugin") return reader.wrong("name", "another one: run specs use it already");
  const Reader named{from, "parameter " + info.name + " of rule " + rule};
  SKERRY_ASSIGN(info.meaning, named.text("meaning", kMaxText));
  const auto fallback = from.find("default");
  if (fallback != from.end() && fallback->is_boolean()) {
    info.fallback = fallback->get<bool>();
  } else if (fallback != from.end() && fallback->is_string()) {
    if (fallback->get_ref<const std::string&>().size() > kMaxText) return named.wrong("default", "at most 300 bytes long");
    info.fallback = fallback->get<std::string>();
  } else if (fallback != from.end() && fallback->is_number() && std::isfinite(fallback->get<double>())) {
    info.fallback = fallback->get<double>();
  } else {
    return named.wrong("default", "a finite number, true, false or a text");
  }
  SKERRY_ASSIGN(info.minimum, named.number("minimum", 0));
  SKERRY_ASSIGN(info.maximum, named.number("maximum", 0));
  SKERRY_ASSIGN(info.above_minimum, named.flag("above_minimum"));
  SKERRY_ASSIGN(info.below_maximum, named.flag("below_maximum"));
  SKERRY_ASSIGN(info.whole, named.flag("whole"));
  SKERRY_ASSIGN(info.choices, named.names("choices"));
  return info;
}

Result<strategies::PartInfo> parse_rule(const json& from) {
  const Reader reader{from, "a rule of its description"};
  SKERRY_TRY(reader.knows({"name", "meaning", "parameters"}));
  strategies::PartInfo info;
  SKERRY_ASSIGN(info.name, reader.name("name"));
  const Reader named{from, "rule " + info.name};
  SKERRY_ASSIGN(info.meaning, named.text("meaning", kMaxText));
  SKERRY_ASSIGN(const json* parameters, named.list("parameters"));
  std::set<std::string> seen;
  for (const json& parameter : *parameters) {
    SKERRY_ASSIGN(ParameterInfo next, parse_parameter(parameter, info.name));
    if (!seen.insert(next.name).second) return invalid_argument("rule " + info.name + " has two parameters " + next.name);
    info.parameters.push_back(std::move(next));
  }
  // A default outside its own range would pass unseen, because nobody wrote it.
  for (const ParameterInfo& parameter : info.parameters) {
    auto checked = strategies::resolve({info.name, {{parameter.name, parameter.fallback}}}, "the default of rule " + info.name, {&info, 1});
    if (!checked.ok()) return checked.error();
  }
  return info;
}

}  // namespace

Result<PluginDescription> parse_description(std::string_view text) {
  SKERRY_ASSIGN(const json document, parse_json(text, "its description"));
  const Reader reader{document, "its description"};
  SKERRY_TRY(reader.knows({"name", "version", "rules"}));
  PluginDescription description;
  SKERRY_ASSIGN(description.name, reader.name("name"));
  SKERRY_ASSIGN(description.version, reader.text("version", kMaxName));
  SKERRY_ASSIGN(const json* rules, reader.list("rules"));
  if (rules->empty()) return invalid_argument("its description names no rule");
  std::set<std::string> seen;
  for (const json& rule : *rules) {
    SKERRY_ASSIGN(strategies::PartInfo info, parse_rule(rule));
    if (!seen.insert(info.name).second) return invalid_argument("its description names rule " + info.name + " twice");
    description.rules.push_back(std::move(info));
  }
  return description;
}

Result<MadeRule> parse_made_rule(std::string_view text) {
  SKERRY_ASSIGN(const json document, parse_json(text, "its answer to make"));
  const Reader reader{document, "its answer to make"};
  SKERRY_TRY(reader.knows({"needs", "state_vectors"}));
  MadeRule made;
  SKERRY_ASSIGN(made.state_vectors, reader.names("state_vectors"));
  const auto needs_json = document.find("needs");
  if (needs_json == document.end()) return made;
  const Reader needs{*needs_json, "what the rule needs"};
  SKERRY_TRY(needs.knows({"individual_updates", "linear", "all_clients", "tensors", "rebased", "partial_updates", "nodes", "metrics",
                          "minimum_updates", "because", "maximum_updates"}));
  SKERRY_ASSIGN(made.needs.individual_updates, needs.flag("individual_updates"));
  SKERRY_ASSIGN(made.needs.linear, needs.flag("linear"));
  SKERRY_ASSIGN(made.needs.all_clients, needs.flag("all_clients"));
  SKERRY_ASSIGN(made.needs.tensors, needs.flag("tensors"));
  SKERRY_ASSIGN(made.needs.rebased, needs.flag("rebased"));
  SKERRY_ASSIGN(made.needs.partial_updates, needs.flag("partial_updates"));
  if (needs_json->value("because", json("")) != json("")) {
    SKERRY_ASSIGN(made.needs.because, needs.text("because", kMaxText));
  }
  SKERRY_ASSIGN(made.needs.nodes, needs.names("nodes"));
  SKERRY_ASSIGN(made.needs.metrics, needs.names("metrics"));
  SKERRY_ASSIGN(made.needs.minimum_updates, needs.whole("minimum_updates", 1, 1));
  SKERRY_ASSIGN(made.needs.maximum_updates,
                needs.whole("maximum_updates", std::numeric_limits<std::size_t>::max(), made.needs.minimum_updates));
  return made;
}

Result<PassAnswer> parse_pass(std::string_view text, std::span<const double> numbers, std::size_t rows, std::size_t tensors) {
  SKERRY_ASSIGN(const json document, parse_json(text, "its answer to next"));
  const Reader reader{document, "its answer to next"};
  SKERRY_TRY(reader.knows({"pass", "rows", "columns"}));
  SKERRY_ASSIGN(const std::string pass, reader.text("pass", kMaxName));
  if (pass == "statistics") {
    TableShape shape;
    SKERRY_ASSIGN(shape.rows, reader.whole("rows", 0, 1));
    SKERRY_ASSIGN(shape.columns, reader.whole("columns", 0, 1));
    const std::size_t most = plugin_wire::kSumBytes / sizeof(double);
    if (shape.rows == 0 || shape.columns == 0 || shape.rows > most / shape.columns)
      return invalid_argument("its table has " + std::to_string(shape.rows) + " x " + std::to_string(shape.columns) +
                              " cells, must have from 1 to " + std::to_string(most));
    return PassAnswer(shape);
  }
  if (pass == "values") return PassAnswer(ValuePass{});
  if (pass != "linear") return reader.wrong("pass", "statistics, linear or values");
  if (numbers.size() != rows && (tensors == 0 || numbers.size() != rows * tensors))
    return invalid_argument("it gave " + std::to_string(numbers.size()) + " coefficients for " + std::to_string(rows) + " vectors" +
                            (tensors == 0 ? "" : " and " + std::to_string(tensors) + " tensors"));
  for (std::size_t i = 0; i < numbers.size(); ++i)
    if (!std::isfinite(numbers[i])) return invalid_argument("its coefficient " + std::to_string(i) + " is not finite");
  return PassAnswer(strategies::LinearOutput{{numbers.begin(), numbers.end()}});
}

}  // namespace skerry::server
