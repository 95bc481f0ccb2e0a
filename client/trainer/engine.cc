#include "client/trainer/engine.h"

#include <algorithm>
#include <new>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <nlohmann/json.hpp>

#include "client/trainer/blas.h"
#include "client/trainer/models.h"
#include "client/trainer/shard_pool.h"

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

/// Rows first … first + count − 1 of a batch.
struct Rows {
  std::int64_t first = 0;
  std::int64_t count = 0;
};

/// Extra copies of the gradient, one a thread, may take this much; beyond it the threads share each operation instead.
constexpr std::uint64_t kMaxReplicaBytes = std::uint64_t{1} << 30;

/// Fewer multiplications than this in a batch are done sooner by one thread than handed to two.
constexpr double kWorthSharing = 4e6;

class TorchEngine final : public Engine {
 public:
  TorchEngine(const json& model, const ModelLayout& layout, ExampleShape examples, LossKind loss, std::int64_t outputs,
              int threads)
      : examples_(std::move(examples)),
        loss_(loss),
        outputs_(outputs),
        per_position_(layout.architecture != "linear" && layout.architecture != "mlp"),
        parameters_(at::zeros({static_cast<std::int64_t>(layout.parameters)}, at::kFloat)) {
    const std::uint64_t extra = static_cast<std::uint64_t>(threads - 1) * layout.parameters * sizeof(float);
    const bool replicate = extra <= kMaxReplicaBytes;
    // Each thread on its own rows beats sharing every small product among them: no waiting for one another inside a
    // step.
    at::set_num_threads(replicate ? 1 : threads);
    use_blas_threads(replicate ? 1 : threads);
    at::globalContext().setDeterministicAlgorithms(true, true);
    const int shards = replicate ? threads : 1;
    for (int i = 0; i < shards; ++i) replicas_.push_back(make_replica(model, layout));
    pool_ = std::make_unique<ShardPool>(static_cast<std::size_t>(shards), [] { at::set_num_threads(1); });
  }

  std::span<float> parameters() override { return span_of(parameters_); }
  std::span<float> gradient() override { return span_of(replicas_[0].gradient); }

  Result<double> compute_gradient(const Batch& batch) override {
    const double scale = 1.0 / static_cast<double>(terms_of(batch));
    std::vector<double> losses(replicas_.size(), 0.0);
    const std::size_t shards = shards_for(batch);
    SKERRY_TRY(for_shards("training step", batch, shards, [&](Replica& replica, Rows rows, std::size_t shard) {
      replica.gradient.zero_();
      const at::Tensor loss = loss_sum(replica.forward(input_of(batch, rows)), batch, rows) * scale;
      loss.backward();
      losses[shard] = static_cast<double>(loss.item<float>());
    }));
    double loss = 0;
    for (std::size_t i = 0; i < shards; ++i) {
      loss += losses[i];
      if (i > 0) replicas_[0].gradient.add_(replicas_[i].gradient);
    }
    return loss;
  }

  Result<Measurement> measure(const Batch& batch) override {
    std::vector<Measurement> parts(replicas_.size());
    SKERRY_TRY(for_shards("evaluation", batch, shards_for(batch), [&](Replica& replica, Rows rows, std::size_t shard) {
      const at::NoGradGuard no_gradient;
      const at::Tensor output = replica.forward(input_of(batch, rows));
      Measurement& part = parts[shard];
      part.counted = static_cast<std::uint64_t>(output.size(0));
      // Summed in double: a mean over a whole split must not depend on the size of the batches.
      part.loss_sum = losses_of(output, batch, rows).sum(at::kDouble).item<double>();
      if (examples_.classes != 0) {
        part.correct =
            static_cast<std::uint64_t>(output.argmax(1).eq(labels_of(batch, rows)).sum().item<std::int64_t>());
      }
    }));
    Measurement sum;
    for (const Measurement& part : parts) {
      sum.loss_sum += part.loss_sum;
      sum.correct += part.correct;
      sum.counted += part.counted;
    }
    return sum;
  }

  Result<std::vector<float>> next_byte_logits(std::string_view window) override {
    return guarded<std::vector<float>>("generation", [&]() -> Result<std::vector<float>> {
      const at::NoGradGuard no_gradient;
      at::Tensor tokens = at::empty({1, static_cast<std::int64_t>(window.size())}, at::kLong);
      std::int64_t* out = tokens.data_ptr<std::int64_t>();
      for (const char c : window) *out++ = static_cast<unsigned char>(c);
      return values_of(replicas_[0].forward(tokens).select(0, -1).slice(0, 0, 256));
    });
  }

  Result<std::vector<float>> outputs(const Batch& batch) override {
    return guarded<std::vector<float>>("forward pass", [&]() -> Result<std::vector<float>> {
      const at::NoGradGuard no_gradient;
      return values_of(replicas_[0].forward(input_of(batch, {0, static_cast<std::int64_t>(batch.rows)})));
    });
  }

 private:
  /// The model over the one vector of parameters, with a gradient of its own.
  struct Replica {
    at::Tensor gradient;
    Forward forward;
  };

  Replica make_replica(const json& model, const ModelLayout& layout) const {
    const std::vector<std::uint64_t> offsets = fragment_offsets(layout);
    const at::Tensor gradient = at::zeros_like(parameters_);
    Tensors tensors;
    for (const TensorLayout& tensor : layout.tensors) {
      const std::vector<std::int64_t> shape(tensor.shape.begin(), tensor.shape.end());
      const auto offset = static_cast<std::int64_t>(offsets[tensor.fragment] + tensor.offset);
      const auto elements = static_cast<std::int64_t>(tensor.elements);
      // Detached views are leaves of the graph that share the one buffer; their gradients likewise, so that a backward
      // pass adds into the flat vector.
      at::Tensor leaf = parameters_.narrow(0, offset, elements).view(shape).detach();
      if (layout.fragments[tensor.fragment].role != FragmentRole::kFrozen) {
        leaf.requires_grad_(true);
        leaf.mutable_grad() = gradient.narrow(0, offset, elements).view(shape).detach();
      }
      tensors.emplace(tensor.name, std::move(leaf));
    }
    return {gradient, make_forward(model, tensors)};
  }

  // Terms of the loss's mean: examples, predicted bytes, or values.
  std::uint64_t terms_of(const Batch& batch) const {
    if (examples_.kind == ExampleShape::Kind::kText) return batch.rows * examples_.input_size;
    return loss_ == LossKind::kMse ? batch.rows * static_cast<std::uint64_t>(outputs_) : batch.rows;
  }

  std::size_t shards_for(const Batch& batch) const {
    // A parameter of a text model or a convolution is used once for every position.
    const double uses = per_position_ ? static_cast<double>(examples_.input_size) : 1.0;
    if (static_cast<double>(batch.rows) * uses * static_cast<double>(parameters_.numel()) < kWorthSharing) return 1;
    return std::min(replicas_.size(), batch.rows);
  }

  template <typename Part>
  Result<void> for_shards(const char* doing, const Batch& batch, std::size_t shards, const Part& part) {
    std::vector<Result<void>> results(shards);
    pool_->run(shards, [&](std::size_t shard) {
      const Rows rows{static_cast<std::int64_t>(batch.rows * shard / shards),
                      static_cast<std::int64_t>(batch.rows * (shard + 1) / shards - batch.rows * shard / shards)};
      results[shard] = guarded<void>(doing, [&]() -> Result<void> {
        part(replicas_[shard], rows, shard);
        return {};
      });
    });
    for (Result<void>& result : results) SKERRY_TRY(std::move(result));
    return {};
  }

  at::Tensor loss_sum(const at::Tensor& output, const Batch& batch, Rows rows) const {
    if (loss_ == LossKind::kCrossEntropy) {
      return at::cross_entropy_loss(output, labels_of(batch, rows), {}, at::Reduction::Sum);
    }
    return at::mse_loss(output, targets_of(batch, rows), at::Reduction::Sum);
  }

  // One loss for each example (text: predicted byte).
  at::Tensor losses_of(const at::Tensor& output, const Batch& batch, Rows rows) const {
    if (loss_ == LossKind::kCrossEntropy) {
      return at::cross_entropy_loss(output, labels_of(batch, rows), {}, at::Reduction::None);
    }
    return at::mse_loss(output, targets_of(batch, rows), at::Reduction::None).mean(1);
  }

  static std::span<float> span_of(at::Tensor& tensor) {
    return {tensor.data_ptr<float>(), static_cast<std::size_t>(tensor.numel())};
  }

  static std::vector<float> values_of(const at::Tensor& tensor) {
    const at::Tensor flat = tensor.contiguous();
    const float* first = flat.data_ptr<float>();
    return {first, first + flat.numel()};
  }

  // Views of the batch's memory, which outlives every use.
  static at::Tensor floats(const std::vector<float>& values, std::int64_t first, at::IntArrayRef shape) {
    return at::from_blob(const_cast<float*>(values.data()) + first, shape, at::kFloat);
  }
  static at::Tensor longs(const std::vector<std::int64_t>& values, std::int64_t first, at::IntArrayRef shape) {
    return at::from_blob(const_cast<std::int64_t*>(values.data()) + first, shape, at::kLong);
  }

  at::Tensor input_of(const Batch& batch, Rows rows) const {
    const auto size = static_cast<std::int64_t>(examples_.input_size);
    if (examples_.kind == ExampleShape::Kind::kText) {
      return longs(batch.tokens, rows.first * (size + 1), {rows.count, size + 1}).slice(1, 0, size);
    }
    const std::int64_t first = rows.first * size;
    if (examples_.kind == ExampleShape::Kind::kTable) return floats(batch.inputs, first, {rows.count, size});
    const auto& s = examples_.shape;
    return floats(batch.inputs, first,
                  {rows.count, static_cast<std::int64_t>(s[0]), static_cast<std::int64_t>(s[1]),
                   static_cast<std::int64_t>(s[2])});
  }

  at::Tensor labels_of(const Batch& batch, Rows rows) const {
    if (examples_.kind != ExampleShape::Kind::kText) return longs(batch.labels, rows.first, {rows.count});
    const auto size = static_cast<std::int64_t>(examples_.input_size);
    return longs(batch.tokens, rows.first * (size + 1), {rows.count, size + 1}).slice(1, 1).reshape({-1});
  }

  at::Tensor targets_of(const Batch& batch, Rows rows) const {
    if (examples_.classes == 0) return floats(batch.targets, rows.first, {rows.count, 1});
    return at::one_hot(labels_of(batch, rows), outputs_).to(at::kFloat);
  }

  ExampleShape examples_;
  LossKind loss_;
  std::int64_t outputs_;
  bool per_position_;  // a text model or convolutions, not one product for each example
  at::Tensor parameters_;
  std::vector<Replica> replicas_;  // one a thread; the first one's gradient is the whole batch's in the end
  std::unique_ptr<ShardPool> pool_;
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
  std::vector<std::uint64_t> offsets(layout.fragments.size());
  std::uint64_t at = 0;
  for (const FragmentRole role : {FragmentRole::kExchanged, FragmentRole::kPersonal, FragmentRole::kFrozen}) {
    for (std::size_t i = 0; i < offsets.size(); ++i) {
      if (layout.fragments[i].role != role) continue;
      offsets[i] = at;
      at += layout.fragments[i].elements;
    }
  }
  for (std::size_t i = 0; i < offsets.size(); ++i) {
    if (layout.fragments[i].role == FragmentRole::kControl) offsets[i] = offsets[layout.fragments[i].twin];
  }
  return offsets;
}

Result<std::unique_ptr<Engine>> Engine::make(std::string_view model, const ModelLayout& layout,
                                             const ExampleShape& examples, std::optional<LossKind> loss, int threads) {
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
        std::make_unique<TorchEngine>(resolved, layout, examples, chosen, static_cast<std::int64_t>(outputs), threads));
  });
}

}  // namespace skerry::trainer
