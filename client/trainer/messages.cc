#include "client/trainer/messages.h"

#include <cmath>
#include <limits>
#include <utility>

#include <nlohmann/json.hpp>

namespace skerry::trainer {
namespace {

using nlohmann::json;

constexpr std::uint64_t kAnyCount = std::numeric_limits<std::uint64_t>::max();
constexpr std::size_t kMaxTextBytes = 4096;
constexpr std::size_t kMaxPromptBytes = 1 << 20;
constexpr std::size_t kMaxFragments = 4096;

std::string shown(const json& value) {
  std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  if (text.size() > 80) text = text.substr(0, 77) + "...";
  return text;
}

Error wrong(const char* name, const json& value, const std::string& allowed) {
  return invalid_argument("member \"" + std::string(name) + "\" is " + shown(value) + ", must be " + allowed);
}

Error missing(const char* name) { return invalid_argument("member \"" + std::string(name) + "\" is missing"); }

std::string line_of(const json& object) { return object.dump(-1, ' ', false, json::error_handler_t::replace); }

Result<std::string> section(const json& object, const char* name) {
  const auto it = object.find(name);
  if (it == object.end()) return missing(name);
  if (!it->is_object()) return wrong(name, *it, "an object");
  return it->dump(-1, ' ', false, json::error_handler_t::replace);
}

Result<std::map<std::string, FragmentSource>> sources(const json& object) {
  std::map<std::string, FragmentSource> result;
  const auto it = object.find("read");
  if (it == object.end()) return result;
  if (!it->is_object() || it->size() > kMaxFragments) return wrong("read", *it, "an object of fragments");
  for (const auto& [fragment, source] : it->items()) {
    if (!source.is_object()) return wrong("read", *it, "an object of {\"path\",\"version\"}");
    FragmentSource parsed;
    SKERRY_ASSIGN(parsed.path, text_member(source, "path"));
    SKERRY_ASSIGN(parsed.version, count_member(source, "version", kAnyCount, 0));
    result.emplace(fragment, std::move(parsed));
  }
  return result;
}

Result<std::map<std::string, std::string>> targets(const json& object) {
  std::map<std::string, std::string> result;
  const auto it = object.find("write");
  if (it == object.end()) return result;
  if (!it->is_object() || it->size() > kMaxFragments) return wrong("write", *it, "an object of fragments and paths");
  for (const auto& item : it->items()) {
    if (!item.value().is_string()) return wrong("write", *it, "an object of fragments and paths");
    SKERRY_ASSIGN(std::string path, text_member(*it, item.key().c_str()));
    result.emplace(item.key(), std::move(path));
  }
  return result;
}

Result<Request> parse_open(const json& object) {
  OpenRequest open;
  SKERRY_ASSIGN(open.run, text_member(object, "run", ""));
  SKERRY_ASSIGN(open.work_dir, text_member(object, "work_dir"));
  SKERRY_ASSIGN(open.state_dir, text_member(object, "state_dir"));
  SKERRY_ASSIGN(const std::uint64_t threads, count_member(object, "threads", 1024, 1));
  if (threads == 0) return wrong("threads", object["threads"], "1 … 1024");
  open.threads = static_cast<int>(threads);
  SKERRY_ASSIGN(open.checkpoint_ms, count_member(object, "checkpoint_ms", 1u << 30, 0));
  SKERRY_ASSIGN(open.seed, count_member(object, "seed", kAnyCount, 0));
  SKERRY_ASSIGN(open.model, section(object, "model"));
  SKERRY_ASSIGN(open.training, section(object, "training"));
  SKERRY_ASSIGN(open.data, section(object, "data"));
  return Request(std::move(open));
}

Result<MergePlan> parse_merge_plan(const json& object) {
  MergePlan plan;
  if (!object.is_object()) return wrong("merge", object, "a list of objects");
  SKERRY_ASSIGN(plan.fragment, text_member(object, "fragment"));
  SKERRY_ASSIGN(plan.exchange, count_member(object, "exchange", kAnyCount, 0));
  SKERRY_ASSIGN(plan.at_step, count_member(object, "at_step", kAnyCount, 0));
  SKERRY_ASSIGN(const std::string rule, text_member(object, "rule", "replace"));
  if (rule == "replace") {
    plan.rule = MergeRule::kReplace;
  } else if (rule == "lerp") {
    plan.rule = MergeRule::kLerp;
  } else if (rule == "eager") {
    plan.rule = MergeRule::kEager;
  } else {
    return wrong("rule", object["rule"], "replace, lerp or eager");
  }
  SKERRY_ASSIGN(plan.alpha, number_member(object, "alpha", 0.0, 1.0, plan.rule == MergeRule::kEager ? 1.0 : 0.5));
  SKERRY_ASSIGN(const std::string late, text_member(object, "on_late", "block"));
  if (late != "block" && late != "on-arrival") return wrong("on_late", object["on_late"], "block or on-arrival");
  plan.block = late == "block";
  return plan;
}

Result<Request> parse_train(const json& object) {
  TrainRequest train;
  SKERRY_ASSIGN(train.task, text_member(object, "task"));
  SKERRY_ASSIGN(train.read, sources(object));
  SKERRY_ASSIGN(train.write, targets(object));
  SKERRY_ASSIGN(train.steps, count_member(object, "steps", 1'000'000'000, 0));
  SKERRY_ASSIGN(train.epochs, number_member(object, "epochs", 0.0, 1e6, 0.0));
  if (train.steps == 0 && train.epochs == 0) {
    return invalid_argument("members \"steps\" and \"epochs\" are both 0, one of them must be positive");
  }
  SKERRY_ASSIGN(train.seed, count_member(object, "seed", kAnyCount, 0));
  SKERRY_ASSIGN(train.first_step, count_member(object, "first_step", kAnyCount / 2, 0));
  SKERRY_ASSIGN(train.after, text_member(object, "after", ""));
  SKERRY_ASSIGN(train.counted, text_member(object, "counted", ""));
  SKERRY_ASSIGN(train.progress_ms, count_member(object, "progress_ms", 86'400'000, 0));
  SKERRY_ASSIGN(train.checkpoint, flag_member(object, "checkpoint", true));
  if (const auto it = object.find("emit"); it != object.end()) {
    if (!it->is_array() || it->size() > kMaxFragments) return wrong("emit", *it, "a list of objects");
    for (const json& item : *it) {
      if (!item.is_object()) return wrong("emit", *it, "a list of objects");
      EmitPlan plan;
      SKERRY_ASSIGN(plan.fragment, text_member(item, "fragment"));
      SKERRY_ASSIGN(plan.at_step, count_member(item, "at_step", kAnyCount, 0));
      SKERRY_ASSIGN(plan.exchange, count_member(item, "exchange", kAnyCount, 0));
      SKERRY_ASSIGN(plan.path, text_member(item, "path"));
      SKERRY_ASSIGN(plan.base_path, text_member(item, "base_path", ""));
      if (plan.at_step == 0) return invalid_argument("emit of \"" + plan.fragment + "\" at step 0, steps count from 1");
      train.emit.push_back(std::move(plan));
    }
  }
  if (const auto it = object.find("merge"); it != object.end()) {
    if (!it->is_array() || it->size() > kMaxFragments) return wrong("merge", *it, "a list of objects");
    for (const json& item : *it) {
      SKERRY_ASSIGN(MergePlan plan, parse_merge_plan(item));
      train.merge.push_back(std::move(plan));
    }
  }
  return Request(std::move(train));
}

Result<Request> parse_evaluate(const json& object) {
  EvaluateRequest evaluate;
  SKERRY_ASSIGN(evaluate.task, text_member(object, "task"));
  SKERRY_ASSIGN(evaluate.read, sources(object));
  SKERRY_ASSIGN(evaluate.split, text_member(object, "split", "holdout"));
  return Request(std::move(evaluate));
}

Result<Request> parse_generate(const json& object) {
  GenerateRequest generate;
  SKERRY_ASSIGN(generate.task, text_member(object, "task"));
  SKERRY_ASSIGN(generate.read, sources(object));
  if (const auto it = object.find("prompt"); it != object.end()) {
    if (!it->is_string() || it->get_ref<const std::string&>().size() > kMaxPromptBytes) {
      return wrong("prompt", *it, "a text of at most 1 MiB");
    }
    generate.prompt = it->get<std::string>();
  }
  SKERRY_ASSIGN(generate.tokens, count_member(object, "tokens", 65536, 100));
  SKERRY_ASSIGN(generate.temperature, number_member(object, "temperature", 0.0, 100.0, 1.0));
  SKERRY_ASSIGN(generate.top_k, count_member(object, "top_k", kAnyCount, 0));
  SKERRY_ASSIGN(generate.top_p, number_member(object, "top_p", 1e-9, 1, 1));
  SKERRY_ASSIGN(generate.seed, count_member(object, "seed", kAnyCount, 0));
  return Request(std::move(generate));
}

Result<Request> parse_initialise(const json& object) {
  InitialiseRequest initialise;
  SKERRY_ASSIGN(initialise.task, text_member(object, "task"));
  SKERRY_ASSIGN(initialise.seed, count_member(object, "seed", kAnyCount, 0));
  SKERRY_ASSIGN(initialise.write, targets(object));
  if (initialise.write.empty()) return missing("write");
  return Request(std::move(initialise));
}

Result<Request> parse_merge(const json& object) {
  MergeRequest merge;
  SKERRY_ASSIGN(merge.fragment, text_member(object, "fragment"));
  SKERRY_ASSIGN(merge.path, text_member(object, "path"));
  SKERRY_ASSIGN(merge.version, count_member(object, "version", kAnyCount, 0));
  SKERRY_ASSIGN(merge.exchange, count_member(object, "exchange", kAnyCount, 0));
  return Request(std::move(merge));
}

Result<Request> parse_object(const json& object) {
  SKERRY_ASSIGN(const std::string type, text_member(object, "type"));
  if (type == "train") return parse_train(object);
  if (type == "evaluate") return parse_evaluate(object);
  if (type == "open") return parse_open(object);
  if (type == "generate") return parse_generate(object);
  if (type == "initialise") return parse_initialise(object);
  if (type == "merge") return parse_merge(object);
  if (type == "checkpoint") return Request(CheckpointRequest{});
  if (type == "close") return Request(CloseRequest{});
  if (type == "cancel") {
    SKERRY_ASSIGN(std::string task, text_member(object, "task"));
    return Request(CancelRequest{std::move(task)});
  }
  return wrong("type", object["type"],
               "open, train, evaluate, generate, initialise, cancel, checkpoint, merge or close");
}

json metrics_of(const Outcome& outcome) {
  json metrics = json::object();
  for (const auto& [name, value] : outcome.metrics) metrics[name] = value;
  return metrics;
}

}  // namespace

Result<double> number_member(const json& object, const char* name, double low, double high) {
  const auto it = object.find(name);
  if (it == object.end()) return missing(name);
  const double value = it->is_number() ? it->get<double>() : std::numeric_limits<double>::quiet_NaN();
  if (!(value >= low && value <= high)) {
    return wrong(name, *it, "a number in [" + json(low).dump() + ", " + json(high).dump() + "]");
  }
  return value;
}

Result<double> number_member(const json& object, const char* name, double low, double high, double fallback) {
  if (!object.contains(name)) return fallback;
  return number_member(object, name, low, high);
}

Result<std::uint64_t> count_member(const json& object, const char* name, std::uint64_t high, std::uint64_t fallback) {
  const auto it = object.find(name);
  if (it == object.end()) return fallback;
  const std::string allowed = "a whole number in [0, " + std::to_string(high) + "]";
  if (it->is_number_unsigned()) {
    const auto value = it->get<std::uint64_t>();
    if (value > high) return wrong(name, *it, allowed);
    return value;
  }
  // A writer may print 50 as 50.0.
  if (it->is_number_float()) {
    const double value = it->get<double>();
    if (value >= 0 && value <= 0x1p53 && value == std::floor(value) && static_cast<std::uint64_t>(value) <= high) {
      return static_cast<std::uint64_t>(value);
    }
  }
  return wrong(name, *it, allowed);
}

Result<std::string> text_member(const json& object, const char* name, const std::string& fallback) {
  const auto it = object.find(name);
  if (it == object.end()) return fallback;
  if (!it->is_string()) return wrong(name, *it, "a text");
  const std::string& text = it->get_ref<const std::string&>();
  if (text.size() > kMaxTextBytes) return wrong(name, *it, "a text of at most 4096 bytes");
  if (text.find('\0') != std::string::npos) return wrong(name, *it, "a text without NUL");
  return text;
}

Result<std::string> text_member(const json& object, const char* name) {
  if (!object.contains(name)) return missing(name);
  SKERRY_ASSIGN(std::string text, text_member(object, name, ""));
  if (text.empty()) return invalid_argument("member \"" + std::string(name) + "\" is empty");
  return text;
}

Result<bool> flag_member(const json& object, const char* name, bool fallback) {
  const auto it = object.find(name);
  if (it == object.end()) return fallback;
  if (!it->is_boolean()) return wrong(name, *it, "true or false");
  return it->get<bool>();
}

ParsedLine parse_request(std::string_view line) {
  const json object = json::parse(line.begin(), line.end(), nullptr, false);
  if (!object.is_object()) {
    return {"", "",
            invalid_argument("the line is not a JSON object: " + shown(json(std::string(line.substr(0, 60)))) +
                             "; send one object a line")};
  }
  std::string type;
  if (const auto it = object.find("type"); it != object.end() && it->is_string()) type = it->get<std::string>();
  std::string task;
  if (const auto it = object.find("task"); it != object.end() && it->is_string()) task = it->get<std::string>();
  if (task.size() > kMaxTextBytes) task.resize(kMaxTextBytes);
  return {std::move(type), std::move(task), parse_object(object)};
}

std::string hello_line(const std::vector<std::string>& architectures, const std::vector<std::string>& warnings) {
  return line_of({{"type", "hello"},
                  {"protocol", kProtocol},
                  {"trainer", "skerry-trainer"},
                  {"version", SKERRY_VERSION},
                  {"architectures", architectures},
                  {"kinds", {"text", "jsonl", "tokens", "idx", "csv"}},
                  {"warnings", warnings}});
}

std::string opened_line(const std::map<std::string, std::uint64_t>& examples, std::uint64_t resumed_step) {
  return line_of({{"type", "opened"}, {"examples", examples}, {"resumed_step", resumed_step}});
}

std::string progress_line(const std::string& task, std::uint64_t step, std::uint64_t of, double loss) {
  return line_of({{"type", "progress"}, {"task", task}, {"step", step}, {"of", of}, {"loss", loss}});
}

std::string fragment_line(const std::string& task, const EmitPlan& emit, std::uint64_t base) {
  return line_of({{"type", "fragment"},
                  {"task", task},
                  {"fragment", emit.fragment},
                  {"exchange", emit.exchange},
                  {"step", emit.at_step},
                  {"path", emit.path},
                  {"base", base}});
}

std::string merged_line(const std::string& task, const MergeRequest& merge, std::uint64_t step) {
  return line_of({{"type", "merged"},
                  {"task", task},
                  {"fragment", merge.fragment},
                  {"exchange", merge.exchange},
                  {"version", merge.version},
                  {"step", step}});
}

std::string cancelled_line(const std::string& task) { return line_of({{"type", "cancelled"}, {"task", task}}); }

std::string checkpointed_line(std::uint64_t step) { return line_of({{"type", "checkpointed"}, {"step", step}}); }

std::string error_line(const std::string& task, const Error& error, bool fatal) {
  json object = {
      {"type", "error"}, {"code", std::string(code_name(error.code))}, {"message", error.message}, {"fatal", fatal}};
  if (!task.empty()) object["task"] = task;
  return line_of(object);
}

std::string trained_line(const std::string& task, const Outcome& outcome) {
  return line_of({{"type", "done"},
                  {"task", task},
                  {"steps", outcome.steps},
                  {"examples", outcome.examples},
                  {"tokens", outcome.tokens},
                  {"metrics", metrics_of(outcome)}});
}

std::string evaluated_line(const std::string& task, const Outcome& outcome) {
  return line_of({{"type", "done"},
                  {"task", task},
                  {"examples", outcome.examples},
                  {"tokens", outcome.tokens},
                  {"metrics", metrics_of(outcome)}});
}

std::string generated_line(const std::string& task, const std::string& text) {
  return line_of({{"type", "done"}, {"task", task}, {"text", text}});
}

std::string initialised_line(const std::string& task) { return line_of({{"type", "done"}, {"task", task}}); }

}  // namespace skerry::trainer
