#include "client/trainer/decoder.h"

#include <cmath>
#include <memory>
#include <utility>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/version.h>
#include <nlohmann/json.hpp>

namespace skerry::trainer {
namespace {

using nlohmann::json;

// What all layers of a decoder share.
struct Shape {
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t size = 0;  // of a head
  std::int64_t context = 0;
  double epsilon = 0;
  bool bf16 = false;
  at::Tensor table;   // transformer: the angles
  at::Tensor slopes;  // mpt: ALiBi's
};

Shape shape_of(const json& model, bool bf16) {
  Shape shape;
  shape.heads = model.at("heads").get<std::int64_t>();
  shape.kv_heads = model.value("kv_heads", shape.heads);
  shape.size = model.at("width").get<std::int64_t>() / shape.heads;
  shape.context = model.at("context").get<std::int64_t>();
  shape.epsilon = model.at("norm_epsilon").get<double>();
  shape.bf16 = bf16;
  return shape;
}

// x in the precision of products.
at::Tensor narrowed(const at::Tensor& x, bool bf16) { return bf16 ? x.to(at::kBFloat16) : x; }

at::Tensor project(const at::Tensor& x, const at::Tensor& weight, bool bf16) {
  return at::linear(narrowed(x, bf16), narrowed(weight, bf16));
}

// Attention of layer `n`, over the cache's past where there is one. Queries and keys as causal_attention takes them.
at::Tensor attend(const Shape& shape, const Pass& pass, std::size_t n, const at::Tensor& q, at::Tensor k,
                  at::Tensor v) {
  if (pass.cache != nullptr) {
    const auto extend = [&](const at::Tensor& all, const at::Tensor& more) {
      all.narrow(2, pass.cache->length, pass.length).copy_(more);
      return all.narrow(2, 0, pass.cache->length + pass.length);
    };
    k = extend(pass.cache->keys[n], k);
    v = extend(pass.cache->values[n], v);
  }
  return causal_attention(q, k, v, shape.slopes).view({pass.rows * pass.length, shape.heads * shape.size});
}

std::int64_t first_position(const Pass& pass) { return pass.cache == nullptr ? 0 : pass.cache->length; }

Stage embedding_stage(const at::Tensor& embedding) {
  return [embedding](const at::Tensor& tokens, const Pass&) { return at::embedding(embedding, tokens.reshape({-1})); };
}

struct TransformerLayer {
  at::Tensor q, k, v, o, gate, up, down, before_attention, before_mlp;
  at::Tensor q_norm, k_norm;  // with qk_norm

  at::Tensor apply(const at::Tensor& input, const Pass& pass, const Shape& s, std::size_t n) const {
    const at::Tensor angles = s.table.slice(1, first_position(pass), first_position(pass) + pass.length);
    const auto heads = [&](const at::Tensor& x, const at::Tensor& weight, const at::Tensor& norm, std::int64_t count) {
      at::Tensor y = project(x, weight, s.bf16).view({pass.rows, pass.length, count, s.size});
      if (norm.defined()) y = rms_norm(y, norm, s.epsilon);
      return narrowed(rotate_heads(y, angles), s.bf16);
    };
    const at::Tensor x = rms_norm(input, before_attention, s.epsilon);
    const at::Tensor queries = heads(x, q, q_norm, s.heads);
    const at::Tensor keys = heads(x, k, k_norm, s.kv_heads);
    const at::Tensor values = project(x, v, s.bf16).view({pass.rows, pass.length, s.kv_heads, s.size}).transpose(1, 2);
    const at::Tensor h = input + project(attend(s, pass, n, queries, keys, values), o, s.bf16);
    const at::Tensor z = rms_norm(h, before_mlp, s.epsilon);
    return h + project(silu_product(project(z, gate, s.bf16), project(z, up, s.bf16)), down, s.bf16);
  }
};

Stages transformer(const json& model, const Tensors& t, bool bf16) {
  auto shape = std::make_shared<Shape>(shape_of(model, bf16));  // shared by all layers' functions
  const at::Tensor embedding = t.at("model.embed_tokens.weight");
  shape->table = rotary_table(shape->context, shape->size, model.at("rope_theta").get<double>()).to(embedding.device());
  const bool qk_norm = model.at("qk_norm").get<bool>();
  Stages stages{embedding_stage(embedding)};
  for (std::size_t n = 0; n < model.at("layers").get<std::size_t>(); ++n) {
    const auto weight = [&](const char* part) {
      return t.at("model.layers." + std::to_string(n) + "." + part + ".weight");
    };
    TransformerLayer layer{weight("self_attn.q_proj"),
                           weight("self_attn.k_proj"),
                           weight("self_attn.v_proj"),
                           weight("self_attn.o_proj"),
                           weight("mlp.gate_proj"),
                           weight("mlp.up_proj"),
                           weight("mlp.down_proj"),
                           weight("input_layernorm"),
                           weight("post_attention_layernorm"),
                           {},
                           {}};
    if (qk_norm) {
      layer.q_norm = weight("self_attn.q_norm");
      layer.k_norm = weight("self_attn.k_norm");
    }
    stages.push_back([layer = std::move(layer), shape, n](const at::Tensor& h, const Pass& pass) {
      return layer.apply(h, pass, *shape, n);
    });
  }
  const at::Tensor norm = t.at("model.norm.weight");
  const at::Tensor head = model.at("tied").get<bool>() ? embedding : t.at("lm_head.weight");
  stages.push_back([norm, head, shape](const at::Tensor& h, const Pass&) {
    return project(rms_norm(h, norm, shape->epsilon), head, shape->bf16);
  });
  return stages;
}

struct MptLayer {
  at::Tensor qkv, out, up, down, before_attention, before_mlp;

  at::Tensor apply(const at::Tensor& input, const Pass& pass, const Shape& s, std::size_t n) const {
    const at::Tensor x = at::layer_norm(input, input.sizes().slice(1), before_attention, {}, s.epsilon);
    const at::Tensor three = project(x, qkv, s.bf16).view({pass.rows, pass.length, 3, s.heads, s.size});
    const auto part = [&](std::int64_t i) { return three.select(2, i).transpose(1, 2); };
    const at::Tensor h = input + project(attend(s, pass, n, part(0), part(1), part(2)), out, s.bf16);
    const at::Tensor z = at::layer_norm(h, h.sizes().slice(1), before_mlp, {}, s.epsilon);
    return h + project(at::gelu(project(z, up, s.bf16)), down, s.bf16);
  }
};

Stages mpt(const json& model, const Tensors& t, bool bf16) {
  auto shape = std::make_shared<Shape>(shape_of(model, bf16));  // shared by all layers' functions
  const at::Tensor embedding = t.at("transformer.wte.weight");
  shape->slopes = alibi_slopes(shape->heads, model.at("alibi_maximum").get<double>()).to(embedding.device());
  Stages stages{embedding_stage(embedding)};
  for (std::size_t n = 0; n < model.at("layers").get<std::size_t>(); ++n) {
    const auto weight = [&](const char* part) {
      return t.at("transformer.blocks." + std::to_string(n) + "." + part + ".weight");
    };
    MptLayer layer{weight("attn.Wqkv"),     weight("attn.out_proj"), weight("ffn.up_proj"),
                   weight("ffn.down_proj"), weight("norm_1"),        weight("norm_2")};
    stages.push_back([layer = std::move(layer), shape, n](const at::Tensor& h, const Pass& pass) {
      return layer.apply(h, pass, *shape, n);
    });
  }
  stages.push_back([norm = t.at("transformer.norm_f.weight"), embedding, shape](const at::Tensor& h, const Pass&) {
    return project(at::layer_norm(h, h.sizes().slice(1), norm, {}, shape->epsilon), embedding, shape->bf16);
  });
  return stages;
}

// Rotary embedding as one pass over memory on a CPU: as a dozen operations on rows of half a head it takes several
// times as long. The bits are theirs.
class HeadRotation : public torch::autograd::Function<HeadRotation> {
 public:
  // [rows, length, heads, size] → [rows, heads, length, size]
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, const at::Tensor& table) {
    context->save_for_backward({table});
    at::Tensor y = at::empty({x.size(0), x.size(2), x.size(1), x.size(3)}, x.options().requires_grad(false));
    for_each_head(x.size(0), x.size(1), x.size(2), x.size(3), table,
                  [from = x.data_ptr<float>(), to = y.data_ptr<float>()](
                      std::int64_t at, std::int64_t moved, std::int64_t half, const float* cosine, const float* sine) {
                    turn(from + at, cosine, sine, 1.0f, half, to + moved);
                  });
    return y;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list slopes) {
    const at::Tensor slope = slopes[0].contiguous();
    at::Tensor x = at::empty({slope.size(0), slope.size(2), slope.size(1), slope.size(3)}, slope.options());
    for_each_head(slope.size(0), slope.size(2), slope.size(1), slope.size(3), context->get_saved_variables()[0],
                  [from = slope.data_ptr<float>(), to = x.data_ptr<float>()](
                      std::int64_t at, std::int64_t moved, std::int64_t half, const float* cosine, const float* sine) {
                    turn(from + moved, cosine, sine, -1.0f, half, to + at);
                  });
    return {x, at::Tensor()};
  }

 private:
  // (a, b) → (a cos ∓ b sin, b cos ± a sin)
  static void turn(const float* __restrict from, const float* __restrict cosine, const float* __restrict sine,
                   float sign, std::int64_t half, float* __restrict to) {
    for (std::int64_t j = 0; j < half; ++j) {
      const float a = from[j];
      const float b = from[half + j];
      const float s = sign * sine[j];
      to[j] = a * cosine[j] - b * s;
      to[half + j] = b * cosine[j] + a * s;
    }
  }

  // Each head of each position: where it begins in [rows, length, heads, size] and in [rows, heads, length, size].
  template <typename Body>
  static void for_each_head(std::int64_t rows, std::int64_t length, std::int64_t heads, std::int64_t size,
                            const at::Tensor& table, const Body& body) {
    const std::int64_t half = size / 2;
    const float* cosine = table.data_ptr<float>();
    const float* sine = cosine + table.size(1) * half;
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t p = 0; p < length; ++p) {
        for (std::int64_t head = 0; head < heads; ++head) {
          body(((row * length + p) * heads + head) * size, ((row * heads + head) * length + p) * size, half,
               cosine + p * half, sine + p * half);
        }
      }
    }
  }
};

// −slope · distance for every head, query and key: [heads, length, read].
at::Tensor alibi_bias(const at::Tensor& slopes, std::int64_t length, std::int64_t read) {
  const at::Tensor keys = at::arange(read, slopes.options());
  const at::Tensor queries = at::arange(read - length, read, slopes.options());
  return slopes.view({-1, 1, 1}) * (keys.view({1, -1}) - queries.view({-1, 1}));
}

// Whether key j lies after query i: [length, read].
at::Tensor future_of(const at::Tensor& queries, std::int64_t length, std::int64_t read) {
  return at::ones({length, read}, queries.options().dtype(at::kBool)).triu(read - length + 1);
}

}  // namespace

Stages decoder_stages(const json& model, const Tensors& tensors, bool bf16) {
  return model.at("architecture") == "mpt" ? mpt(model, tensors, bf16) : transformer(model, tensors, bf16);
}

KeyValues decoder_cache(const json& model, const Tensors& tensors, bool bf16) {
  const Shape shape = shape_of(model, bf16);
  const auto options = tensors.begin()->second.options().requires_grad(false).dtype(bf16 ? at::kBFloat16 : at::kFloat);
  KeyValues cache;
  for (std::int64_t n = 0; n < model.at("layers").get<std::int64_t>(); ++n) {
    cache.keys.push_back(at::empty({1, shape.kv_heads, shape.context, shape.size}, options));
    cache.values.push_back(at::empty_like(cache.keys.back()));
  }
  return cache;
}

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
  if (x.is_cpu() && x.scalar_type() == at::kFloat) return HeadRotation::apply(x.contiguous(), table.contiguous());
  const std::int64_t half = x.size(3) / 2;
  const at::Tensor moved = x.transpose(1, 2);
  const at::Tensor a = moved.slice(3, 0, half);
  const at::Tensor b = moved.slice(3, half);
  const at::Tensor cosine = table.select(0, 0);
  const at::Tensor sine = table.select(0, 1);
  return at::cat({a * cosine - b * sine, b * cosine + a * sine}, 3);
}

at::Tensor alibi_slopes(std::int64_t heads, double maximum) {
  std::int64_t power = 1;
  while (power < heads) power *= 2;
  const auto slope = [&](std::int64_t i) {
    return static_cast<float>(std::exp2(-maximum * static_cast<double>(i + 1) / static_cast<double>(power)));
  };
  // Of the next power of two: all where it is the number of heads, otherwise first every second one from the second on.
  std::vector<std::int64_t> order;
  for (std::int64_t i = power == heads ? 0 : 1; i < power; i += power == heads ? 1 : 2) order.push_back(i);
  for (std::int64_t i = 0; power != heads && i < power; i += 2) order.push_back(i);
  at::Tensor slopes = at::empty({heads}, at::kFloat);
  for (std::int64_t i = 0; i < heads; ++i) slopes.data_ptr<float>()[i] = slope(order[static_cast<std::size_t>(i)]);
  return slopes;
}

at::Tensor causal_attention(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values,
                            const at::Tensor& slopes) {
  const std::int64_t rows = queries.size(0);
  const std::int64_t heads = queries.size(1);
  const std::int64_t length = queries.size(2);
  const std::int64_t size = queries.size(3);
  const std::int64_t kv_heads = keys.size(1);
  const std::int64_t read = keys.size(2);
#if TORCH_VERSION_MAJOR >= 2
  const auto each_head = [&](const at::Tensor& x) {
    return heads == kv_heads ? x : x.repeat_interleave(heads / kv_heads, 1);
  };
  const auto attention = [&] {
    if (!slopes.defined() && read == length) {
      return at::scaled_dot_product_attention(queries, each_head(keys), each_head(values), {}, 0.0, true);
    }
    const at::Tensor bias = slopes.defined() ? alibi_bias(slopes, length, read)
                                             : at::zeros({length, read}, queries.options().dtype(at::kFloat));
    const at::Tensor mask = bias.masked_fill(future_of(queries, length, read), -INFINITY).to(queries.scalar_type());
    return at::scaled_dot_product_attention(queries, each_head(keys), each_head(values), mask);
  };
  return attention().transpose(1, 2).reshape({rows, length, heads * size});
#else
  // The query heads that share a key head stand one under the other, so that each key head is one product.
  const std::int64_t tall = heads / kv_heads * length;
  const at::Tensor q = (queries * (1.0 / std::sqrt(static_cast<double>(size)))).reshape({rows * kv_heads, tall, size});
  const at::Tensor k = keys.reshape({rows * kv_heads, read, size});
  const at::Tensor v = values.reshape({rows * kv_heads, read, size});
  at::Tensor scores = at::bmm(q, k.transpose(1, 2));
  if (slopes.defined()) {
    scores = (scores.view({rows, heads, length, read}) + alibi_bias(slopes, length, read));
  }
  scores = scores.view({rows * heads, length, read}).masked_fill(future_of(queries, length, read), -INFINITY);
  const at::Tensor weights =
      at::softmax(scores, -1, at::kFloat).to(v.scalar_type()).view({rows * kv_heads, tall, read});
  return at::bmm(weights, v).view({rows, heads, length, size}).transpose(1, 2).reshape({rows, length, heads * size});
#endif
}

}  // namespace skerry::trainer
