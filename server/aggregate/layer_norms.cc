#include "server/aggregate/layer_norms.h"

#include <algorithm>

namespace skerry::server {
namespace {

std::string layer_name(const std::string& tensor) {
  std::size_t begin = 0, end = 0;  // of the name up to its last number
  while (begin < tensor.size()) {
    const std::size_t stop = std::min(tensor.find('.', begin), tensor.size());
    if (stop > begin &&
        std::all_of(tensor.begin() + static_cast<std::ptrdiff_t>(begin),
                    tensor.begin() + static_cast<std::ptrdiff_t>(stop), [](char c) { return c >= '0' && c <= '9'; }))
      end = stop;
    begin = stop + 1;
  }
  if (end == 0) end = tensor.rfind('.');
  return tensor.substr(0, end);
}

}  // namespace

std::vector<strategies::TensorRange> layers_of(std::span<const strategies::TensorRange> tensors) {
  std::vector<strategies::TensorRange> layers;
  for (const auto& tensor : tensors) {
    std::string name = layer_name(tensor.name);
    if (layers.empty() || layers.back().name != name) layers.push_back({std::move(name), tensor.first, 0});
    layers.back().count += tensor.count;
  }
  if (layers.size() <= kMaxNormLayers) return layers;
  std::vector<strategies::TensorRange> merged;
  for (std::size_t group = 0; group < kMaxNormLayers; ++group) {
    const std::size_t begin = group * layers.size() / kMaxNormLayers;
    const std::size_t last = (group + 1) * layers.size() / kMaxNormLayers - 1;
    std::string name = layers[begin].name;
    if (last > begin) name += " to " + layers[last].name;
    merged.push_back(
        {std::move(name), layers[begin].first, layers[last].first + layers[last].count - layers[begin].first});
  }
  return merged;
}

}  // namespace skerry::server
