// Between the parts of common/model only: from a resolved model section to its layers.
#pragma once

#include <cstdint>
#include <string>
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

/// The layers, in model order, of a section that resolve_members returned.
/// INVALID_ARGUMENT where sizes do not fit together or the model exceeds kMaxModelElements.
Result<std::vector<LayerPlan>> plan_layers(const nlohmann::json& resolved);

/// Cuts the layers into `count` fragments. INVALID_ARGUMENT where there are fewer layers.
Result<ModelLayout> assemble_layout(std::string architecture, std::vector<LayerPlan> layers, std::uint64_t count,
                                    bool strided);

}  // namespace skerry
