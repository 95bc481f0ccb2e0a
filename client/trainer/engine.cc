#include "client/trainer/engine.h"

#include <cmath>
#include <new>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <nlohmann/json.hpp>

#include "client/trainer/blas.h"
#include "client/trainer/models.h"

namespace skerry::trainer {
namespace {

using nlohmann::json;

/// Runs `body`; what LibTorch throws becomes an Error.
template <typename T, typename Body>
Result<T> guarded(const char* doing, const Body& body) {
  try {
    return body();
  } catch (const c10::Error& error) {
    std::string text = error.what_without_backtrace();
    const bool memory = text.find("not enough memory") != std::string::npos;
    text = std::string(doing) + ": " + text;
    return memory
               ? Error{Code::kResourceExhausted, text + "; give the trainer more memory or lower training.batch", false}
               : internal_error(text);
  } catch (const std::bad_alloc&) {
    return Error{Code::kResourceExhausted, std::string(doing) + ": out of memory; lower training.batch", false};
  } catch (const std::exception& error) {
    return internal_error(std::string(doing) + ": " + error.what());
  }
}

class TorchEngine final : public Engine {
 public:
  TorchEngine(const json& model, const ModelLayout& layout, ExampleShape examples, LossKind loss, std::int64_t outputs)
      : examples_(std::move(examples)),
        loss_(loss),
        outputs_(outputs),
        parameters_(at::zeros({static_cast<std::int64_t>(layout.parameters)}, at::kFloat)),
        gradient_(at::zeros({static_cast<std::int64_t>(layout.parameters)}, at::kFloat)) {
    const std::vector<std::uint64_t> offsets = fragment_offsets(layout);
    Tensors tensors;
    for (const TensorLayout& tensor : layout.tensors) {
      const std::vector<std::int64_t> shape(tensor.shape.begin(), tensor.shape.end());
      const auto offset = static_cast<std::int64_t>(offsets[tensor.fragment] + tensor.offset);
      const auto elements = static_cast<std::int64_t>(tensor.elements);
      // Detached views: leaves of the graph that share the one buffer; gradients likewise, so that a backward pass adds
      // into the flat vector.
      at::Tensor leaf = parameters_.narrow(0, offset, elements).view(shape).detach();
      leaf.requires_grad_(true);
      leaf.mutable_grad() = gradient_.narrow(0, offset, elements).view(shape).detach();
      tensors.emplace(tensor.name, std::move(leaf));
    }
    forward_ = make_forward(model, tensors);
  }

  std::span<float> parameters() override { return span_of(parameters_); }
  std::span<float> gradient() override { return span_of(gradient_); }

  Result<double> compute_gradient(const Batch& batch) override {
    return guarded<double>("training step", [&]() -> Result<double> {
      gradient_.zero_();
      const at::Tensor output = forward_(input_of(batch));
      const at::Tensor loss = loss_ == LossKind::kCrossEntropy ? at::cross_entropy_loss(output, labels_of(batch))
                                                               : at::mse_loss(output, targets_of(batch, output));
      loss.backward();
      return static_cast<double>(loss.item<float>());
    });
  }

  Result<Measurement> measure(const Batch& batch) override {
    return guarded<Measurement>("evaluation", [&]() -> Result<Measurement> {
      const at::NoGradGuard no_gradient;
      const at::Tensor output = forward_(input_of(batch));
      Measurement result;
      result.counted = static_cast<std::uint64_t>(output.size(0));
      if (loss_ == LossKind::kCrossEntropy) {
        // Sums of many terms are taken in double: a mean over a whole split must not depend on the batch's size.
        result.loss_sum =
            at::cross_entropy_loss(output, labels_of(batch), {}, at::Reduction::None).sum(at::kDouble).item<double>();
      } else {
        const at::Tensor targets = targets_of(batch, output);
        result.loss_sum = at::mse_loss(output, targets, at::Reduction::None).mean(1).sum(at::kDouble).item<double>();
      }
      if (examples_.classes != 0) {
        result.correct = static_cast<std::uint64_t>(output.argmax(1).eq(labels_of(batch)).sum().item<std::int64_t>());
      }
      return result;
    });
  }

  Result<std::vector<float>> next_byte_logits(std::string_view window) override {
    return guarded<std::vector<float>>("generation", [&]() -> Result<std::vector<float>> {
      const at::NoGradGuard no_gradient;
      at::Tensor tokens = at::empty({1, static_cast<std::int64_t>(window.size())}, at::kLong);
      std::int64_t* out = tokens.data_ptr<std::int64_t>();
      for (const char c : window) *out++ = static_cast<unsigned char>(c);
      return values_of(forward_(tokens).select(0, -1).slice(0, 0, 256));
    });
  }

  Result<std::vector<float>> outputs(const Batch& batch) override {
    return guarded<std::vector<float>>("forward pass", [&]() -> Result<std::vector<float>> {
      const at::NoGradGuard no_gradient;
      return values_of(forward_(input_of(batch)));
    });
  }

 private:
  static std::span<float> span_of(at::Tensor& tensor) {
    return {tensor.data_ptr<float>(), static_cast<std::size_t>(tensor.numel())};
  }

  static std::vector<float> values_of(const at::Tensor& tensor) {
    const at::Tensor flat = tensor.contiguous();
    const float* first = flat.data_ptr<float>();
    return {first, first + flat.numel()};
  }

  // Views of the batch's memory, which outlives every use.
  static at::Tensor floats(const std::vector<float>& values, at::IntArrayRef shape) {
    return at::from_blob(const_cast<float*>(values.data()), shape, at::kFloat);
  }
  static at::Tensor longs(const std::vector<std::int64_t>& values, at::IntArrayRef shape) {
    return at::from_blob(const_cast<std::int64_t*>(values.data()), shape, at::kLong);
  }

  at::Tensor input_of(const Batch& batch) const {
    const auto rows = static_cast<std::int64_t>(batch.rows);
    const auto size = static_cast<std::int64_t>(examples_.input_size);
    if (examples_.kind == ExampleShape::Kind::kText) return longs(batch.tokens, {rows, size + 1}).slice(1, 0, size);
    if (examples_.kind == ExampleShape::Kind::kTable) return floats(batch.inputs, {rows, size});
    const auto& s = examples_.shape;
    return floats(batch.inputs, {rows, static_cast<std::int64_t>(s[0]), static_cast<std::int64_t>(s[1]),
                                 static_cast<std::int64_t>(s[2])});
  }

  at::Tensor labels_of(const Batch& batch) const {
    const auto rows = static_cast<std::int64_t>(batch.rows);
    if (examples_.kind != ExampleShape::Kind::kText) return longs(batch.labels, {rows});
    const auto size = static_cast<std::int64_t>(examples_.input_size);
    return longs(batch.tokens, {rows, size + 1}).slice(1, 1).reshape({-1});
  }

  at::Tensor targets_of(const Batch& batch, const at::Tensor& output) const {
    if (examples_.classes == 0) return floats(batch.targets, {static_cast<std::int64_t>(batch.rows), 1});
    return at::one_hot(labels_of(batch), outputs_).to(output.scalar_type());
  }

  ExampleShape examples_;
  LossKind loss_;
  std::int64_t outputs_;
  at::Tensor parameters_;
  at::Tensor gradient_;
  Forward forward_;
};

std::string shape_text(const std::vector<std::uint64_t>& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

Error misfit(const std::string& model_side, const std::string& data_side) {
  return invalid_argument("the model takes " + model_side + " but the data set has " + data_side +
                          "; change the model section or choose another data set");
}

// How many values the model gives an example; an error where the examples are not what it takes.
Result<std::uint64_t> check_fit(const json& model, const ExampleShape& examples) {
  const auto architecture = model.at("architecture").get<std::string>();
  const bool text = examples.kind == ExampleShape::Kind::kText;
  if ((architecture == "transformer") != text) {
    return misfit(architecture == "transformer" ? "text" : "images or rows", text ? "text" : "no text");
  }
  if (text) {
    const auto vocabulary = model.at("vocabulary").get<std::uint64_t>();
    if (vocabulary < 256) return misfit(std::to_string(vocabulary) + " tokens", "256 (bytes)");
    return vocabulary;
  }
  if (architecture == "linear" || architecture == "mlp") {
    const auto inputs = model.at("inputs").get<std::uint64_t>();
    if (inputs != examples.input_size) {
      return misfit(std::to_string(inputs) + " inputs", std::to_string(examples.input_size) + " values an example");
    }
    return model.at("outputs").get<std::uint64_t>();
  }
  if (examples.kind != ExampleShape::Kind::kImages) return misfit("images", "rows of a table");
  const auto shape = model.at("shape").get<std::vector<std::uint64_t>>();
  if (shape != examples.shape)
    return misfit("images of " + shape_text(shape), "images of " + shape_text(examples.shape));
  return model.at("classes").get<std::uint64_t>();
}

}  // namespace

std::vector<std::uint64_t> fragment_offsets(const ModelLayout& layout) {
  std::vector<std::uint64_t> offsets;
  std::uint64_t at = 0;
  for (const FragmentLayout& fragment : layout.fragments) {
    offsets.push_back(at);
    at += fragment.elements;
  }
  return offsets;
}

void Engine::use_threads(int threads) {
  at::set_num_threads(threads);
  use_blas_threads(threads);
  at::globalContext().setDeterministicAlgorithms(true, true);
}

Result<std::unique_ptr<Engine>> Engine::make(std::string_view model, const ModelLayout& layout,
                                             const ExampleShape& examples, std::optional<LossKind> loss) {
  const json section = json::parse(model.begin(), model.end(), nullptr, false);
  SKERRY_ASSIGN(const json resolved, resolve_model(section));
  SKERRY_ASSIGN(const std::uint64_t outputs, check_fit(resolved, examples));
  const bool regression = examples.classes == 0;
  const auto architecture = resolved.at("architecture").get<std::string>();
  const bool plain = architecture == "linear" || architecture == "mlp";
  const LossKind chosen = loss.value_or(plain && outputs == 1 ? LossKind::kMse : LossKind::kCrossEntropy);
  if (regression && chosen != LossKind::kMse)
    return misfit("classes (training.loss is cross_entropy)", "numbers as labels");
  if (regression && outputs != 1)
    return misfit("1 output for each label (outputs is " + std::to_string(outputs) + ")", "one number as label");
  if (!regression && outputs < examples.classes) {
    return misfit(std::to_string(outputs) + " classes", std::to_string(examples.classes));
  }
  if (examples.kind == ExampleShape::Kind::kText && chosen != LossKind::kCrossEntropy) {
    return invalid_argument("training.loss is mse, text needs cross_entropy");
  }
  return guarded<std::unique_ptr<Engine>>("making the model", [&]() -> Result<std::unique_ptr<Engine>> {
    return std::unique_ptr<Engine>(
        std::make_unique<TorchEngine>(resolved, layout, examples, chosen, static_cast<std::int64_t>(outputs)));
  });
}

}  // namespace skerry::trainer
