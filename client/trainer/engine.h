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

/// Sums over the examples (text: the predicted tokens that count) of one batch.
struct Measurement {
  double loss_sum = 0;
  std::uint64_t correct = 0;  ///< whose likeliest class was the right one; 0 for regression
  std::uint64_t counted = 0;
};

/// How the mathematics is done, as far as a model section does not say it.
struct EngineOptions {
  std::optional<LossKind> loss = {};  ///< none: the model's own (docs/model-layout.md)
  double z_loss = 0;                  ///< text: the gradient is also that of z_loss · mean((log Σ exp logits)²)
  std::uint64_t accumulate = 1;       ///< parts of a batch done one after another, so that one fits into memory
  Precision precision = Precision::kF32;
  bool activation_checkpointing = false;  ///< text: keep one activation a layer and compute the others again
  int threads = 1;
  std::string device = "cpu";  ///< where products are done: cpu, cuda, cuda:1 …
  bool staged = false;         ///< work on a copy of the parameters, as every device but cpu does (for tests)
};

/// The options of a training section, on the device that SKERRY_DEVICE names (unset: the first GPU where LibTorch sees
/// one, otherwise cpu).
EngineOptions engine_options(const TrainingOptions& training, int threads);

/// A text model that reads on: it keeps every layer's keys and values of what it has read.
class Reader {
 public:
  virtual ~Reader() = default;

  /// Reads `tokens` (1 … what is left of the context) after what was read before; the logits of the token that follows,
  /// one for each class of the examples. Errors as Engine::compute_gradient; OUT_OF_RANGE beyond the context.
  virtual Result<std::vector<float>> read(std::span<const std::int64_t> tokens) = 0;
};

class Engine {
 public:
  /// `model` is a model section (resolved or not), `layout` its layout. Up to `options.threads` threads work on a
  /// batch, each on some of its rows; every result depends on their number, and on nothing else. INVALID_ARGUMENT where
  /// the section is wrong, the examples do not fit the model, or there is no such device.
  static Result<std::unique_ptr<Engine>> make(std::string_view model, const ModelLayout& layout,
                                              const ExampleShape& examples, const EngineOptions& options);

  virtual ~Engine() = default;

  /// Fragment after fragment, each as its file holds it, where fragment_offsets() says. Change them freely between
  /// calls.
  virtual std::span<float> parameters() = 0;
  /// As of the latest compute_gradient, same order; zeros for frozen tensors.
  virtual std::span<float> gradient() = 0;

  /// How many terms the mean loss of a batch has: its examples, values, or the predicted tokens that count.
  virtual std::uint64_t terms(const Batch& batch) const = 0;

  /// The batch's mean loss (without z_loss); afterwards gradient() is that loss's. RESOURCE_EXHAUSTED (memory),
  /// INTERNAL (LibTorch's words).
  virtual Result<double> compute_gradient(const Batch& batch) = 0;

  /// Loss and hits of a batch, without gradients. Errors as above.
  virtual Result<Measurement> measure(const Batch& batch) = 0;

  /// Text: a reader at the beginning of a text. It must not outlive the engine, and the parameters must stay as they
  /// are while it is in use.
  virtual std::unique_ptr<Reader> reader() = 0;

  /// The model's outputs for a batch, row-major: what the tests look at. Errors as above.
  virtual Result<std::vector<float>> outputs(const Batch& batch) = 0;

  /// Text: floating-point operations of training on one token, without those that activation checkpointing repeats;
  /// 0 for other models.
  virtual double operations() const = 0;
};

/// What the device does at most, in floating-point operations a second: SKERRY_PEAK_TFLOPS · 10¹²; 0 where that is unset
/// or no number above 0.
double peak_operations();

/// Where each fragment begins in Engine::parameters(), in elements, in the order of layout.fragments: the exchanged
/// ones, then the personal one, then the frozen one, so that what is trained is one piece. For a control fragment,
/// which is no part of the model: where its twin begins.
std::vector<std::uint64_t> fragment_offsets(const ModelLayout& layout);

}  // namespace skerry::trainer
