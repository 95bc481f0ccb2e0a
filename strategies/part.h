// How a run spec names a part of a strategy: a name and its parameters, as data.
//
// Each kind of part (aggregation, outer optimizer, …) has a catalogue that knows its parts by name with every parameter's
// type, range and default. `resolve` checks a Part against it and writes all defaults out, so that a resolved run spec
// says everything; the kind's own `make_…` turns a resolved Part into something that computes.
#pragma once

#include <map>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "common/base/result.h"

namespace skerry::strategies {

/// A parameter's value. Whole numbers are numbers too.
using Value = std::variant<double, bool, std::string>;

/// A part as a run spec or a preset names it, for example {"nesterov", {{"learning_rate", 0.7}, {"momentum", 0.9}}}.
struct Part {
  std::string name;
  std::map<std::string, Value> parameters;

  bool operator==(const Part&) const = default;
};

/// One parameter of a part: what it means, its default (whose type is its type) and its range.
struct ParameterInfo {
  std::string name;
  std::string meaning;  ///< one line for documentation and --help
  Value fallback;       ///< used where the run spec is silent
  double minimum = 0;   ///< numbers: allowed from here …
  double maximum = 0;   ///< … up to here,
  bool above_minimum = false;  ///< … without the minimum itself
  bool below_maximum = false;  ///< … without the maximum itself
  bool whole = false;          ///< numbers: no fraction
  std::vector<std::string> choices;  ///< strings: the values allowed
};

/// One part of a catalogue.
struct PartInfo {
  std::string name;
  std::string meaning;  ///< one line for documentation
  std::vector<ParameterInfo> parameters;
};

/// The same part with every parameter of its entry in `catalogue`, defaults written out.
///
/// `kind` ("aggregation", "outer") begins each message. INVALID_ARGUMENT if the name is not in the catalogue (the message
/// lists those that are), a parameter is unknown (ditto), of another type, not finite, out of its range or not one of
/// its choices: "outer.momentum is 1.3, must be in [0, 1)".
Result<Part> resolve(const Part& part, std::string_view kind, std::span<const PartInfo> catalogue);

/// The value of a parameter of a resolved part. Asking for one that was not declared so is the rule's own mistake: throws
/// std::out_of_range or std::bad_variant_access. Inline, so that rules in plug-ins need nothing but headers.
inline double number(const Part& part, std::string_view name) {
  return std::get<double>(part.parameters.at(std::string(name)));
}
inline bool flag(const Part& part, std::string_view name) { return std::get<bool>(part.parameters.at(std::string(name))); }
inline const std::string& text(const Part& part, std::string_view name) {
  return std::get<std::string>(part.parameters.at(std::string(name)));
}

}  // namespace skerry::strategies
