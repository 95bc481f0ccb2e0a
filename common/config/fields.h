// The fields of a run spec as one table: it drives parsing, validation, the resolved document and the reference.
#pragma once

#include <limits>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace skerry {

/// A field's value in a table: nothing (required, or worked out from other fields), or a value of the field's type.
using FieldValue = std::variant<std::monostate, double, bool, std::string, std::vector<std::string>>;

/// One field: `section.name`, or `name` alone at the top.
struct Field {
  enum class Type { kWhole, kNumber, kBoolean, kText, kTexts };

  std::string path;
  Type type = Type::kText;
  FieldValue fallback = {};  ///< monostate: `absent` says what happens
  std::string absent = {};   ///< "required", or how the default follows from other fields; for the reference
  double minimum = 0;        ///< numbers: from here …
  double maximum = std::numeric_limits<double>::max();  ///< … to here (max(): no upper bound),
  bool above_minimum = false;                           ///< … without the minimum itself,
  bool below_maximum = false;                           ///< … without the maximum itself
  std::vector<std::string> choices = {};                ///< texts: the values allowed; empty: any
  std::string meaning = {};                             ///< one line
  std::string when = {};  ///< a part's parameter: the part it belongs to; empty: always there
};

/// What lies above this library: the presets and the parts of strategies.
struct SpecCatalogue {
  /// A preset is the fields it sets, by path. It may set any field.
  struct Preset {
    std::string name;
    std::string meaning;  ///< one line with its source
    std::map<std::string, FieldValue> fields;
  };
  /// The parts of one section. `section` + "." + `selector` is the field that names the part.
  struct Parts {
    std::string section;   ///< "outer", "aggregation"
    std::string selector;  ///< "optimizer", "rule"
    std::string fallback;  ///< the part where nothing names one
    std::vector<std::string> names;
    std::vector<Field> parameters;  ///< `when` names the part; the same path may stand for several parts
  };
  std::vector<Preset> presets;
  std::vector<Parts> parts;
  std::string fallback_preset;  ///< where the file names no strategy
};

/// The fields that every run spec has, in the order of the reference. The sections `model` and `data.schema` are not in
/// it: they are open tables with their own documents.
std::span<const Field> run_spec_fields();

/// The values that a field takes, in Markdown: "`sgd`, `adam`" or "whole number ≥ 0, ≤ 100".
std::string allowed_values(const Field& field);

/// The reference tables in Markdown, one a section, as docs/run-spec.md holds them between its markers.
std::string run_spec_reference(const SpecCatalogue& catalogue);

}  // namespace skerry
