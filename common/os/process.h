// Child processes: started without fork's copies, spoken to through pipes, and never left behind.
//
// A child is not tied to our life by PR_SET_PDEATHSIG, which fires when the spawning *thread* ends: a child must exit
// at the end of file on its stdin, which comes however we end.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/base/result.h"
#include "common/os/files.h"

namespace skerry {

struct SpawnOptions {
  /// The program and its arguments. A program without '/' is looked up in our own PATH.
  std::vector<std::string> command;
  std::string working_directory;         ///< empty: ours
  std::vector<std::string> environment;  ///< "NAME=value", exactly these and no others; see pick_environment
  bool pipe_stdin = true;                ///< false: /dev/null
  bool pipe_stdout = true;               ///< false: ours
  bool pipe_stderr = true;               ///< false: ours
  /// Descriptors the child also gets: (ours, its number there, 3 or more). All others are closed in it.
  std::vector<std::pair<int, int>> descriptors;
  std::uint64_t memory_bytes = 0;  ///< RLIMIT_AS; 0: no limit
  std::uint64_t cpu_seconds = 0;   ///< RLIMIT_CPU; 0: no limit
  std::uint64_t file_bytes = 0;    ///< RLIMIT_FSIZE; 0: no limit
};

/// "NAME=value" for each of `names` that our own environment has, for SpawnOptions::environment.
std::vector<std::string> pick_environment(const std::vector<std::string>& names);

/// The absolute path of `name` in our PATH (or `name` itself if it contains '/'); NOT_FOUND names the directories
/// searched.
Result<std::string> find_program(const std::string& name);

struct ExitStatus {
  int code = 0;    ///< exit code, 0 if ended by a signal
  int signal = 0;  ///< the signal that ended it, 0 if it exited
  std::uint64_t peak_memory_bytes = 0;
  double cpu_seconds = 0;

  bool clean() const { return code == 0 && signal == 0; }
};

/// "exited with code 3", "was killed by signal 9 (Killed)".
std::string to_string(const ExitStatus& status);

/// One child process, leader of a process group of its own. The destructor kills the group and reaps the child.
/// One thread at a time.
class Process {
 public:
  /// Returns once the program runs. NOT_FOUND, PERMISSION_DENIED, RESOURCE_EXHAUSTED or INTERNAL, naming the program,
  /// if it could not be started.
  static Result<Process> spawn(const SpawnOptions& options);

  Process(Process&& other) noexcept;
  Process& operator=(Process&& other) noexcept;
  ~Process();

  pid_t pid() const { return pid_; }

  /// Readable (poll, epoll) when the child has ended; then try_wait() tells how. -1 on kernels before 5.3.
  int exit_fd() const { return exit_fd_.get(); }

  /// Our ends of the pipes, non-blocking; -1 where not piped or already closed.
  int stdin_fd() const { return stdin_.get(); }
  int stdout_fd() const { return stdout_.get(); }
  int stderr_fd() const { return stderr_.get(); }

  /// Writes all of `bytes` to the child's stdin, waiting up to `timeout_ms` for room. UNAVAILABLE if the child has
  /// closed it, DEADLINE_EXCEEDED if it does not read (part may have been written: the child is then of no more use).
  Result<void> write_stdin(std::string_view bytes, std::int64_t timeout_ms);

  /// Gives the child its end of file.
  void close_stdin() { stdin_.reset(); }

  /// How the child ended, if it has; afterwards the same answer again.
  std::optional<ExitStatus> try_wait();

  /// Waits up to `timeout_ms` (negative: without limit) for the end.
  std::optional<ExitStatus> wait(std::int64_t timeout_ms);

  /// Sends `signal` to the whole group, if the child still lives.
  void send_signal(int signal);

  /// Closes stdin, sends SIGTERM to the group, waits `grace_ms`, then SIGKILL; returns how it ended.
  ExitStatus terminate(std::int64_t grace_ms);

 private:
  Process() = default;
  ExitStatus reap(int wait_status, const void* usage);
  void destroy();

  pid_t pid_ = -1;
  FileDescriptor exit_fd_, stdin_, stdout_, stderr_;
  std::optional<ExitStatus> status_;
};

struct ReadChunk {
  std::string data;  ///< empty: nothing there at the moment, or the end
  bool end = false;  ///< the other side has closed
};

/// What can be read from the non-blocking `fd` without waiting, up to `max_bytes`.
Result<ReadChunk> read_available(int fd, std::size_t max_bytes = 64 * 1024);

}  // namespace skerry
