// From what a file says to the resolved document: the table of fields at work. Internal to common/config.
#pragma once

#include <map>
#include <string>

#include <nlohmann/json.hpp>

#include "common/base/result.h"
#include "common/config/fields.h"

namespace skerry::config_internal {

/// A TOML file, flattened.
struct SpecFile {
  struct Given {
    nlohmann::json value;
    unsigned line = 0;
  };
  std::map<std::string, Given> fields;              ///< by path
  nlohmann::json model = nlohmann::json::object();  ///< without `initial`
  nlohmann::json schema;                            ///< null: not given
  std::map<std::string, unsigned> lines;            ///< of members of `model` ("model.layers") and of "data.schema"
};

/// Members of the resolved model section that a file says elsewhere: the layout follows from the model section alone.
struct SaidTwice {
  const char* member;
  const char* ours;
};
inline constexpr SaidTwice kSaidTwice[] = {{"fragment_pattern", "exchange.pattern"},
                                           {"fragments", "exchange.fragments"},
                                           {"personal", "exchange.personal"},
                                           {"frozen", "exchange.frozen"},
                                           {"only", "exchange.only"},
                                           {"control", "training.control_variates"}};

/// The document with all defaults written out. Errors name line and path.
Result<nlohmann::json> resolve(const SpecFile& file, const SpecCatalogue& catalogue);

/// The value in its field's type, or what is wrong with it: "outer.momentum is 1.3, must be in [0, 1)".
Result<nlohmann::json> checked(const Field& field, const nlohmann::json& value);

/// What holds between fields, and the model and schema sections, of a document whose fields are checked one by one.
/// Messages begin with the path at fault.
Result<void> check_document(const nlohmann::json& document);

/// What [exchange] does not say and other fields of it decide: error feedback of each direction (what the encoding's
/// paper has), and the merge rule's alpha.
void resolve_exchange(nlohmann::json& exchange);

/// The member of a document at "section.name" or "name"; nullptr where there is none.
const nlohmann::json* at_path(const nlohmann::json& document, const std::string& path);

/// ", did you mean X?" for the nearest of the names, empty where none is near.
std::string suggestion(const std::string& wrong, const std::vector<std::string>& names);

}  // namespace skerry::config_internal
