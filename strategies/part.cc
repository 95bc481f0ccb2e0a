#include "strategies/part.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace skerry::strategies {
namespace {

std::string shown(double value) {
  char buffer[32];
  std::snprintf(buffer, sizeof buffer, "%.10g", value);
  return buffer;
}

std::string shown(const Value& value) {
  if (const auto* as_number = std::get_if<double>(&value)) return shown(*as_number);
  if (const auto* as_flag = std::get_if<bool>(&value)) return *as_flag ? "true" : "false";
  return '"' + std::get<std::string>(value) + '"';
}

std::string kind_of(const Value& value) {
  static constexpr const char* kKinds[] = {"a number", "true or false", "a text"};
  return kKinds[value.index()];
}

template <typename Items, typename Name>
std::string listed(const Items& items, Name name) {
  std::string all;
  for (const auto& item : items) all += (all.empty() ? "" : ", ") + std::string(name(item));
  return all.empty() ? "none" : all;
}

std::string range_of(const ParameterInfo& info) {
  std::string range = info.above_minimum ? "(" : "[";
  range += shown(info.minimum) + ", " + shown(info.maximum);
  return range + (info.below_maximum ? ")" : "]");
}

Result<void> check_number(double value, const ParameterInfo& info, const std::string& where) {
  const std::string start = where + " is " + shown(value) + ", ";
  if (!std::isfinite(value)) return invalid_argument(start + "must be a finite number");
  const bool too_small = info.above_minimum ? value <= info.minimum : value < info.minimum;
  const bool too_large = info.below_maximum ? value >= info.maximum : value > info.maximum;
  if (too_small || too_large) return invalid_argument(start + "must be in " + range_of(info));
  if (info.whole && value != std::floor(value)) return invalid_argument(start + "must be a whole number");
  return {};
}

Result<void> check_value(const Value& value, const ParameterInfo& info, const std::string& where) {
  if (value.index() != info.fallback.index()) {
    return invalid_argument(where + " is " + shown(value) + ", must be " + kind_of(info.fallback));
  }
  if (const auto* as_number = std::get_if<double>(&value)) return check_number(*as_number, info, where);
  const auto* as_text = std::get_if<std::string>(&value);
  if (as_text == nullptr || info.choices.empty()) return {};
  if (std::find(info.choices.begin(), info.choices.end(), *as_text) != info.choices.end()) return {};
  return invalid_argument(where + " is " + shown(value) + ", must be one of " +
                          listed(info.choices, [](const std::string& choice) { return choice; }));
}

}  // namespace

Result<Part> resolve(const Part& part, std::string_view kind, std::span<const PartInfo> catalogue) {
  const auto entry =
      std::find_if(catalogue.begin(), catalogue.end(), [&](const PartInfo& info) { return info.name == part.name; });
  if (entry == catalogue.end()) {
    return invalid_argument(std::string(kind) + " is \"" + part.name + "\", must be one of " +
                            listed(catalogue, [](const PartInfo& info) { return info.name; }));
  }
  Part resolved{part.name, {}};
  for (const ParameterInfo& info : entry->parameters) resolved.parameters[info.name] = info.fallback;
  for (const auto& named : part.parameters) {
    const std::string where = std::string(kind) + "." + named.first;
    const auto info = std::find_if(entry->parameters.begin(), entry->parameters.end(),
                                   [&](const ParameterInfo& known) { return known.name == named.first; });
    if (info == entry->parameters.end()) {
      return invalid_argument(where + " is not a parameter of " + part.name + "; its parameters are: " +
                              listed(entry->parameters, [](const ParameterInfo& known) { return known.name; }));
    }
    SKERRY_TRY(check_value(named.second, *info, where));
    resolved.parameters[named.first] = named.second;
  }
  return resolved;
}

}  // namespace skerry::strategies
