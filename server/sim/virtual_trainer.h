// One client's trainer inside this process: the session of skerry-trainer without a process around it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "client/trainer/line_channel.h"
#include "client/trainer/session.h"
#include "common/base/result.h"

namespace skerry::sim {

/// A fragment that was emitted, and what its change is measured from.
struct Emission {
  std::vector<float> trained;
  std::vector<float> base;
  std::uint64_t base_version = 0;
};

/// What a finished task reports.
struct TrainerAnswer {
  std::map<std::string, std::span<const float>> trained;  ///< by fragment, until the trainer's next task
  std::map<std::string, Emission> emitted;                ///< by fragment; of a task that emits instead
  std::uint64_t examples = 0;
  std::uint64_t tokens = 0;
  std::uint64_t steps = 0;
  std::map<std::string, double> metrics;
};

/// One thread at a time.
class VirtualTrainer {
 public:
  /// Sends `open_line` (docs/trainer-protocol.md); its data section is not looked at, `open_data` opens the data.
  static Result<std::unique_ptr<VirtualTrainer>> open(const std::string& open_line, trainer::OpenData open_data);

  /// Tells it something that needs no answer: a `merge` line.
  void tell(const std::string& line) { session_.handle(line); }

  /// Does the task of a `train` or `evaluate` line. The trainer's errors.
  Result<TrainerAnswer> work(const std::string& line);

  /// Goes back to before the latest train task.
  void undo_task() { session_.undo_task(); }

 private:
  explicit VirtualTrainer(trainer::OpenData open_data)
      : channel_([this](std::string_view line) { answer_ = line; }),
        session_(channel_, std::move(open_data),
                 [this](const trainer::GivenFragment& given) { take(given); }) {}
  void take(const trainer::GivenFragment& given);

  std::string answer_;  // the last line it sent
  std::map<std::string, std::span<const float>> trained_;
  std::map<std::string, Emission> emitted_;
  trainer::LineChannel channel_;
  trainer::Session session_;
};

}  // namespace skerry::sim
