// The train task of a session: steps, emitted and merged fragments, progress, checkpoints.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <utility>

#include "client/trainer/example_order.h"
#include "client/trainer/island.h"
#include "client/trainer/session.h"
#include "common/os/files.h"

namespace skerry::trainer {
namespace {

using Clock = std::chrono::steady_clock;

constexpr const char* kBoundary = "state.safetensors";
constexpr const char* kMiddle = "task.safetensors";
constexpr const char* kSplit = "train";

// Adds the rows of one batch to another of the same kind.
void append(const Batch& more, Batch& batch) {
  batch.rows += more.rows;
  batch.inputs.insert(batch.inputs.end(), more.inputs.begin(), more.inputs.end());
  batch.labels.insert(batch.labels.end(), more.labels.begin(), more.labels.end());
  batch.targets.insert(batch.targets.end(), more.targets.begin(), more.targets.end());
  batch.tokens.insert(batch.tokens.end(), more.tokens.begin(), more.tokens.end());
  batch.counted += more.counted;
  batch.text_bytes += more.text_bytes;
}

}  // namespace

struct Session::Training {
  const TrainRequest& request;
  std::uint64_t steps;     // of the whole task
  std::uint64_t examples;  // of the whole task
  ExampleOrder order;
  TaskProgress progress = {};
  double latest_loss = 0;
  double step_seconds = 0;  // of this process's steps, and the tokens trained on in them
  std::uint64_t step_tokens = 0;
  Clock::time_point reported = Clock::now();
  Batch batch = {};
};

Result<void> Session::check_train(const TrainRequest& request, std::uint64_t steps) const {
  const auto known = [&](const std::string& fragment) -> Result<FragmentRole> {
    if (const FragmentLayout* found = open_->layout.find_fragment(fragment); found != nullptr) return found->role;
    return not_found("the model has no fragment \"" + fragment + "\"");
  };
  const auto exchanged = [&](const std::string& fragment) -> Result<void> {
    SKERRY_ASSIGN(const FragmentRole role, known(fragment));
    if (role == FragmentRole::kExchanged && !open_->training.objective.control_variates) return {};
    return invalid_argument(
        "fragment \"" + fragment + "\" cannot be emitted and merged: " +
        (role == FragmentRole::kExchanged ? "control variates need whole tasks" : "it is not exchanged"));
  };
  for (const auto& [fragment, path] : request.write) {
    SKERRY_ASSIGN(const FragmentRole role, known(fragment));
    if (role == FragmentRole::kFrozen)
      return invalid_argument("fragment \"" + fragment + "\" is frozen, it is not written");
  }
  for (const EmitPlan& emit : request.emit) {
    SKERRY_TRY(exchanged(emit.fragment));
    if (emit.at_step > steps) {
      return invalid_argument("emit of \"" + emit.fragment + "\" at step " + std::to_string(emit.at_step) +
                              " of a task of " + std::to_string(steps));
    }
  }
  for (const MergePlan& merge : request.merge) {
    SKERRY_TRY(exchanged(merge.fragment));
    if (merge.at_step > steps) {
      return invalid_argument("merge of \"" + merge.fragment + "\" at step " + std::to_string(merge.at_step) +
                              " of a task of " + std::to_string(steps));
    }
  }
  return {};
}

Result<void> Session::check_follows(const TrainRequest& request) const {
  if (request.after.empty() || request.after == open_->state->latest_task()) return {};
  const bool reads_all = std::all_of(
      open_->layout.fragments.begin(), open_->layout.fragments.end(), [&](const FragmentLayout& fragment) {
        return fragment.role != FragmentRole::kExchanged || request.read.count(fragment.name) != 0;
      });
  if (reads_all) return {};
  const std::string& latest = open_->state->latest_task();
  return not_found("task " + request.task + " goes on from the end of " + request.after + "; this trainer has " +
                   (latest.empty() ? "trained nothing" : "ended " + latest + " last") + " and must read every fragment");
}

Result<void> Session::handle_train(const TrainRequest& request) {
  if (!open_) return not_open();
  SKERRY_ASSIGN(const std::uint64_t available, open_->data->examples(kSplit));
  if (available == 0) return Error(failed_precondition("split \"train\" has no examples"));
  const std::uint64_t batch = open_->training.batch;
  const double wanted = request.steps != 0 ? static_cast<double>(request.steps) * static_cast<double>(batch)
                                           : std::round(request.epochs * static_cast<double>(available));
  if (wanted > 0x1p53) return invalid_argument("the task has more examples than can be counted");
  const std::uint64_t examples = std::max<std::uint64_t>(1, static_cast<std::uint64_t>(wanted));
  const std::uint64_t steps = (examples + batch - 1) / batch;
  SKERRY_TRY(check_train(request, steps));
  SKERRY_TRY(read_frozen(request.read));

  const std::string key = task_key(request);
  const auto finished = std::exchange(open_->finished, std::nullopt);
  const auto begun = std::exchange(open_->begun, std::nullopt);
  if (finished && finished->key == key) return repeat_finished(request, *finished);
  if (!begun || begun->key != key) SKERRY_TRY(check_follows(request));

  open_->state->save(open_->before);
  Training training{request, steps, examples,
                    ExampleOrder(open_->training.one_order ? open_->request.seed : request.seed, available,
                                 open_->data->shifts())};
  training.progress.key = key;
  training.progress.merged.assign(request.merge.size(), false);
  Result<void> result = begin(training, begun);
  training.order.seek(open_->training.one_order ? open_->state->total_examples() : training.progress.outcome.examples);
  if (island_ != nullptr) island_->changed();
  if (result.ok()) {
    training_ = &training;
    result = train(training);
    training_ = nullptr;
  }
  if (!result.ok()) open_->state->restore(open_->before);
  for (const MergePlan& plan : request.merge) arrived_.erase({plan.fragment, plan.exchange});
  if (auto written = answer_checkpoint(); result.ok()) result = std::move(written);
  // Once the task has ended in any way, a checkpoint of its middle is of no use; if the daemon has gone, it is.
  if (auto written = checkpoints_.wait(); !written.ok()) std::fprintf(stderr, "skerry-trainer: %s\n", written.error().message.c_str());
  if (!closing_ && std::exchange(open_->middle_on_disk, false)) SKERRY_TRY(remove_checkpoint(state_path(kMiddle)));
  return result;
}

double Session::terms_of(std::uint64_t examples, std::uint64_t tokens) const {
  if (open_->data->shape().kind != ExampleShape::Kind::kText) return static_cast<double>(examples);
  return static_cast<double>(tokens) / static_cast<double>(open_->data->shape().input_size);
}

Result<void> Session::begin(Training& training, const std::optional<TaskProgress>& begun) {
  const TrainRequest& request = training.request;
  if (begun && begun->key == training.progress.key && open_->state->read(state_path(kMiddle)).ok()) {
    training.progress = *begun;
    // Whoever asks again may not have heard of what the killed process emitted.
    return repeat_emissions(request, *begun);
  }
  open_->state->begin_task(request.counted);
  const bool overlapped = !request.emit.empty() || !request.merge.empty();
  for (const auto& [fragment, source] : request.read) {
    const FragmentLayout* known = open_->layout.find_fragment(fragment);
    if (known != nullptr && known->role == FragmentRole::kFrozen) continue;  // read already
    SKERRY_TRY(open_->state->read_fragment(fragment, source, overlapped));
  }
  // What came for tasks that are not there any more is of no use to this one or a later one.
  std::erase_if(arrived_, [&](const auto& merge) {
    return request.read.count(merge.first.first) != 0 &&
           std::none_of(request.merge.begin(), request.merge.end(), [&](const MergePlan& plan) {
             return plan.fragment == merge.first.first && plan.exchange == merge.first.second;
           });
  });
  if (!open_->training.keep_optimizer_state) open_->state->reset_optimizer();
  if (!open_->training.objective.start_loss) return {};
  borrowed_ = true;  // a checkpoint now would have the task's tensors without its begin
  const auto measured = measure_split(request.task, kSplit);
  borrowed_ = false;
  if (!measured.ok()) return measured.error();
  training.progress.outcome.metrics["start_loss"] = measured->sum.loss_sum / static_cast<double>(measured->sum.counted);
  return {};
}

Result<void> Session::repeat_finished(const TrainRequest& request, const TaskProgress& finished) {
  // The task had ended, and its checkpoint was written, when the process was killed: the state is its result.
  SKERRY_TRY(repeat_emissions(request, finished));
  for (const auto& [fragment, path] : request.write) SKERRY_TRY(open_->state->write_fragment(fragment, path));
  channel_.send(trained_line(request.task, finished.outcome));
  return {};
}

Result<void> Session::repeat_emissions(const TrainRequest& request, const TaskProgress& progress) {
  for (const auto& [entry, files] : progress.emitted) {
    const EmitPlan& emit = request.emit.at(entry);
    if (!open_->state->holds(emit, files)) {
      return not_found(emit.path + ": what task " + request.task + " emitted is not there any more");
    }
    channel_.send(fragment_line(request.task, emit, files.base_version));
  }
  return {};
}

Result<void> Session::train(Training& training) {
  SKERRY_TRY(answer_checkpoint());
  SKERRY_TRY(merge_fragments(training));  // those at step 0, or at the step where a killed process stood
  while (training.progress.step < training.steps) {
    SKERRY_TRY(attend(training.request.task, false));
    SKERRY_TRY(one_step(training));
    SKERRY_TRY(after_step(training));
    checkpoint_in_time(training);
    report_progress(training);
  }
  SKERRY_TRY(attend(training.request.task, false));
  return finish(training);
}

Result<void> Session::one_step(Training& training) {
  TaskProgress& progress = training.progress;
  const std::uint64_t left = training.examples - progress.outcome.examples;
  SKERRY_TRY(fill_batch(training, std::min(open_->training.batch, left)));
  const Clock::time_point began = Clock::now();
  const double rate = learning_rate_at(open_->training.schedule, training.request.first_step + progress.step);
  SKERRY_ASSIGN(const double loss,
                island_ == nullptr ? open_->engine->compute_gradient(training.batch)
                                   : island_->compute_gradient(*open_->engine, *open_->state, training.batch, rate));
  if (!std::isfinite(loss)) {
    return Error(failed_precondition("the loss is not finite at step " + std::to_string(progress.step + 1) +
                                     "; lower the learning rate or set training.clip_norm"));
  }
  open_->state->step(rate);
  ++progress.step;
  ++progress.outcome.steps;
  progress.outcome.examples += training.batch.rows;
  open_->state->count_examples(training.batch.rows);
  progress.outcome.tokens += training.batch.counted;
  progress.loss_sum += loss * terms_of(training.batch.rows, training.batch.counted);
  training.latest_loss = loss;
  training.step_seconds += std::chrono::duration<double>(Clock::now() - began).count();
  training.step_tokens += training.batch.counted;
  return {};
}

Result<void> Session::fill_batch(Training& training, std::uint64_t rows) {
  ExampleOrder::Piece piece = training.order.next(rows);
  SKERRY_TRY(open_->data->fill(kSplit, piece.numbers, piece.shift, training.batch));
  // A batch may reach over the end of a pass, and over several where the split is smaller than a batch.
  while (training.batch.rows < rows) {
    piece = training.order.next(rows - training.batch.rows);
    Batch more;
    SKERRY_TRY(open_->data->fill(kSplit, piece.numbers, piece.shift, more));
    append(more, training.batch);
  }
  return {};
}

Result<void> Session::after_step(Training& training) {
  SKERRY_TRY(emit_fragments(training));
  return merge_fragments(training);
}

Result<void> Session::emit_fragments(Training& training) {
  const TrainRequest& request = training.request;
  const std::uint64_t step = training.progress.step;
  for (std::size_t i = 0; i < request.emit.size(); ++i) {
    const EmitPlan& emit = request.emit[i];
    if (emit.at_step != step) continue;
    SKERRY_ASSIGN(const EmittedFiles files, give(emit));
    SKERRY_TRY(open_->state->remember_emitted(emit));
    training.progress.emitted[i] = files;
    channel_.send(fragment_line(request.task, emit, files.base_version));
  }
  return {};
}

Result<void> Session::merge_fragments(Training& training) {
  const TrainRequest& request = training.request;
  const std::uint64_t step = training.progress.step;
  for (std::size_t i = 0; i < request.merge.size(); ++i) {
    const MergePlan& plan = request.merge[i];
    if (training.progress.merged[i] || plan.at_step > step) continue;
    if (open_->state->is_merged(plan)) {
      training.progress.merged[i] = true;
      continue;
    }
    const std::pair wanted(plan.fragment, plan.exchange);
    while (plan.block && arrived_.count(wanted) == 0) SKERRY_TRY(attend(request.task, true));
    if (arrived_.count(wanted) != 0) SKERRY_TRY(apply_merge(training, i));
  }
  return {};
}

Result<void> Session::apply_merge(Training& training, std::size_t entry) {
  const MergePlan& plan = training.request.merge[entry];
  const auto found = arrived_.find({plan.fragment, plan.exchange});
  const MergeRequest merge = std::move(found->second);
  arrived_.erase(found);
  SKERRY_TRY(open_->state->merge_fragment(plan, merge));
  training.progress.merged[entry] = true;
  if (island_ != nullptr) island_->changed();
  channel_.send(merged_line(training.request.task, merge, training.progress.step));
  return {};
}

void Session::report_progress(Training& training) {
  if (training.request.progress_ms == 0) return;
  const Clock::time_point now = Clock::now();
  if (now - training.reported < std::chrono::milliseconds(training.request.progress_ms)) return;
  training.reported = now;
  channel_.send(progress_line(training.request.task, training.progress.step, training.steps, training.latest_loss));
}

Result<void> Session::give(const std::string& fragment, const std::string& path) {
  if (!take_fragment_) return open_->state->write_fragment(fragment, path);
  SKERRY_ASSIGN(const std::span<const float> values, open_->state->finite_fragment(fragment));
  take_fragment_({fragment, values, {}, 0});
  return {};
}

Result<EmittedFiles> Session::give(const EmitPlan& emit) {
  if (!take_fragment_) return open_->state->write_emission(emit);
  SKERRY_ASSIGN(const TrainerState::Emission now, open_->state->emission(emit.fragment));
  take_fragment_({emit.fragment, now.values, now.base, now.base_version});
  return EmittedFiles{now.base_version, 0, 0};
}

Result<void> Session::finish(Training& training) {
  TaskProgress& progress = training.progress;
  open_->state->end_task(training.request.task);
  for (const auto& [fragment, path] : training.request.write) SKERRY_TRY(give(fragment, path));
  progress.outcome.metrics["train_loss"] = progress.loss_sum / terms_of(progress.outcome.examples, progress.outcome.tokens);
  if (!take_fragment_ && training.step_tokens != 0) {  // a simulation's results repeat, speeds do not
    const double speed = static_cast<double>(training.step_tokens) / training.step_seconds;
    progress.outcome.metrics["tokens_per_second"] = speed;
    if (const double peak = peak_operations(); peak > 0)
      progress.outcome.metrics["peak_share"] = speed * open_->engine->operations() / peak;
  }
  if (training.request.checkpoint) SKERRY_TRY(open_->state->write(state_path(kBoundary), progress));
  open_->checkpointed = Clock::now();
  channel_.send(trained_line(training.request.task, progress.outcome));
  return {};
}

void Session::checkpoint_in_time(const Training& training) {
  const std::uint64_t interval = open_->request.checkpoint_ms;
  if (interval == 0 || training.progress.step == training.steps) return;  // the end has a checkpoint of its own
  const Clock::time_point now = Clock::now();
  if (now - open_->checkpointed < std::chrono::milliseconds(interval)) return;
  if (!checkpoints_.start(state_path(kMiddle), open_->state->checkpoint(training.progress))) return;
  open_->checkpointed = now;
  open_->middle_on_disk = true;
}

Result<void> Session::handle_checkpoint() {
  if (!open_) return not_open();
  if (borrowed_) {
    checkpoint_asked_ = true;  // answered as soon as the trainer's own tensors are back
    return {};
  }
  (void)checkpoints_.wait().ok();  // this one is newer
  if (training_ != nullptr) {
    SKERRY_TRY(open_->state->write(state_path(kMiddle), training_->progress));
    open_->middle_on_disk = true;
  } else {
    SKERRY_TRY(open_->state->write(state_path(kBoundary), open_->finished.value_or(TaskProgress{})));
  }
  channel_.send(checkpointed_line(open_->state->total_steps()));
  return {};
}

}  // namespace skerry::trainer
