// The forward passes of docs/model-layout.md as functions over named tensors. Only engine.cc and the tests look in
// here.
#pragma once

#include <functional>
#include <string>
#include <unordered_map>

#include <ATen/core/Tensor.h>
#include <nlohmann/json_fwd.hpp>

namespace skerry::trainer {

using Tensors = std::unordered_map<std::string, at::Tensor>;

/// From a batch to logits or values. Images [rows, channels, height, width] or rows [rows, inputs] → [rows, outputs];
/// text as i64 [rows, length ≤ context] → [rows · length, vocabulary].
using Forward = std::function<at::Tensor(const at::Tensor&)>;

/// The forward pass of a resolved model section over its layout's tensors, which it keeps. A tensor that is missing is
/// our own mistake (the layout names them all): std::out_of_range.
Forward make_forward(const nlohmann::json& model, const Tensors& tensors);

// Pieces of the transformer, with gradients of their own.

/// x / √(mean over the last dimension of x² + epsilon) · weight; x is [rows, width].
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double epsilon);

/// SiLU(gate) · up, element by element.
at::Tensor silu_product(const at::Tensor& gate, const at::Tensor& up);

/// The angles of rotary embedding: f32 [2, length, size / 2], cosines then sines.
at::Tensor rotary_table(std::int64_t length, std::int64_t size, double theta);

/// Turns the heads of x [rows, length, heads, size] by the table and moves them: [rows, heads, length, size].
at::Tensor rotate_heads(const at::Tensor& x, const at::Tensor& table);

/// Causal attention with scale 1/√size. Queries [rows, heads, length, size], keys and values [rows, kv_heads, length,
/// size]; query head i looks at key/value head ⌊i · kv_heads / heads⌋. Result [rows, length, heads · size].
at::Tensor causal_attention(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values);

}  // namespace skerry::trainer
