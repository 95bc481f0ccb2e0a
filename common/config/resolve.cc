#include "common/config/resolve.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "common/config/canonical_json.h"
#include "common/model/layout.h"

namespace skerry::config_internal {
namespace {

using nlohmann::json;
using Type = Field::Type;

std::string shown(const json& value) {
  auto text = canonical_json(value);
  return text.ok() ? std::move(text).value() : "not a finite value";
}

/// Before a message about `path`: where the operator finds it.
std::string place(const SpecFile& file, const std::string& path) {
  if (const auto given = file.fields.find(path); given != file.fields.end())
    return "run spec line " + std::to_string(given->second.line) + ": ";
  if (const auto line = file.lines.find(path); line != file.lines.end())
    return "run spec line " + std::to_string(line->second) + ": ";
  return "run spec: ";
}

json to_json(const FieldValue& value, Type type) {
  if (const auto* number = std::get_if<double>(&value))
    return type == Type::kWhole ? json(static_cast<std::int64_t>(*number)) : json(*number);
  if (const auto* flag = std::get_if<bool>(&value)) return *flag;
  if (const auto* text = std::get_if<std::string>(&value)) return *text;
  if (const auto* list = std::get_if<std::vector<std::string>>(&value)) return *list;
  return nullptr;
}

void put(json& document, const std::string& path, json value) {
  const auto dot = path.find('.');
  if (dot == std::string::npos)
    document[path] = std::move(value);
  else
    document[path.substr(0, dot)][path.substr(dot + 1)] = std::move(value);
}

std::size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i);
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t change = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({change, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

std::string listed(const std::vector<std::string>& names) {
  std::string out;
  for (const auto& name : names) out += (out.empty() ? "" : ", ") + name;
  return out;
}

/// What the file says, else what the preset sets.
class Sources {
 public:
  Sources(const SpecFile& file, const SpecCatalogue::Preset& preset) : file_(file), preset_(preset) {}

  /// The value in the field's type; nothing where neither source has it.
  Result<std::optional<json>> find(const Field& field) const {
    if (const auto given = file_.fields.find(field.path); given != file_.fields.end()) {
      auto value = checked(field, given->second.value);
      if (!value.ok()) return with_context(value.error(), "run spec line " + std::to_string(given->second.line));
      return std::optional<json>(std::move(value).value());
    }
    if (const auto set = preset_.fields.find(field.path); set != preset_.fields.end())
      return std::optional<json>(to_json(set->second, field.type));
    return std::optional<json>();
  }

  const SpecFile& file() const { return file_; }
  const SpecCatalogue::Preset& preset() const { return preset_; }

 private:
  const SpecFile& file_;
  const SpecCatalogue::Preset& preset_;
};

Result<const SpecCatalogue::Preset*> find_preset(const SpecFile& file, const SpecCatalogue& catalogue) {
  json name = catalogue.fallback_preset;
  if (const auto given = file.fields.find("strategy"); given != file.fields.end()) name = given->second.value;
  std::vector<std::string> names;
  for (const auto& preset : catalogue.presets) {
    if (name == preset.name) return &preset;
    names.push_back(preset.name);
  }
  return invalid_argument(place(file, "strategy") + "strategy is " + shown(name) + ", must be one of " + listed(names) +
                          (name.is_string() ? suggestion(name.get<std::string>(), names) : ""));
}

/// Writes one part (its selector and every parameter) and remembers the paths it knows.
Result<void> resolve_part(const Sources& sources, const SpecCatalogue::Parts& parts, json& document,
                          std::set<std::string>& known) {
  Field selector{.path = parts.section + "." + parts.selector, .fallback = parts.fallback};
  selector.choices = parts.names;
  SKERRY_ASSIGN(const std::optional<json> found, sources.find(selector));
  const std::string name = found ? found->get<std::string>() : parts.fallback;
  put(document, selector.path, name);
  known.insert(selector.path);

  // A preset's parameters belong to the preset's part: another part starts from its own defaults.
  const auto chosen = sources.preset().fields.find(selector.path);
  const std::string preset_part =
      chosen == sources.preset().fields.end() ? parts.fallback : std::get<std::string>(chosen->second);
  const SpecCatalogue::Preset nothing;
  const Sources own(sources.file(), name == preset_part ? sources.preset() : nothing);
  std::vector<std::string> names;
  for (const auto& parameter : parts.parameters) {
    if (parameter.when != name) continue;
    SKERRY_ASSIGN(const std::optional<json> value, own.find(parameter));
    put(document, parameter.path, value ? *value : to_json(parameter.fallback, parameter.type));
    known.insert(parameter.path);
    names.push_back(parameter.path.substr(parts.section.size() + 1));
  }
  for (const auto& [path, given] : sources.file().fields) {
    if (path.rfind(parts.section + ".", 0) != 0 || known.count(path) != 0) continue;
    return invalid_argument("run spec line " + std::to_string(given.line) + ": " + path + " is not a parameter of " +
                            name + " (it has " + (names.empty() ? "none" : listed(names)) + ")" +
                            suggestion(path.substr(parts.section.size() + 1), names));
  }
  return {};
}

/// Where the file names one of training.steps and training.epochs, the preset's other one gives way.
Result<void> resolve_work(const Sources& sources, json& training) {
  const bool says_steps = sources.file().fields.count("training.steps") != 0;
  const bool says_epochs = sources.file().fields.count("training.epochs") != 0;
  if (says_steps && !says_epochs) training["epochs"] = 0;
  if (says_epochs && !says_steps) training["steps"] = 0;
  if (!training.contains("steps")) training["steps"] = 0;
  if (!training.contains("epochs")) training["epochs"] = 0;
  return {};
}

void resolve_derived(json& document) {
  auto& participation = document["participation"];
  if (!participation.contains("start_nodes"))
    participation["start_nodes"] = participation["mode"] == "asynchronous" ? json(1) : participation["quorum"];

  auto& training = document["training"];
  if (!training.contains("loss")) {
    const auto& schema = document["data"]["schema"];
    const bool regression = schema.is_object() && schema.contains("classes") && schema["classes"] == 0;
    training["loss"] = regression ? "mse" : "cross_entropy";
  }
  if (!training.contains("schedule_steps")) {
    const bool staggered = document["exchange"]["schedule"] == "staggered";
    const double lanes = staggered ? document["exchange"]["fragments"].get<double>() : 1.0;
    const double total = training["first_step"].get<double>() +
                         document["stop"]["rounds"].get<double>() * lanes * training["steps"].get<double>();
    training["schedule_steps"] = training["schedule"] == "constant" ? 0 : static_cast<std::int64_t>(total);
  }
  if (!training.contains("decay_steps")) {
    const auto steps = training["schedule_steps"].get<std::int64_t>();
    training["decay_steps"] = training["schedule"] == "wsd" ? std::max<std::int64_t>(1, steps / 10) : 0;
  }
  // An outer schedule is over a fragment's exchanges.
  auto& outer = document["outer"];
  if (outer.value("schedule_steps", json()) == 0 && (outer["schedule"] == "linear" || outer["schedule"] == "cosine"))
    outer["schedule_steps"] = document["stop"]["rounds"];
}

Result<void> check_unknown(const SpecFile& file, const std::set<std::string>& known) {
  for (const auto& [path, given] : file.fields) {
    if (known.count(path) != 0) continue;
    return invalid_argument("run spec line " + std::to_string(given.line) + ": " + path + " is not known" +
                            suggestion(path, {known.begin(), known.end()}));
  }
  return {};
}

Result<void> check_schema(const json& data) {
  const std::string kind = data.at("kind").get<std::string>();
  const json& schema = data.at("schema");
  if (!schema.is_object()) return invalid_argument("data.schema is " + shown(schema) + ", must be a table");
  const auto whole_from = [](const json& value, std::int64_t least) {
    return value.is_number_integer() && value.get<std::int64_t>() >= least;
  };
  std::vector<std::string> members;
  if (kind == "text") {
    members = {"encoding"};
    if (schema.value("encoding", json()) != "bytes")
      return invalid_argument("data.schema.encoding is " + shown(schema.value("encoding", json())) +
                              ", must be \"bytes\"");
  } else {
    members = kind == "idx" ? std::vector<std::string>{"shape", "classes"}
                            : std::vector<std::string>{"features", "label", "classes"};
    const json classes = schema.value("classes", json());
    const std::int64_t least = kind == "idx" ? 2 : 0;
    if (!whole_from(classes, least) || classes == 1)
      return invalid_argument("data.schema.classes is " + shown(classes) + ", must be a whole number of at least 2" +
                              (least == 0 ? ", or 0 for regression" : ""));
    const char* list = kind == "idx" ? "shape" : "features";
    const json items = schema.value(list, json());
    bool right = items.is_array() && !items.empty() && items.size() <= 100000;
    for (std::size_t i = 0; right && i < items.size(); ++i)
      right = kind == "idx" ? whole_from(items[i], 1) : items[i].is_string();
    if (!right)
      return invalid_argument("data.schema." + std::string(list) + " is " + shown(items) + ", must be a list of " +
                              (kind == "idx" ? "sizes, for example [1, 28, 28]" : "column names"));
    if (kind == "csv" && !schema.value("label", json()).is_string())
      return invalid_argument("data.schema.label is missing; name the column to predict");
  }
  for (const auto& member : schema.items())
    if (std::find(members.begin(), members.end(), member.key()) == members.end())
      return invalid_argument("data.schema." + member.key() + " is not known for kind " + kind +
                              suggestion(member.key(), members));
  return {};
}

bool is_content_id(const std::string& text) {
  return text.size() == 67 && text.rfind("b2-", 0) == 0 &&
         text.find_first_not_of("0123456789abcdef", 3) == std::string::npos;
}

/// What holds between the fields of [participation] that say who works when and how much.
Result<void> check_participation(const json& participation, const json& document) {
  const auto number = [&](const char* name) { return participation.at(name).get<double>(); };
  const auto refused = [&](const char* name, const std::string& why) {
    return invalid_argument("participation." + std::string(name) + " is " + shown(participation.at(name)) + why);
  };
  const bool asynchronous = participation.at("mode") == "asynchronous";
  const bool drawn = number("cohort_size") > 0 || number("cohort_fraction") < 1;
  const bool by_speed = participation.at("work") != "equal";
  const double steps = document.at("training").at("steps").get<double>();

  const std::string no_rounds = ", but participation.mode is asynchronous: no exchange is waited for there";
  if (asynchronous && number("over_selection") > 1) return refused("over_selection", no_rounds);
  if (asynchronous && number("minimum_completion") > 0) return refused("minimum_completion", no_rounds);
  const bool grace = participation.at("grace") == "adaptive" || number("grace_s") > 0;
  if (asynchronous && grace && (participation.at("work") == "fedcompass" || number("minimum_separation") > 1))
    return refused(participation.at("grace") == "adaptive" ? "grace" : "grace_s",
                   ", but with participation.work fedcompass or minimum_separation an asynchronous exchange knows which "
                   "updates it is made of: leave the grace window out");
  if (!asynchronous && number("concurrency") > 0)
    return refused("concurrency", ", but participation.mode is synchronous: set cohort_size");
  if (number("over_selection") > 1 && !drawn)
    return refused("over_selection", ", but every ready node is invited: set cohort_size or cohort_fraction");
  if (number("over_selection") > 1 && number("minimum_completion") > 0)
    return refused("minimum_completion", ", but with over_selection some of the invited never count: set one of the two");
  if (number("minimum_completion") > 0 && number("deadline_s") == 0)
    return refused("minimum_completion", ", but without a deadline_s no exchange is given up");
  if (number("minimum_separation") > 1 && !asynchronous && !drawn)
    return refused("minimum_separation",
                   ", but every ready node is invited each time: set cohort_size or cohort_fraction");
  if (number("minimum_separation") > 1 && asynchronous &&
      (participation.at("work") == "fedcompass" || document.at("exchange").at("schedule") != "whole"))
    return refused("minimum_separation",
                   ", which participation.mode asynchronous can keep with exchange.schedule whole and work equal or "
                   "dylu only");
  if (number("minimum_separation") > 1 && !participation.at("required_nodes").empty())
    return refused("minimum_separation", ", but participation.required_nodes must take part in every exchange");
  for (const auto& name : participation.at("required_nodes"))
    if (name.get_ref<const std::string&>().empty())
      return refused("required_nodes", ", must not hold an empty name");
  if (by_speed && steps == 0)
    return refused("work", ", but training.steps is 0: only steps can be dealt out by speed");
  if (by_speed && number("minimum_steps") > steps)
    return refused("minimum_steps", ", must be at most training.steps (" + canonical_number(steps) + ")");
  if (participation.at("work") == "fedcompass" && !asynchronous)
    return refused("work", ", which needs participation.mode asynchronous; rounds may say dylu");
  if (participation.at("work") == "fedcompass" && document.at("exchange").at("schedule") != "whole")
    return refused("work", ", which needs exchange.schedule whole");
  return {};
}

/// Nothing is lost by f32, so there is nothing to feed back, and nothing to round.
Result<void> check_encodings(const json& exchange) {
  for (const std::string way : {"up", "down"}) {
    if (exchange.at(way) != "f32") continue;
    const auto refused = [&](const std::string& member) {
      return invalid_argument("exchange." + member + " is " + shown(exchange.at(member)) + ", but exchange." + way +
                              " is \"f32\", which loses nothing");
    };
    if (exchange.at(way + "_feedback") != 0.0) return refused(way + "_feedback");
    if (exchange.at(way + "_rounding") != "nearest") return refused(way + "_rounding");
  }
  return {};
}

/// Tokens are a text's.
Result<void> check_tokens(const json& data) {
  const auto tokenizer = data.at("tokenizer").get<std::string>();
  if (tokenizer != "bytes" && !is_content_id(tokenizer))
    return invalid_argument("data.tokenizer is " + shown(tokenizer) +
                            ", must be \"bytes\" or a content id: b2- and 64 hexadecimal digits");
  if (data.at("kind") == "text") return {};
  for (const auto& [member, usual] : {std::pair{"tokenizer", "bytes"}, std::pair{"packing", "stream"}})
    if (data.at(member) != usual)
      return invalid_argument(std::string("data.") + member + " is " + shown(data.at(member)) + ", but data.kind " +
                              shown(data.at("kind")) + " has no tokens");
  return {};
}

/// What the client objectives need of the other sections.
Result<void> check_objectives(const json& document) {
  const json& training = document.at("training");
  const json& metrics = document.at("limits").at("metrics");
  if (training.at("start_loss") == true && std::find(metrics.begin(), metrics.end(), "start_loss") == metrics.end())
    return invalid_argument("training.start_loss is true, but limits.metrics " + shown(metrics) +
                            " does not have \"start_loss\"");
  if (training.at("control_variates") != true) return {};
  // A control variate is the mean gradient of a task, found as its change over its learning rates (SCAFFOLD's option II).
  const auto needs = [&](const char* path, const json& value) -> Result<void> {
    const json& found = *at_path(document, path);
    if (found == value) return {};
    return invalid_argument(std::string(path) + " is " + shown(found) + ", must be " + shown(value) +
                            " with training.control_variates");
  };
  SKERRY_TRY(needs("training.optimizer", "sgd"));
  SKERRY_TRY(needs("training.momentum", 0.0));
  SKERRY_TRY(needs("participation.mode", "synchronous"));
  return needs("exchange.schedule", "whole");
}

/// The resolved model section under the spec's own names for fragments.
Result<json> resolved_model(const json& document) {
  json model = document.at("model");
  model.erase("initial");
  auto resolved = resolve_model(model);
  if (resolved.ok()) return resolved;
  Error error = std::move(resolved).error();
  for (const auto& [member, ours] : kSaidTwice) {
    const std::string theirs = std::string("model.") + member;
    for (auto at = error.message.find(theirs); at != std::string::npos; at = error.message.find(theirs, at + 1))
      error.message.replace(at, theirs.size(), ours);
  }
  return error;
}

/// An error whose message begins with a path, with the line of that path before it.
Error placed(Error error, const SpecFile& file) {
  const std::string path = error.message.substr(0, error.message.find_first_of(" ,:("));
  std::string prefix = place(file, path);
  if (prefix == "run spec: " && path.rfind("data.schema", 0) == 0) prefix = place(file, "data.schema");
  error.message = prefix + error.message;
  return error;
}

}  // namespace

std::string suggestion(const std::string& wrong, const std::vector<std::string>& names) {
  std::size_t best = std::max<std::size_t>(2, wrong.size() / 3) + 1;
  std::string nearest;
  const auto own_name = [](const std::string& path) { return path.substr(path.find('.') + 1); };
  for (const auto& name : names) {
    // The right key in the wrong section is near, too.
    const std::size_t distance = own_name(name) == own_name(wrong) ? 1 : edit_distance(wrong, name);
    if (distance < best) {
      best = distance;
      nearest = name;
    }
  }
  return nearest.empty() ? "" : "; did you mean " + nearest + "?";
}

const json* at_path(const json& document, const std::string& path) {
  const auto dot = path.find('.');
  const auto first = document.find(path.substr(0, dot));
  if (first == document.end()) return nullptr;
  if (dot == std::string::npos) return &*first;
  if (!first->is_object()) return nullptr;
  const auto second = first->find(path.substr(dot + 1));
  return second == first->end() ? nullptr : &*second;
}

Result<json> checked(const Field& field, const json& value) {
  const auto wrong = [&](const std::string& must) {
    return invalid_argument(field.path + " is " + shown(value) + ", must be " + must);
  };
  switch (field.type) {
    case Type::kBoolean:
      if (!value.is_boolean()) return wrong("true or false");
      return value;
    case Type::kText: {
      if (!value.is_string()) return wrong("text");
      if (value.get_ref<const std::string&>().size() > 1000) return wrong("at most 1000 bytes");
      if (!field.choices.empty() && std::find(field.choices.begin(), field.choices.end(), value) == field.choices.end())
        return wrong(field.choices.size() == 1 ? "\"" + field.choices[0] + "\"" : "one of " + listed(field.choices));
      return value;
    }
    case Type::kTexts: {
      if (!value.is_array() || value.size() > 1000) return wrong("a list of texts");
      for (const auto& item : value)
        if (!item.is_string()) return wrong("a list of texts");
      return value;
    }
    case Type::kWhole:
    case Type::kNumber:
      break;
  }
  constexpr double kNoLimit = std::numeric_limits<double>::max();
  std::string range;
  if (field.maximum < kNoLimit) {
    range = std::string(" in ") + (field.above_minimum ? "(" : "[") + canonical_number(field.minimum) + ", " +
            canonical_number(field.maximum) + (field.below_maximum ? ")" : "]");
  } else if (field.minimum > -kNoLimit) {
    range = (field.above_minimum ? " above " : " of at least ") + canonical_number(field.minimum);
  }
  const std::string must = (field.type == Type::kWhole ? "a whole number" : "a number") + range;
  if (!value.is_number()) return wrong(must);
  const double number = value.get<double>();
  const bool inside = std::isfinite(number) &&
                      (field.above_minimum ? number > field.minimum : number >= field.minimum) &&
                      (field.below_maximum ? number < field.maximum : number <= field.maximum);
  if (!inside) return wrong(field.type == Type::kNumber && field.maximum < kNoLimit ? range.substr(1) : must);
  if (field.type == Type::kNumber) return json(number);
  if (number != std::floor(number)) return wrong(must);
  return json(static_cast<std::int64_t>(number));
}

// A run that continues another one: its rounds, seeds and schedule go on where those of the other stood.
Result<void> check_start(const json& document) {
  const auto number = [](const json& section, const char* name) { return section.at(name).get<double>(); };
  const auto& start = document.at("start");
  const bool named = !start.at("run").get<std::string>().empty();
  if (!named && number(start, "round") > 0)
    return invalid_argument("start.round is " + shown(start.at("round")) + ", but start.run names no run");
  if (!named) return {};
  if (number(start, "round") >= number(document.at("stop"), "rounds"))
    return invalid_argument("start.round is " + shown(start.at("round")) + ", must be below stop.rounds (" +
                            shown(document.at("stop").at("rounds")) + "), which counts the rounds before it too");
  if (document.at("participation").at("mode") == "asynchronous")
    return invalid_argument("start.run is " + shown(start.at("run")) +
                            ", but an asynchronous run has no round that another one could go on from");
  if (number(document.at("training"), "steps") == 0)
    return invalid_argument("start.run is " + shown(start.at("run")) +
                            ", but training.epochs counts: only training.steps say where the schedule stands");
  if (!document.at("model").at("initial").get<std::string>().empty())
    return invalid_argument("model.initial and start.run both say where the model comes from: keep one");
  return {};
}

Result<void> check_document(const json& document) {
  const auto& participation = document.at("participation");
  const auto& training = document.at("training");
  const auto& stop = document.at("stop");
  const auto number = [](const json& section, const char* name) { return section.at(name).get<double>(); };

  const std::string name = document.at("name").get<std::string>();
  if (name.empty() || name.size() > 100)
    return invalid_argument("name is " + shown(name) + ", must have 1 to 100 characters");
  for (const char c : name)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F)
      return invalid_argument("name is " + shown(name) + ", must be printable");
  if ((number(training, "steps") > 0) == (number(training, "epochs") > 0))
    return invalid_argument("training.steps is " + shown(training.at("steps")) + " and training.epochs is " +
                            shown(training.at("epochs")) + ", exactly one of them must be above 0");
  if (training.at("schedule") != "constant" && number(training, "schedule_steps") <= number(training, "warmup_steps"))
    return invalid_argument("training.schedule_steps is " + shown(training.at("schedule_steps")) +
                            ", must be above training.warmup_steps (" + shown(training.at("warmup_steps")) +
                            ") for schedule " + training.at("schedule").get<std::string>());
  if (training.at("schedule") == "wsd" && (number(training, "decay_steps") == 0 ||
                                           number(training, "decay_steps") > number(training, "schedule_steps")))
    return invalid_argument("training.decay_steps is " + shown(training.at("decay_steps")) +
                            ", must be 1 … training.schedule_steps (" + shown(training.at("schedule_steps")) +
                            ") for schedule wsd");
  if (number(training, "accumulate") > number(training, "batch"))
    return invalid_argument("training.accumulate is " + shown(training.at("accumulate")) +
                            ", must be at most training.batch (" + shown(training.at("batch")) + ")");
  if (number(participation, "start_nodes") < number(participation, "quorum") &&
      participation.at("mode") == "synchronous")
    return invalid_argument("participation.start_nodes is " + shown(participation.at("start_nodes")) +
                            ", must be at least participation.quorum (" + shown(participation.at("quorum")) + ")");
  if (const double size = number(participation, "cohort_size"); size > 0 && size < number(participation, "quorum"))
    return invalid_argument("participation.cohort_size is " + shown(participation.at("cohort_size")) +
                            ", must be 0 or at least participation.quorum (" + shown(participation.at("quorum")) + ")");
  if (const double grace = number(participation, "grace_s"); grace < 0 && grace != -1)
    return invalid_argument("participation.grace_s is " + shown(participation.at("grace_s")) +
                            ", must be -1 or at least 0");
  SKERRY_TRY(check_participation(participation, document));
  SKERRY_TRY(check_encodings(document.at("exchange")));
  SKERRY_TRY(check_objectives(document));
  if (!stop.at("metric").get<std::string>().empty()) {
    if (number(document.at("evaluation"), "every") == 0)
      return invalid_argument("stop.metric is " + shown(stop.at("metric")) +
                              ", but evaluation.every is 0: nothing is measured");
    const auto& metrics = document.at("limits").at("metrics");
    if (std::find(metrics.begin(), metrics.end(), stop.at("metric")) == metrics.end())
      return invalid_argument("stop.metric is " + shown(stop.at("metric")) + ", must be one of limits.metrics " +
                              shown(metrics));
  }
  SKERRY_TRY(check_start(document));
  if (const auto initial = document.at("model").at("initial").get<std::string>();
      !initial.empty() && !is_content_id(initial))
    return invalid_argument("model.initial is " + shown(initial) +
                            ", must be a content id: b2- and 64 hexadecimal digits");
  SKERRY_TRY(check_schema(document.at("data")));
  SKERRY_TRY(check_tokens(document.at("data")));
  SKERRY_ASSIGN(const json model, resolved_model(document));
  const bool reads_text = document.at("data").at("kind") == "text";
  if (reads_text != is_text_model(model.at("architecture").get<std::string>()))
    return invalid_argument("data.kind is " + shown(document.at("data").at("kind")) + ", but model.architecture " +
                            shown(model.at("architecture")) +
                            (reads_text ? " does not read text" : " reads text only"));
  return {};
}

void resolve_exchange(json& exchange) {
  for (const char* way : {"up", "down"}) {
    const std::string member = std::string(way) + "_feedback";
    if (exchange.contains(member)) continue;
    const json encoding = exchange.value(way, json());
    exchange[member] = encoding == "topk2" ? 0.95 : encoding == "sign" ? 1.0 : 0.0;
  }
  const json merge = exchange.value("merge", json());
  if (!exchange.contains("alpha")) exchange["alpha"] = merge == "lerp" ? 0.5 : merge == "eager" ? 1.0 : 0.0;
}

Result<json> resolve(const SpecFile& file, const SpecCatalogue& catalogue) {
  SKERRY_ASSIGN(const auto* preset, find_preset(file, catalogue));
  const Sources sources(file, *preset);
  json document = json::object();
  document["strategy"] = preset->name;
  std::set<std::string> known;
  for (const auto& field : run_spec_fields()) {
    known.insert(field.path);
    if (field.path == "strategy") continue;
    SKERRY_ASSIGN(const std::optional<json> value, sources.find(field));
    if (value) {
      put(document, field.path, *value);
    } else if (field.absent.empty()) {
      put(document, field.path, to_json(field.fallback, field.type));
    } else if (field.absent == "required") {
      return invalid_argument("run spec: " + field.path + " is missing (" + field.meaning + "); add it" +
                              (field.path.find('.') == std::string::npos
                                   ? std::string()
                                   : " under [" + field.path.substr(0, field.path.find('.')) + "]"));
    }
  }
  for (const auto& parts : catalogue.parts) SKERRY_TRY(resolve_part(sources, parts, document, known));
  SKERRY_TRY(check_unknown(file, known));

  document["data"]["schema"] = file.schema;
  if (file.schema.is_null()) {
    if (document["data"]["kind"] != "text")
      return invalid_argument("run spec: data.schema is missing; describe the " +
                              document["data"]["kind"].get<std::string>() + " data under [data.schema]");
    document["data"]["schema"] = {{"encoding", "bytes"}};
  }
  SKERRY_TRY(resolve_work(sources, document["training"]));
  resolve_derived(document);

  for (const auto& [member, ours] : kSaidTwice)
    if (file.model.contains(member))
      return invalid_argument(place(file, std::string("model.") + member) + "model." + member + " is said as " + ours);
  for (const auto& member : file.model.items()) document["model"][member.key()] = member.value();
  if (!document["exchange"].contains("pattern")) {
    const json architecture = document["model"].value("architecture", json());
    const bool text = architecture.is_string() && is_text_model(architecture.get<std::string>());
    document["exchange"]["pattern"] = text ? "strided" : "sequential";
  }
  resolve_exchange(document["exchange"]);
  for (const auto& [member, ours] : kSaidTwice) document["model"][member] = *at_path(document, ours);
  auto valid = check_document(document);
  if (!valid.ok()) return placed(valid.error(), file);
  SKERRY_ASSIGN(json model, resolved_model(document));
  model["initial"] = document["model"]["initial"];
  document["model"] = std::move(model);
  return document;
}

}  // namespace skerry::config_internal
