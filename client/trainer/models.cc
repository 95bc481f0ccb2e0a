#include "client/trainer/models.h"

#include <cmath>
#include <vector>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

namespace skerry::trainer {
namespace {

using nlohmann::json;

Forward linear(const json& model, const Tensors& t) {
  const at::Tensor weight = t.at("weight");
  const at::Tensor bias = model.at("bias").get<bool>() ? t.at("bias") : at::Tensor();
  return [weight, bias](const at::Tensor& x) { return at::linear(x.flatten(1), weight, bias); };
}

at::Tensor activate(const std::string& name, const at::Tensor& x) {
  if (name == "tanh") return at::tanh(x);
  if (name == "gelu") return at::gelu(x);
  return at::relu(x);
}

Forward mlp(const json& model, const Tensors& t) {
  std::vector<at::Tensor> weights;
  std::vector<at::Tensor> biases;
  for (std::size_t i = 0; i <= model.at("hidden").size(); ++i) {
    weights.push_back(t.at("layers." + std::to_string(i) + ".weight"));
    biases.push_back(t.at("layers." + std::to_string(i) + ".bias"));
  }
  const auto activation = model.at("activation").get<std::string>();
  return [weights, biases, activation](const at::Tensor& x) {
    at::Tensor h = x.flatten(1);
    for (std::size_t i = 0; i < weights.size(); ++i) {
      h = at::linear(h, weights[i], biases[i]);
      if (i + 1 < weights.size()) h = activate(activation, h);
    }
    return h;
  };
}

Forward cnn(const json& model, const Tensors& t) {
  const std::int64_t padding = model.at("padding") == "same" ? (model.at("kernel").get<std::int64_t>() - 1) / 2 : 0;
  return [t, padding](const at::Tensor& x) {
    const auto block = [&](const at::Tensor& h, const std::string& name) {
      const at::Tensor y = at::conv2d(h, t.at(name + ".weight"), t.at(name + ".bias"), 1, padding);
      // ReLU after the pooling gives the same values with a quarter of the work.
      return at::relu(at::max_pool2d(y, 2));
    };
    at::Tensor h = block(block(x, "conv1"), "conv2").flatten(1);
    h = at::relu(at::linear(h, t.at("fc1.weight"), t.at("fc1.bias")));
    return at::linear(h, t.at("fc2.weight"), t.at("fc2.bias"));
  };
}

Forward resnet(const json& model, const Tensors& t) {
  const auto groups = model.at("groups").get<std::int64_t>();
  const auto blocks = model.at("blocks").get<std::vector<std::int64_t>>();
  return [t, groups, blocks](const at::Tensor& x) {
    const auto norm = [&](const at::Tensor& h, const std::string& name) {
      return at::group_norm(h, groups, t.at(name + ".weight"), t.at(name + ".bias"), 1e-5);
    };
    const auto conv = [&](const at::Tensor& h, const std::string& name, std::int64_t stride) {
      const at::Tensor& weight = t.at(name + ".weight");
      return at::conv2d(h, weight, {}, stride, weight.size(2) / 2);
    };
    at::Tensor h = at::relu(norm(conv(x, "conv1", 1), "norm1"));
    for (std::size_t s = 0; s < blocks.size(); ++s) {
      for (std::int64_t b = 0; b < blocks[s]; ++b) {
        const std::string name = "stages." + std::to_string(s) + "." + std::to_string(b);
        const std::int64_t stride = s > 0 && b == 0 ? 2 : 1;
        at::Tensor y = at::relu(norm(conv(h, name + ".conv1", stride), name + ".norm1"));
        y = norm(conv(y, name + ".conv2", 1), name + ".norm2");
        const bool projected = t.count(name + ".shortcut.conv.weight") != 0;
        const at::Tensor shortcut =
            projected ? norm(conv(h, name + ".shortcut.conv", stride), name + ".shortcut.norm") : h;
        h = at::relu(y + shortcut);
      }
    }
    return at::linear(h.mean({2, 3}), t.at("fc.weight"), t.at("fc.bias"));
  };
}

struct DecoderLayer {
  at::Tensor q, k, v, o, gate, up, down, before_attention, before_mlp;
};

Forward transformer(const json& model, const Tensors& t) {
  const auto layers = model.at("layers").get<std::int64_t>();
  const auto heads = model.at("heads").get<std::int64_t>();
  const auto kv_heads = model.at("kv_heads").get<std::int64_t>();
  const auto width = model.at("width").get<std::int64_t>();
  const auto epsilon = model.at("norm_epsilon").get<double>();
  const std::int64_t size = width / heads;
  const at::Tensor table =
      rotary_table(model.at("context").get<std::int64_t>(), size, model.at("rope_theta").get<double>());
  const at::Tensor embedding = t.at("model.embed_tokens.weight");
  const at::Tensor head = model.at("tied").get<bool>() ? embedding : t.at("lm_head.weight");
  const at::Tensor last_norm = t.at("model.norm.weight");
  std::vector<DecoderLayer> stack;
  for (std::int64_t n = 0; n < layers; ++n) {
    const std::string name = "model.layers." + std::to_string(n) + ".";
    const auto weight = [&](const char* part) { return t.at(name + part + ".weight"); };
    stack.push_back({weight("self_attn.q_proj"), weight("self_attn.k_proj"), weight("self_attn.v_proj"),
                     weight("self_attn.o_proj"), weight("mlp.gate_proj"), weight("mlp.up_proj"),
                     weight("mlp.down_proj"), weight("input_layernorm"), weight("post_attention_layernorm")});
  }
  return [=](const at::Tensor& tokens) {
    const std::int64_t rows = tokens.size(0);
    const std::int64_t length = tokens.size(1);
    const at::Tensor angles = table.slice(1, 0, length);
    at::Tensor h = at::embedding(embedding, tokens.reshape({-1}));
    for (const DecoderLayer& layer : stack) {
      const at::Tensor x = rms_norm(h, layer.before_attention, epsilon);
      const at::Tensor q = rotate_heads(at::linear(x, layer.q).view({rows, length, heads, size}), angles);
      const at::Tensor k = rotate_heads(at::linear(x, layer.k).view({rows, length, kv_heads, size}), angles);
      const at::Tensor v = at::linear(x, layer.v).view({rows, length, kv_heads, size}).transpose(1, 2);
      const at::Tensor mixed = causal_attention(q, k, v).view({rows * length, width});
      h = h + at::linear(mixed, layer.o);
      const at::Tensor z = rms_norm(h, layer.before_mlp, epsilon);
      h = h + at::linear(silu_product(at::linear(z, layer.gate), at::linear(z, layer.up)), layer.down);
    }
    return at::linear(rms_norm(h, last_norm, epsilon), head);
  };
}

}  // namespace

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double epsilon) {
  return x * at::rsqrt(x.square().mean(-1, true) + epsilon) * weight;
}

at::Tensor silu_product(const at::Tensor& gate, const at::Tensor& up) { return at::silu(gate) * up; }

at::Tensor rotary_table(std::int64_t length, std::int64_t size, double theta) {
  const std::int64_t half = size / 2;
  at::Tensor table = at::empty({2, length, half}, at::kFloat);
  float* cosine = table.data_ptr<float>();
  float* sine = cosine + length * half;
  for (std::int64_t p = 0; p < length; ++p) {
    for (std::int64_t j = 0; j < half; ++j) {
      const double angle =
          static_cast<double>(p) * std::pow(theta, -2.0 * static_cast<double>(j) / static_cast<double>(size));
      *cosine++ = static_cast<float>(std::cos(angle));
      *sine++ = static_cast<float>(std::sin(angle));
    }
  }
  return table;
}

at::Tensor rotate_heads(const at::Tensor& x, const at::Tensor& table) {
  const std::int64_t half = x.size(3) / 2;
  const at::Tensor moved = x.transpose(1, 2);
  const at::Tensor a = moved.slice(3, 0, half);
  const at::Tensor b = moved.slice(3, half);
  const at::Tensor cosine = table.select(0, 0);
  const at::Tensor sine = table.select(0, 1);
  return at::cat({a * cosine - b * sine, b * cosine + a * sine}, 3);
}

at::Tensor causal_attention(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values) {
  const std::int64_t rows = queries.size(0);
  const std::int64_t heads = queries.size(1);
  const std::int64_t length = queries.size(2);
  const std::int64_t size = queries.size(3);
  const std::int64_t kv_heads = keys.size(1);
  // The query heads that share a key head stand one under the other, so that each key head is one product.
  const std::int64_t tall = heads / kv_heads * length;
  const at::Tensor q = (queries * (1.0 / std::sqrt(static_cast<double>(size)))).reshape({rows * kv_heads, tall, size});
  const at::Tensor k = keys.reshape({rows * kv_heads, length, size});
  const at::Tensor v = values.reshape({rows * kv_heads, length, size});
  const at::Tensor future = at::ones({length, length}, at::kBool).triu(1);
  const at::Tensor scores = at::bmm(q, k.transpose(1, 2)).view({rows * heads, length, length});
  const at::Tensor weights =
      at::softmax(scores.masked_fill(future, -INFINITY), -1).view({rows * kv_heads, tall, length});
  return at::bmm(weights, v).view({rows, heads, length, size}).transpose(1, 2).reshape({rows, length, heads * size});
}

Forward make_forward(const json& model, const Tensors& tensors) {
  const auto architecture = model.at("architecture").get<std::string>();
  if (architecture == "linear") return linear(model, tensors);
  if (architecture == "mlp") return mlp(model, tensors);
  if (architecture == "cnn") return cnn(model, tensors);
  if (architecture == "resnet") return resnet(model, tensors);
  return transformer(model, tensors);
}

}  // namespace skerry::trainer
