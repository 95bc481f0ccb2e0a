#include "common/model/hugging_face.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include <nlohmann/json.hpp>

#include "common/model/layout.h"
#include "common/model/tokenizer_model.h"
#include "common/os/files.h"
#include "common/tensor/safetensors.h"
#include "common/tensor/text.h"

namespace skerry {
namespace {

using nlohmann::json;

constexpr std::uint64_t kMaxConfigBytes = 1 << 20;
constexpr int kMaxConfigDepth = 32;

json decoder_config(const json& model) {
  const bool qk_norm = model["qk_norm"].get<bool>();
  json config{{"architectures", {qk_norm ? "Qwen3ForCausalLM" : "LlamaForCausalLM"}},
              {"model_type", qk_norm ? "qwen3" : "llama"},
              {"hidden_act", "silu"},
              {"attention_bias", false},
              {"num_hidden_layers", model["layers"]},
              {"hidden_size", model["width"]},
              {"num_attention_heads", model["heads"]},
              {"num_key_value_heads", model["kv_heads"]},
              {"head_dim", model["width"].get<std::uint64_t>() / model["heads"].get<std::uint64_t>()},
              {"intermediate_size", model["hidden"]},
              {"max_position_embeddings", model["context"]},
              {"tie_word_embeddings", model["tied"]},
              {"rope_theta", model["rope_theta"]},
              {"rope_parameters", {{"rope_type", "default"}, {"rope_theta", model["rope_theta"]}}},
              {"rms_norm_eps", model["norm_epsilon"]}};
  if (qk_norm) {
    config["use_sliding_window"] = false;
  } else {
    config["mlp_bias"] = false;
  }
  return config;
}

json mpt_config(const json& model) {
  const double maximum = model["alibi_maximum"].get<double>();  // an integer where it is one
  const json alibi = maximum == std::floor(maximum) ? json(static_cast<std::int64_t>(maximum)) : json(maximum);
  return {{"architectures", {"MptForCausalLM"}},
          {"model_type", "mpt"},
          {"n_layers", model["layers"]},
          {"d_model", model["width"]},
          {"n_heads", model["heads"]},
          {"expansion_ratio", 4},
          {"max_seq_len", model["context"]},
          {"layer_norm_epsilon", model["norm_epsilon"]},
          {"no_bias", true},
          {"learned_pos_emb", false},
          {"tie_word_embeddings", true},
          {"attn_config", {{"attn_type", "multihead_attention"}, {"alibi", true}, {"alibi_bias_max", alibi}}}};
}

// The letter that stands for a byte in a byte-level tokenizer.json: the byte itself where it prints, otherwise the next
// code point from 256 on (GPT-2's table).
std::string letter_of(unsigned byte) {
  const auto prints = [](unsigned b) { return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174; };
  unsigned code = byte;
  if (!prints(byte)) {
    code = 256;
    for (unsigned b = 0; b < byte; ++b) code += prints(b) ? 0 : 1;
  }
  if (code < 0x80) return {static_cast<char>(code)};
  return {static_cast<char>(0xC0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3F))};
}

constexpr const char* kEndOfText = "<|endoftext|>";

// A tokenizer whose token n is the byte n, in the format of Hugging Face's tokenizers library.
json byte_tokenizer(bool has_end) {
  const json bytes{{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}};
  json vocabulary = json::object();
  for (unsigned byte = 0; byte < 256; ++byte) vocabulary[letter_of(byte)] = byte;
  json added = json::array();
  if (has_end) {
    vocabulary[kEndOfText] = 256;
    added.push_back({{"id", 256},
                     {"content", kEndOfText},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  }
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", added},
          {"normalizer", nullptr},
          {"pre_tokenizer", bytes},
          {"post_processor", nullptr},
          {"decoder", bytes},
          {"model",
           {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", nullptr},
            {"continuing_subword_prefix", nullptr},
            {"end_of_word_suffix", nullptr},
            {"fuse_unk", false},
            {"byte_fallback", false},
            {"vocab", vocabulary},
            {"merges", json::array()}}}};
}

// What of a config.json decides what is computed, member by member; the first wrong one is an error.
class ConfigReader {
 public:
  explicit ConfigReader(const json& config) : config_(config) {}

  /// The member, or `otherwise` where it is missing or null.
  json value(const char* member, json otherwise) const {
    const auto at = config_.find(member);
    return at == config_.end() || at->is_null() ? std::move(otherwise) : *at;
  }

  /// Refuses every value but `only`; a missing or null member is `otherwise`.
  void require(const char* member, const json& only, const json& otherwise) {
    if (const json found = value(member, otherwise); error_.empty() && found != only)
      error_ = std::string("config.json: ") + member + " is " + found.dump().substr(0, 60) + ", only " + only.dump() +
               " is possible here";
  }

  Result<void> result() const {
    if (!error_.empty()) return invalid_argument(error_);
    return {};
  }

 private:
  const json& config_;
  std::string error_;
};

Result<json> decoder_section(const json& config) {
  ConfigReader reader(config);
  const json heads = reader.value("num_attention_heads", 32);
  const json width = reader.value("hidden_size", 4096);
  json rotary = reader.value("rope_parameters", json::object());
  if (!rotary.is_object()) rotary = json::object();
  reader.require("hidden_act", "silu", "silu");
  reader.require("attention_bias", false, false);
  reader.require("mlp_bias", false, false);
  reader.require("rope_scaling", nullptr, nullptr);
  reader.require("use_sliding_window", false, false);
  if (rotary.value("rope_type", json("default")) != "default") reader.require("rope_parameters", nullptr, nullptr);
  if (heads.is_number_unsigned() && width.is_number_unsigned() && heads != 0) {
    const std::uint64_t size = width.get<std::uint64_t>() / heads.get<std::uint64_t>();
    reader.require("head_dim", size, config["model_type"] == "qwen3" ? json(128) : json(size));
  }
  SKERRY_TRY(reader.result());
  return json{{"architecture", "transformer"},
              {"layers", reader.value("num_hidden_layers", 32)},
              {"width", width},
              {"heads", heads},
              {"kv_heads", reader.value("num_key_value_heads", heads)},
              {"hidden", reader.value("intermediate_size", config["model_type"] == "qwen3" ? 22016 : 11008)},
              {"context", reader.value("max_position_embeddings", config["model_type"] == "qwen3" ? 32768 : 2048)},
              {"vocabulary", reader.value("vocab_size", config["model_type"] == "qwen3" ? 151936 : 32000)},
              {"tied", reader.value("tie_word_embeddings", false)},
              {"qk_norm", config["model_type"] == "qwen3"},
              {"rope_theta", rotary.value("rope_theta", reader.value("rope_theta", 10000.0))},
              {"norm_epsilon", reader.value("rms_norm_eps", 1e-6)},
              {"initial_std", reader.value("initializer_range", 0.02)}};
}

Result<json> mpt_section(const json& config) {
  ConfigReader reader(config);
  reader.require("no_bias", true, true);
  reader.require("expansion_ratio", 4, 4);
  reader.require("logit_scale", nullptr, nullptr);
  reader.require("tie_word_embeddings", true, true);
  SKERRY_TRY(reader.result());
  const json attention = reader.value("attn_config", json::object());
  if (!attention.is_object()) return invalid_argument("config.json: attn_config is not an object");
  ConfigReader inner(attention);
  inner.require("attn_type", "multihead_attention", "multihead_attention");
  inner.require("alibi", true, true);
  inner.require("clip_qkv", nullptr, nullptr);
  inner.require("softmax_scale", nullptr, nullptr);
  inner.require("qk_ln", false, false);
  inner.require("prefix_lm", false, false);
  SKERRY_TRY(inner.result());
  return json{{"architecture", "mpt"},
              {"layers", reader.value("n_layers", 24)},
              {"width", reader.value("d_model", 2048)},
              {"heads", reader.value("n_heads", 16)},
              {"context", reader.value("max_seq_len", 2048)},
              {"vocabulary", reader.value("vocab_size", 50368)},
              {"alibi_maximum", inner.value("alibi_bias_max", 8)},
              {"norm_epsilon", reader.value("layer_norm_epsilon", 1e-5)},
              {"initial_std", reader.value("initializer_range", 0.02)}};
}

// Each tensor of the layout in the given files; nothing else may be there but what a library derives.
Result<std::vector<ShardedModel::Tensor>> match_tensors(const ShardedModel& model, const ModelLayout& layout) {
  std::vector<ShardedModel::Tensor> found;
  for (const TensorLayout& tensor : layout.tensors) {
    const ShardedModel::Tensor one = model.find(tensor.name);
    if (one.entry == nullptr) return invalid_argument("the model has no tensor " + quoted_name(tensor.name));
    if (one.entry->shape != tensor.shape)
      return invalid_argument("tensor " + quoted_name(tensor.name) + " is " + shape_text(one.entry->shape) +
                              ", config.json says " + shape_text(tensor.shape));
    found.push_back(one);
  }
  for (const ShardedModel::Tensor& tensor : model.tensors()) {
    const std::string& name = tensor.entry->name;
    const bool derived = name == "lm_head.weight" || name.ends_with(".rotary_emb.inv_freq");
    if (!derived && layout.find_tensor(name) == nullptr)
      return invalid_argument("tensor " + quoted_name(name) + " is none of " + layout.architecture + "'s");
  }
  return found;
}

}  // namespace

Result<std::map<std::string, std::string>> hugging_face_files(const json& model, std::string_view tokenizer) {
  SKERRY_ASSIGN(const json resolved, resolve_model(model));
  const auto architecture = resolved["architecture"].get<std::string>();
  if (!is_text_model(architecture))
    return failed_precondition(
        "architecture " + architecture +
        " has no counterpart in Hugging Face's transformers; transformer (Llama, Qwen3) and mpt have");
  json config = architecture == "mpt" ? mpt_config(resolved) : decoder_config(resolved);
  config["torch_dtype"] = "float32";
  config["vocab_size"] = resolved["vocabulary"];
  config["initializer_range"] = resolved["initial_std"];
  config["bos_token_id"] = nullptr;  // the libraries' defaults are tokens of text here
  config["eos_token_id"] = nullptr;
  std::map<std::string, std::string> files;
  json tokens{{"model_max_length", resolved["context"]}, {"clean_up_tokenization_spaces", false}};
  if (tokenizer.empty()) {
    const bool has_end = resolved["vocabulary"].get<std::uint64_t>() > 256;
    if (has_end) config["eos_token_id"] = 256;
    if (has_end) tokens["eos_token"] = kEndOfText;
    tokens["tokenizer_class"] = "PreTrainedTokenizerFast";
    files["tokenizer.json"] = byte_tokenizer(has_end).dump(1) + "\n";
  } else {
    SKERRY_ASSIGN(const TokenizerModel parsed, parse_tokenizer_model(tokenizer));
    config["eos_token_id"] = parsed.end_of_text;
    tokens.update({{"tokenizer_class", "LlamaTokenizer"},
                   {"legacy", false},
                   {"add_bos_token", false},
                   {"add_eos_token", false},
                   {"add_prefix_space", parsed.dummy_prefix},
                   {"eos_token", "</s>"},
                   {"bos_token", parsed.has_begin ? json("<s>") : json()},
                   {"unk_token", "<unk>"}});
    files["tokenizer.model"] = tokenizer;
  }
  files["tokenizer_config.json"] = tokens.dump(2) + "\n";
  files["generation_config.json"] =
      json{{"do_sample", true}, {"bos_token_id", nullptr}, {"eos_token_id", config["eos_token_id"]}}.dump(2) + "\n";
  files["config.json"] = config.dump(2) + "\n";
  return files;
}

Result<json> hugging_face_section(const json& config) {
  if (!config.is_object()) return invalid_argument("config.json is not a JSON object");
  const json type = config.value("model_type", json());
  Result<json> section = json();
  if (type == "llama" || type == "qwen3") {
    section = decoder_section(config);
  } else if (type == "mpt") {
    section = mpt_section(config);
  } else {
    return invalid_argument("config.json: model_type is " + type.dump().substr(0, 60) +
                            ", must be one of llama, qwen3, mpt");
  }
  if (!section.ok()) return section;
  return resolve_model(*section);
}

Result<json> import_hugging_face(const std::string& from, const std::string& path) {
  SKERRY_ASSIGN(const std::string text, read_file(join_path(from, "config.json"), kMaxConfigBytes));
  bool deep = false;  // copies and messages of the JSON library recurse: a hostile file must not end the program
  const auto shallow = [&deep](int depth, json::parse_event_t, json&) { return !(deep = deep || depth > kMaxConfigDepth); };
  const json config = json::parse(text, shallow, /*allow_exceptions=*/false);
  if (deep) return invalid_argument("config.json is nested deeper than " + std::to_string(kMaxConfigDepth) + " levels");
  SKERRY_ASSIGN(const json section, hugging_face_section(config));
  SKERRY_ASSIGN(const ModelLayout layout, build_layout(section));
  SKERRY_ASSIGN(const ShardedModel model, ShardedModel::open(from));
  SKERRY_ASSIGN(const std::vector<ShardedModel::Tensor> tensors, match_tensors(model, layout));
  std::vector<TensorSpec> specs;
  for (const TensorLayout& tensor : layout.tensors) specs.push_back({tensor.name, DType::kF32, tensor.shape});
  SKERRY_ASSIGN(SafetensorsWriter writer, SafetensorsWriter::create(path, specs, {{"format", "pt"}}));
  std::vector<float> block(1 << 20);
  for (const ShardedModel::Tensor& tensor : tensors) {
    for (std::uint64_t first = 0; first < tensor.entry->elements; first += block.size()) {
      const auto part = std::span(block).first(std::min<std::uint64_t>(block.size(), tensor.entry->elements - first));
      SKERRY_TRY(tensor.file->read_f32(*tensor.entry, first, part));
      SKERRY_TRY(writer.append(std::as_bytes(part)));
    }
  }
  SKERRY_TRY(writer.finish());
  return section;
}

}  // namespace skerry
