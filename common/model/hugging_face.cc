#include "common/model/hugging_face.h"

#include <nlohmann/json.hpp>

#include "common/model/layout.h"

namespace skerry {

Result<nlohmann::json> hugging_face_config(const nlohmann::json& model) {
  SKERRY_ASSIGN(const nlohmann::json resolved, resolve_model(model));
  if (resolved["architecture"] != "transformer")
    return failed_precondition("architecture " + resolved["architecture"].get<std::string>() +
                               " has no counterpart in Hugging Face's transformers; only transformer has (Llama)");
  return nlohmann::json{{"architectures", {"LlamaForCausalLM"}},
                        {"model_type", "llama"},
                        {"hidden_act", "silu"},
                        {"attention_bias", false},
                        {"mlp_bias", false},
                        {"torch_dtype", "float32"},
                        {"num_hidden_layers", resolved["layers"]},
                        {"hidden_size", resolved["width"]},
                        {"num_attention_heads", resolved["heads"]},
                        {"num_key_value_heads", resolved["kv_heads"]},
                        {"intermediate_size", resolved["hidden"]},
                        {"max_position_embeddings", resolved["context"]},
                        {"vocab_size", resolved["vocabulary"]},
                        {"tie_word_embeddings", resolved["tied"]},
                        {"rope_theta", resolved["rope_theta"]},
                        {"rms_norm_eps", resolved["norm_epsilon"]},
                        {"initializer_range", resolved["initial_std"]}};
}

}  // namespace skerry
