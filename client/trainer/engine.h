// The mathematics of one model: parameters and gradients as one flat vector, losses, logits. LibTorch stays behind
// this.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "client/trainer/data_set.h"
#include "client/trainer/options.h"
#include "common/base/result.h"
#include "common/model/layout.h"

namespace skerry::trainer {

/// Sums over the examples (text: the predicted bytes) of one batch.
struct Measurement {
  double loss_sum = 0;
  std::uint64_t correct = 0;  ///< whose likeliest class was the right one; 0 for regression
  std::uint64_t counted = 0;
};

class Engine {
 public:
  /// `model` is a model section (resolved or not), `layout` its layout; `loss` nothing: the model's own
  /// (docs/model-layout.md). Up to `threads` threads work on a batch, each on some of its rows; every result depends on
  /// their number, and on nothing else. INVALID_ARGUMENT where the section is wrong or the examples do not fit the
  /// model.
  static Result<std::unique_ptr<Engine>> make(std::string_view model, const ModelLayout& layout,
                                              const ExampleShape& examples, std::optional<LossKind> loss, int threads);

  virtual ~Engine() = default;

  /// Fragment after fragment, each as its file holds it, where fragment_offsets() says. Change them freely between
  /// calls.
  virtual std::span<float> parameters() = 0;
  /// As of the latest compute_gradient, same order; zeros for frozen tensors.
  virtual std::span<float> gradient() = 0;

  /// The batch's mean loss; afterwards gradient() is that loss's. RESOURCE_EXHAUSTED (memory), INTERNAL (LibTorch's
  /// words).
  virtual Result<double> compute_gradient(const Batch& batch) = 0;

  /// Loss and hits of a batch, without gradients. Errors as above.
  virtual Result<Measurement> measure(const Batch& batch) = 0;

  /// Text: the logits of the byte that follows `window` (1 … context bytes). Errors as above.
  virtual Result<std::vector<float>> next_byte_logits(std::string_view window) = 0;

  /// The model's outputs for a batch, row-major: what the tests look at. Errors as above.
  virtual Result<std::vector<float>> outputs(const Batch& batch) = 0;
};

/// Where each fragment begins in Engine::parameters(), in elements, in the order of layout.fragments: the exchanged
/// ones, then the personal one, then the frozen one, so that what is trained is one piece. For a control fragment,
/// which is no part of the model: where its twin begins.
std::vector<std::uint64_t> fragment_offsets(const ModelLayout& layout);

}  // namespace skerry::trainer
