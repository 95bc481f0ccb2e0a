#include "client/daemon/supervise/trainer_process.h"

#include <catch2/catch.hpp>
#include <signal.h>  // NOLINT(modernize-deprecated-headers)

#include <nlohmann/json.hpp>

#include "client/daemon/supervise/sandbox.h"
#include "common/os/files.h"
#include "tests/support/temp_dir.h"

using namespace skerry;
using namespace skerry::client;

namespace {

constexpr const char* kHello = R"(echo '{"type":"hello","protocol":1,"trainer":"test","warnings":["slow BLAS"]}'
read open
echo "$open" > open.json
)";
constexpr const char* kOpened = R"(echo '{"type":"opened","examples":{"train":90,"holdout":10},"resumed_step":4}'
)";

/// A trainer that is a shell script, on a loop of its own.
struct World {
  explicit World(const std::string& script, std::uint64_t hello_timeout_ms = 5'000) {
    auto made = EventLoop::create();
    REQUIRE(made.ok());
    loop = *std::move(made);
    TrainerLaunch launch;
    launch.command = {"/bin/sh", "-c", "cd " + dir.path() + "\n" + script};
    launch.open_line = R"({"type":"open","run":"r"})";
    launch.log_path = dir / "log";
    launch.hello_timeout_ms = hello_timeout_ms;
    TrainerEvents events;
    events.ready = [this](auto counts, std::uint64_t step) {
      examples = counts;
      resumed = step;
      if (on_ready) on_ready();
    };
    events.progress = [this](TrainerProgress one) { progress.push_back(one); };
    events.done = [this](TrainerDone one) {
      done.push_back(one);
      if (on_done) on_done();
    };
    events.error = [this](TrainerError one) {
      errors.push_back(one);
      if (on_error) on_error();
    };
    events.cancelled = [this](TrainerCancelled one) {
      cancelled.push_back(one);
      if (on_cancelled) on_cancelled();
    };
    events.note = [this](Note::Level, std::string text) { notes.push_back(text); };
    events.exited = [this](Error error) {
      exit = error;
      loop->post([this] {
        trainer.reset();
        loop->stop();
      });
    };
    auto started = TrainerProcess::start(*loop, launch, events);
    REQUIRE(started.ok());
    trainer = *std::move(started);
  }
  void run() {
    loop->after(15'000, [this] { loop->stop(); });
    loop->run();
    REQUIRE(exit.has_value());
  }

  test::TempDir dir;
  std::unique_ptr<EventLoop> loop;
  std::unique_ptr<TrainerProcess> trainer;
  std::map<std::string, std::uint64_t> examples;
  std::uint64_t resumed = 0;
  std::vector<TrainerProgress> progress;
  std::vector<TrainerDone> done;
  std::vector<TrainerError> errors;
  std::vector<TrainerCancelled> cancelled;
  std::vector<std::string> notes;
  std::optional<Error> exit;
  std::function<void()> on_ready, on_done, on_error, on_cancelled;
};

}  // namespace

TEST_CASE("hello, open, a task with progress, and a clean close") {
  World world(std::string(kHello) + kOpened + R"(read task
echo "$task" > task.json
echo 'print() is harmless'
echo '{"type":"progress","task":"t1","step":3,"of":5,"loss":0.25}'
echo '{"type":"done","task":"t1","steps":5,"examples":50,"tokens":0,"metrics":{"train_loss":0.5}}'
read close
)");
  world.on_ready = [&] {
    v1::Task task;
    task.set_task_id("t1");
    task.set_kind(v1::TASK_TRAIN);
    task.set_steps(5);
    world.trainer->send(task_line(task, {{{"all", {"/base", 7}}}, {{"all", "/out"}}, {}}, "t-6", 500, false));
  };
  world.on_done = [&] { world.trainer->stop("the test is over"); };
  world.run();
  CHECK(world.examples.at("train") == 90);
  CHECK(world.resumed == 4);
  CHECK(world.notes == std::vector<std::string>{"trainer: slow BLAS"});
  REQUIRE(world.progress.size() == 1);
  CHECK(world.progress[0].loss == 0.25);
  REQUIRE(world.done.size() == 1);
  CHECK(world.done[0].result.examples == 50);
  CHECK(world.done[0].result.metrics.at("train_loss") == 0.5);
  CHECK(world.exit->code == Code::kCancelled);
  CHECK(nlohmann::json::parse(*read_file(world.dir / "open.json", 1000))["run"] == "r");
  const auto task = nlohmann::json::parse(*read_file(world.dir / "task.json", 1000));
  CHECK(task["type"] == "train");
  CHECK(task["read"]["all"]["version"] == 7);
  CHECK(task["write"]["all"] == "/out");
  CHECK(task["checkpoint"] == false);
  CHECK(task["counted"] == "t-6");
  CHECK_THAT(*read_file(world.dir / "log", 1000), Catch::Contains("print() is harmless"));
}

TEST_CASE("a task's error leaves the trainer alive, a fatal one ends it with the trainer's words") {
  World world(std::string(kHello) + kOpened + R"(echo '{"type":"error","task":"t1","code":"FAILED_PRECONDITION","message":"loss is nan"}'
read next
echo '{"type":"error","code":"DATA_LOSS","message":"the data is gone","fatal":true}'
sleep 60
)");
  world.on_error = [&] { world.trainer->send("{}"); };
  world.run();
  REQUIRE(world.errors.size() == 1);
  CHECK(world.errors[0].error.code == Code::kFailedPrecondition);
  CHECK(world.exit->code == Code::kDataLoss);
  CHECK(world.exit->message == "the data is gone");
}

TEST_CASE("a trainer that writes without end does not keep the loop from its timers") {
  World world("exec yes 'sixteen letters'\n", 300);  // with their line's end they fill the pipe to its last byte
  world.run();
  CHECK(world.exit->code == Code::kDeadlineExceeded);
}

TEST_CASE("a trainer that crashes is told with its signal") {
  World world(std::string(kHello) + kOpened + "kill -9 $$\n");
  world.run();
  CHECK(world.exit->code == Code::kAborted);
  CHECK_THAT(world.exit->message, Catch::Contains("signal 9"));
  CHECK(world.exit->retryable);
}

TEST_CASE("a trainer that fails before hello is told with its own words") {
  World world("echo 'no such module: numpy' >&2\nexit 3\n");
  world.run();
  CHECK_THAT(world.exit->message, Catch::Contains("code 3") && Catch::Contains("numpy"));
}

TEST_CASE("a trainer that says nothing is killed") {
  World world("sleep 60\n", 200);
  world.run();
  CHECK(world.exit->code == Code::kDeadlineExceeded);
  CHECK_THAT(world.exit->message, Catch::Contains("hello"));
}

TEST_CASE("a trainer of another protocol version is not used") {
  World world("echo '{\"type\":\"hello\",\"protocol\":2}'\nsleep 60\n");
  world.run();
  CHECK(world.exit->code == Code::kUnimplemented);
}

TEST_CASE("a trainer that does not close in time is killed") {
  World world(std::string(kHello) + kOpened + "trap '' TERM\nwhile :; do sleep 1; done\n");
  world.on_ready = [&] { world.trainer->stop("test", 200); };
  world.run();
  CHECK(world.exit->code == Code::kCancelled);
}

TEST_CASE("cancelling reaches the trainer") {
  World world(std::string(kHello) + kOpened + R"(read line
case "$line" in *cancel*) echo '{"type":"cancelled","task":"t1"}';; esac
read close
)");
  world.on_ready = [&] { world.trainer->send(cancel_line("t1")); };
  world.on_cancelled = [&] { world.trainer->stop("done"); };
  world.run();
  REQUIRE(world.cancelled.size() == 1);
  CHECK(world.cancelled[0].task_id == "t1");
}

TEST_CASE("a line without end is not read for ever") {
  World world(std::string(kHello) + kOpened + "yes x | tr -d '\\n'\n");
  world.run();
  CHECK(world.exit->code == Code::kResourceExhausted);
}

TEST_CASE("without bubblewrap nothing starts, and the message names the policy line") {
  test::TempDir dir;
  REQUIRE(write_file_atomic(dir / "policy.toml", "hours = []\n[trainer]\n  sandbox = \"bubblewrap\"\n").ok());
  CHECK_THAT(sandbox_advice(dir / "policy.toml"), Catch::Contains("policy.toml (line 3)"));
  SandboxPlan plan;
  plan.command = {"/bin/true"};
  plan.policy_path = dir / "policy.toml";
  plan.working_directory = "/";
  const std::string path = std::getenv("PATH");
  ::setenv("PATH", dir.path().c_str(), 1);
  const auto command = sandbox_command(plan);
  ::setenv("PATH", path.c_str(), 1);
  REQUIRE_FALSE(command.ok());
  CHECK(command.error().code == Code::kFailedPrecondition);
  CHECK_THAT(command.error().message, Catch::Contains("line 3"));
}

TEST_CASE("the sandbox shares the machine's network only where the plan grants it") {
  if (!find_program("bwrap").ok()) {
    WARN("bubblewrap is not installed here");
    return;
  }
  SandboxPlan plan;
  plan.command = {"/bin/true"};
  plan.working_directory = "/";
  const auto shares = [&] {
    const auto command = sandbox_command(plan);
    REQUIRE(command.ok());
    const auto end = std::find(command->begin(), command->end(), "--");
    return std::find(command->begin(), end, "--share-net") != end;
  };
  CHECK_FALSE(shares());
  plan.network = true;
  CHECK(shares());
}

TEST_CASE("a sandboxed trainer sees its data, cannot change it, and sees nothing else") {
  test::TempDir dir;
  const auto bwrap = find_program("bwrap");
  if (!bwrap.ok()) {
    WARN("bubblewrap is not installed here");
    return;
  }
  REQUIRE(make_directories(dir / "data").ok());
  REQUIRE(make_directories(dir / "work").ok());
  REQUIRE(make_directories(dir / "secret").ok());
  REQUIRE(write_file_atomic(dir / "data/x", "x").ok());
  REQUIRE(write_file_atomic(dir / "secret/key", "k").ok());
  SandboxPlan plan;
  plan.command = {"/bin/sh", "-c",
                  "cat " + (dir / "data/x") + " > seen; touch " + (dir / "data/y") + " 2>/dev/null && echo wrote > bad1; cat " +
                      (dir / "secret/key") + " 2>/dev/null > bad2; ls /sys/class/net 2>/dev/null > nets; exit 0"};
  plan.read_only = {dir / "data"};
  plan.read_write = {dir / "work"};
  plan.working_directory = dir / "work";
  SpawnOptions options;
  options.command = *sandbox_command(plan);
  auto process = Process::spawn(options);
  REQUIRE(process.ok());
  const auto status = process->wait(10'000);
  REQUIRE(status.has_value());
  if (!status->clean()) {
    WARN("this machine does not let unprivileged users make namespaces");
    return;
  }
  CHECK(*read_file(dir / "work/seen", 10) == "x");
  CHECK_FALSE(path_exists(dir / "work/bad1"));
  CHECK(read_file(dir / "work/bad2", 10)->empty());
}
