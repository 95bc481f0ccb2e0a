#include <fcntl.h>
#include <poll.h>
#include <signal.h>  // NOLINT(modernize-deprecated-headers): kill
#include <unistd.h>

#include <catch2/catch.hpp>

#include "common/os/process.h"
#include "tests/support/child.h"
#include "tests/support/temp_dir.h"

using namespace skerry;

namespace {

SpawnOptions shell(const std::string& script) {
  SpawnOptions options;
  options.command = {"/bin/sh", "-c", script};
  options.environment = {"PATH=/usr/bin:/bin"};
  return options;
}

/// All that comes from `fd` until its end.
std::string read_to_end(int fd) {
  std::string text;
  for (;;) {
    pollfd entry{fd, POLLIN, 0};
    if (::poll(&entry, 1, 10'000) <= 0) return text + "<timeout>";
    auto chunk = read_available(fd);
    if (!chunk.ok() || chunk->end) return text;
    text += chunk->data;
  }
}

}  // namespace

TEST_CASE("a child gets exactly the environment, the directory and the input it was given") {
  test::TempDir dir;
  SpawnOptions options =
      shell("read line; echo \"$line in $(pwd)\"; env | grep -v -e ^PWD= -e ^_= -e ^SHLVL= -e ^OLDPWD= | sort; exit 3");
  options.environment = {"COLOUR=grey", "PATH=/usr/bin:/bin"};
  options.working_directory = dir.path();
  auto process = Process::spawn(options);
  REQUIRE(process.ok());
  REQUIRE(process->write_stdin("rain\n", 1000).ok());
  process->close_stdin();
  CHECK(read_to_end(process->stdout_fd()) == "rain in " + dir.path() + "\nCOLOUR=grey\nPATH=/usr/bin:/bin\n");
  auto status = process->wait(10'000);
  REQUIRE(status.has_value());
  CHECK(status->code == 3);
  CHECK(to_string(*status) == "exited with code 3");
  CHECK(status->peak_memory_bytes > 0);
}

TEST_CASE("a program that is not there is NOT_FOUND, one that may not run PERMISSION_DENIED") {
  SpawnOptions options;
  options.command = {"no-such-program-anywhere"};
  auto missing = Process::spawn(options);
  REQUIRE_FALSE(missing.ok());
  CHECK(missing.error().code == Code::kNotFound);
  CHECK_THAT(missing.error().message, Catch::Contains("no-such-program-anywhere"));
  test::TempDir dir;
  REQUIRE(write_file_atomic(dir / "plain", "text", 0600).ok());
  options.command = {dir / "plain"};
  auto forbidden = Process::spawn(options);
  REQUIRE_FALSE(forbidden.ok());
  CHECK(forbidden.error().code == Code::kPermissionDenied);
}

TEST_CASE("a working directory that is not there is an error that names it") {
  SpawnOptions options = shell("true");
  options.working_directory = "/no/such/directory";
  auto process = Process::spawn(options);
  REQUIRE_FALSE(process.ok());
  CHECK_THAT(process.error().message, Catch::Contains("/no/such/directory"));
}

TEST_CASE("terminate ends a child that ignores SIGTERM, and all that it started") {
  auto process = Process::spawn(shell("trap '' TERM; sleep 1000 & echo $!; while true; do sleep 1000; done"));
  REQUIRE(process.ok());
  pollfd entry{process->stdout_fd(), POLLIN, 0};
  REQUIRE(::poll(&entry, 1, 10'000) == 1);
  auto grandchild = static_cast<pid_t>(std::stoi(read_available(process->stdout_fd())->data));
  ExitStatus status = process->terminate(50);
  CHECK(status.signal == SIGKILL);
  CHECK_THAT(to_string(status), Catch::Contains("signal 9"));
  // The grandchild was killed with its group; somebody reaps it soon.
  CHECK(test::eventually([&] {
    if (::kill(grandchild, 0) != 0) return true;
    auto stat = read_file("/proc/" + std::to_string(grandchild) + "/stat", 4096);
    return !stat.ok() || stat->find(") Z ") != std::string::npos;
  }));
}

TEST_CASE("the end of a child shows on its exit descriptor and is told twice the same") {
  auto process = Process::spawn(shell("exit 7"));
  REQUIRE(process.ok());
  if (process->exit_fd() >= 0) {
    pollfd entry{process->exit_fd(), POLLIN, 0};
    REQUIRE(::poll(&entry, 1, 10'000) == 1);
  }
  REQUIRE(process->wait(10'000).has_value());
  CHECK(process->try_wait()->code == 7);
}

TEST_CASE("waiting for a child that goes on has an end") {
  auto process = Process::spawn(shell("sleep 1000"));
  REQUIRE(process.ok());
  CHECK_FALSE(process->wait(20).has_value());
}

TEST_CASE("writing to a child that has ended is UNAVAILABLE and no signal") {
  auto process = Process::spawn(shell("exec <&-; sleep 1000"));
  REQUIRE(process.ok());
  Result<void> result;
  REQUIRE(test::eventually([&] {
    result = process->write_stdin("x", 100);
    return !result.ok();
  }));
  CHECK(result.error().code == Code::kUnavailable);
}

TEST_CASE("writing to a child that does not read has an end") {
  auto process = Process::spawn(shell("sleep 1000"));
  REQUIRE(process.ok());
  auto result = process->write_stdin(std::string(1 << 20, 'x'), 50);
  REQUIRE_FALSE(result.ok());
  CHECK(result.error().code == Code::kDeadlineExceeded);
}

TEST_CASE("a child has no descriptors but those it was given") {
  test::TempDir dir;
  // One without close-on-exec, as libraries leave them.
  int leaked = ::open("/dev/null", O_RDONLY);
  REQUIRE(leaked >= 0);
  auto given = File::open(dir / "given", OpenMode::kCreate);
  REQUIRE(given.ok());
  // The shell asks without opening anything itself.
  SpawnOptions options =
      shell("echo hello >&5; n=0; while [ $n -lt 100 ]; do [ -e /proc/$$/fd/$n ] && echo -n \"$n \"; n=$((n+1)); done");
  options.descriptors = {{given->fd(), 5}};
  auto process = Process::spawn(options);
  ::close(leaked);
  REQUIRE(process.ok());
  CHECK(read_to_end(process->stdout_fd()) == "0 1 2 5 ");
  CHECK(*read_file(dir / "given", 100) == "hello\n");
}

TEST_CASE("a limit of memory holds") {
  SpawnOptions options = shell("ulimit -v");
  options.memory_bytes = std::uint64_t{512} << 20;
  auto process = Process::spawn(options);
  REQUIRE(process.ok());
  CHECK(read_to_end(process->stdout_fd()) == "524288\n");
}

TEST_CASE("the helpers of tests run programs to their end and keep background ones in hand") {
  auto finished = test::run_program({"/bin/cat"}, {}, "hello");
  CHECK(finished.ok());
  CHECK(finished.out == "hello");
  CHECK(test::run_program({"/bin/sh", "-c", "sleep 1000"}, {}, "", 50).timed_out);
  auto child = test::Child::start({"/bin/sh", "-c", "echo ready; sleep 1000"});
  REQUIRE(child.ok());
  CHECK(child->wait_for_log("ready"));
  CHECK(child->running());
  child->kill();
  CHECK_FALSE(child->running());
}
