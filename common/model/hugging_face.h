// Models as Hugging Face's transformers stores them: LlamaForCausalLM, Qwen3ForCausalLM, MptForCausalLM.
//
// The tensors' names, shapes and order are those of docs/model-layout.md already; what is here are the files beside
// model.safetensors, and the way back.
#pragma once

#include <map>
#include <string>
#include <string_view>

#include <nlohmann/json_fwd.hpp>

#include "common/base/result.h"

namespace skerry {

/// The files, name → content, with which transformers loads a text model's model.safetensors: config.json,
/// generation_config.json, and the tokenizer's. `tokenizer` is the content of a SentencePiece model, empty for bytes.
/// FAILED_PRECONDITION for other architectures, which have no counterpart there; otherwise errors as resolve_model and
/// parse_tokenizer_model.
Result<std::map<std::string, std::string>> hugging_face_files(const nlohmann::json& model, std::string_view tokenizer);

/// The model section of a config.json. INVALID_ARGUMENT naming the member whose value our models do not have (another
/// model_type, biases, scaled rotary positions, …); otherwise errors as resolve_model.
Result<nlohmann::json> hugging_face_section(const nlohmann::json& config);

/// Reads the model in directory `from` (config.json beside model.safetensors or its shards; f32, f16, bf16 or f64) and
/// writes it as f32 into `path`, one file that a run takes as model.initial; returns its model section.
/// INVALID_ARGUMENT where a tensor is missing, has another shape, or is not one of the model's; errors as
/// hugging_face_section, ShardedModel::open and of writing a file.
Result<nlohmann::json> import_hugging_face(const std::string& from, const std::string& path);

}  // namespace skerry
