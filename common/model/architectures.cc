#include "common/model/architectures.h"

#include <cmath>
#include <optional>
#include <utility>

#include <nlohmann/json.hpp>

#include "common/tensor/text.h"

namespace skerry {
namespace {

using nlohmann::json;
using Shape = std::vector<std::uint64_t>;

constexpr Initialiser kZeros{Initialiser::Kind::kZeros, 0.0};
constexpr Initialiser kOnes{Initialiser::Kind::kOnes, 0.0};
Initialiser normal(double deviation) { return {Initialiser::Kind::kNormal, deviation}; }
Initialiser uniform(double bound) { return {Initialiser::Kind::kUniform, bound}; }
Initialiser kaiming(std::uint64_t inputs) { return uniform(std::sqrt(6.0) / std::sqrt(static_cast<double>(inputs))); }
Initialiser xavier(std::uint64_t inputs, std::uint64_t outputs) {
  return uniform(std::sqrt(6.0) / std::sqrt(static_cast<double>(inputs + outputs)));
}
Initialiser one_over_root(std::uint64_t inputs) { return uniform(1.0 / std::sqrt(static_cast<double>(inputs))); }

TensorLayout tensor(std::string name, Shape shape, Initialiser initialiser) {
  TensorLayout layout;
  layout.name = std::move(name);
  layout.elements = 1;
  for (const std::uint64_t size : shape) layout.elements *= size;  // at most 2^60 in every architecture
  layout.shape = std::move(shape);
  layout.initialiser = initialiser;
  return layout;
}

LayerPlan linear_layer(const std::string& prefix, std::uint64_t outputs, std::uint64_t inputs, Initialiser weight) {
  return {{tensor(prefix + ".weight", {outputs, inputs}, weight), tensor(prefix + ".bias", {outputs}, kZeros)}, false};
}

std::vector<LayerPlan> linear(const json& model) {
  const auto inputs = model["inputs"].get<std::uint64_t>();
  const auto outputs = model["outputs"].get<std::uint64_t>();
  std::vector<LayerPlan> layers;
  layers.push_back({{tensor("weight", {outputs, inputs}, one_over_root(inputs))}, false});
  if (model["bias"].get<bool>()) layers.push_back({{tensor("bias", {outputs}, kZeros)}, false});
  return layers;
}

std::vector<LayerPlan> mlp(const json& model) {
  auto widths = model["hidden"].get<std::vector<std::uint64_t>>();
  widths.insert(widths.begin(), model["inputs"].get<std::uint64_t>());
  widths.push_back(model["outputs"].get<std::uint64_t>());
  const bool tanh = model["activation"] == "tanh";
  std::vector<LayerPlan> layers;
  for (std::size_t i = 0; i + 1 < widths.size(); ++i) {
    const bool last = i + 2 == widths.size();
    const Initialiser weight = last   ? one_over_root(widths[i])
                               : tanh ? xavier(widths[i], widths[i + 1])
                                      : kaiming(widths[i]);
    layers.push_back(linear_layer("layers." + std::to_string(i), widths[i + 1], widths[i], weight));
  }
  return layers;
}

// Height or width after two convolutions, each followed by pooling in pairs; 0 where nothing is left.
std::uint64_t pooled_twice(std::uint64_t size, std::uint64_t lost) {
  for (int i = 0; i < 2; ++i) size = size > lost ? (size - lost) / 2 : 0;
  return size;
}

Result<std::vector<LayerPlan>> cnn(const json& model) {
  const auto shape = model["shape"].get<Shape>();
  const auto channels = model["channels"].get<Shape>();
  const auto kernel = model["kernel"].get<std::uint64_t>();
  const auto hidden = model["hidden"].get<std::uint64_t>();
  const std::uint64_t lost = model["padding"] == "valid" ? kernel - 1 : 0;
  const std::uint64_t height = pooled_twice(shape[1], lost);
  const std::uint64_t width = pooled_twice(shape[2], lost);
  if (height == 0 || width == 0)
    return invalid_argument("model.shape is " + shape_text(shape) + ", too small for two convolutions of kernel " +
                            std::to_string(kernel) +
                            " and two poolings; choose a larger shape, a smaller kernel or padding \"same\"");
  const std::uint64_t flat = channels[1] * height * width;
  const std::uint64_t area = kernel * kernel;
  std::vector<LayerPlan> layers;
  layers.push_back({{tensor("conv1.weight", {channels[0], shape[0], kernel, kernel}, kaiming(shape[0] * area)),
                     tensor("conv1.bias", {channels[0]}, kZeros)},
                    false});
  layers.push_back({{tensor("conv2.weight", {channels[1], channels[0], kernel, kernel}, kaiming(channels[0] * area)),
                     tensor("conv2.bias", {channels[1]}, kZeros)},
                    false});
  layers.push_back(linear_layer("fc1", hidden, flat, kaiming(flat)));
  layers.push_back(linear_layer("fc2", model["classes"].get<std::uint64_t>(), hidden, one_over_root(hidden)));
  return layers;
}

void add_norm(LayerPlan& layer, const std::string& prefix, std::uint64_t channels) {
  layer.tensors.push_back(tensor(prefix + ".weight", {channels}, kOnes));
  layer.tensors.push_back(tensor(prefix + ".bias", {channels}, kZeros));
}

LayerPlan residual_block(const std::string& prefix, std::uint64_t in, std::uint64_t out, bool projected) {
  LayerPlan block;
  block.tensors.push_back(tensor(prefix + ".conv1.weight", {out, in, 3, 3}, kaiming(in * 9)));
  add_norm(block, prefix + ".norm1", out);
  block.tensors.push_back(tensor(prefix + ".conv2.weight", {out, out, 3, 3}, kaiming(out * 9)));
  add_norm(block, prefix + ".norm2", out);
  if (projected) {
    block.tensors.push_back(tensor(prefix + ".shortcut.conv.weight", {out, in, 1, 1}, kaiming(in)));
    add_norm(block, prefix + ".shortcut.norm", out);
  }
  return block;
}

std::vector<LayerPlan> resnet(const json& model) {
  const auto shape = model["shape"].get<Shape>();
  const auto width = model["width"].get<std::uint64_t>();
  const auto blocks = model["blocks"].get<Shape>();
  std::vector<LayerPlan> layers;
  LayerPlan stem;
  stem.tensors.push_back(tensor("conv1.weight", {width, shape[0], 3, 3}, kaiming(shape[0] * 9)));
  add_norm(stem, "norm1", width);
  layers.push_back(std::move(stem));
  std::uint64_t in = width;
  for (std::size_t stage = 0; stage < blocks.size(); ++stage) {
    const std::uint64_t out = width << stage;
    for (std::uint64_t block = 0; block < blocks[stage]; ++block) {
      const std::string prefix = "stages." + std::to_string(stage) + "." + std::to_string(block);
      layers.push_back(residual_block(prefix, in, out, stage > 0 && block == 0));
      in = out;
    }
  }
  layers.push_back(linear_layer("fc", model["classes"].get<std::uint64_t>(), in, one_over_root(in)));
  return layers;
}

LayerPlan decoder_layer(const std::string& prefix, const json& model) {
  const auto width = model["width"].get<std::uint64_t>();
  const auto hidden = model["hidden"].get<std::uint64_t>();
  const std::uint64_t keys = model["kv_heads"].get<std::uint64_t>() * (width / model["heads"].get<std::uint64_t>());
  const double deviation = model["initial_std"].get<double>();
  // What is added to the residual stream starts smaller the more layers add to it (GPT-2).
  const Initialiser out = normal(deviation / std::sqrt(2.0 * model["layers"].get<double>()));
  const Initialiser in = normal(deviation);
  LayerPlan layer{{tensor(prefix + "self_attn.q_proj.weight", {width, width}, in),
                   tensor(prefix + "self_attn.k_proj.weight", {keys, width}, in),
                   tensor(prefix + "self_attn.v_proj.weight", {keys, width}, in),
                   tensor(prefix + "self_attn.o_proj.weight", {width, width}, out),
                   tensor(prefix + "mlp.gate_proj.weight", {hidden, width}, in),
                   tensor(prefix + "mlp.up_proj.weight", {hidden, width}, in),
                   tensor(prefix + "mlp.down_proj.weight", {width, hidden}, out),
                   tensor(prefix + "input_layernorm.weight", {width}, kOnes),
                   tensor(prefix + "post_attention_layernorm.weight", {width}, kOnes)},
                  false};
  if (model["qk_norm"].get<bool>()) {
    const std::uint64_t size = width / model["heads"].get<std::uint64_t>();
    layer.tensors.push_back(tensor(prefix + "self_attn.q_norm.weight", {size}, kOnes));
    layer.tensors.push_back(tensor(prefix + "self_attn.k_norm.weight", {size}, kOnes));
  }
  return layer;
}

std::vector<LayerPlan> transformer(const json& model) {
  const auto width = model["width"].get<std::uint64_t>();
  const auto vocabulary = model["vocabulary"].get<std::uint64_t>();
  const Initialiser embedding = normal(model["initial_std"].get<double>());
  std::vector<LayerPlan> layers;
  layers.push_back({{tensor("model.embed_tokens.weight", {vocabulary, width}, embedding)}, true});
  for (std::uint64_t n = 0; n < model["layers"].get<std::uint64_t>(); ++n)
    layers.push_back(decoder_layer("model.layers." + std::to_string(n) + ".", model));
  layers.push_back({{tensor("model.norm.weight", {width}, kOnes)}, true});
  if (!model["tied"].get<bool>()) layers.push_back({{tensor("lm_head.weight", {vocabulary, width}, embedding)}, true});
  return layers;
}

std::vector<LayerPlan> mpt(const json& model) {
  const auto width = model["width"].get<std::uint64_t>();
  const double deviation = model["initial_std"].get<double>();
  const Initialiser in = normal(deviation);
  const Initialiser out = normal(deviation / std::sqrt(2.0 * model["layers"].get<double>()));
  std::vector<LayerPlan> layers;
  layers.push_back({{tensor("transformer.wte.weight", {model["vocabulary"].get<std::uint64_t>(), width}, in)}, true});
  for (std::uint64_t n = 0; n < model["layers"].get<std::uint64_t>(); ++n) {
    const std::string prefix = "transformer.blocks." + std::to_string(n) + ".";
    layers.push_back(
        {{tensor(prefix + "norm_1.weight", {width}, kOnes), tensor(prefix + "attn.Wqkv.weight", {3 * width, width}, in),
          tensor(prefix + "attn.out_proj.weight", {width, width}, out),
          tensor(prefix + "norm_2.weight", {width}, kOnes),
          tensor(prefix + "ffn.up_proj.weight", {4 * width, width}, in),
          tensor(prefix + "ffn.down_proj.weight", {width, 4 * width}, out)},
         false});
  }
  layers.push_back({{tensor("transformer.norm_f.weight", {width}, kOnes)}, true});
  return layers;
}

Result<std::vector<LayerPlan>> plan(const json& model) {
  const std::string& architecture = model["architecture"].get_ref<const std::string&>();
  if (architecture == "linear") return linear(model);
  if (architecture == "mlp") return mlp(model);
  if (architecture == "cnn") return cnn(model);
  if (architecture == "resnet") return resnet(model);
  if (architecture == "mpt") return mpt(model);
  return transformer(model);
}

}  // namespace

Result<std::vector<LayerPlan>> plan_layers(const json& resolved) {
  SKERRY_ASSIGN(std::vector<LayerPlan> layers, plan(resolved));
  std::uint64_t total = 0;
  for (const LayerPlan& layer : layers) {
    for (const TensorLayout& each : layer.tensors) {
      if (each.elements > kMaxModelElements - total)
        return invalid_argument("the model has more than " + std::to_string(kMaxModelElements) +
                                " parameters with tensor " + quoted_name(each.name) + " " + shape_text(each.shape) +
                                "; choose smaller sizes");
      total += each.elements;
    }
  }
  return layers;
}

}  // namespace skerry
