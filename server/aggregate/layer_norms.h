// Norms layer by layer: of the outer gradient as the rule gave it, of the optimizer's momentum after the step, and of
// the new model.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "strategies/aggregation/rule.h"

namespace skerry::server {

/// L2 norms of one layer after an exchange.
struct LayerNorms {
  std::string layer;
  double outer_gradient = 0;
  double momentum = 0;  ///< of the optimizer's first state vector; 0 where it has none
  double model = 0;
};

/// At most so many layers of a fragment are told apart.
inline constexpr std::size_t kMaxNormLayers = 32;

/// A fragment's tensors, which follow each other, as layers that follow each other. A layer is named by its tensors'
/// names up to their last number ("model.layers.3"), or without their last part where there is none
/// ("model.embed_tokens"). Where there are more than kMaxNormLayers, neighbours are put together: "model.layers.0 to
/// model.layers.3".
std::vector<strategies::TensorRange> layers_of(std::span<const strategies::TensorRange> tensors);

}  // namespace skerry::server
