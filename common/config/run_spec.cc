#include "common/config/run_spec.h"

#include <set>
#include <utility>

#include <toml++/toml.h>
#include <nlohmann/json.hpp>

#include "common/config/canonical_json.h"
#include "common/config/resolve.h"
#include "common/crypto/sha256.h"
#include "common/model/layout.h"

namespace skerry {
namespace {

using config_internal::at_path;
using config_internal::SpecFile;
using nlohmann::json;

constexpr std::size_t kMaxSpecBytes = 1 << 20;

unsigned line_of(const toml::node& node) { return static_cast<unsigned>(node.source().begin.line); }

Error at_line(const toml::node& node, const std::string& message) {
  return invalid_argument("run spec line " + std::to_string(line_of(node)) + ": " + message);
}

Result<json> to_json(const toml::node& node, const std::string& path) {
  if (const auto* text = node.as_string()) return json(text->get());
  if (const auto* integer = node.as_integer()) return json(integer->get());
  if (const auto* number = node.as_floating_point()) return json(number->get());
  if (const auto* flag = node.as_boolean()) return json(flag->get());
  if (const auto* array = node.as_array()) {
    json out = json::array();
    for (const auto& item : *array) {
      SKERRY_ASSIGN(json value, to_json(item, path));
      out.push_back(std::move(value));
    }
    return out;
  }
  if (const auto* table = node.as_table()) {
    json out = json::object();
    for (const auto& [key, item] : *table) {
      const std::string name(key.str());
      SKERRY_ASSIGN(json value, to_json(item, path + "." + name));
      out[name] = std::move(value);
    }
    return out;
  }
  return at_line(node, path + " is a date or time, which no field takes");
}

Result<void> read_model(const toml::table& table, SpecFile& file) {
  for (const auto& [key, node] : table) {
    const std::string name(key.str());
    SKERRY_ASSIGN(json value, to_json(node, "model." + name));
    if (name == "initial")
      file.fields["model.initial"] = {std::move(value), line_of(node)};
    else
      file.model[name] = std::move(value);
    file.lines["model." + name] = line_of(node);
  }
  return {};
}

Result<void> read_section(const std::string& section, const toml::table& table, SpecFile& file) {
  for (const auto& [key, node] : table) {
    const std::string path = section + "." + std::string(key.str());
    SKERRY_ASSIGN(json value, to_json(node, path));
    if (path == "data.schema") {
      file.schema = std::move(value);
      file.lines[path] = line_of(node);
    } else {
      file.fields[path] = {std::move(value), line_of(node)};
    }
  }
  return {};
}

Result<SpecFile> read_toml(std::string_view text) {
  if (text.size() > kMaxSpecBytes)
    return invalid_argument("run spec: " + std::to_string(text.size()) + " bytes, must be at most 1 MiB");
  toml::table root;
  try {
    root = toml::parse(text);
  } catch (const toml::parse_error& error) {
    return invalid_argument("run spec line " + std::to_string(error.source().begin.line) +
                            ": not TOML: " + std::string(error.description()));
  }
  SpecFile file;
  for (const auto& [key, node] : root) {
    const std::string name(key.str());
    if (const auto* table = node.as_table()) {
      SKERRY_TRY(name == "model" ? read_model(*table, file) : read_section(name, *table, file));
      if (table->empty() && name != "model") file.lines[name] = line_of(node);
    } else {
      SKERRY_ASSIGN(json value, to_json(node, name));
      file.fields[name] = {std::move(value), line_of(node)};
    }
  }
  return file;
}

/// Sections named by strategy parts: a selector and scalar parameters.
struct PartSection {
  const char* section;
  const char* selector;
};
constexpr PartSection kPartSections[] = {{"aggregation", "rule"}, {"outer", "optimizer"}};

Result<SpecPart> read_part(const json& document, const PartSection& place) {
  const std::string section = place.section;
  const json* selector = at_path(document, section + "." + place.selector);
  if (selector == nullptr || !selector->is_string())
    return invalid_argument(section + "." + place.selector + " is missing or not text");
  SpecPart part{selector->get<std::string>(), {}};
  for (const auto& member : document.at(section).items()) {
    if (member.key() == place.selector) continue;
    if (member.value().is_boolean())
      part.parameters[member.key()] = member.value().get<bool>();
    else if (member.value().is_number())
      part.parameters[member.key()] = member.value().get<double>();
    else if (member.value().is_string())
      part.parameters[member.key()] = member.value().get<std::string>();
    else
      return invalid_argument(section + "." + member.key() + " is neither a number, a truth value nor text");
  }
  return part;
}

/// What a document of an earlier version does not say yet has the value it had before there was a choice: the default.
json completed(json document) {
  for (const auto& field : run_spec_fields()) {
    if (std::holds_alternative<std::monostate>(field.fallback) || at_path(document, field.path) != nullptr) continue;
    const auto dot = field.path.find('.');
    json* section = &document;
    if (dot != std::string::npos) {
      section = &document[field.path.substr(0, dot)];
      if (!section->is_null() && !section->is_object()) continue;
    }
    std::visit([&](const auto& value) {
      if constexpr (!std::is_same_v<std::decay_t<decltype(value)>, std::monostate>)
        (*section)[dot == std::string::npos ? field.path : field.path.substr(dot + 1)] = value;
    }, field.fallback);
  }
  if (json& exchange = document["exchange"]; exchange.is_object()) config_internal::resolve_exchange(exchange);
  return document;
}

/// Nothing missing, nothing unknown, every value in its range.
Result<void> check_fields(const json& document) {
  std::set<std::string> known{"data.schema"};
  for (const auto& field : run_spec_fields()) {
    known.insert(field.path);
    const json* value = at_path(document, field.path);
    if (value == nullptr) return invalid_argument(field.path + " is missing");
    SKERRY_TRY(config_internal::checked(field, *value));
  }
  if (at_path(document, "data.schema") == nullptr) return invalid_argument("data.schema is missing");
  for (const auto& section : document.items()) {
    if (!section.value().is_object()) {
      if (known.count(section.key()) == 0) return invalid_argument(section.key() + " is not known");
      continue;
    }
    if (section.key() == "model" || section.key() == "aggregation" || section.key() == "outer") continue;
    for (const auto& member : section.value().items())
      if (known.count(section.key() + "." + member.key()) == 0)
        return invalid_argument(section.key() + "." + member.key() + " is not known");
  }
  return {};
}

/// `said` is the document whose bytes are the run's identity, `document` the same with nothing missing.
Result<RunSpec> typed(const json& document, const json& said) {
  const auto text = [&](const char* section, const char* name) {
    return document.at(section).at(name).get<std::string>();
  };
  const auto number = [&](const char* section, const char* name) {
    return document.at(section).at(name).get<double>();
  };
  const auto texts = [&](const char* section, const char* name) {
    return document.at(section).at(name).get<std::vector<std::string>>();
  };
  const auto whole = [&](const char* section, const char* name) {
    return static_cast<std::uint64_t>(document.at(section).at(name).get<double>());
  };
  RunSpec spec;
  spec.name = document.at("name").get<std::string>();
  spec.purpose = document.at("purpose").get<std::string>();
  spec.strategy = document.at("strategy").get<std::string>();
  spec.seed = static_cast<std::uint64_t>(document.at("seed").get<double>());

  spec.initial_model = document.at("model").at("initial").get<std::string>();
  json model = said.at("model");
  model.erase("initial");
  SKERRY_ASSIGN(spec.model_json, canonical_json(model));
  SKERRY_ASSIGN(spec.data.schema_json, canonical_json(document.at("data").at("schema")));
  spec.data.kind = text("data", "kind");
  spec.data.tokenizer = text("data", "tokenizer");
  spec.data.documents = text("data", "packing") == "documents";
  spec.data.train_split = text("data", "train_split");
  spec.data.minimum_examples = whole("data", "minimum_examples");
  SKERRY_ASSIGN(spec.training_json, canonical_json(said.at("training")));
  spec.training = {whole("training", "steps"), number("training", "epochs"), number("training", "learning_rate"),
                   whole("training", "batch"), number("training", "proximal"),
                   document.at("training").at("control_variates").get<bool>(),
                   document.at("training").at("start_loss").get<bool>(),
                   whole("training", "first_step")};

  spec.participation.mode = text("participation", "mode") == "asynchronous" ? ParticipationSpec::Mode::kAsynchronous
                                                                            : ParticipationSpec::Mode::kSynchronous;
  spec.participation.quorum = whole("participation", "quorum");
  spec.participation.start_nodes = whole("participation", "start_nodes");
  spec.participation.cohort_size = whole("participation", "cohort_size");
  spec.participation.cohort_fraction = number("participation", "cohort_fraction");
  spec.participation.deadline_s = number("participation", "deadline_s");
  spec.participation.grace_s = number("participation", "grace_s");
  spec.participation.reconnect_s = number("participation", "reconnect_s");
  spec.participation.buffer = whole("participation", "buffer");
  spec.participation.maximum_staleness = whole("participation", "maximum_staleness");
  spec.participation.staleness_exponent = number("participation", "staleness_exponent");
  spec.participation.over_selection = number("participation", "over_selection");
  spec.participation.minimum_completion = number("participation", "minimum_completion");
  spec.participation.adaptive_grace = text("participation", "grace") == "adaptive";
  spec.participation.grace_safety = number("participation", "grace_safety");
  spec.participation.required_nodes =
      document.at("participation").at("required_nodes").get<std::vector<std::string>>();
  spec.participation.minimum_separation = whole("participation", "minimum_separation");
  spec.participation.concurrency = whole("participation", "concurrency");
  const std::string work = text("participation", "work");
  spec.participation.work = work == "dylu"         ? ParticipationSpec::Work::kDylu
                            : work == "fedcompass" ? ParticipationSpec::Work::kFedCompass
                                                   : ParticipationSpec::Work::kEqual;
  spec.participation.minimum_steps = whole("participation", "minimum_steps");
  spec.participation.group_patience = number("participation", "group_patience");

  spec.exchange = {
      whole("exchange", "fragments"),
      text("exchange", "pattern"),
      text("exchange", "schedule") == "staggered" ? ExchangeSpec::Schedule::kStaggered : ExchangeSpec::Schedule::kWhole,
      texts("exchange", "personal"),
      texts("exchange", "frozen"),
      texts("exchange", "only"),
      text("exchange", "up"),
      text("exchange", "down"),
      text("exchange", "up_rounding") == "stochastic",
      text("exchange", "down_rounding") == "stochastic",
      number("exchange", "up_feedback"),
      number("exchange", "down_feedback"),
      text("exchange", "compression") == "zstd",
      text("exchange", "late"),
      whole("exchange", "overlap"),
      text("exchange", "merge"),
      number("exchange", "alpha"),
      text("exchange", "on_late") == "block"};
  spec.evaluation = {whole("evaluation", "every"), text("evaluation", "split"), whole("evaluation", "minimum"),
                     number("evaluation", "deadline_s"), document.at("evaluation").at("layer_norms").get<bool>(),
                     whole("evaluation", "keep_every")};
  spec.start = {text("start", "run"), whole("start", "round")};
  spec.stop = {whole("stop", "rounds"), text("stop", "metric"),
               text("stop", "comparison") == "at_most" ? StopSpec::Comparison::kAtMost : StopSpec::Comparison::kAtLeast,
               number("stop", "value")};
  spec.limits = {number("limits", "maximum_update_norm"),
                 document.at("limits").at("metrics").get<std::vector<std::string>>()};
  SKERRY_ASSIGN(spec.aggregation, read_part(document, kPartSections[0]));
  SKERRY_ASSIGN(spec.outer, read_part(document, kPartSections[1]));

  SKERRY_ASSIGN(spec.canonical_json, canonical_json(said));
  spec.hash = sha256_hex(std::string_view(spec.canonical_json));
  return spec;
}

}  // namespace

Result<RunSpec> parse_run_spec(std::string_view toml, const SpecCatalogue& catalogue) {
  SKERRY_ASSIGN(const SpecFile file, read_toml(toml));
  SKERRY_ASSIGN(const json document, config_internal::resolve(file, catalogue));
  return typed(document, document);
}

Result<RunSpec> parse_resolved_spec(std::string_view text) {
  const auto in = [](Error error) { return with_context(std::move(error), "resolved run spec"); };
  if (text.size() > kMaxSpecBytes) return in(invalid_argument("larger than 1 MiB"));
  const json said = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!said.is_object()) return in(invalid_argument("not a JSON object"));
  auto canonical = canonical_json(said);
  if (!canonical.ok()) return in(canonical.error());
  if (*canonical != text) return in(invalid_argument("not in canonical form (RFC 8785), so its hash means nothing"));
  json document = completed(said);
  if (auto fields = check_fields(document); !fields.ok()) return in(fields.error());
  // The parts are read before what holds between fields, so that everything below finds the types it expects.
  for (const auto& place : kPartSections)
    if (auto part = read_part(document, place); !part.ok()) return in(part.error());
  json& model = document.at("model");
  if (!model.is_object()) return in(invalid_argument("model is not an object"));
  const json initial = model.at("initial");
  model.erase("initial");
  auto resolved = resolve_model(model);
  if (!resolved.ok()) return in(resolved.error());
  for (const auto& member : model.items())
    if (resolved->at(member.key()) != member.value())
      return in(invalid_argument("model." + member.key() + " is not as it is resolved"));
  model = std::move(*resolved);
  for (const auto& same : config_internal::kSaidTwice)
    if (*config_internal::at_path(document, same.ours) != model.at(same.member))
      return in(invalid_argument(std::string("model.") + same.member + " and " + same.ours + " differ"));
  model["initial"] = initial;
  if (auto valid = config_internal::check_document(document); !valid.ok()) return in(valid.error());
  return typed(document, said);
}

}  // namespace skerry
