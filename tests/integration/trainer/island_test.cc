// Several processes that train as one node: real ones, on this machine.
#include <dirent.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdlib>

#include <catch2/catch.hpp>

#include "common/os/files.h"
#include "tests/integration/trainer/trainer_process.h"
#include "tests/support/child.h"

using namespace skerry;
using namespace skerry::test;

namespace {

TrainerProcess island(int size, const std::vector<std::string>& more = {}) {
  std::vector<std::string> command{program("skerry-trainer"), "--island-size", std::to_string(size)};
  command.insert(command.end(), more.begin(), more.end());
  return TrainerProcess(command);
}

std::string bytes_of(const std::string& path) {
  const auto content = read_file(path, 1 << 26);
  REQUIRE(content.ok());
  return *content;
}

/// Processes whose parent is `parent`.
std::vector<pid_t> children_of(pid_t parent) {
  std::vector<pid_t> found;
  DIR* const all = ::opendir("/proc");
  REQUIRE(all != nullptr);
  while (const dirent* entry = ::readdir(all)) {
    const pid_t pid = std::atoi(entry->d_name);
    if (pid <= 0) continue;
    const auto stat = read_file("/proc/" + std::to_string(pid) + "/stat", 4096);
    if (!stat.ok()) continue;
    const std::string rest = stat->substr(stat->rfind(')') + 2);  // "S PPID …"
    if (rest[0] != 'Z' && std::atoi(rest.c_str() + 2) == parent) found.push_back(pid);
  }
  ::closedir(all);
  return found;
}

bool gone(pid_t pid) {
  return eventually([&] { return ::kill(pid, 0) != 0; }, 5'000);
}

const json kTraining = {{"optimizer", "adamw"},   {"learning_rate", 0.01}, {"schedule", "cosine"}, {"schedule_steps", 1000},
                        {"warmup_steps", 10},     {"clip_norm", 0.5},      {"batch", 7},           {"weight_decay", 0.1}};
const json kPerceptron = {{"architecture", "mlp"}, {"hidden", {16}}};
// 8 rows × 32 bytes × its parameters are work that is worth sharing among threads.
const json kTransformer = {{"architecture", "transformer"}, {"layers", 2}, {"width", 32}, {"heads", 4}, {"kv_heads", 2}, {"context", 32}};

json open_text(World& world) {
  json training = kTraining;
  training["batch"] = 8;
  json open = world.open(training);
  open["model"] = kTransformer;
  std::string text;
  for (int i = 0; i < 400; ++i) text += "Line " + std::to_string(i * 37 % 101) + " of a text that repeats itself a little.\n";
  REQUIRE(write_file_atomic(world.path() + "/text", text).ok());
  open["data"] = {{"kind", "text"}, {"path", world.path() + "/text"}, {"schema", {{"encoding", "bytes"}}}};
  return open;
}

json task(const World& world, int number, int steps, const std::string& out, bool read_first) {
  json line = {{"type", "train"}, {"task", "t-" + std::to_string(number)}, {"steps", steps}, {"seed", number},
               {"first_step", 20 * (number - 1)}, {"write", {{"all", world.work(out)}}}};
  if (read_first) line["read"] = {{"all", {{"path", world.work("start")}, {"version", 0}}}};
  return line;
}

void begin(const World& world, TrainerProcess& trainer, const json& open) {
  REQUIRE(trainer.ask(open)["type"] == "opened");
  const json made = trainer.ask({{"type", "initialise"}, {"task", "i"}, {"seed", 1}, {"write", {{"all", world.work("start")}}}});
  REQUIRE(made["type"] == "done");
}

struct Trained {
  std::vector<std::string> files;  // after each task
  std::vector<json> done;
};

/// Three tasks, of which the second goes on where the first ended and the third reads again.
Trained three_tasks(World& world, TrainerProcess trainer, const json& open) {
  Trained trained;
  begin(world, trainer, open);
  for (int number = 1; number <= 3; ++number) {
    const std::string out = "out-" + std::to_string(number);
    trained.done.push_back(trainer.ask(task(world, number, 20, out, number != 2)));
    INFO(trained.done.back());
    REQUIRE(trained.done.back()["type"] == "done");
    trained.done.back()["metrics"].erase("tokens_per_second");  // is another each time
    trained.files.push_back(bytes_of(world.work(out)));
  }
  return trained;
}

double relative_distance(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - b[i], 2);
    norm += std::pow(static_cast<double>(a[i]), 2);
  }
  return std::sqrt(difference / norm);
}

/// A task too long to end by itself, of which the first progress has come.
json begin_long_task(const World& world, TrainerProcess& trainer) {
  json line = task(world, 1, 1'000'000, "long", true);
  line["progress_ms"] = 1;
  trainer.send(line);
  const json progress = trainer.next();
  REQUIRE(progress["type"] == "progress");
  return line;
}

}  // namespace

TEST_CASE("two processes train a transformer to the same bytes as two threads of one process") {
  World one, two;
  json threads = open_text(one);
  threads["threads"] = 2;
  const Trained expected = three_tasks(one, TrainerProcess::shipped(), threads);
  const Trained trained = three_tasks(two, island(2), open_text(two));
  CHECK(trained.files == expected.files);
  CHECK(trained.done == expected.done);  // steps, examples, tokens and losses
}

TEST_CASE("three processes train what one trains, to rounding, also where the rows do not divide") {
  World one, three;
  const Trained expected = three_tasks(one, TrainerProcess::shipped(), one.open(kTraining, kPerceptron));
  const Trained trained = three_tasks(three, island(3), three.open(kTraining, kPerceptron));
  CHECK(relative_distance(fragment_values(one.work("out-3"), one.layout()), fragment_values(three.work("out-3"), three.layout())) < 1e-5);
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK(trained.done[i]["examples"] == expected.done[i]["examples"]);
    CHECK(trained.done[i]["metrics"]["train_loss"].get<double>() == Approx(expected.done[i]["metrics"]["train_loss"].get<double>()));
  }
}

TEST_CASE("an island trains to the same bytes each time") {
  World one, two;
  const Trained first = three_tasks(one, island(3), one.open(kTraining, kPerceptron));
  const Trained second = three_tasks(two, island(3), two.open(kTraining, kPerceptron));
  CHECK(first.files == second.files);
}

TEST_CASE("an island with an objective, merges and personal tensors trains what one process trains") {
  const json training = {{"learning_rate", 0.1}, {"batch", 8}, {"proximal", 0.3}, {"momentum", 0.9}};
  const json model = {{"architecture", "mlp"}, {"hidden", {8, 8}}, {"fragments", 2}, {"personal", {"layers.2.*"}}};
  std::vector<std::vector<float>> results;
  for (const int size : {1, 2}) {
    World world;
    TrainerProcess trainer = size == 1 ? TrainerProcess::shipped() : island(size);
    const json open = world.open(training, model);
    INFO(open);
    REQUIRE(trainer.ask(open)["type"] == "opened");
    json read = json::object(), write = json::object();
    std::string merged;
    for (const auto& fragment : world.layout().fragments) {
      if (fragment.role == FragmentRole::kPersonal) continue;
      merged = fragment.name;
      const json made = trainer.ask({{"type", "initialise"}, {"task", "i"}, {"seed", 1}, {"write", {{merged, world.work(merged)}}}});
      REQUIRE(made["type"] == "done");
      read[merged] = {{"path", world.work(merged)}, {"version", 0}};
      write[merged] = world.work(merged + "-out");
    }
    const auto finish = [&](const json& line) {
      json answer = trainer.ask(line);
      while (answer["type"] == "merged" || answer["type"] == "fragment") answer = trainer.next();
      INFO(answer);
      REQUIRE(answer["type"] == "done");
    };
    json line = {{"type", "train"}, {"task", "t"}, {"steps", 30}, {"seed", 3}, {"read", read}, {"write", write}};
    line["emit"] = {{{"fragment", merged}, {"at_step", 30}, {"path", world.work("emitted")}}};
    finish(line);
    trainer.send({{"type", "merge"}, {"fragment", merged}, {"path", world.work(merged)}, {"version", 2}});
    line["task"] = "u";
    line["read"].erase(merged);
    line["merge"] = {{{"fragment", merged}, {"at_step", 10}, {"rule", "lerp"}, {"alpha", 0.5}}};
    finish(line);
    results.push_back(fragment_values(world.work(merged + "-out"), world.layout(), merged));
  }
  CHECK(relative_distance(results[0], results[1]) < 1e-5);
}

TEST_CASE("a worker that dies in the middle of a task fails it at once, and the task can be done again") {
  World world;
  TrainerProcess trainer = island(2);
  begin(world, trainer, world.open(kTraining, kPerceptron));
  begin_long_task(world, trainer);
  const std::vector<pid_t> workers = children_of(trainer.pid());
  REQUIRE(workers.size() == 1);
  ::kill(workers[0], SIGKILL);
  json answer = trainer.next();
  while (answer["type"] == "progress") answer = trainer.next();
  CHECK(answer["type"] == "error");
  CHECK(answer["code"] == "UNAVAILABLE");
  CHECK(answer["message"].get<std::string>().find("worker of rank 1") != std::string::npos);
  CHECK(answer.value("fatal", false) == false);

  World calm_world;
  TrainerProcess calm = island(2);
  begin(calm_world, calm, calm_world.open(kTraining, kPerceptron));
  CHECK(trainer.ask(task(world, 1, 20, "out", true)) == calm.ask(task(calm_world, 1, 20, "out", true)));
  CHECK(bytes_of(world.work("out")) == bytes_of(calm_world.work("out")));
}

TEST_CASE("workers end with their leader, however it ends") {
  for (const std::string end : {"close", "end of input", "kill"}) {
    World world;
    TrainerProcess trainer = island(3);
    begin(world, trainer, world.open(kTraining, kPerceptron));
    if (end == "kill") begin_long_task(world, trainer);
    else REQUIRE(trainer.ask(task(world, 1, 5, "out", true))["type"] == "done");
    const std::vector<pid_t> workers = children_of(trainer.pid());
    REQUIRE(workers.size() == 2);
    if (end == "close") trainer.send({{"type", "close"}});
    else if (end == "end of input") trainer.close_input();
    else ::kill(trainer.pid(), SIGKILL);
    REQUIRE(trainer.wait(5'000).has_value());
    INFO(end);
    for (const pid_t worker : workers) CHECK(gone(worker));
  }
}

TEST_CASE("an island whose leader is killed in the middle of a task goes on from the checkpoint, bit for bit") {
  constexpr int kSteps = 400;
  World whole;
  TrainerProcess calm = island(2);
  begin(whole, calm, whole.open(kTraining, kPerceptron));
  const json expected = calm.ask(task(whole, 1, kSteps, "out", true));
  REQUIRE(expected["type"] == "done");

  World world;
  json line = task(world, 1, kSteps, "out", true);
  line["progress_ms"] = 1;
  {
    TrainerProcess trainer = island(2);
    begin(world, trainer, world.open(kTraining, kPerceptron));
    trainer.send(line);
    REQUIRE(trainer.next()["type"] == "progress");
    REQUIRE(trainer.ask({{"type", "checkpoint"}})["type"] == "checkpointed");
    trainer.kill();
  }
  TrainerProcess trainer = island(2);
  const json opened = trainer.ask(world.open(kTraining, kPerceptron));
  CHECK(opened["resumed_step"] > 0);
  CHECK(opened["resumed_step"] < kSteps);
  CHECK(trainer.ask(line) == expected);
  CHECK(bytes_of(world.work("out")) == bytes_of(whole.work("out")));
}

TEST_CASE("a cancelled task leaves an island as it was") {
  World world, calm_world;
  TrainerProcess trainer = island(2);
  begin(world, trainer, world.open(kTraining, kPerceptron));
  TrainerProcess calm = island(2);
  begin(calm_world, calm, calm_world.open(kTraining, kPerceptron));
  CHECK(trainer.ask(task(world, 1, 20, "one", true)) == calm.ask(task(calm_world, 1, 20, "one", true)));
  json line = task(world, 2, 1'000'000, "long", false);
  line["progress_ms"] = 1;
  trainer.send(line);
  REQUIRE(trainer.next()["type"] == "progress");
  REQUIRE(trainer.ask({{"type", "cancel"}, {"task", "t-2"}})["type"] == "cancelled");
  CHECK(trainer.ask(task(world, 3, 20, "three", false)) == calm.ask(task(calm_world, 3, 20, "three", false)));
  CHECK(bytes_of(world.work("three")) == bytes_of(calm_world.work("three")));
}

TEST_CASE("workers that the holder starts come to the island's address, and one too many is sent away") {
  const std::string address = "127.0.0.1:" + std::to_string(free_port());
  World world, calm_world;
  const auto start_worker = [&](int rank, int size) {
    auto child = Child::start({program("skerry-trainer"), "--island-rank", std::to_string(rank), "--island-size",
                               std::to_string(size), "--island-address", address});
    REQUIRE(child.ok());
    return std::move(*child);
  };
  Child early = start_worker(1, 3);  // waits for its leader
  TrainerProcess trainer = island(3, {"--island-local", "1", "--island-address", address});
  begin(world, trainer, world.open(kTraining, kPerceptron));
  trainer.send(task(world, 1, 20, "out", true));
  Child wrong = start_worker(2, 4);
  CHECK(wrong.wait(10'000).has_value());
  CHECK(wrong.log().find("the island has 3 processes") != std::string::npos);
  Child late = start_worker(2, 3);
  const json done = trainer.next();
  INFO(done);
  REQUIRE(done["type"] == "done");
  const Trained local = three_tasks(calm_world, island(3), calm_world.open(kTraining, kPerceptron));
  CHECK(bytes_of(world.work("out")) == local.files[0]);
  trainer.send({{"type", "close"}});
  for (Child* const worker : {&early, &late}) {
    const auto status = worker->wait(5'000);
    REQUIRE(status.has_value());
    CHECK(status->clean());
  }
}

TEST_CASE("an island that cannot be is refused with the argument") {
  const auto refused = [](const std::vector<std::string>& words) {
    std::vector<std::string> command{program("skerry-trainer")};
    command.insert(command.end(), words.begin(), words.end());
    const Finished finished = run_program(command);
    CHECK(finished.status.code == 2);
    return finished.err;
  };
  CHECK(refused({"--island-size", "0"}).find("--island-size 0 must be") != std::string::npos);
  CHECK(refused({"--island-size", "4", "--island-local", "2"}).find("--island-address") != std::string::npos);
  CHECK(refused({"--island-size", "2", "--island-address", "somewhere:1"}).find("in digits") != std::string::npos);
  CHECK(refused({"--island-rank", "2", "--island-size", "2", "--island-address", "127.0.0.1:1"}).find("--island-rank") != std::string::npos);
}
