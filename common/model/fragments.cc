#include <algorithm>
#include <utility>

#include "common/model/architectures.h"

namespace skerry {
namespace {

std::uint64_t elements_of(const LayerPlan& layer) {
  std::uint64_t sum = 0;
  for (const TensorLayout& tensor : layer.tensors) sum += tensor.elements;
  return sum;
}

// The fragment of each layer in a sequential cut: where its middle falls, but no fragment skipped or left empty.
std::vector<std::size_t> sequential(const std::vector<std::uint64_t>& sizes, std::size_t count) {
  std::uint64_t total = 0;
  for (const std::uint64_t size : sizes) total += size;
  std::vector<std::size_t> fragments;
  std::uint64_t before = 0;
  for (std::size_t j = 0; j < sizes.size(); ++j) {
    // count ≤ 2^12 and total ≤ 2^42, so nothing overflows.
    const std::size_t wanted = static_cast<std::size_t>(count * (2 * before + sizes[j]) / (2 * total));
    const std::size_t left = sizes.size() - j;
    const std::size_t least = std::max(j == 0 ? 0 : fragments.back(), count > left ? count - left : 0);
    const std::size_t most = std::min(j == 0 ? 0 : fragments.back() + 1, count - 1);
    fragments.push_back(std::min(std::max(wanted, least), most));
    before += sizes[j];
  }
  return fragments;
}

// The fragment of every layer and end.
std::vector<std::size_t> place(const std::vector<LayerPlan>& layers, std::size_t count, bool strided) {
  std::vector<std::uint64_t> sizes;
  for (const LayerPlan& layer : layers)
    if (!layer.is_end) sizes.push_back(elements_of(layer));
  std::vector<std::size_t> chosen;
  if (strided) {
    for (std::size_t j = 0; j < sizes.size(); ++j) chosen.push_back(j % count);
  } else {
    chosen = sequential(sizes, count);
  }
  std::vector<std::uint64_t> filled(count, 0);
  for (std::size_t j = 0; j < sizes.size(); ++j) filled[chosen[j]] += sizes[j];

  std::vector<std::size_t> fragments;
  std::size_t j = 0;
  for (const LayerPlan& layer : layers) {
    if (!layer.is_end) {
      fragments.push_back(chosen[j++]);
      continue;
    }
    const auto emptiest = std::min_element(filled.begin(), filled.end());
    fragments.push_back(static_cast<std::size_t>(emptiest - filled.begin()));
    *emptiest += elements_of(layer);
  }
  return fragments;
}

}  // namespace

Result<ModelLayout> assemble_layout(std::string architecture, std::vector<LayerPlan> layers, std::uint64_t count,
                                    bool strided) {
  const auto cuttable = static_cast<std::uint64_t>(
      std::count_if(layers.begin(), layers.end(), [](const LayerPlan& layer) { return !layer.is_end; }));
  if (count < 1 || count > cuttable)
    return invalid_argument("model.fragments is " + std::to_string(count) + ", must be in [1, " +
                            std::to_string(cuttable) + "]: the model has " + std::to_string(cuttable) + " layers");
  ModelLayout layout;
  layout.architecture = std::move(architecture);
  layout.fragments.resize(count);
  for (std::size_t i = 0; i < count; ++i) layout.fragments[i].name = count == 1 ? "all" : "f" + std::to_string(i);
  const std::vector<std::size_t> placed = place(layers, count, strided);
  for (std::size_t i = 0; i < layers.size(); ++i) {
    FragmentLayout& fragment = layout.fragments[placed[i]];
    for (TensorLayout& tensor : layers[i].tensors) {
      tensor.fragment = placed[i];
      tensor.offset = fragment.elements;
      fragment.elements += tensor.elements;
      fragment.tensors.push_back(layout.tensors.size());
      layout.parameters += tensor.elements;
      layout.tensors.push_back(std::move(tensor));
    }
  }
  return layout;
}

}  // namespace skerry
