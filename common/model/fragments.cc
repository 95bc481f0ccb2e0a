#include <algorithm>
#include <utility>

#include "common/base/pattern.h"
#include "common/model/architectures.h"
#include "common/tensor/text.h"

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

Error misfit(const char* member, const std::string& pattern, const std::string& what) {
  return invalid_argument(std::string("model.") + member + ": pattern " + quoted_name(pattern) + " " + what);
}

// The first pattern that fits the name; nullptr where none does.
const std::string* fitting(const std::vector<std::string>& patterns, std::string_view name) {
  for (const std::string& pattern : patterns)
    if (fits(pattern, name)) return &pattern;
  return nullptr;
}

// The role of a tensor. INVALID_ARGUMENT where it would have two.
Result<FragmentRole> role_of(const CutPlan& cut, const std::string& tensor) {
  const std::string* personal = fitting(cut.personal, tensor);
  const std::string* frozen = fitting(cut.frozen, tensor);
  const std::string* only = fitting(cut.only, tensor);
  if (personal != nullptr && frozen != nullptr)
    return misfit("frozen", *frozen,
                  "makes tensor " + quoted_name(tensor) + " frozen, but model.personal makes it personal");
  if (personal != nullptr && only != nullptr)
    return misfit("only", *only,
                  "has tensor " + quoted_name(tensor) + " exchanged, but model.personal makes it personal");
  if (personal != nullptr) return FragmentRole::kPersonal;
  return frozen != nullptr || (!cut.only.empty() && only == nullptr) ? FragmentRole::kFrozen : FragmentRole::kExchanged;
}

// The roles of all tensors, in model order.
Result<std::vector<FragmentRole>> roles_of(const CutPlan& cut, const std::vector<LayerPlan>& layers) {
  if (!cut.only.empty() && !cut.frozen.empty())
    return invalid_argument("model.only and model.frozen are both given; what model.only leaves out is frozen already");
  std::vector<FragmentRole> roles;
  std::vector<std::string_view> names;
  for (const LayerPlan& layer : layers) {
    for (const TensorLayout& tensor : layer.tensors) {
      SKERRY_ASSIGN(const FragmentRole role, role_of(cut, tensor.name));
      roles.push_back(role);
      names.push_back(tensor.name);
    }
  }
  const std::pair<const char*, const std::vector<std::string>*> lists[] = {
      {"personal", &cut.personal}, {"frozen", &cut.frozen}, {"only", &cut.only}};
  for (const auto& [member, patterns] : lists)
    for (const std::string& pattern : *patterns)
      if (std::none_of(names.begin(), names.end(), [&](std::string_view name) { return fits(pattern, name); }))
        return misfit(member, pattern, "fits no tensor of the model");
  if (std::find(roles.begin(), roles.end(), FragmentRole::kExchanged) == roles.end())
    return invalid_argument("model.personal and model.frozen leave no tensor to exchange");
  return roles;
}

// The layers without the tensors that are not exchanged; layers of which nothing is left are gone.
std::vector<LayerPlan> exchanged_part(const std::vector<LayerPlan>& layers, const std::vector<FragmentRole>& roles) {
  std::vector<LayerPlan> kept;
  auto role = roles.begin();
  for (const LayerPlan& layer : layers) {
    LayerPlan part;
    part.is_end = layer.is_end;
    for (const TensorLayout& tensor : layer.tensors)
      if (*role++ == FragmentRole::kExchanged) part.tensors.push_back(tensor);
    if (!part.tensors.empty()) kept.push_back(std::move(part));
  }
  return kept;
}

}  // namespace

Result<ModelLayout> assemble_layout(std::string architecture, std::vector<LayerPlan> layers, const CutPlan& cut) {
  SKERRY_ASSIGN(const std::vector<FragmentRole> roles, roles_of(cut, layers));
  const std::vector<LayerPlan> kept = exchanged_part(layers, roles);
  const auto cuttable = static_cast<std::uint64_t>(
      std::count_if(kept.begin(), kept.end(), [](const LayerPlan& layer) { return !layer.is_end; }));
  if (cut.fragments < 1 || cut.fragments > std::max<std::uint64_t>(cuttable, 1))
    return invalid_argument("model.fragments is " + std::to_string(cut.fragments) + ", must be in [1, " +
                            std::to_string(std::max<std::uint64_t>(cuttable, 1)) + "]: the model has " +
                            std::to_string(cuttable) + " layers" +
                            (kept.size() < layers.size() ? " that are exchanged" : ""));
  ModelLayout layout;
  layout.architecture = std::move(architecture);
  const auto add = [&](std::string name, FragmentRole role, std::size_t twin) {
    FragmentLayout& fragment = layout.fragments.emplace_back();
    fragment.name = std::move(name);
    fragment.role = role;
    fragment.twin = twin;
  };
  const std::size_t count = cut.fragments;
  for (std::size_t i = 0; i < count; ++i)
    add(count == 1 ? "all" : "f" + std::to_string(i), FragmentRole::kExchanged, 0);
  if (cut.control)
    for (std::size_t i = 0; i < count; ++i) add(layout.fragments[i].name + "-control", FragmentRole::kControl, i);
  const auto some = [&](FragmentRole role) { return std::find(roles.begin(), roles.end(), role) != roles.end(); };
  if (some(FragmentRole::kFrozen)) add("frozen", FragmentRole::kFrozen, 0);
  const std::size_t frozen = layout.fragments.size() - 1;
  if (some(FragmentRole::kPersonal)) add("personal", FragmentRole::kPersonal, 0);
  const std::size_t personal = layout.fragments.size() - 1;

  const std::vector<std::size_t> placed = place(kept, count, cut.strided);
  std::size_t next = 0;  // of `kept`
  for (LayerPlan& layer : layers) {
    bool exchanged = false;
    for (TensorLayout& tensor : layer.tensors) {
      const FragmentRole role = roles[layout.tensors.size()];
      exchanged = exchanged || role == FragmentRole::kExchanged;
      tensor.fragment = role == FragmentRole::kExchanged ? placed[next]
                        : role == FragmentRole::kFrozen  ? frozen
                                                         : personal;
      FragmentLayout& fragment = layout.fragments[tensor.fragment];
      tensor.offset = fragment.elements;
      fragment.elements += tensor.elements;
      fragment.tensors.push_back(layout.tensors.size());
      layout.parameters += tensor.elements;
      layout.tensors.push_back(std::move(tensor));
    }
    if (exchanged) ++next;
  }
  for (FragmentLayout& fragment : layout.fragments) {
    if (fragment.role != FragmentRole::kControl) continue;
    fragment.elements = layout.fragments[fragment.twin].elements;
    fragment.tensors = layout.fragments[fragment.twin].tensors;
  }
  return layout;
}

}  // namespace skerry
