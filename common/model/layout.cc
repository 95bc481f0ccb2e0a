#include "common/model/layout.h"

#include <cstdio>
#include <exception>

#include <nlohmann/json.hpp>

#include "common/model/architectures.h"
#include "common/tensor/text.h"

namespace skerry {
namespace {

using nlohmann::json;

Result<ModelLayout> layout_of_resolved(const json& resolved) {
  SKERRY_ASSIGN(std::vector<LayerPlan> layers, plan_layers(resolved));
  CutPlan cut;
  cut.fragments = resolved["fragments"].get<std::uint64_t>();
  cut.strided = resolved["fragment_pattern"] == "strided";
  cut.personal = resolved["personal"].get<std::vector<std::string>>();
  cut.frozen = resolved["frozen"].get<std::vector<std::string>>();
  cut.only = resolved["only"].get<std::vector<std::string>>();
  cut.control = resolved["control"].get<bool>();
  return assemble_layout(resolved["architecture"].get<std::string>(), std::move(layers), cut);
}

std::string initialiser_text(const Initialiser& initialiser) {
  char scale[40];
  std::snprintf(scale, sizeof scale, "(%.6g)", initialiser.scale);
  switch (initialiser.kind) {
    case Initialiser::Kind::kZeros:
      return "zeros";
    case Initialiser::Kind::kOnes:
      return "ones";
    case Initialiser::Kind::kNormal:
      return std::string("normal") + scale;
    case Initialiser::Kind::kUniform:
      return std::string("uniform") + scale;
  }
  return "?";
}

}  // namespace

const TensorLayout* ModelLayout::find_tensor(std::string_view name) const {
  for (const TensorLayout& tensor : tensors)
    if (tensor.name == name) return &tensor;
  return nullptr;
}

const FragmentLayout* ModelLayout::find_fragment(std::string_view name) const {
  for (const FragmentLayout& fragment : fragments)
    if (fragment.name == name) return &fragment;
  return nullptr;
}

std::size_t ModelLayout::shared_fragments() const {
  const bool personal = !fragments.empty() && fragments.back().role == FragmentRole::kPersonal;
  return fragments.size() - (personal ? 1 : 0);
}

Result<json> resolve_model(const json& model) {
  try {
    SKERRY_ASSIGN(json resolved, resolve_members(model));
    SKERRY_TRY(layout_of_resolved(resolved));
    return resolved;
  } catch (const std::exception& exception) {  // text in the section that is not UTF-8
    return invalid_argument(std::string("the model section cannot be read: ") + exception.what());
  }
}

Result<ModelLayout> build_layout(const json& model) {
  try {
    SKERRY_ASSIGN(const json resolved, resolve_members(model));
    return layout_of_resolved(resolved);
  } catch (const std::exception& exception) {
    return invalid_argument(std::string("the model section cannot be read: ") + exception.what());
  }
}

std::string describe_layout(const ModelLayout& layout) {
  std::string text;
  for (const TensorLayout& tensor : layout.tensors)
    text += tensor.name + " " + shape_text(tensor.shape) + " " + initialiser_text(tensor.initialiser) + " " +
            layout.fragments[tensor.fragment].name + "+" + std::to_string(tensor.offset) + "\n";
  return text;
}

}  // namespace skerry
