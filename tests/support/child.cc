#include "tests/support/child.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdlib>
#include <ctime>
#include <mutex>
#include <thread>

extern char** environ;

namespace skerry::test {
namespace {

std::int64_t now_ms() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::int64_t>(now.tv_sec) * 1000 + now.tv_nsec / 1'000'000;
}

/// Runs `command` under a shell that holds a pipe of ours: when the test process is gone, however it ended, the shell
/// reads the end of file and kills the whole group.
std::vector<std::string> guarded(const std::vector<std::string>& command) {
  std::vector<std::string> wrapped = {
      "/bin/sh", "-c", "(read gone <&3; kill -9 0) >/dev/null 2>&1 & exec 3<&-; exec \"$@\"", "skerry-test-child"};
  wrapped.insert(wrapped.end(), command.begin(), command.end());
  return wrapped;
}

}  // namespace

std::string program(const std::string& name) {
  const char* directory = std::getenv("SKERRY_BIN");
  return join_path(directory != nullptr ? directory : "bin", name);
}

std::vector<std::string> child_environment(const std::vector<std::string>& extra) {
  std::vector<std::string> environment = pick_environment(
      {"PATH", "HOME", "TMPDIR", "LANG", "ASAN_OPTIONS", "TSAN_OPTIONS", "UBSAN_OPTIONS", "LD_LIBRARY_PATH"});
  for (char** entry = environ; *entry != nullptr; ++entry) {
    std::string text = *entry;
    if (text.starts_with("SKERRY_")) environment.push_back(text);
  }
  environment.insert(environment.end(), extra.begin(), extra.end());
  return environment;
}

Finished run_program(const std::vector<std::string>& command, const std::vector<std::string>& extra_environment,
                     const std::string& input, std::int64_t timeout_ms) {
  Finished finished;
  SpawnOptions options;
  options.command = command;
  options.environment = child_environment(extra_environment);
  auto spawned = Process::spawn(options);
  if (!spawned.ok()) {
    finished.status.code = 127;
    finished.err = to_string(spawned.error());
    return finished;
  }
  Process process = std::move(spawned).value();
  const std::int64_t deadline = now_ms() + timeout_ms;
  std::size_t written = 0;
  bool out_open = true, err_open = true;
  if (input.empty()) process.close_stdin();
  while (out_open || err_open) {
    std::int64_t left = deadline - now_ms();
    if (left <= 0) {
      finished.timed_out = true;
      break;
    }
    pollfd entries[3] = {{out_open ? process.stdout_fd() : -1, POLLIN, 0},
                         {err_open ? process.stderr_fd() : -1, POLLIN, 0},
                         {process.stdin_fd(), POLLOUT, 0}};
    (void)::poll(entries, 3, static_cast<int>(left));
    if (entries[0].revents != 0) {
      auto chunk = read_available(process.stdout_fd());
      if (chunk.ok()) finished.out += chunk->data;
      out_open = chunk.ok() && !chunk->end;
    }
    if (entries[1].revents != 0) {
      auto chunk = read_available(process.stderr_fd());
      if (chunk.ok()) finished.err += chunk->data;
      err_open = chunk.ok() && !chunk->end;
    }
    if (entries[2].revents != 0) {
      std::size_t step = std::min<std::size_t>(input.size() - written, 4096);
      if (!process.write_stdin(std::string_view(input).substr(written, step), 1000).ok())
        written = input.size();
      else
        written += step;
      if (written == input.size()) process.close_stdin();
    }
  }
  process.close_stdin();
  auto status = process.wait(std::max<std::int64_t>(0, deadline - now_ms()));
  if (!status) {
    finished.timed_out = true;
    status = process.terminate(0);
  }
  finished.status = *status;
  return finished;
}

struct Child::State {
  Process process;
  FileDescriptor life_line;  // its other end is held by the guarding shell
  FileDescriptor log_read;
  std::thread reader;
  mutable std::mutex mutex;
  std::condition_variable changed;
  std::string log;
  bool log_ended = false;

  explicit State(Process started) : process(std::move(started)) {}

  void read_log() {
    std::string buffer(64 * 1024, '\0');
    for (;;) {
      ssize_t count = ::read(log_read.get(), buffer.data(), buffer.size());
      if (count < 0 && errno == EINTR) continue;
      std::lock_guard lock(mutex);
      if (count <= 0)
        log_ended = true;
      else
        log.append(buffer.data(), static_cast<std::size_t>(count));
      changed.notify_all();
      if (count <= 0) return;
    }
  }
};

Child::Child(std::unique_ptr<State> state) : state_(std::move(state)) {}
Child::Child(Child&&) noexcept = default;
Child& Child::operator=(Child&& other) noexcept {
  std::swap(state_, other.state_);
  return *this;
}

Child::~Child() {
  if (!state_) return;
  state_->process.send_signal(SIGKILL);
  state_->process.wait(-1);
  state_->reader.join();
}

Result<Child> Child::start(const std::vector<std::string>& command, const std::vector<std::string>& extra_environment) {
  int log_pipe[2], life_line[2];
  if (::pipe2(log_pipe, O_CLOEXEC) != 0) return file_error(errno, "make", "a pipe");
  FileDescriptor log_read(log_pipe[0]), log_write(log_pipe[1]);
  if (::pipe2(life_line, O_CLOEXEC) != 0) return file_error(errno, "make", "a pipe");
  FileDescriptor life_read(life_line[0]), life_write(life_line[1]);
  // The program must exist: the shell's own complaint would come too late to be an error here.
  SKERRY_ASSIGN(std::string found, find_program(command.front()));
  std::vector<std::string> wrapped = command;
  wrapped.front() = found;
  wrapped = guarded(wrapped);
  wrapped[2] = "exec >&4 2>&4 4>&-; " + wrapped[2];
  SpawnOptions options;
  options.command = wrapped;
  options.environment = child_environment(extra_environment);
  options.pipe_stdin = false;
  options.pipe_stdout = false;
  options.pipe_stderr = false;
  options.descriptors = {{life_read.get(), 3}, {log_write.get(), 4}};
  SKERRY_ASSIGN(Process process, Process::spawn(options));
  auto state = std::make_unique<State>(std::move(process));
  state->life_line = std::move(life_write);
  state->log_read = std::move(log_read);
  log_write.reset();
  State* raw = state.get();
  state->reader = std::thread([raw] { raw->read_log(); });
  return Child(std::move(state));
}

pid_t Child::pid() const { return state_->process.pid(); }

std::string Child::log() const {
  std::lock_guard lock(state_->mutex);
  return state_->log;
}

bool Child::wait_for_log(const std::string& text, std::int64_t timeout_ms) {
  std::unique_lock lock(state_->mutex);
  state_->changed.wait_for(lock, std::chrono::milliseconds(timeout_ms),
                           [&] { return state_->log_ended || state_->log.find(text) != std::string::npos; });
  return state_->log.find(text) != std::string::npos;
}

std::optional<ExitStatus> Child::wait(std::int64_t timeout_ms) { return state_->process.wait(timeout_ms); }

bool Child::running() { return !state_->process.try_wait().has_value(); }

void Child::kill() {
  state_->process.send_signal(SIGKILL);
  state_->process.wait(-1);
}

ExitStatus Child::terminate(std::int64_t grace_ms) {
  // Only the program itself is told: the guarding shell of its group ends with it.
  (void)::kill(state_->process.pid(), SIGTERM);
  if (auto status = state_->process.wait(grace_ms)) return *status;
  return state_->process.terminate(0);
}

void Child::freeze() { (void)::kill(state_->process.pid(), SIGSTOP); }
void Child::thaw() { (void)::kill(state_->process.pid(), SIGCONT); }

void pause_ms(std::int64_t ms) {
  timespec duration{ms / 1000, ms % 1000 * 1'000'000};
  (void)::nanosleep(&duration, nullptr);
}

int free_port() {
  FileDescriptor socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  if (::bind(socket.get(), reinterpret_cast<sockaddr*>(&address), length) != 0) return -1;
  if (::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&address), &length) != 0) return -1;
  return ntohs(address.sin_port);
}

}  // namespace skerry::test
