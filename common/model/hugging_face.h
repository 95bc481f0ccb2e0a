// What another library needs beside the tensors in order to load an exported model.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "common/base/result.h"

namespace skerry {

/// The config.json with which Hugging Face's LlamaForCausalLM loads an exported `transformer`.
/// FAILED_PRECONDITION for other architectures, which have no counterpart there; otherwise errors as resolve_model.
Result<nlohmann::json> hugging_face_config(const nlohmann::json& model);

}  // namespace skerry
