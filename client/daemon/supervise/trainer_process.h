// One trainer: a child process that speaks docs/trainer-protocol.md over its stdin and stdout.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "client/daemon/loop/event_loop.h"
#include "client/daemon/machine/client_machine.h"
#include "common/base/result.h"
#include "common/os/process.h"

namespace skerry::client {

struct TrainerLaunch {
  std::vector<std::string> command;  ///< as sandbox_command made it
  bool sandboxed = false;
  std::string policy_path;
  std::string open_line;             ///< the daemon's `open`, without line end
  std::string log_path;              ///< stderr and lines that are no JSON; at most two files of 1 MiB
  std::uint64_t memory_bytes = 0;    ///< 0: no limit
  std::uint64_t hello_timeout_ms = 60'000;
  std::uint64_t open_timeout_ms = 600'000;
};

/// Called on the loop's thread. After `exited` no other follows.
struct TrainerEvents {
  std::function<void(std::map<std::string, std::uint64_t> examples, std::uint64_t resumed_step)> ready;
  std::function<void(TrainerProgress)> progress;  ///< run_id is empty
  std::function<void(TrainerDone)> done;
  std::function<void(TrainerError)> error;
  std::function<void(TrainerCancelled)> cancelled;
  std::function<void(std::string task_id, std::string fragment, std::uint64_t base_version)> emitted;
  std::function<void(TrainerMerged)> merged;  ///< run_id is empty
  std::function<void(Error)> exited;
  std::function<void(Note::Level, std::string)> note;
};

/// Lives on the loop's thread. The destructor kills the process.
class TrainerProcess {
 public:
  /// The process runs, nothing was said yet. Errors of Process::spawn.
  static Result<std::unique_ptr<TrainerProcess>> start(EventLoop& loop, TrainerLaunch launch, TrainerEvents events);
  ~TrainerProcess();

  /// Sends one line (a JSON object without line end). A trainer that does not read for too long is killed.
  void send(std::string line);
  /// Says close, then end of file, then kills after `grace_ms`. `exited` follows.
  void stop(std::string reason, std::uint64_t grace_ms = 2'000);
  pid_t pid() const { return process_.pid(); }

 private:
  TrainerProcess(EventLoop& loop, TrainerLaunch launch, TrainerEvents events, Process process);
  Result<void> begin();
  /// At most so many pieces of 64 KiB: a trainer that writes without end must not keep the loop from its timers. The rest wakes it again.
  void read_stdout(int most_chunks);
  void read_stderr();
  void take_line(std::string_view line);
  void take_message(const nlohmann::json& message);
  void flush();
  void log(std::string_view text);
  void give_up(Error error);
  void child_ended();
  void expect_within(std::uint64_t timeout_ms, const char* what);

  EventLoop& loop_;
  TrainerLaunch launch_;
  TrainerEvents events_;
  Process process_;
  std::string unread_;
  std::string unsent_;
  bool waiting_to_write_ = false;
  bool close_after_writing_ = false;
  bool greeted_ = false;
  bool opened_ = false;
  bool finished_ = false;
  std::string first_stderr_;
  std::optional<Error> ending_;
  EventLoop::TimerId timer_ = 0;
  std::optional<File> log_;
  std::uint64_t log_bytes_ = 0;
  std::uint64_t last_progress_ms_ = 0;
};

struct ReadPath {
  std::string path;
  std::uint64_t version = 0;
};
/// Where a fragment goes that is given away at the task's end while training goes on.
struct EmitPaths {
  std::string path;
  std::string base_path;
};
/// By fragment.
struct TaskPaths {
  std::map<std::string, ReadPath> read;
  std::map<std::string, std::string> write;
  std::map<std::string, EmitPaths> emit;
};
/// The `train` or `evaluate` line. `counted` is the run's latest task whose update was counted (empty: none).
std::string task_line(const v1::Task& task, const TaskPaths& paths, std::string_view counted, std::uint64_t progress_ms, bool checkpoint);

/// The `merge` line: the version of an exchange is here.
std::string merge_line(std::uint64_t exchange, const std::string& fragment, const ReadPath& version);

/// The `cancel` line.
std::string cancel_line(std::string_view task_id);

struct OpenRequest {
  std::string run_id, work_dir, state_dir;
  std::uint32_t threads = 1;
  std::uint64_t seed = 0;
  std::uint64_t checkpoint_ms = 0;
  std::string model_json, training_json;
  std::string data_kind, data_schema_json, data_path, data_splits_json, data_indices;
  std::string tokenizer;           ///< file of a SentencePiece model; empty: bytes
  bool documents = false;          ///< at most one document a window of text
};
std::string open_line(const OpenRequest& request);

}  // namespace skerry::client
