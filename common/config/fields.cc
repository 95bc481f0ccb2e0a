#include "common/config/fields.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "common/codec/encoding.h"
#include "common/config/canonical_json.h"

namespace skerry {
namespace {

using Type = Field::Type;

constexpr double kLargestSeed = 9007199254740991;  // 2^53 − 1: exact in every JSON reader
constexpr double kOneWeek = 604800;

Field whole(std::string path, FieldValue fallback, double minimum, double maximum, std::string meaning) {
  Field field{.path = std::move(path), .type = Type::kWhole, .fallback = std::move(fallback)};
  field.minimum = minimum;
  field.maximum = maximum;
  field.meaning = std::move(meaning);
  return field;
}

Field number(std::string path, FieldValue fallback, double minimum, double maximum, std::string meaning) {
  Field field = whole(std::move(path), std::move(fallback), minimum, maximum, std::move(meaning));
  field.type = Type::kNumber;
  return field;
}

Field boolean(std::string path, bool fallback, std::string meaning) {
  Field field{.path = std::move(path), .type = Type::kBoolean, .fallback = fallback};
  field.meaning = std::move(meaning);
  return field;
}

Field text(std::string path, FieldValue fallback, std::vector<std::string> choices, std::string meaning) {
  Field field{.path = std::move(path), .type = Type::kText, .fallback = std::move(fallback)};
  field.choices = std::move(choices);
  field.meaning = std::move(meaning);
  return field;
}

Field texts(std::string path, std::string meaning) {
  Field field{.path = std::move(path), .type = Type::kTexts, .fallback = std::vector<std::string>{}};
  field.meaning = std::move(meaning);
  return field;
}

Field absent(Field field, std::string why) {
  field.fallback = std::monostate{};
  field.absent = std::move(why);
  return field;
}

Field above(Field field) {
  field.above_minimum = true;
  return field;
}

Field below(Field field) {
  field.below_maximum = true;
  return field;
}

FieldValue words(const char* value) { return std::string(value); }

std::vector<std::string> encodings() {
  std::vector<std::string> names;
  for (const auto name : known_encodings()) names.emplace_back(name);
  return names;
}

std::vector<Field> make_fields() {
  constexpr double kNoLimit = std::numeric_limits<double>::max();
  const FieldValue none;
  Field metrics{.path = "limits.metrics", .type = Type::kTexts};
  metrics.fallback = std::vector<std::string>{"accuracy", "bits_per_byte", "loss", "nats_per_byte", "perplexity", "train_loss"};
  metrics.meaning = "names of the metrics that a node may report";
  return {
      whole("spec_version", 1.0, 1, 1, "version of this format"),
      absent(text("name", none, {}, "what people call the run; 1 to 100 characters"), "required"),
      text("purpose", words(""), {}, "what the run is for; holders' policies may demand certain purposes"),
      absent(text("strategy", none, {}, "the preset that fills what the file leaves out"), "`fedavg`"),
      whole("seed", 1.0, 0, kLargestSeed, "every random draw of the run follows from it"),

      text("model.initial", words(""), {},
           "content id of an uploaded model to start from; empty: the architecture's initialisers"),

      absent(text("data.kind", none, {"text", "idx", "csv"}, "kind of data set"), "required"),
      text("data.tokenizer", words("bytes"), {},
           "text: `bytes`, or the content id of an uploaded SentencePiece model, which then ships with the run"),
      text("data.packing", words("stream"), {"stream", "documents"},
           "text: windows over everything, documents one after another, or at most one document a window"),
      text("data.train_split", words("train"), {}, "split that is trained on"),
      whole("data.minimum_examples", 1.0, 1, kLargestSeed, "a holder with fewer examples to train on takes no part"),

      absent(whole("training.steps", none, 0, 1e9, "inner steps a task; 0: `epochs` counts"),
             "0 where `epochs` is given"),
      absent(number("training.epochs", none, 0, 1e6, "passes over the training split a task; 0: `steps` counts"),
             "0 where `steps` is given"),
      text("training.optimizer", words("adamw"), {"sgd", "adam", "adamw"}, "inner optimizer"),
      absent(above(number("training.learning_rate", none, 0, 1e6, "peak learning rate")), "required"),
      below(number("training.momentum", 0.0, 0, 1, "sgd")),
      boolean("training.nesterov", false, "sgd"),
      below(number("training.beta1", 0.9, 0, 1, "adam, adamw")),
      below(number("training.beta2", 0.999, 0, 1, "adam, adamw")),
      above(number("training.epsilon", 1e-8, 0, 1, "adam, adamw")),
      number("training.weight_decay", 0.0, 0, 1e3, "sgd, adam: L2; adamw: decoupled"),
      text("training.schedule", words("constant"), {"constant", "linear", "cosine", "wsd"},
           "learning rate from its peak to `final_fraction` of it over `schedule_steps`; wsd: in the last `decay_steps` "
           "of them"),
      absent(whole("training.schedule_steps", none, 0, 1e12, "length of the schedule in inner steps"),
             "constant: 0; else `first_step` and the run's inner steps"),
      absent(whole("training.decay_steps", none, 0, 1e12, "wsd: steps of the fall at the schedule's end"),
             "wsd: a tenth of `schedule_steps`, else 0"),
      whole("training.warmup_steps", 0.0, 0, 1e12, "steps of linear warm-up before the schedule"),
      whole("training.first_step", 0.0, 0, 1e12,
            "position in the schedule where the run begins: the steps that `model.initial` has had"),
      number("training.final_fraction", 0.0, 0, 1, "of the peak, at the schedule's end"),
      number("training.clip_norm", 0.0, 0, kNoLimit, "global L2 norm of the gradient; 0: off"),
      whole("training.batch", 32.0, 1, 1e7, "examples a step"),
      whole("training.accumulate", 1.0, 1, 1 << 20,
            "parts of a batch that are computed one after another: the same step in less memory; at most `batch`"),
      text("training.precision", words("f32"), {"f32", "bf16"},
           "of a text model's matrix products; parameters and optimizer are f32"),
      boolean("training.activation_checkpointing", false,
              "text models: keep one activation a layer and compute the others again; less memory, more time"),
      number("training.z_loss", 0.0, 0, 1e6,
             "text models: coefficient of the mean of (log Σ exp logits)², added to what is minimised; 0: off"),
      absent(text("training.loss", none, {"cross_entropy", "mse"}, "what is minimised"),
             "`mse` where data.schema.classes is 0, else `cross_entropy`"),
      text("training.order", words("task"), {"task", "run"},
           "each task draws an order of its examples, or one order over the run, in which a task goes on where the one before ended"),
      text("training.optimizer_state", words("keep"), {"keep", "reset"}, "the inner optimizer's state between tasks"),
      number("training.proximal", 0.0, 0, kNoLimit,
             "FedProx's μ: the loss gets μ/2 · ‖w − received w‖² over the exchanged tensors; 0: off"),
      boolean("training.control_variates", false,
              "SCAFFOLD: each node corrects its gradients by control variates, which travel with the model"),
      boolean("training.start_loss", false,
              "the trainer also reports `start_loss`: the mean loss over the training split before the task's first step"),

      text("participation.mode", words("synchronous"), {"synchronous", "asynchronous"},
           "rounds that all nodes share, or every node on its own clock"),
      whole("participation.quorum", 1.0, 1, 1e6, "synchronous: fewest updates an exchange is committed with"),
      absent(
          whole("participation.start_nodes", none, 1, 1e6, "nodes that must be ready before the first exchange opens"),
          "the quorum; asynchronous: 1"),
      whole("participation.cohort_size", 0.0, 0, 1e6,
            "synchronous: nodes drawn for each exchange; 0: `cohort_fraction`"),
      above(number("participation.cohort_fraction", 1.0, 0, 1,
                   "synchronous: share of the ready nodes drawn for each exchange")),
      number("participation.over_selection", 1.0, 1, 100,
             "synchronous: so many times as many nodes as the cohort are invited; the first of them are enough"),
      texts("participation.required_nodes", "nodes that are always invited and without which nothing is committed"),
      whole("participation.minimum_separation", 1.0, 1, 1e6,
            "exchanges from one that a node took part in to the next it may; 1: every one"),
      number("participation.minimum_completion", 0.0, 0, 1,
             "synchronous: share of the invited nodes below which an exchange is void at its deadline; 0: never void"),
      number("participation.deadline_s", 3600.0, 0, kOneWeek,
             "seconds for an exchange (asynchronous: for a task); below the quorum it begins again; 0: none"),
      number("participation.grace_s", -1.0, -1, kOneWeek,
             "seconds from the quorum (asynchronous: the buffer) to the commit; -1: all are waited for until the deadline "
             "(asynchronous: none)"),
      text("participation.grace", words("fixed"), {"fixed", "adaptive"},
           "`grace_s` to the second, or as long as those who are nearly done need, at most `grace_s`"),
      above(number("participation.grace_safety", 0.5, 0, 10,
                   "adaptive grace: at most so many times what the quorum took; with `exchange.overlap`, so many times how "
                   "long those who are done still train on by themselves")),
      number("participation.reconnect_s", 30.0, 0, kOneWeek, "seconds that a node which went away is waited for"),
      whole("participation.buffer", 4.0, 1, 1e6, "asynchronous: fewest updates an exchange is committed with"),
      whole("participation.maximum_staleness", 10.0, 0, 1e6, "asynchronous: an older update is discarded"),
      number("participation.staleness_exponent", 0.5, 0, 10,
             "asynchronous: an update counts (1 + staleness)^-exponent of its weight"),
      whole("participation.concurrency", 0.0, 0, 1e6,
            "asynchronous: nodes that train at once, drawn from those that are ready; 0: all"),
      text("participation.work", words("equal"), {"equal", "dylu", "fedcompass"},
           "inner steps of a task: the same for all, or by each node's measured speed"),
      whole("participation.minimum_steps", 1.0, 1, 1e9,
            "dylu, fedcompass: fewest inner steps of a task; `training.steps` is the most"),
      number("participation.group_patience", 1.2, 1, 100,
             "fedcompass: a group is waited for so many times the time that was expected of it"),

      whole("exchange.fragments", 1.0, 1, 1e4, "parts the model is cut into"),
      absent(text("exchange.pattern", none, {"strided", "sequential"}, "how layers are dealt to fragments"),
             "`strided` for a transformer, else `sequential`"),
      text("exchange.schedule", words("whole"), {"whole", "staggered"},
           "all fragments in every exchange, or one after another"),
      texts("exchange.personal", "patterns ('*': any characters) of tensors that each node trains for itself and never sends"),
      texts("exchange.frozen", "patterns of tensors that nodes read but nobody trains"),
      texts("exchange.only", "patterns of the tensors that are trained, where all others are frozen; empty: see `frozen`"),
      text("exchange.up", words("f32"), encodings(), "encoding of updates"),
      text("exchange.down", words("f32"), encodings(), "encoding of outer steps"),
      text("exchange.up_rounding", words("nearest"), {"nearest", "stochastic"},
           "of updates: to the nearest code, or at random such that the mean is exact"),
      text("exchange.down_rounding", words("nearest"), {"nearest", "stochastic"}, "the same of outer steps"),
      absent(number("exchange.up_feedback", none, 0, 1,
                    "share of what the encoding lost that goes into the node's next update (error feedback); 0: off"),
             "by `up`: 0.95 for `topk2`, 1 for `sign`, else 0"),
      absent(number("exchange.down_feedback", none, 0, 1, "the same of outer steps, kept by the coordinator"),
             "by `down`: 0.95 for `topk2`, 1 for `sign`, else 0"),
      text("exchange.compression", words("none"), {"none", "zstd"},
           "of encoded updates and outer steps, where it makes one at least 3 % smaller"),
      text("exchange.late", words("discard"), {"discard"}, "what becomes of an update that comes after its exchange"),
      whole("exchange.overlap", 0.0, 0, 1e9,
            "inner steps that a node trains on between sending a fragment and merging its new version; 0: it waits"),
      text("exchange.merge", words("lerp"), {"lerp", "replace", "eager"},
           "overlap: a node mixes the new version with its own tensors, takes it as it is, or takes it and adds again "
           "what it learned since"),
      absent(number("exchange.alpha", none, 0, 1,
                    "lerp: share of its own tensors that a node keeps; eager: of what it learned since that it adds"),
             "lerp 0.5, eager 1, replace 0"),
      text("exchange.on_late", words("block"), {"block", "on_arrival"},
           "overlap: a node waits for a version that is not there when it is to be merged, or merges it when it comes"),

      whole("evaluation.every", 1.0, 0, 1e9,
            "rounds between evaluations; the last version is always evaluated; 0: never"),
      text("evaluation.split", words("holdout"), {}, "split that is evaluated"),
      whole("evaluation.minimum", 1.0, 1, 1e6, "fewest reports that make a result"),
      above(number("evaluation.deadline_s", 600.0, 0, kOneWeek, "seconds until an evaluation closes with what is in")),
      boolean("evaluation.layer_norms", false,
           "each exchange also tells the norms of outer gradient, outer momentum and model, layer by layer"),
      whole("evaluation.keep_every", 0.0, 0, 1e9,
            "what every so many-th round made stays for good, with the outer optimizer's state, so that another run can "
            "continue from it; 0: the newest two versions and the best"),

      text("start.run", words(""), {},
           "id of the run of this coordinator that this one continues (skerry run submit --resume); empty: none"),
      whole("start.round", 0.0, 0, 1e9,
            "rounds of that run that are over where this one continues; stop.rounds counts them too"),

      whole("stop.rounds", 10.0, 1, 1e9, "exchanges of each fragment"),
      text("stop.metric", words(""), {}, "evaluated metric that may end the run earlier; empty: none"),
      text("stop.comparison", words("at_least"), {"at_least", "at_most"}, "the run ends when the metric is that"),
      number("stop.value", 0.0, -kNoLimit, kNoLimit, "the metric's target"),

      number("limits.maximum_update_norm", 0.0, 0, kNoLimit, "L2 norm over which an update is discarded; 0: 1e15"),
      metrics,
  };
}

std::string shown(const FieldValue& value) {
  if (const auto* number = std::get_if<double>(&value)) return "`" + canonical_number(*number) + "`";
  if (const auto* flag = std::get_if<bool>(&value)) return *flag ? "`true`" : "`false`";
  if (const auto* words = std::get_if<std::string>(&value)) return words->empty() ? "`\"\"`" : "`" + *words + "`";
  if (const auto* list = std::get_if<std::vector<std::string>>(&value)) {
    std::string out;
    for (const auto& item : *list) out += (out.empty() ? "`" : ", `") + item + "`";
    return out.empty() ? "none" : out;
  }
  return "";
}

}  // namespace

std::string allowed_values(const Field& field) {
  if (!field.choices.empty()) {
    std::string out;
    for (const auto& choice : field.choices) out += (out.empty() ? "`" : ", `") + choice + "`";
    return out;
  }
  switch (field.type) {
    case Type::kBoolean:
      return "`true`, `false`";
    case Type::kText:
      return "text";
    case Type::kTexts:
      return "list of texts";
    default:
      break;
  }
  constexpr double kNoLimit = std::numeric_limits<double>::max();
  std::string out = field.type == Type::kWhole ? "whole number" : "number";
  if (field.minimum > -kNoLimit)
    out += std::string(field.above_minimum ? " > " : " ≥ ") + canonical_number(field.minimum);
  if (field.maximum < kNoLimit)
    out += std::string(field.below_maximum ? ", < " : ", ≤ ") + canonical_number(field.maximum);
  return out;
}

namespace {

/// `owners` stands before the meaning.
std::string row(const Field& field, const std::string& owners) {
  const auto dot = field.path.find('.');
  const std::string name = dot == std::string::npos ? field.path : field.path.substr(dot + 1);
  const std::string fallback = field.absent.empty() ? shown(field.fallback) : field.absent;
  return "| `" + name + "` | " + (owners.empty() ? "" : owners + ": ") + field.meaning + " | " + allowed_values(field) +
         " | " + fallback + " |\n";
}

/// One row for each parameter, naming the parts that have it; one that is the same for several parts stands once, and
/// those of one name stand together.
std::string parameter_rows(const SpecCatalogue::Parts& parts) {
  std::string out;
  std::vector<std::string> names;
  for (const auto& parameter : parts.parameters)
    if (std::find(names.begin(), names.end(), parameter.path) == names.end()) names.push_back(parameter.path);
  for (const auto& name : names) {
    std::map<std::string, std::vector<const Field*>> same;  // by their row
    std::vector<std::string> order;
    for (const auto& parameter : parts.parameters) {
      if (parameter.path != name) continue;
      auto& fields = same[row(parameter, "")];
      if (fields.empty()) order.push_back(row(parameter, ""));
      fields.push_back(&parameter);
    }
    for (const auto& key : order) {
      const auto& fields = same[key];
      std::string owners;
      for (const Field* field : fields) owners += (owners.empty() ? "`" : ", `") + field->when + "`";
      out += row(*fields[0], fields.size() == parts.names.size() && fields.size() > 1 ? "all" : owners);
    }
  }
  return out;
}

std::string heading(const std::string& section) {
  const std::string title = section.empty() ? "Top level" : "`[" + section + "]`";
  return "### " + title + "\n\n| key | meaning | values | default |\n|---|---|---|---|\n";
}

}  // namespace

std::span<const Field> run_spec_fields() {
  static const std::vector<Field> fields = make_fields();
  return fields;
}

std::string run_spec_reference(const SpecCatalogue& catalogue) {
  std::string out;
  std::string open = "-";
  const auto add_parts = [&] {
    for (const auto& parts : catalogue.parts) {
      out += "\n" + heading(parts.section);
      Field selector{.path = parts.section + "." + parts.selector, .fallback = parts.fallback};
      selector.choices = parts.names;
      selector.meaning = "which " + parts.section + " part";
      out += row(selector, "");
      out += parameter_rows(parts);
    }
  };
  for (const auto& field : run_spec_fields()) {
    const auto dot = field.path.find('.');
    const std::string section = dot == std::string::npos ? "" : field.path.substr(0, dot);
    if (section != open) {
      if (section == "evaluation") add_parts();
      out += (out.empty() ? "" : "\n") + heading(section);
      open = section;
    }
    out += row(field, "");
  }
  out += "\n### Presets\n\n| preset | what it is | sets |\n|---|---|---|\n";
  for (const auto& preset : catalogue.presets) {
    out += "| `" + preset.name + "` | " + preset.meaning + " | ";
    const char* separator = "";
    for (const auto& entry : preset.fields) {
      out += std::exchange(separator, ", ");
      std::string value = shown(entry.second);
      if (value.size() > 2) value = value.substr(1, value.size() - 2);
      out += "`" + entry.first + " = " + value + "`";
    }
    out += " |\n";
  }
  return out;
}

}  // namespace skerry
