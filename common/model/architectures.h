// Between the parts of common/model only: from a resolved model section to its layers.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "common/base/result.h"
#include "common/model/layout.h"

namespace skerry {

/// Tensors that stay together when a model is cut into fragments. Their fragment and offset are not set yet.
struct LayerPlan {
  std::vector<TensorLayout> tensors;
  bool is_end = false;  ///< an embedding, final norm or head: placed after the layers, where there is room
};

/// Every member written out and in its range; the sizes need not fit together yet. Errors as resolve_model.
Result<nlohmann::json> resolve_members(const nlohmann::json& model);

/// The section with what its `preset` says where it says nothing itself, and without `preset`. INVALID_ARGUMENT naming
/// the architecture's presets for another name.
Result<nlohmann::json> expand_preset(const nlohmann::json& model, std::string_view architecture);

/// The layers, in model order, of a section that resolve_members returned.
/// INVALID_ARGUMENT where sizes do not fit together or the model exceeds kMaxModelElements.
Result<std::vector<LayerPlan>> plan_layers(const nlohmann::json& resolved);

/// The members of a model section that say how its tensors are cut into fragments.
struct CutPlan {
  std::uint64_t fragments = 1;
  bool strided = false;
  std::vector<std::string> personal;  ///< patterns of tensor names
  std::vector<std::string> frozen;
  std::vector<std::string> only;  ///< not empty: what neither these nor `personal` fit is frozen
  bool control = false;
};

/// Gives every tensor its role and cuts the layers, as far as they are exchanged, into fragments. INVALID_ARGUMENT
/// where a pattern fits no tensor, a tensor has two roles, nothing is exchanged, or there are fewer layers than
/// fragments.
Result<ModelLayout> assemble_layout(std::string architecture, std::vector<LayerPlan> layers, const CutPlan& cut);

}  // namespace skerry
