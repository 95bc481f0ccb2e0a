#include "client/trainer/session.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <new>
#include <utility>

#include <nlohmann/json.hpp>

#include "client/trainer/blas.h"
#include "client/trainer/island.h"
#include "client/trainer/sampling.h"
#include "client/trainer/tokenizer.h"
#include "common/model/initialise.h"
#include "common/os/files.h"

namespace skerry::trainer {
namespace {

using nlohmann::json;

constexpr const char* kBoundary = "state.safetensors";  // the end of the latest task
constexpr const char* kMiddle = "task.safetensors";     // the middle of a task
constexpr const char* kFrozen = "frozen";               // the fragment, docs/model-layout.md

void log(const std::string& sentence) { std::fprintf(stderr, "skerry-trainer: %s\n", sentence.c_str()); }

// A text model's window; 0 for a model that takes other examples.
std::uint64_t context_of(const json& model) {
  return is_text_model(model.at("architecture").get<std::string>()) ? model.at("context").get<std::uint64_t>() : 0;
}

}  // namespace

static Error lacks_frozen() {
  return failed_precondition(
      "the frozen tensors were never read; name fragment \"frozen\" in the first task after open");
}

Result<void> Session::read_frozen(const std::map<std::string, FragmentSource>& read) {
  if (const auto frozen = read.find(kFrozen); frozen != read.end())
    SKERRY_TRY(open_->state->read_fragment(kFrozen, frozen->second, false));
  if (open_->state->lacks_frozen()) return lacks_frozen();
  return {};
}

Error Session::not_open() { return failed_precondition("no run is open; send an open line first"); }

int Session::run() {
  std::vector<std::string> architectures;
  for (const std::string_view name : known_architectures()) architectures.emplace_back(name);
  std::vector<std::string> warnings;
  if (std::string warning = blas_warning(); !warning.empty()) warnings.push_back(std::move(warning));
  channel_.send(hello_line(architectures, warnings));
  while (!closing_) {
    const auto line = channel_.wait();
    if (!line) break;
    handle(*line);
  }
  return status_;
}

void Session::handle(const std::string& line) {
  ParsedLine parsed = parse_request(line);
  stopped_.reset();
  Result<void> result;
  const bool fatal = parsed.type == "open" && open_ == nullptr;  // without a run there is nothing to do
  if (!parsed.request.ok()) {
    result = std::move(parsed.request).error();
  } else {
    try {
      Request& request = *parsed.request;
      if (auto* open = std::get_if<OpenRequest>(&request)) {
        result = handle_open(std::move(*open));
      } else if (const auto* train = std::get_if<TrainRequest>(&request)) {
        result = handle_train(*train);
      } else if (const auto* evaluate = std::get_if<EvaluateRequest>(&request)) {
        result = handle_evaluate(*evaluate);
      } else if (const auto* generate = std::get_if<GenerateRequest>(&request)) {
        result = handle_generate(*generate);
      } else if (const auto* initialise = std::get_if<InitialiseRequest>(&request)) {
        result = handle_initialise(*initialise);
      } else if (const auto* merge = std::get_if<MergeRequest>(&request)) {
        result = keep_merge(*merge);
      } else if (std::holds_alternative<CheckpointRequest>(request)) {
        result = handle_checkpoint();
      } else if (std::holds_alternative<CloseRequest>(request)) {
        closing_ = true;
      }
      // A cancel between tasks came too late: its task's last line has been sent.
    } catch (const std::bad_alloc&) {
      result = Error{Code::kResourceExhausted, "out of memory; give the trainer more or choose a smaller batch", false};
    }
  }
  training_ = nullptr;
  if (result.ok()) return;
  if (stopped_) {
    if (stopped_->cancelled) channel_.send(cancelled_line(parsed.task));
    return;
  }
  channel_.send(error_line(parsed.task, result.error(), fatal));
  if (fatal) {
    status_ = 1;
    closing_ = true;
  }
}

void Session::undo_task() {
  if (open_ && !open_->before.parameters.empty()) open_->state->restore(open_->before);
}

Result<void> Session::handle_open(OpenRequest request) {
  if (open_) return Error(failed_precondition("run " + open_->request.run + " is open; a trainer serves one run"));
  auto open = std::make_unique<Open>();
  open->request = std::move(request);
  const json section = json::parse(open->request.model, nullptr, false);
  SKERRY_ASSIGN(const json model, resolve_model(section));
  SKERRY_ASSIGN(open->layout, build_layout(model));
  SKERRY_ASSIGN(open->training, parse_training(open->request.training));
  SKERRY_TRY(make_directories(open->request.state_dir));
  SKERRY_ASSIGN(open->data, open_data_(open->request.data, context_of(model)));
  const EngineOptions options = engine_options(open->training, open->request.threads);
  if (options.precision == Precision::kBf16 && options.device == "cpu")
    log("training.precision is bf16, which few processors multiply faster than f32, and most slower");
  SKERRY_ASSIGN(open->engine, Engine::make(open->request.model, open->layout, open->data->shape(), options));
  SKERRY_ASSIGN(TrainerState state,
                TrainerState::make(*open->engine, open->layout, open->training, open->request.seed));
  open->state = std::move(state);
  open_ = std::move(open);
  if (island_ != nullptr) island_->open(open_->request, open_->data->shape());

  // The checkpoint in a task's middle is newer than the one at the latest task's end, and counts only for that task.
  std::uint64_t resumed = 0;
  if (auto middle = open_->state->read(state_path(kMiddle)); middle.ok()) {
    resumed = open_->state->total_steps();
    open_->begun = std::move(*middle);
    open_->middle_on_disk = true;
  } else if (middle.error().code != Code::kNotFound) {
    log("checkpoint left aside: " + middle.error().message);
  }
  if (auto boundary = open_->state->read(state_path(kBoundary)); boundary.ok()) {
    resumed = std::max(resumed, open_->state->total_steps());
    open_->finished = std::move(*boundary);
  } else {
    if (boundary.error().code != Code::kNotFound) log("checkpoint left aside: " + boundary.error().message);
    if (open_->begun) {  // no task has ended yet: before the one in the middle there was the untouched model
      SKERRY_ASSIGN(TrainerState fresh,
                    TrainerState::make(*open_->engine, open_->layout, open_->training, open_->request.seed));
      open_->state = std::move(fresh);
    }
  }
  channel_.send(opened_line(open_->data->examples(), resumed));
  return {};
}

std::string Session::state_path(const char* name) const { return join_path(open_->request.state_dir, name); }

template <typename Body>
Result<void> Session::with_fragments(const std::map<std::string, FragmentSource>& read, const Body& body) {
  if (!open_) return not_open();
  if (open_->state->lacks_frozen() && read.count(kFrozen) == 0) return lacks_frozen();
  std::vector<std::pair<std::span<float>, std::vector<float>>> own;
  Result<void> result;
  borrowed_ = true;
  for (const auto& [fragment, source] : read) {
    const auto values = open_->state->fragment(fragment);
    if (values.ok()) own.emplace_back(*values, std::vector<float>(values->begin(), values->end()));
    result = open_->state->borrow_fragment(fragment, source.path);
    if (!result.ok()) break;
  }
  if (result.ok()) result = body();
  for (const auto& [values, kept] : own) std::copy(kept.begin(), kept.end(), values.begin());
  borrowed_ = false;
  if (auto written = answer_checkpoint(); !written.ok()) channel_.send(error_line("", written.error(), false));
  return result;
}

Result<Session::SplitMeasurement> Session::measure_split(const std::string& task, const std::string& split) {
  SKERRY_ASSIGN(const std::uint64_t examples, open_->data->examples(split));
  if (examples == 0) return Error(failed_precondition("split \"" + split + "\" has no examples"));
  const bool text = open_->data->shape().kind == ExampleShape::Kind::kText;
  const std::uint64_t piece = text ? std::min<std::uint64_t>(open_->training.batch, 64) : 128;
  SplitMeasurement split_sum;
  Measurement& sum = split_sum.sum;
  Batch batch;
  std::vector<std::uint64_t> numbers;
  for (std::uint64_t first = 0; first < examples; first += piece) {
    SKERRY_TRY(attend(task, false));
    numbers.clear();
    for (std::uint64_t i = first; i < std::min(first + piece, examples); ++i) numbers.push_back(i);
    SKERRY_TRY(open_->data->fill(split, numbers, 0, batch));
    SKERRY_ASSIGN(const Measurement measured, open_->engine->measure(batch));
    sum.loss_sum += measured.loss_sum;
    sum.correct += measured.correct;
    sum.counted += measured.counted;
    split_sum.text_bytes += batch.text_bytes;
  }
  if (!std::isfinite(sum.loss_sum)) return Error(failed_precondition("the loss is not finite"));
  return split_sum;
}

Result<void> Session::answer_checkpoint() {
  if (!std::exchange(checkpoint_asked_, false)) return {};
  return handle_checkpoint();
}

Result<void> Session::handle_evaluate(const EvaluateRequest& request) {
  return with_fragments(request.read, [&]() -> Result<void> {
    SKERRY_ASSIGN(const SplitMeasurement measured, measure_split(request.task, request.split));
    const Measurement& sum = measured.sum;
    const bool text = open_->data->shape().kind == ExampleShape::Kind::kText;
    const double loss = sum.loss_sum / static_cast<double>(sum.counted);
    Outcome outcome;
    SKERRY_ASSIGN(outcome.examples, open_->data->examples(request.split));
    outcome.metrics["loss"] = loss;
    if (open_->data->shape().classes != 0) {
      outcome.metrics["accuracy"] = static_cast<double>(sum.correct) / static_cast<double>(sum.counted);
    }
    if (text) {
      outcome.tokens = sum.counted;
      outcome.metrics["perplexity"] = std::exp(std::min(loss, 700.0));
      if (measured.text_bytes > 0) {
        outcome.metrics["nats_per_byte"] = sum.loss_sum / static_cast<double>(measured.text_bytes);
        outcome.metrics["bits_per_byte"] = outcome.metrics["nats_per_byte"] / std::log(2.0);
      }
    }
    channel_.send(evaluated_line(request.task, outcome));
    return {};
  });
}

Result<void> Session::handle_generate(const GenerateRequest& request) {
  return with_fragments(request.read, [&]() -> Result<void> {
    if (open_->data->shape().kind != ExampleShape::Kind::kText) {
      return Error(
          failed_precondition("generate needs a text model; this run's model is " + open_->layout.architecture));
    }
    const ExampleShape& shape = open_->data->shape();
    const json data = json::parse(open_->request.data, nullptr, false);
    SKERRY_ASSIGN(const auto tokenizer, Tokenizer::open(data.is_object() ? data.value("tokenizer", "") : ""));
    SamplingOptions options{{request.temperature, request.top_k, request.top_p, request.seed}, request.tokens};
    if (shape.classes > static_cast<std::uint64_t>(tokenizer->end_of_text())) options.end = tokenizer->end_of_text();
    SKERRY_ASSIGN(const std::string continuation,
                  continue_prompt(*open_->engine, shape.input_size, *tokenizer, request.prompt, options,
                                  [&] { return attend(request.task, false); }));
    channel_.send(generated_line(request.task, request.prompt + continuation));
    return {};
  });
}

Result<void> Session::handle_initialise(const InitialiseRequest& request) {
  if (!open_) return not_open();
  for (const auto& [fragment, path] : request.write) {
    SKERRY_TRY(write_initial_fragment(open_->layout, fragment, request.seed, path));
  }
  channel_.send(initialised_line(request.task));
  return {};
}

Result<void> Session::keep_merge(const MergeRequest& request) {
  if (!open_) return not_open();
  if (open_->layout.find_fragment(request.fragment) == nullptr) {
    return not_found("merge: the model has no fragment \"" + request.fragment + "\"");
  }
  arrived_[{request.fragment, request.exchange}] = request;
  return {};
}

Result<void> Session::attend(const std::string& task, bool wait) {
  for (;;) {
    auto line = wait ? channel_.wait() : channel_.poll();
    wait = false;
    if (!line && channel_.ended()) {
      closing_ = true;
      stopped_ = Stopped{false};
      return Error{Code::kCancelled, "the daemon has gone", false};
    }
    if (!line) return {};
    ParsedLine parsed = parse_request(*line);
    Result<void> result;
    if (!parsed.request.ok()) {
      result = std::move(parsed.request).error();
    } else if (const auto* cancel = std::get_if<CancelRequest>(&*parsed.request)) {
      if (cancel->task == task) {
        stopped_ = Stopped{true};
        return Error{Code::kCancelled, "cancelled", false};
      }
    } else if (const auto* merge = std::get_if<MergeRequest>(&*parsed.request)) {
      result = keep_merge(*merge);
    } else if (std::holds_alternative<CheckpointRequest>(*parsed.request)) {
      result = handle_checkpoint();
    } else if (std::holds_alternative<CloseRequest>(*parsed.request)) {
      closing_ = true;
      stopped_ = Stopped{false};
      return Error{Code::kCancelled, "closed", false};
    } else {
      result = Error(failed_precondition("task " + task + " is under way; wait for its end or cancel it"));
    }
    if (!result.ok()) channel_.send(error_line(parsed.task == task ? "" : parsed.task, result.error(), false));
  }
}

}  // namespace skerry::trainer
