// What a trainer is between two steps: the model's vector, the optimizer's state, what it emitted; and that on disk.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "client/trainer/checkpoint.h"
#include "client/trainer/engine.h"
#include "client/trainer/messages.h"
#include "client/trainer/objective.h"
#include "client/trainer/optimizer.h"
#include "client/trainer/overlap.h"
#include "common/base/result.h"
#include "common/model/layout.h"

namespace skerry::trainer {

/// What an emission's files hold, so that one can be told from another.
struct EmittedFiles {
  std::uint64_t base_version = 0;  ///< that the fragment's change is measured from
  std::uint32_t sum = 0;           ///< checksums of the values
  std::uint32_t base_sum = 0;
};

/// Where a train task stands, so that another process can go on with it.
struct TaskProgress {
  std::string key;           ///< of the task: see task_key
  std::uint64_t step = 0;    ///< steps done
  Outcome outcome;           ///< so far
  double loss_sum = 0;       ///< over outcome.examples
  std::vector<bool> merged;  ///< per entry of the task's merge list
  std::map<std::size_t, EmittedFiles> emitted;  ///< by entry of the task's emit list
};

/// Names a train task with everything that decides its result but the paths.
std::string task_key(const TrainRequest& request);

class TrainerState {
 public:
  /// The tensors an untouched model starts with, drawn from `seed`. `engine` and `layout` must outlive the state.
  /// INVALID_ARGUMENT where layout and options disagree about control variates.
  static Result<TrainerState> make(Engine& engine, const ModelLayout& layout, const TrainingOptions& options,
                                   std::uint64_t seed);

  /// One fragment's part of the model's vector, or of the control variates. NOT_FOUND naming the fragments there are.
  Result<std::span<float>> fragment(const std::string& name);

  /// Takes the fragment's tensors from a file, for as long as they are put back. Errors: those of FragmentFile, values
  /// that are not finite, and a personal fragment.
  Result<void> borrow_fragment(const std::string& name, const std::string& path);

  /// The same to train on them: they are the received ones, which the objective looks back to. `remember`: the fragment
  /// is one that travels while the trainer trains on.
  Result<void> read_fragment(const std::string& name, const FragmentSource& source, bool remember);

  /// Whether the model has frozen tensors that were never read: no checkpoint holds them.
  bool lacks_frozen() const { return lacks_frozen_; }

  /// The fragment's tensors, to give away. FAILED_PRECONDITION where a value is not finite.
  Result<std::span<const float>> finite_fragment(const std::string& name);

  /// Writes the fragment's tensors. Errors as above.
  Result<void> write_fragment(const std::string& name, const std::string& path);

  /// A fragment that is given away while the trainer trains on.
  struct Emission {
    std::span<const float> values;
    std::span<const float> base;     ///< what its change is measured from; empty where it was never read
    std::uint64_t base_version = 0;  ///< read or merged last
  };
  /// The fragment as it is now. FAILED_PRECONDITION where a value is not finite.
  Result<Emission> emission(const std::string& name);

  /// Writes the files that `plan` names. FAILED_PRECONDITION as above, and where it wants a base and there is none.
  Result<EmittedFiles> write_emission(const EmitPlan& plan);

  /// Whether the files that `plan` names hold what write_emission wrote.
  bool holds(const EmitPlan& plan, const EmittedFiles& files) const;

  /// The fragment as it is now was emitted; see trainer::remember_emitted.
  Result<void> remember_emitted(const EmitPlan& plan);

  /// See trainer::is_merged.
  bool is_merged(const MergePlan& plan) const;

  /// Applies a merged version; see trainer::merge. Errors of that and of borrow_fragment; nothing has changed then.
  Result<void> merge_fragment(const MergePlan& plan, const MergeRequest& merge);

  void reset_optimizer() { optimizer_ = fresh_state(options_.optimizer, trained_); }

  /// A train task begins; see trainer::begin_task.
  void begin_task(const std::string& counted) { trainer::begin_task(objective_, counted); }

  /// One step of the optimizer with engine's gradient at this learning rate; `total_steps` grows by one.
  void step(double learning_rate);

  /// The task's last step is done; see trainer::end_task.
  void end_task(const std::string& task) {
    latest_task_ = task;
    trainer::end_task(options_.objective, objective_, task, engine_->parameters().first(exchanged_));
  }

  /// The train task that ended last; empty: none.
  const std::string& latest_task() const { return latest_task_; }

  /// Some examples were trained on; in all, since the first task.
  void count_examples(std::uint64_t examples) { total_examples_ += examples; }
  std::uint64_t total_examples() const { return total_examples_; }

  /// Inner steps since the first task.
  std::uint64_t total_steps() const { return total_steps_; }

  /// A copy of everything, to go back to.
  struct Saved {
    std::vector<float> parameters;  ///< without the frozen ones
    OptimizerState optimizer;
    ObjectiveState objective;
    std::map<std::string, FragmentMemory> memory;
    std::string latest_task;
    std::uint64_t total_steps = 0;
    std::uint64_t total_examples = 0;
  };
  void save(Saved& saved) const;
  void restore(const Saved& saved);

  /// Everything but the frozen tensors, with `progress` (a task in the middle or a finished one), as long as nothing of it
  /// changes.
  CheckpointView checkpoint(const TaskProgress& progress) const;

  /// Writes that into `path`.
  Result<void> write(const std::string& path, const TaskProgress& progress) const {
    return write_checkpoint(path, checkpoint(progress));
  }

  /// Takes everything from a file of write(). FAILED_PRECONDITION where it belongs to another model or optimizer;
  /// errors of read_checkpoint. On an error nothing has changed.
  Result<TaskProgress> read(const std::string& path);

 private:
  Result<void> read_values(const std::string& name, const std::string& path, std::span<float> values) const;
  Result<void> write_values(const std::string& name, const std::string& path, std::span<const float> values) const;

  TrainerState(Engine& engine, const ModelLayout& layout, const TrainingOptions& options)
      : engine_(&engine), layout_(&layout), options_(options) {}

  Engine* engine_;
  const ModelLayout* layout_;
  TrainingOptions options_;
  OptimizerState optimizer_;
  ObjectiveState objective_;
  std::size_t exchanged_ = 0;  // the first so many of the engine's parameters
  std::size_t trained_ = 0;    // these and the personal ones
  bool lacks_frozen_ = false;
  std::map<std::string, FragmentMemory> memory_;  // of the fragments that travel while the trainer trains on
  std::string latest_task_;
  std::uint64_t total_steps_ = 0;
  std::uint64_t total_examples_ = 0;
  std::string fingerprint_;                     // of the layout, the optimizer and the objective
  std::map<std::string, std::string> headers_;  // of each fragment's file
  std::vector<std::uint64_t> offsets_;
};

}  // namespace skerry::trainer
