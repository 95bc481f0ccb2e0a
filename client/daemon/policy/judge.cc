#include "client/daemon/policy/judge.h"

#include <algorithm>

#include <nlohmann/json.hpp>

#include "common/model/layout.h"

namespace skerry::client {
namespace {

using nlohmann::json;

std::string listed(const std::vector<std::string>& texts) {
  if (texts.empty()) return "nothing";
  std::string out;
  for (const auto& text : texts) out += (out.empty() ? "" : ", ") + text;
  return out;
}

bool contains(const std::vector<std::string>& list, std::string_view text) {
  return std::find(list.begin(), list.end(), text) != list.end();
}

RuleVerdict judge_list(std::string rule, const char* what, const std::string& value, bool allowed,
                       const std::vector<std::string>& list) {
  return {std::move(rule), allowed, std::string(what) + " is \"" + value + "\", the policy allows " + listed(list)};
}

/// Why a set cannot give what the run reads; empty where it can. A run of text takes text however it lies there.
std::string misfit(const DataSet& set, const RunSpec& spec) {
  const bool same_kind = set.kind == spec.data.kind;
  if (!same_kind && !(spec.data.kind == "text" && set.is_text())) return "is of kind " + set.kind + ", the run wants " + spec.data.kind;
  const json schema = json::parse(set.schema_json, nullptr, false);
  if (same_kind && schema != json::parse(spec.data.schema_json, nullptr, false))
    return "has schema " + set.schema_json + ", the run wants " + spec.data.schema_json;
  if (set.kind == "tokens" && schema.value("tokenizer", "") != spec.data.tokenizer)
    return "has tokens of tokenizer " + schema.value("tokenizer", "") + ", the run's is " + spec.data.tokenizer;
  const bool has_documents = set.is_text() && (set.kind != "text" || spec.data.documents);
  if (has_documents && spec.data.tokenizer == "bytes" &&
      json::parse(spec.model_json, nullptr, false).value("vocabulary", std::uint64_t{0}) < 257)
    return "is text of kind " + set.kind + " in documents, for which model.vocabulary must be at least 257 (the bytes and their end)";
  return "";
}

/// The data rule that fits, or why none does.
RuleVerdict judge_data(const Policy& policy, const RunSpec& spec, std::span<const DataSet> catalogue, Verdict& verdict) {
  const std::uint64_t floor = std::max(policy.minimum_examples, spec.data.minimum_examples);
  const std::uint64_t context = model_context(spec);
  std::string why;
  for (const auto& rule : policy.data) {
    std::string here;
    const auto found = std::find_if(catalogue.begin(), catalogue.end(), [&](const DataSet& set) { return set.name == rule.set; });
    if (!fits_any(rule.purposes, spec.purpose)) {
      here = "may not serve purpose \"" + spec.purpose + "\" (allowed: " + listed(rule.purposes) + ")";
    } else if (found == catalogue.end()) {
      here = "is not in the catalogue; add it with `skerry-client data add " + rule.set + "`";
    } else if (std::string misfits = misfit(*found, spec); !misfits.empty()) {
      here = std::move(misfits);
    } else {
      const auto examples = found->examples(context, spec.data.tokenizer == "bytes");
      const auto split = examples.find(spec.data.train_split);
      const std::uint64_t count = split == examples.end() ? 0 : split->second;
      if (split == examples.end()) {
        here = "has no split \"" + spec.data.train_split + "\"";
      } else if (count < floor) {
        here = "has " + std::to_string(count) + " examples in split \"" + spec.data.train_split + "\", " + std::to_string(floor) +
               " are needed";
      } else {
        verdict.data_set = rule.set;
        verdict.examples = examples;
        return {"data", true, "data set \"" + rule.set + "\" matches with " + std::to_string(count) + " examples in split \"" +
                                  spec.data.train_split + "\""};
      }
    }
    why += (why.empty() ? "data set \"" : "; data set \"") + rule.set + "\" " + here;
  }
  if (policy.data.empty()) why = "the policy names no data set ([[data]])";
  return {"data", false, why};
}

/// What of the model leaves with each update, and what does not.
std::string exchange_text(const ModelLayout& layout) {
  std::uint64_t elements[4] = {};
  for (const auto& fragment : layout.fragments) elements[static_cast<std::size_t>(fragment.role)] += fragment.elements;
  const auto of = [&](FragmentRole role) { return elements[static_cast<std::size_t>(role)]; };
  std::string text = "an update holds the change of " + std::to_string(of(FragmentRole::kExchanged)) + " parameters";
  if (const auto control = of(FragmentRole::kControl); control > 0)
    text += " and as many control variates (the mean of this node's gradients)";
  if (const auto personal = of(FragmentRole::kPersonal); personal > 0)
    text += "; " + std::to_string(personal) + " personal parameters are trained here and never leave";
  if (const auto frozen = of(FragmentRole::kFrozen); frozen > 0)
    text += "; " + std::to_string(frozen) + " parameters are not trained";
  return text;
}

}  // namespace

std::uint64_t model_context(const RunSpec& spec) {
  const json model = json::parse(spec.model_json, nullptr, false);
  if (!model.is_object()) return 0;
  const auto context = model.find("context");
  return context != model.end() && context->is_number_unsigned() ? context->get<std::uint64_t>() : 0;
}

bool Verdict::allowed() const {
  return !rules.empty() && std::all_of(rules.begin(), rules.end(), [](const RuleVerdict& rule) { return rule.allowed; });
}

std::vector<std::string> Verdict::reasons(Policy::Telling telling) const {
  std::vector<std::string> out;
  for (const auto& rule : rules) {
    if (rule.allowed) continue;
    if (telling == Policy::Telling::kNone) return {"refused by the holder's policy"};
    out.push_back(telling == Policy::Telling::kCode ? "refused by the holder's policy: " + rule.rule : rule.rule + ": " + rule.explanation);
  }
  return out;
}

Verdict judge(const Policy& policy, const RunSpec& spec, std::span<const DataSet> catalogue, std::string_view ca_fingerprint) {
  Verdict verdict;
  auto& rules = verdict.rules;
  rules.push_back({"coordinators", contains(policy.coordinators, ca_fingerprint),
                   "the coordinator's root certificate is " + std::string(ca_fingerprint) + ", the policy allows " +
                       listed(policy.coordinators)});
  rules.push_back(judge_list("allow.purposes", "the run's purpose", spec.purpose, fits_any(policy.purposes, spec.purpose), policy.purposes));

  const json model = json::parse(spec.model_json, nullptr, false);
  const auto layout = build_layout(model);
  const std::string architecture = layout.ok() ? layout->architecture : "unknown";
  rules.push_back(judge_list("allow.architectures", "the model's architecture", architecture,
                             layout.ok() && contains(policy.architectures, architecture), policy.architectures));
  if (layout.ok()) {
    verdict.parameters = layout->parameters;
    rules.push_back({"allow.max_parameters", layout->parameters <= policy.max_parameters,
                     "the model has " + std::to_string(layout->parameters) + " parameters, the policy allows " +
                         std::to_string(policy.max_parameters)});
    rules.push_back({"exchange", true, exchange_text(*layout)});
  } else {
    rules.push_back({"allow.max_parameters", false, "the model cannot be laid out: " + layout.error().message});
  }
  rules.push_back(judge_list("allow.encodings", "the updates' encoding", spec.exchange.up, contains(policy.encodings, spec.exchange.up),
                             policy.encodings));
  if (spec.data.kind == "text")
    rules.push_back(judge_list("allow.tokenizers", "the run's tokenizer", spec.data.tokenizer,
                               fits_any(policy.tokenizers, spec.data.tokenizer), policy.tokenizers));
  rules.push_back(judge_data(policy, spec, catalogue, verdict));

  const std::uint64_t need_mb = verdict.parameters * 4 * 4 / 1'000'000;  // two bases, the trainer's output, the update
  rules.push_back({"limits.disk_mb", need_mb <= policy.disk_mb,
                   "the run needs about " + std::to_string(need_mb) + " MB of disk, the policy allows " + std::to_string(policy.disk_mb)});
  std::string withheld;
  for (const auto& metric : spec.limits.metrics)
    if (!fits_any(policy.metrics, metric)) withheld += (withheld.empty() ? "" : ", ") + metric;
  const bool lacking = spec.training.start_loss && !fits_any(policy.metrics, "start_loss");
  rules.push_back({"allow.metrics", !lacking,
                   lacking            ? "the run needs metric start_loss with every update, the policy allows " + listed(policy.metrics)
                   : withheld.empty() ? "every metric the run may collect is allowed to leave"
                                      : "these metrics are withheld: " + withheld});
  return verdict;
}

}  // namespace skerry::client
