// The text models of docs/model-layout.md, transformer and mpt, and the pieces they are made of.
#pragma once

#include "client/trainer/models.h"

namespace skerry::trainer {

/// As make_stages, for a text model.
Stages decoder_stages(const nlohmann::json& model, const Tensors& tensors, bool bf16);

/// An empty cache for a text of at most the model's context, on the tensors' device.
KeyValues decoder_cache(const nlohmann::json& model, const Tensors& tensors, bool bf16);

/// x / √(mean over the last dimension of x² + epsilon) · weight.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double epsilon);

/// SiLU(gate) · up, element by element.
at::Tensor silu_product(const at::Tensor& gate, const at::Tensor& up);

/// The angles of rotary embedding: f32 [2, length, size / 2], cosines then sines.
at::Tensor rotary_table(std::int64_t length, std::int64_t size, double theta);

/// Turns the heads of x [rows, length, heads, size] by the table and moves them: [rows, heads, length, size].
at::Tensor rotate_heads(const at::Tensor& x, const at::Tensor& table);

/// The slope of every head, f32 [heads], as Hugging Face's MPT has them: for a power of two 2^(−max · (i + 1) / heads).
at::Tensor alibi_slopes(std::int64_t heads, double maximum);

/// Causal attention with scale 1/√size. Queries [rows, heads, length, size]; keys and values [rows, kv_heads, read,
/// size], read ≥ length: the queries are the last positions. Query head i looks at key/value head
/// ⌊i · kv_heads / heads⌋. `slopes` (undefined: none) subtracts slope · distance from a head's scores. Result [rows,
/// length, heads · size].
at::Tensor causal_attention(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values,
                            const at::Tensor& slopes = {});

}  // namespace skerry::trainer
