// One trainer's conversation with its daemon, from hello to the end of the input (docs/trainer-protocol.md).
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "client/trainer/data_set.h"
#include "client/trainer/engine.h"
#include "client/trainer/line_channel.h"
#include "client/trainer/messages.h"
#include "client/trainer/options.h"
#include "client/trainer/trainer_state.h"
#include "common/base/result.h"
#include "common/model/layout.h"

namespace skerry::trainer {

class Island;

/// Opens the data of an `open` line's data section; see DataSet::open.
using OpenData = std::function<Result<std::unique_ptr<DataSet>>(const std::string& section, std::uint64_t context)>;

/// What a train task made of a fragment, given away instead of written to a file.
struct GivenFragment {
  std::string fragment;
  std::span<const float> values;   ///< of a `write`: as they are until the next line; of an emission: during the call
  std::span<const float> base;     ///< of an emission that wants it, during the call: what its change is measured from
  std::uint64_t base_version = 0;  ///< of an emission: the version read or merged last
};
using TakeFragment = std::function<void(const GivenFragment&)>;

class Session {
 public:
  /// `channel` must outlive the session.
  explicit Session(LineChannel& channel, OpenData open_data = DataSet::open, TakeFragment take_fragment = {})
      : channel_(channel), open_data_(std::move(open_data)), take_fragment_(std::move(take_fragment)) {}

  /// The leader of an island, which must outlive the session; null: a trainer alone.
  Session(LineChannel& channel, Island* island) : Session(channel) { island_ = island; }

  /// Says hello, answers until the input ends, `close` comes or a fatal error was sent. The process's exit status: 0,
  /// or 1 after a fatal error. Between two steps of a task it looks for `cancel`, `merge` and `checkpoint`.
  int run();

  // For a program that holds many trainers, one after another on any thread, instead of run():

  /// Answers one line; the channel has got the answer when it returns.
  void handle(const std::string& line);

  /// Goes back to before the latest train task, as if it had been cancelled.
  void undo_task();

 private:
  /// What `open` made: there is one for a process.
  struct Open {
    OpenRequest request;
    ModelLayout layout;
    TrainingOptions training;
    std::unique_ptr<DataSet> data;
    std::unique_ptr<Engine> engine;
    std::optional<TrainerState> state;
    std::optional<TaskProgress> finished;  ///< the task whose end the checkpoint found at opening holds
    std::optional<TaskProgress> begun;     ///< the task in whose middle a checkpoint was found at opening
    bool middle_on_disk = false;           ///< a checkpoint of a task's middle lies in state_dir, or is being written
    std::chrono::steady_clock::time_point checkpointed = std::chrono::steady_clock::now();  ///< the latest was begun
    TrainerState::Saved before;            ///< the state before the task under way
  };

  /// Why a task ended without a result.
  struct Stopped {
    bool cancelled = false;  ///< otherwise the conversation is over
  };

  /// A running train task.
  struct Training;

  Result<void> handle_open(OpenRequest request);
  Result<void> handle_train(const TrainRequest& request);
  Result<void> handle_evaluate(const EvaluateRequest& request);
  Result<void> handle_generate(const GenerateRequest& request);
  Result<void> handle_initialise(const InitialiseRequest& request);
  Result<void> handle_checkpoint();
  /// Writes a checkpoint of the running task in the background, where the holder's interval is over.
  void checkpoint_in_time(const Training& training);
  Result<void> keep_merge(const MergeRequest& request);

  Result<void> check_train(const TrainRequest& request, std::uint64_t steps) const;
  /// NOT_FOUND where the task neither goes on from what this trainer did last nor reads every exchanged fragment.
  Result<void> check_follows(const TrainRequest& request) const;
  /// Takes the frozen tensors where `read` names them; FAILED_PRECONDITION where they are still missing then.
  Result<void> read_frozen(const std::map<std::string, FragmentSource>& read);
  /// The first tensors and counters of a task: read from its files, or from the checkpoint in its middle.
  Result<void> begin(Training& training, const std::optional<TaskProgress>& begun);
  Result<void> repeat_finished(const TrainRequest& request, const TaskProgress& finished);
  Result<void> train(Training& training);
  Result<void> one_step(Training& training);
  /// What a mean loss is weighted with: examples; of text the windows that the predicted tokens would fill.
  double terms_of(std::uint64_t examples, std::uint64_t tokens) const;
  Result<void> fill_batch(Training& training, std::uint64_t rows);
  Result<void> after_step(Training& training);
  Result<void> emit_fragments(Training& training);
  /// Says again what another process emitted. NOT_FOUND where the files are not there any more as they were.
  Result<void> repeat_emissions(const TrainRequest& request, const TaskProgress& progress);
  Result<void> merge_fragments(Training& training);
  Result<void> apply_merge(Training& training, std::size_t entry);
  void report_progress(Training& training);
  Result<void> finish(Training& training);
  Result<void> give(const std::string& fragment, const std::string& path);
  Result<EmittedFiles> give(const EmitPlan& emit);

  /// Loss and hits over a whole split.
  struct SplitMeasurement {
    Measurement sum;
    std::uint64_t text_bytes = 0;  ///< text: how many bytes the counted tokens stand for
  };
  Result<SplitMeasurement> measure_split(const std::string& task, const std::string& split);

  /// Runs `body` with the fragments of `read` in place of the trainer's own, and puts these back.
  template <typename Body>
  Result<void> with_fragments(const std::map<std::string, FragmentSource>& read, const Body& body);

  /// Answers what has come in the meantime; `wait`: waits for one line first. An error (CANCELLED, with stopped_ saying
  /// why) where the task must stop.
  Result<void> attend(const std::string& task, bool wait);
  /// Writes the checkpoint that was asked for while none could be written, if one was.
  Result<void> answer_checkpoint();

  static Error not_open();

  std::string state_path(const char* name) const;

  LineChannel& channel_;
  OpenData open_data_;
  TakeFragment take_fragment_;
  Island* island_ = nullptr;
  std::unique_ptr<Open> open_;
  CheckpointWriter checkpoints_;
  Training* training_ = nullptr;                 // the one under way, for a checkpoint in its middle
  /// Merged fragments that wait for their step, by fragment and exchange.
  std::map<std::pair<std::string, std::uint64_t>, MergeRequest> arrived_;
  std::optional<Stopped> stopped_;
  bool borrowed_ = false;          // the engine holds other tensors than the trainer's own: no checkpoint now
  bool checkpoint_asked_ = false;  // meanwhile
  bool closing_ = false;
  int status_ = 0;
};

}  // namespace skerry::trainer
