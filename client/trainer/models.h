// The forward passes of docs/model-layout.md as functions over named tensors. Only engine.cc and the tests look in
// here.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <unordered_map>
#include <vector>

#include <ATen/core/Tensor.h>
#include <nlohmann/json_fwd.hpp>

namespace skerry::trainer {

using Tensors = std::unordered_map<std::string, at::Tensor>;

/// What the layers of a text model have computed of the tokens read so far: for each layer keys and values [1,
/// kv_heads, context, size], of which the first `length` positions are filled.
struct KeyValues {
  std::vector<at::Tensor> keys;
  std::vector<at::Tensor> values;
  std::int64_t length = 0;
};

/// One pass of a batch through a model.
struct Pass {
  std::int64_t rows = 0;
  std::int64_t length = 0;     ///< of each row, where the rows are text
  KeyValues* cache = nullptr;  ///< text, one row: what came before, to which these tokens are added
};

/// A part of a model, from the activations before it to those after it.
using Stage = std::function<at::Tensor(const at::Tensor&, const Pass&)>;

/// A model: its stages one after another, from a batch to logits or values. Images [rows, channels, height, width] or
/// rows [rows, inputs] → [rows, outputs]; text as i64 [rows, length ≤ context] → [rows · length, vocabulary]. The
/// stages of a text model are the embedding, every decoder layer, the head; other models have one.
using Stages = std::vector<Stage>;

/// The stages of a resolved model section over its layout's tensors, which they keep. `bf16`: a text model's matrix
/// products are done in bf16, everything else in f32. A tensor that is missing is our own mistake (the layout names
/// them all): std::out_of_range.
Stages make_stages(const nlohmann::json& model, const Tensors& tensors, bool bf16);

}  // namespace skerry::trainer
