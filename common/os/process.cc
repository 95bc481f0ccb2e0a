#include "common/os/process.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <ctime>

extern char** environ;

namespace skerry {
namespace {

std::int64_t now_ms() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::int64_t>(now.tv_sec) * 1000 + now.tv_nsec / 1'000'000;
}

struct Pipe {
  FileDescriptor read_end, write_end;
};

Result<Pipe> make_pipe() {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return file_error(errno, "make", "a pipe");
  return Pipe{FileDescriptor(ends[0]), FileDescriptor(ends[1])};
}

void set_nonblocking(int fd) {
  int flags = ::fcntl(fd, F_GETFL);
  (void)::fcntl(fd, F_SETFL, flags | O_NONBLOCK);
}

/// What the child needs, laid out before it exists: it shares our memory until it runs the program and may not
/// allocate.
struct ChildPlan {
  const char* program;
  char* const* arguments;
  char* const* environment;
  const char* working_directory;           // null: ours
  std::array<int, 3> standard;             // -1: ours
  const std::pair<int, int>* descriptors;  // (source, target), sources above every target
  std::size_t descriptor_count;
  std::uint64_t memory_bytes, cpu_seconds, file_bytes;
  int failure_pipe;  // gets an errno if the program cannot be run
};

bool limit(int resource, std::uint64_t value) {
  if (value == 0) return true;
  rlimit wanted{value, value};
  return ::setrlimit(static_cast<__rlimit_resource>(resource), &wanted) == 0;
}

void close_on_exec_from_3() {
#ifdef SYS_close_range
  constexpr unsigned kCloseOnExec = 1U << 2;  // CLOSE_RANGE_CLOEXEC, Linux 5.11
  if (::syscall(SYS_close_range, 3U, ~0U, kCloseOnExec) == 0) return;
#endif
  rlimit open_files{};
  int count = ::getrlimit(RLIMIT_NOFILE, &open_files) == 0 && open_files.rlim_cur < 65536
                  ? static_cast<int>(open_files.rlim_cur)
                  : 65536;
  for (int fd = 3; fd < count; ++fd) {
    int flags = ::fcntl(fd, F_GETFD);
    if (flags >= 0) (void)::fcntl(fd, F_SETFD, flags | FD_CLOEXEC);
  }
}

[[noreturn]] void fail_child(const ChildPlan& plan) {
  int error_number = errno;
  (void)!::write(plan.failure_pipe, &error_number, sizeof(error_number));
  ::_exit(127);
}

/// Runs in the child, on the parent's memory: async-signal-safe calls only.
[[noreturn]] void run_child(const ChildPlan& plan) {
  // Ignored signals stay ignored across exec, and the parent blocked all signals for us: start from a clean state.
  for (int signal = 1; signal < NSIG; ++signal) {
    if (signal != SIGKILL && signal != SIGSTOP) (void)::signal(signal, SIG_DFL);
  }
  sigset_t none;
  sigemptyset(&none);
  (void)::sigprocmask(SIG_SETMASK, &none, nullptr);
  if (::setpgid(0, 0) != 0) fail_child(plan);
  close_on_exec_from_3();
  for (int i = 0; i < 3; ++i) {
    int source = plan.standard[static_cast<std::size_t>(i)];
    if (source >= 0 && ::dup2(source, i) < 0) fail_child(plan);
  }
  for (std::size_t i = 0; i < plan.descriptor_count; ++i) {
    if (::dup2(plan.descriptors[i].first, plan.descriptors[i].second) < 0) fail_child(plan);
  }
  if (plan.working_directory != nullptr && ::chdir(plan.working_directory) != 0) fail_child(plan);
  if (!limit(RLIMIT_AS, plan.memory_bytes) || !limit(RLIMIT_CPU, plan.cpu_seconds) ||
      !limit(RLIMIT_FSIZE, plan.file_bytes)) {
    fail_child(plan);
  }
  ::execve(plan.program, plan.arguments, plan.environment);
  fail_child(plan);
}

std::vector<char*> pointers_to(std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  pointers.reserve(strings.size() + 1);
  for (std::string& text : strings) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

/// A duplicate of `fd` numbered above every target, so that no dup2 in the child overwrites a source.
Result<FileDescriptor> lifted(int fd, int above) {
  int copy = ::fcntl(fd, F_DUPFD_CLOEXEC, above);
  if (copy < 0) return file_error(errno, "duplicate", "a descriptor");
  return FileDescriptor(copy);
}

pid_t start_child(const ChildPlan& plan) {
  sigset_t all, before;
  sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);  // no handler of ours may run in the child while it shares our memory
  pid_t pid = ::vfork();
  if (pid == 0) run_child(plan);
  int error_number = errno;
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  errno = error_number;
  return pid;
}

int poll_one(int fd, short events, std::int64_t timeout_ms) {
  pollfd entry{fd, events, 0};
  return ::poll(&entry, 1, static_cast<int>(std::clamp<std::int64_t>(timeout_ms, -1, 1'000'000'000)));
}

}  // namespace

std::vector<std::string> pick_environment(const std::vector<std::string>& names) {
  std::vector<std::string> picked;
  for (const std::string& name : names) {
    const char* value = std::getenv(name.c_str());
    if (value != nullptr) picked.push_back(name + "=" + value);
  }
  return picked;
}

Result<std::string> find_program(const std::string& name) {
  if (name.find('/') != std::string::npos) {
    if (!path_exists(name)) return not_found("there is no program " + name);
    return name;
  }
  const char* variable = std::getenv("PATH");
  std::string path = variable != nullptr ? variable : "/usr/local/bin:/usr/bin:/bin";
  std::size_t begin = 0;
  while (begin <= path.size()) {
    std::size_t end = std::min(path.find(':', begin), path.size());
    if (end > begin) {
      std::string candidate = join_path(path.substr(begin, end - begin), name);
      if (::access(candidate.c_str(), X_OK) == 0) return candidate;
    }
    begin = end + 1;
  }
  return not_found("there is no program " + name + " in " + path);
}

std::string to_string(const ExitStatus& status) {
  if (status.signal != 0) {
    const char* name = ::sigdescr_np(status.signal);
    return "was killed by signal " + std::to_string(status.signal) + " (" + (name != nullptr ? name : "unknown") + ")";
  }
  return "exited with code " + std::to_string(status.code);
}

Result<Process> Process::spawn(const SpawnOptions& options) {
  if (options.command.empty()) return invalid_argument("cannot start a program: the command is empty");
  SKERRY_ASSIGN(std::string program, find_program(options.command.front()));
  std::vector<std::string> arguments = options.command;
  std::vector<std::string> environment = options.environment;
  std::vector<char*> argument_pointers = pointers_to(arguments);
  std::vector<char*> environment_pointers = pointers_to(environment);

  int above = 10;
  for (const auto& entry : options.descriptors) above = std::max(above, entry.second + 1);
  SKERRY_ASSIGN(Pipe failure, make_pipe());
  SKERRY_ASSIGN(FileDescriptor failure_write, lifted(failure.write_end.get(), above));
  failure.write_end.reset();

  Process process;
  std::array<FileDescriptor, 3> child_ends;
  std::array<int, 3> standard{-1, -1, -1};
  if (options.pipe_stdin) {
    SKERRY_ASSIGN(Pipe pipe, make_pipe());
    SKERRY_ASSIGN(child_ends[0], lifted(pipe.read_end.get(), above));
    process.stdin_ = std::move(pipe.write_end);
  } else {
    int null = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (null < 0) return file_error(errno, "open", "/dev/null");
    FileDescriptor owned(null);
    SKERRY_ASSIGN(child_ends[0], lifted(null, above));
  }
  if (options.pipe_stdout) {
    SKERRY_ASSIGN(Pipe pipe, make_pipe());
    SKERRY_ASSIGN(child_ends[1], lifted(pipe.write_end.get(), above));
    process.stdout_ = std::move(pipe.read_end);
  }
  if (options.pipe_stderr) {
    SKERRY_ASSIGN(Pipe pipe, make_pipe());
    SKERRY_ASSIGN(child_ends[2], lifted(pipe.write_end.get(), above));
    process.stderr_ = std::move(pipe.read_end);
  }
  for (std::size_t i = 0; i < 3; ++i) standard[i] = child_ends[i].get();
  for (int fd : {process.stdin_fd(), process.stdout_fd(), process.stderr_fd()}) {
    if (fd >= 0) set_nonblocking(fd);
  }
  std::vector<FileDescriptor> lifted_descriptors;
  std::vector<std::pair<int, int>> descriptors;
  for (const auto& entry : options.descriptors) {
    SKERRY_ASSIGN(FileDescriptor copy, lifted(entry.first, above));
    descriptors.emplace_back(copy.get(), entry.second);
    lifted_descriptors.push_back(std::move(copy));
  }

  ChildPlan plan{program.c_str(),
                 argument_pointers.data(),
                 environment_pointers.data(),
                 options.working_directory.empty() ? nullptr : options.working_directory.c_str(),
                 standard,
                 descriptors.data(),
                 descriptors.size(),
                 options.memory_bytes,
                 options.cpu_seconds,
                 options.file_bytes,
                 failure_write.get()};
  process.pid_ = start_child(plan);
  if (process.pid_ < 0) return file_error(errno, "start", program);
#ifdef SYS_pidfd_open
  process.exit_fd_ = FileDescriptor(static_cast<int>(::syscall(SYS_pidfd_open, process.pid_, 0)));  // is close-on-exec
#endif

  failure_write.reset();
  int error_number = 0;
  ssize_t count = 0;
  do {
    count = ::read(failure.read_end.get(), &error_number, sizeof(error_number));
  } while (count < 0 && errno == EINTR);
  if (count > 0) {
    process.wait(-1);
    std::string note = options.working_directory.empty() ? "" : " in " + options.working_directory;
    return file_error(error_number, "start", program + note);
  }
  return process;
}

Process::Process(Process&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)),
      exit_fd_(std::move(other.exit_fd_)),
      stdin_(std::move(other.stdin_)),
      stdout_(std::move(other.stdout_)),
      stderr_(std::move(other.stderr_)),
      status_(std::exchange(other.status_, std::nullopt)) {}

Process& Process::operator=(Process&& other) noexcept {
  if (this != &other) {
    destroy();
    pid_ = std::exchange(other.pid_, -1);
    exit_fd_ = std::move(other.exit_fd_);
    stdin_ = std::move(other.stdin_);
    stdout_ = std::move(other.stdout_);
    stderr_ = std::move(other.stderr_);
    status_ = std::exchange(other.status_, std::nullopt);
  }
  return *this;
}

Process::~Process() { destroy(); }

void Process::destroy() {
  if (pid_ <= 0 || status_) return;
  stdin_.reset();
  send_signal(SIGKILL);
  wait(-1);
}

Result<void> Process::write_stdin(std::string_view bytes, std::int64_t timeout_ms) {
  if (!stdin_) return unavailable("cannot write to process " + std::to_string(pid_) + ": its stdin is closed");
  // A closed pipe must answer EPIPE rather than raise SIGPIPE in programs that did not ask for that.
  sigset_t broken_pipe, before;
  sigemptyset(&broken_pipe);
  sigaddset(&broken_pipe, SIGPIPE);
  ::pthread_sigmask(SIG_BLOCK, &broken_pipe, &before);
  const std::int64_t deadline = now_ms() + timeout_ms;
  Result<void> result;
  while (!bytes.empty()) {
    ssize_t count = ::write(stdin_fd(), bytes.data(), bytes.size());
    if (count > 0) {
      bytes.remove_prefix(static_cast<std::size_t>(count));
    } else if (errno == EAGAIN) {
      std::int64_t left = deadline - now_ms();
      if (left <= 0) {
        result = Error{
            Code::kDeadlineExceeded,
            "process " + std::to_string(pid_) + " did not read its stdin for " + std::to_string(timeout_ms) + " ms",
            false};
        break;
      }
      (void)poll_one(stdin_fd(), POLLOUT, left);
    } else if (errno == EPIPE) {
      timespec no_wait{};
      (void)::sigtimedwait(&broken_pipe, nullptr, &no_wait);  // takes away the signal that the write left pending
      result = unavailable("process " + std::to_string(pid_) + " has closed its stdin");
      break;
    } else if (errno != EINTR) {
      result = file_error(errno, "write to", "process " + std::to_string(pid_));
      break;
    }
  }
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return result;
}

ExitStatus Process::reap(int wait_status, const void* usage) {
  const auto& used = *static_cast<const rusage*>(usage);
  ExitStatus status;
  if (WIFSIGNALED(wait_status)) status.signal = WTERMSIG(wait_status);
  if (WIFEXITED(wait_status)) status.code = WEXITSTATUS(wait_status);
  status.peak_memory_bytes = static_cast<std::uint64_t>(used.ru_maxrss) * 1024;
  status.cpu_seconds = static_cast<double>(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
                       static_cast<double>(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
  status_ = status;
  return status;
}

std::optional<ExitStatus> Process::try_wait() {
  if (status_ || pid_ <= 0) return status_;
  int wait_status = 0;
  rusage usage{};
  pid_t result = 0;
  do {
    result = ::wait4(pid_, &wait_status, WNOHANG, &usage);
  } while (result < 0 && errno == EINTR);
  if (result == 0) return std::nullopt;
  if (result < 0) return reap(0, &usage);  // somebody else took the status (SIGCHLD ignored): all we know is the end
  // The leader is gone; whatever it started in its group must not outlive it.
  (void)::kill(-pid_, SIGKILL);
  return reap(wait_status, &usage);
}

std::optional<ExitStatus> Process::wait(std::int64_t timeout_ms) {
  const std::int64_t deadline = timeout_ms < 0 ? -1 : now_ms() + timeout_ms;
  for (;;) {
    auto status = try_wait();
    if (status || pid_ <= 0) return status;
    std::int64_t left = deadline < 0 ? -1 : deadline - now_ms();
    if (deadline >= 0 && left <= 0) return std::nullopt;
    if (exit_fd_) {
      (void)poll_one(exit_fd_.get(), POLLIN, left);
    } else {
      timespec pause{0, 5'000'000};  // a kernel without pidfd: look again every 5 ms
      (void)::nanosleep(&pause, nullptr);
    }
  }
}

void Process::send_signal(int signal) {
  if (pid_ > 0 && !status_) (void)::kill(-pid_, signal);
}

ExitStatus Process::terminate(std::int64_t grace_ms) {
  stdin_.reset();
  send_signal(SIGTERM);
  if (auto status = wait(grace_ms)) return *status;
  send_signal(SIGKILL);
  return wait(-1).value_or(ExitStatus{});
}

Result<ReadChunk> read_available(int fd, std::size_t max_bytes) {
  ReadChunk chunk;
  chunk.data.resize(max_bytes);
  ssize_t count = 0;
  do {
    count = ::read(fd, chunk.data.data(), max_bytes);
  } while (count < 0 && errno == EINTR);
  if (count < 0 && errno != EAGAIN && errno != EWOULDBLOCK) return file_error(errno, "read from", "a pipe");
  chunk.data.resize(count > 0 ? static_cast<std::size_t>(count) : 0);
  chunk.end = count == 0;
  return chunk;
}

}  // namespace skerry
