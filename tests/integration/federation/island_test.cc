// A node that is an island of two processes, in a whole federation.
#include <dirent.h>

#include <csignal>
#include <cstdlib>

#include <catch2/catch.hpp>

#include "common/os/files.h"
#include "tests/support/federation.h"

using namespace skerry;
using namespace skerry::test;
using nlohmann::json;

namespace {

bool bubblewrap_works() { return run_program({"bwrap", "--unshare-all", "--ro-bind", "/", "/", "true"}).ok(); }

/// The node's policy from its next start on: `from` is replaced by `to`.
void change_policy(const Node& node, const std::string& from, const std::string& to) {
  const std::string path = node.home() + "/policy.toml";
  auto text = read_file(path, 1 << 20);
  REQUIRE(text.ok());
  const auto at = text->find(from);
  REQUIRE(at != std::string::npos);
  REQUIRE(write_file_atomic(path, text->replace(at, from.size(), to), 0600).ok());
}

/// Processes of this machine whose command line has all these words.
std::vector<pid_t> processes_with(const std::vector<std::string>& words) {
  std::vector<pid_t> found;
  DIR* const all = ::opendir("/proc");
  REQUIRE(all != nullptr);
  while (const dirent* entry = ::readdir(all)) {
    const pid_t pid = std::atoi(entry->d_name);
    if (pid <= 0) continue;
    const auto command = read_file("/proc/" + std::to_string(pid) + "/cmdline", 1 << 16);
    bool fits = command.ok();
    for (const std::string& word : words) fits = fits && command->find(word) != std::string::npos;
    if (fits) found.push_back(pid);
  }
  ::closedir(all);
  return found;
}

/// 64 rows × 70,002 parameters: a step that two threads, or two processes, divide.
RunText large_steps() {
  RunText run;
  run.top = "purpose = \"test\"\nstrategy = \"diloco\"\nseed = 5\n";
  run.model = "architecture = \"mlp\"\ninputs = 4\nhidden = [10000]\noutputs = 2\n";
  run.training = "optimizer = \"adamw\"\nlearning_rate = 0.001\nbatch = 64\nsteps = 3\noptimizer_state = \"reset\"\n";
  run.rounds = 3;
  return run;
}

}  // namespace

TEST_CASE("a node that is an island of two, without a network, makes the same model as one with two threads") {
  Federation federation;
  federation.add_node("alder");
  const bool boxed = bubblewrap_works();
  Node& birch = federation.add_node("birch", {.threads = 2, .sandbox = boxed ? "bubblewrap" : "none"});
  if (!boxed) WARN("without the sandbox: bubblewrap cannot start here (user namespaces)");
  const std::string alone = federation.submit(large_steps());
  federation.wait_for_status(alone, "completed");

  birch.stop();
  change_policy(birch, "threads = 2", "threads = 1");
  change_policy(birch, "[trainer]", "[island]\nworkers = 2\n\n[trainer]");
  birch.start();
  federation.wait_for_node("birch");
  const std::string together = federation.submit(large_steps());
  federation.wait_for_status(together, "completed");
  CHECK(federation.final_model(together) == federation.final_model(alone));
}

TEST_CASE("a run goes on when a worker of an island is killed, and nothing is left when its daemon is") {
  Federation federation;
  federation.add_node("alder");
  Node& birch = federation.add_node("birch");
  birch.stop();
  change_policy(birch, "[trainer]", "[island]\nworkers = 2\n\n[trainer]");
  birch.start();
  federation.wait_for_node("birch");
  RunText run = large_steps();
  run.training = "optimizer = \"sgd\"\nlearning_rate = 0.01\nbatch = 64\nsteps = 60\n";
  run.rounds = 4;
  const std::string id = federation.submit(run);
  // Other islands may be on this machine: ours are those that came with this daemon.
  const auto workers = [&] {
    std::vector<pid_t> ours;
    for (const pid_t leader : processes_with({"skerry-trainer", "--island-local"}))
      for (const pid_t worker : processes_with({"skerry-trainer", "--island-rank"})) {
        const auto status = read_file("/proc/" + std::to_string(worker) + "/status", 1 << 16);
        const auto parent = read_file("/proc/" + std::to_string(leader) + "/status", 1 << 16);
        if (status.ok() && parent.ok() && status->find("PPid:\t" + std::to_string(leader) + "\n") != std::string::npos &&
            parent->find("PPid:\t" + std::to_string(birch.daemon().pid()) + "\n") != std::string::npos)
          ours.push_back(worker);
      }
    return ours;
  };
  REQUIRE(eventually([&] { return workers().size() == 1; }, 30'000));
  ::kill(workers()[0], SIGKILL);
  const json detail = federation.wait_for_status(id, "completed", 120'000);
  CHECK(Federation::number(Federation::participant(detail, "birch").at("counted")) >= 3);
  CHECK(birch.wait_for_log("the island's worker of rank 1"));

  run.training = "optimizer = \"sgd\"\nlearning_rate = 0.01\nbatch = 64\nsteps = 100000\n";
  federation.submit(run);
  REQUIRE(eventually([&] { return workers().size() == 1; }, 30'000));
  const pid_t worker = workers()[0];
  birch.daemon().kill();
  CHECK(eventually([&] { return ::kill(worker, 0) != 0; }, 10'000));
}
