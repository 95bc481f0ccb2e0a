// Programs as tests run them: to the end with their output captured, or in the background until the test is over.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "common/os/process.h"

namespace skerry::test {

/// The path of a built program: env SKERRY_BIN + "/" + name.
std::string program(const std::string& name);

/// The environment a child gets: PATH, HOME, TMPDIR, LANG, SKERRY_* and sanitizer options of ours, then `extra`
/// ("NAME=value").
std::vector<std::string> child_environment(const std::vector<std::string>& extra = {});

struct Finished {
  ExitStatus status;
  std::string out;  ///< stdout
  std::string err;  ///< stderr
  bool timed_out = false;

  bool ok() const { return !timed_out && status.clean(); }
};

/// Runs a program to its end with `input` on its stdin; kills it after `timeout_ms`. A program that cannot be started
/// reads as exit code 127 with the reason in `err`.
Finished run_program(const std::vector<std::string>& command, const std::vector<std::string>& extra_environment = {},
                     const std::string& input = {}, std::int64_t timeout_ms = 60'000);

/// A program in the background. Its stdout and stderr go, in order, to one log that the test can search. It does not
/// outlive the test: its group is killed in the destructor, and a watching process ends it if the test itself is
/// killed.
class Child {
 public:
  static Result<Child> start(const std::vector<std::string>& command,
                             const std::vector<std::string>& extra_environment = {});

  Child(Child&&) noexcept;
  Child& operator=(Child&&) noexcept;
  ~Child();

  pid_t pid() const;

  /// All it has written so far.
  std::string log() const;

  /// Waits until its log contains `text`; false at the timeout or if it ended without writing it.
  bool wait_for_log(const std::string& text, std::int64_t timeout_ms = 10'000);

  /// The end, if it comes within `timeout_ms`.
  std::optional<ExitStatus> wait(std::int64_t timeout_ms);

  bool running();

  /// SIGKILL, as a power cut would end it; returns when it is gone.
  void kill();

  /// SIGTERM, then SIGKILL after `grace_ms`.
  ExitStatus terminate(std::int64_t grace_ms = 10'000);

  /// SIGSTOP and SIGCONT: a machine that hangs for a while.
  void freeze();
  void thaw();

 private:
  struct State;
  explicit Child(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// Calls `condition` until it is true or `timeout_ms` have passed; its last answer.
template <typename Condition>
bool eventually(Condition condition, std::int64_t timeout_ms = 10'000);

/// Sleeps; only for `eventually` and for tests of real time.
void pause_ms(std::int64_t ms);

/// A free TCP port on 127.0.0.1 at the moment of the call.
int free_port();

template <typename Condition>
bool eventually(Condition condition, std::int64_t timeout_ms) {
  for (std::int64_t waited = 0;; waited += 10) {
    if (condition()) return true;
    if (waited >= timeout_ms) return false;
    pause_ms(10);
  }
}

}  // namespace skerry::test
