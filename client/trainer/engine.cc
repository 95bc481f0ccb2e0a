#include "client/trainer/engine.h"

#include <algorithm>
#include <cstdlib>
#include <new>

#include <malloc.h>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <nlohmann/json.hpp>

#include "client/trainer/blas.h"
#include "client/trainer/decoder.h"
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
    const bool memory =
        text.find("not enough memory") != std::string::npos || text.find("out of memory") != std::string::npos;
    text = std::string(doing) + ": " + text;
    return memory ? Error{Code::kResourceExhausted,
                          text + "; give the trainer more memory or raise training.accumulate", false}
                  : internal_error(text);
  } catch (const std::bad_alloc&) {
    return Error{Code::kResourceExhausted, std::string(doing) + ": out of memory; raise training.accumulate", false};
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

/// Memory that a step has used is used by the next one: handing it back to the system in between costs a small model's
/// step a tenth of its time.
void keep_memory() {
  constexpr int kOneGiB = 1 << 30;
  mallopt(M_MMAP_THRESHOLD, kOneGiB);
  mallopt(M_TRIM_THRESHOLD, kOneGiB);
}

class TorchEngine final : public Engine {
 public:
  TorchEngine(json model, const ModelLayout& layout, ExampleShape examples, const EngineOptions& options, LossKind loss,
              std::int64_t outputs)
      : model_(std::move(model)),
        examples_(std::move(examples)),
        options_(options),
        loss_(loss),
        outputs_(outputs),
        per_position_(layout.architecture != "linear" && layout.architecture != "mlp"),
        device_(options.device),
        parameters_(host_zeros(static_cast<std::int64_t>(layout.parameters))) {
    const std::uint64_t extra = static_cast<std::uint64_t>(options.threads - 1) * layout.parameters * sizeof(float);
    const bool replicate = extra <= kMaxReplicaBytes && !device_.is_cuda();
    // Each thread on its own rows beats sharing every small product among them: no waiting for one another inside a
    // step.
    at::set_num_threads(replicate ? 1 : options.threads);
    use_blas_threads(replicate ? 1 : options.threads);
    at::globalContext().setDeterministicAlgorithms(true, true);
    if (device_.is_cuda()) setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", 0);  // what cuBLAS repeats its bits with
    keep_memory();
    staged_ = options.staged || !device_.is_cpu();
    working_ = staged_ ? at::zeros(parameters_.sizes(), at::device(device_).dtype(at::kFloat)) : parameters_;
    const int shards = replicate ? options.threads : 1;
    for (int i = 0; i < shards; ++i) replicas_.push_back(make_replica(layout));
    gradient_ = staged_ ? host_zeros(parameters_.numel()) : replicas_[0].gradient;
    pool_ = std::make_unique<ShardPool>(static_cast<std::size_t>(shards), [] { at::set_num_threads(1); });
    operations_ = operations_of(layout);
  }

  std::span<float> parameters() override { return span_of(parameters_); }
  std::span<float> gradient() override { return span_of(gradient_); }
  double operations() const override { return operations_; }

  std::uint64_t terms(const Batch& batch) const override {
    if (is_text()) return batch.labels.empty() ? batch.rows * examples_.input_size : batch.counted;
    return loss_ == LossKind::kMse ? batch.rows * static_cast<std::uint64_t>(outputs_) : batch.rows;
  }

  Result<double> compute_gradient(const Batch& batch) override {
    const double scale = 1.0 / static_cast<double>(std::max<std::uint64_t>(1, terms(batch)));
    std::vector<double> losses(replicas_.size(), 0.0);
    const std::size_t shards = shards_for(batch);
    SKERRY_TRY(for_shards("training step", batch, shards, [&](Replica& replica, Rows rows, std::size_t shard) {
      replica.gradient.zero_();
      const auto parts = std::min(static_cast<std::int64_t>(options_.accumulate), rows.count);
      for (std::int64_t part = 0; part < parts; ++part) {
        losses[shard] += add_gradient(replica, batch, piece_of(rows, part, parts), scale);
      }
    }));
    double loss = 0;
    for (std::size_t i = 0; i < shards; ++i) {
      loss += losses[i];
      if (i > 0) replicas_[0].gradient.add_(replicas_[i].gradient);
    }
    if (!staged_) return loss;
    SKERRY_TRY(guarded<void>("training step", [&]() -> Result<void> {
      gradient_.copy_(replicas_[0].gradient);
      return {};
    }));
    return loss;
  }

  Result<Measurement> measure(const Batch& batch) override {
    std::vector<Measurement> parts(replicas_.size());
    SKERRY_TRY(for_shards("evaluation", batch, shards_for(batch), [&](Replica& replica, Rows rows, std::size_t shard) {
      const at::NoGradGuard no_gradient;
      const at::Tensor output = run(replica, input_of(batch, rows), pass_of(rows)).to(at::kFloat);
      Measurement& part = parts[shard];
      const bool padded = is_text() && !batch.labels.empty();
      const at::Tensor labels = examples_.classes == 0 ? at::Tensor() : labels_of(batch, rows);
      part.counted =
          static_cast<std::uint64_t>(padded ? labels.ne(kIgnored).sum().item<std::int64_t>() : output.size(0));
      // Summed in double: a mean over a whole split must not depend on the size of the batches.
      part.loss_sum = losses_of(output, batch, rows).sum(at::kDouble).item<double>();
      if (labels.defined()) {
        part.correct = static_cast<std::uint64_t>(output.argmax(1).eq(labels).sum().item<std::int64_t>());
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

  std::unique_ptr<Reader> reader() override { return std::make_unique<TorchReader>(*this); }

  Result<std::vector<float>> outputs(const Batch& batch) override {
    return guarded<std::vector<float>>("forward pass", [&]() -> Result<std::vector<float>> {
      const at::NoGradGuard no_gradient;
      stage_parameters();
      const Rows rows{0, static_cast<std::int64_t>(batch.rows)};
      return values_of(run(replicas_[0], input_of(batch, rows), pass_of(rows)));
    });
  }

 private:
  /// The model over the one vector of parameters, with a gradient of its own.
  struct Replica {
    at::Tensor gradient;
    Tensors tensors;
    Stages stages;
  };

  class TorchReader final : public Reader {
   public:
    explicit TorchReader(TorchEngine& engine) : engine_(engine) {}

    Result<std::vector<float>> read(std::span<const std::int64_t> tokens) override {
      const auto length = static_cast<std::int64_t>(tokens.size());
      const auto context = static_cast<std::int64_t>(engine_.examples_.input_size);
      if (length == 0 || length > context - cache_.length) {
        return Error{Code::kOutOfRange,
                     "generation: " + std::to_string(length) + " more tokens after " + std::to_string(cache_.length) +
                         " of a context of " + std::to_string(context),
                     false};
      }
      return guarded<std::vector<float>>("generation", [&]() -> Result<std::vector<float>> {
        const at::NoGradGuard no_gradient;
        const Replica& replica = engine_.replicas_[0];
        if (cache_.keys.empty()) {
          engine_.stage_parameters();
          cache_ = decoder_cache(engine_.model_, replica.tensors, engine_.bf16());
        }
        const Pass pass{1, length, &cache_};
        at::Tensor h = longs(tokens.data(), {1, length}).to(engine_.device_);
        for (std::size_t i = 0; i + 1 < replica.stages.size(); ++i) h = replica.stages[i](h, pass);
        cache_.length += length;
        // The head of the last position alone.
        const at::Tensor logits = replica.stages.back()(h.slice(0, length - 1), {1, 1, nullptr});
        return values_of(logits.select(0, 0).slice(0, 0, static_cast<std::int64_t>(engine_.examples_.classes)));
      });
    }

   private:
    TorchEngine& engine_;
    KeyValues cache_;
  };

  bool is_text() const { return examples_.kind == ExampleShape::Kind::kText; }
  bool bf16() const { return options_.precision == Precision::kBf16; }

  at::Tensor host_zeros(std::int64_t elements) const {
    return at::zeros({elements}, at::device(at::kCPU).dtype(at::kFloat).pinned_memory(device_.is_cuda()));
  }

  Replica make_replica(const ModelLayout& layout) const {
    const std::vector<std::uint64_t> offsets = fragment_offsets(layout);
    Replica replica;
    replica.gradient = at::zeros_like(working_);
    for (const TensorLayout& tensor : layout.tensors) {
      const std::vector<std::int64_t> shape(tensor.shape.begin(), tensor.shape.end());
      const auto offset = static_cast<std::int64_t>(offsets[tensor.fragment] + tensor.offset);
      const auto elements = static_cast<std::int64_t>(tensor.elements);
      // Detached views are leaves of the graph that share the one buffer; their gradients likewise, so that a backward
      // pass adds into the flat vector.
      at::Tensor leaf = working_.narrow(0, offset, elements).view(shape).detach();
      if (layout.fragments[tensor.fragment].role != FragmentRole::kFrozen) {
        leaf.requires_grad_(true);
        leaf.mutable_grad() = replica.gradient.narrow(0, offset, elements).view(shape).detach();
      }
      replica.tensors.emplace(tensor.name, std::move(leaf));
    }
    replica.stages = make_stages(model_, replica.tensors, bf16());
    return replica;
  }

  // Text: 2 a weight forwards and 4 backwards, and attention's two products over the whole context (arXiv 2204.02311,
  // appendix B). Others: not counted.
  double operations_of(const ModelLayout& layout) const {
    if (!is_text()) return 0;
    double weights = 0;
    for (const TensorLayout& tensor : layout.tensors) {
      const bool looked_up = tensor.name == "model.embed_tokens.weight" && !model_.at("tied").get<bool>();
      if (tensor.shape.size() == 2 && !looked_up) weights += static_cast<double>(tensor.elements);
    }
    return 6 * weights + 12 * model_.at("layers").get<double>() * model_.at("width").get<double>() *
                             model_.at("context").get<double>();
  }

  void stage_parameters() {
    if (staged_) working_.copy_(parameters_);
  }

  static at::Tensor run(const Replica& replica, at::Tensor h, const Pass& pass) {
    for (const Stage& stage : replica.stages) h = stage(h, pass);
    return h;
  }

  // Adds the gradient of some rows to the replica's; their part of the batch's mean loss.
  double add_gradient(Replica& replica, const Batch& batch, Rows rows, double scale) const {
    const Pass pass = pass_of(rows);
    at::Tensor loss;
    const auto objective = [&](const at::Tensor& raw) {
      const at::Tensor output = raw.to(at::kFloat);
      loss = loss_sum(output, batch, rows) * scale;
      if (options_.z_loss == 0) return loss;
      at::Tensor z = output.logsumexp(1).square();
      if (is_text() && !batch.labels.empty()) z = z.masked_fill(labels_of(batch, rows).eq(kIgnored), 0);
      return loss + z.sum() * (scale * options_.z_loss);
    };
    if (options_.activation_checkpointing) {
      backward_by_stages(replica, input_of(batch, rows), pass, objective);
    } else {
      objective(run(replica, input_of(batch, rows), pass)).backward();
    }
    return static_cast<double>(loss.item<float>());
  }

  // Forwards without a graph, keeping what each stage begins with; then backwards, each stage once more with a graph of
  // its own.
  template <typename Objective>
  static void backward_by_stages(Replica& replica, const at::Tensor& input, const Pass& pass,
                                 const Objective& objective) {
    std::vector<at::Tensor> kept{input};
    {
      const at::NoGradGuard no_gradient;
      for (std::size_t i = 0; i + 1 < replica.stages.size(); ++i) {
        kept.push_back(replica.stages[i](kept.back(), pass));
      }
    }
    at::Tensor slope;
    for (std::size_t i = replica.stages.size(); i-- > 0;) {
      at::Tensor begin = kept[i].detach();
      kept.pop_back();
      if (i > 0) begin.requires_grad_(true);
      const at::Tensor end = replica.stages[i](begin, pass);
      if (!slope.defined()) {
        objective(end).backward();
      } else if (end.requires_grad()) {
        end.backward(slope);
      }
      if (i > 0) slope = begin.grad();
    }
  }

  std::size_t shards_for(const Batch& batch) const {
    // A parameter of a text model or a convolution is used once for every position.
    const double uses = per_position_ ? static_cast<double>(examples_.input_size) : 1.0;
    if (static_cast<double>(batch.rows) * uses * static_cast<double>(parameters_.numel()) < kWorthSharing) return 1;
    return std::min(replicas_.size(), batch.rows);
  }

  // Part `part` of `parts`.
  static Rows piece_of(Rows rows, std::int64_t part, std::int64_t parts) {
    const std::int64_t first = rows.count * part / parts;
    return {rows.first + first, rows.count * (part + 1) / parts - first};
  }

  Pass pass_of(Rows rows) const { return {rows.count, static_cast<std::int64_t>(examples_.input_size), nullptr}; }

  template <typename Part>
  Result<void> for_shards(const char* doing, const Batch& batch, std::size_t shards, const Part& part) {
    SKERRY_TRY(guarded<void>(doing, [&]() -> Result<void> {
      stage_parameters();
      return {};
    }));
    std::vector<Result<void>> results(shards);
    pool_->run(shards, [&](std::size_t shard) {
      const Rows rows = piece_of({0, static_cast<std::int64_t>(batch.rows)}, static_cast<std::int64_t>(shard),
                                 static_cast<std::int64_t>(shards));
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
      return at::cross_entropy_loss(output, labels_of(batch, rows), {}, at::Reduction::Sum, kIgnored);
    }
    return at::mse_loss(output, targets_of(batch, rows), at::Reduction::Sum);
  }

  // One loss for each example (text: predicted token).
  at::Tensor losses_of(const at::Tensor& output, const Batch& batch, Rows rows) const {
    if (loss_ == LossKind::kCrossEntropy) {
      return at::cross_entropy_loss(output, labels_of(batch, rows), {}, at::Reduction::None, kIgnored);
    }
    return at::mse_loss(output, targets_of(batch, rows), at::Reduction::None).mean(1);
  }

  static std::span<float> span_of(at::Tensor& tensor) {
    return {tensor.data_ptr<float>(), static_cast<std::size_t>(tensor.numel())};
  }

  static std::vector<float> values_of(const at::Tensor& tensor) {
    const at::Tensor flat = tensor.to(at::kCPU, at::kFloat).contiguous();
    const float* first = flat.data_ptr<float>();
    return {first, first + flat.numel()};
  }

  // Views of the batch's memory, which outlives every use.
  static at::Tensor floats(const float* values, at::IntArrayRef shape) {
    return at::from_blob(const_cast<float*>(values), shape, at::kFloat);
  }
  static at::Tensor longs(const std::int64_t* values, at::IntArrayRef shape) {
    return at::from_blob(const_cast<std::int64_t*>(values), shape, at::kLong);
  }

  at::Tensor input_of(const Batch& batch, Rows rows) const {
    const auto size = static_cast<std::int64_t>(examples_.input_size);
    if (is_text()) {
      const std::int64_t* first = batch.tokens.data() + rows.first * (size + 1);
      return longs(first, {rows.count, size + 1}).slice(1, 0, size).to(device_);
    }
    const float* first = batch.inputs.data() + rows.first * size;
    if (examples_.kind == ExampleShape::Kind::kTable) return floats(first, {rows.count, size}).to(device_);
    const auto& s = examples_.shape;
    return floats(first, {rows.count, static_cast<std::int64_t>(s[0]), static_cast<std::int64_t>(s[1]),
                          static_cast<std::int64_t>(s[2])})
        .to(device_);
  }

  at::Tensor labels_of(const Batch& batch, Rows rows) const {
    if (!is_text()) return longs(batch.labels.data() + rows.first, {rows.count}).to(device_);
    const auto size = static_cast<std::int64_t>(examples_.input_size);
    if (!batch.labels.empty()) return longs(batch.labels.data() + rows.first * size, {rows.count * size}).to(device_);
    const std::int64_t* first = batch.tokens.data() + rows.first * (size + 1);
    return longs(first, {rows.count, size + 1}).slice(1, 1).reshape({-1}).to(device_);
  }

  at::Tensor targets_of(const Batch& batch, Rows rows) const {
    if (examples_.classes == 0) return floats(batch.targets.data() + rows.first, {rows.count, 1}).to(device_);
    return at::one_hot(labels_of(batch, rows), outputs_).to(at::kFloat);
  }

  json model_;
  ExampleShape examples_;
  EngineOptions options_;
  LossKind loss_;
  std::int64_t outputs_;
  bool per_position_;  // a text model or convolutions, not one product for each example
  at::Device device_;
  bool staged_ = false;            // working_ and the replicas' gradients are copies, on the device
  at::Tensor parameters_;          // in the host's memory
  at::Tensor gradient_;            // the whole batch's, in the host's memory
  at::Tensor working_;             // what the replicas compute with
  std::vector<Replica> replicas_;  // one a thread; the first one's gradient is the whole batch's in the end
  std::unique_ptr<ShardPool> pool_;
  double operations_ = 0;
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
  if (is_text_model(architecture) != text) {
    return misfit(is_text_model(architecture) ? "text" : "images or rows", text ? "text" : "no text");
  }
  if (text) {
    const auto vocabulary = model.at("vocabulary").get<std::uint64_t>();
    if (vocabulary < examples.classes) {
      return misfit(std::to_string(vocabulary) + " tokens (model.vocabulary)",
                    "a tokenizer with " + std::to_string(examples.classes));
    }
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

double peak_operations() {
  const char* named = std::getenv("SKERRY_PEAK_TFLOPS");
  const double value = named == nullptr ? 0 : std::strtod(named, nullptr);
  return value > 0 ? value * 1e12 : 0;
}

EngineOptions engine_options(const TrainingOptions& training, int threads) {
  const char* named = std::getenv("SKERRY_DEVICE");
  EngineOptions options;
  options.loss = training.loss;
  options.z_loss = training.z_loss;
  options.accumulate = training.accumulate;
  options.precision = training.precision;
  options.activation_checkpointing = training.activation_checkpointing;
  options.threads = threads;
  options.device = named != nullptr ? named : at::hasCUDA() ? "cuda" : "cpu";
  return options;
}

Result<std::unique_ptr<Engine>> Engine::make(std::string_view model, const ModelLayout& layout,
                                             const ExampleShape& examples, const EngineOptions& options) {
  const json section = json::parse(model.begin(), model.end(), nullptr, false);
  SKERRY_ASSIGN(const json resolved, resolve_model(section));
  SKERRY_ASSIGN(const std::uint64_t outputs, check_fit(resolved, examples));
  const bool regression = examples.classes == 0;
  const auto architecture = resolved.at("architecture").get<std::string>();
  const bool plain = architecture == "linear" || architecture == "mlp";
  const LossKind chosen = options.loss.value_or(plain && outputs == 1 ? LossKind::kMse : LossKind::kCrossEntropy);
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
  if (options.device != "cpu" && (options.device.rfind("cuda", 0) != 0 || !at::hasCUDA())) {
    return invalid_argument("the device is \"" + options.device + "\", must be cpu" +
                            (at::hasCUDA() ? ", cuda or cuda:NUMBER" : ": this LibTorch sees no GPU") +
                            "; change SKERRY_DEVICE");
  }
  return guarded<std::unique_ptr<Engine>>("making the model", [&]() -> Result<std::unique_ptr<Engine>> {
    return std::unique_ptr<Engine>(
        std::make_unique<TorchEngine>(resolved, layout, examples, options, chosen, static_cast<std::int64_t>(outputs)));
  });
}

}  // namespace skerry::trainer
