#include "client/trainer/models.h"

#include <vector>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

#include "client/trainer/decoder.h"
#include "common/model/layout.h"

namespace skerry::trainer {
namespace {

using nlohmann::json;

Stage linear(const json& model, const Tensors& t) {
  const at::Tensor weight = t.at("weight");
  const at::Tensor bias = model.at("bias").get<bool>() ? t.at("bias") : at::Tensor();
  return [weight, bias](const at::Tensor& x, const Pass&) { return at::linear(x.flatten(1), weight, bias); };
}

at::Tensor activate(const std::string& name, const at::Tensor& x) {
  if (name == "tanh") return at::tanh(x);
  if (name == "gelu") return at::gelu(x);
  return at::relu(x);
}

Stage mlp(const json& model, const Tensors& t) {
  std::vector<at::Tensor> weights;
  std::vector<at::Tensor> biases;
  for (std::size_t i = 0; i <= model.at("hidden").size(); ++i) {
    weights.push_back(t.at("layers." + std::to_string(i) + ".weight"));
    biases.push_back(t.at("layers." + std::to_string(i) + ".bias"));
  }
  const auto activation = model.at("activation").get<std::string>();
  return [weights, biases, activation](const at::Tensor& x, const Pass&) {
    at::Tensor h = x.flatten(1);
    for (std::size_t i = 0; i < weights.size(); ++i) {
      h = at::linear(h, weights[i], biases[i]);
      if (i + 1 < weights.size()) h = activate(activation, h);
    }
    return h;
  };
}

Stage cnn(const json& model, const Tensors& t) {
  const std::int64_t padding = model.at("padding") == "same" ? (model.at("kernel").get<std::int64_t>() - 1) / 2 : 0;
  return [t, padding](const at::Tensor& x, const Pass&) {
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

Stage resnet(const json& model, const Tensors& t) {
  const auto groups = model.at("groups").get<std::int64_t>();
  const auto blocks = model.at("blocks").get<std::vector<std::int64_t>>();
  return [t, groups, blocks](const at::Tensor& x, const Pass&) {
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

}  // namespace

Stages make_stages(const json& model, const Tensors& tensors, bool bf16) {
  const auto architecture = model.at("architecture").get<std::string>();
  if (is_text_model(architecture)) return decoder_stages(model, tensors, bf16);
  if (architecture == "linear") return {linear(model, tensors)};
  if (architecture == "mlp") return {mlp(model, tensors)};
  if (architecture == "cnn") return {cnn(model, tensors)};
  return {resnet(model, tensors)};
}

}  // namespace skerry::trainer
