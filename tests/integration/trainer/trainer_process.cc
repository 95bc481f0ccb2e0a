#include "tests/integration/trainer/trainer_process.h"

#include <poll.h>

#include <csignal>

#include <catch2/catch.hpp>

#include "common/model/fragment_file.h"
#include "common/os/files.h"
#include "tests/support/child.h"

namespace skerry::test {

TrainerProcess::TrainerProcess(const std::vector<std::string>& command) {
  SpawnOptions options;
  options.command = command;
  options.environment =
      child_environment({"OMP_WAIT_POLICY=PASSIVE", "OPENBLAS_NUM_THREADS=1", "PYTHONDONTWRITEBYTECODE=1"});
  options.pipe_stderr = false;
  auto process = Process::spawn(options);
  INFO(command[0]);
  REQUIRE(process.ok());
  process_.emplace(std::move(*process));
  hello_ = next();
}

TrainerProcess TrainerProcess::shipped() { return TrainerProcess({program("skerry-trainer")}); }

TrainerProcess TrainerProcess::python(const std::string& file) {
  const char* source = std::getenv("SKERRY_SOURCE");
  return TrainerProcess(
      {"/usr/bin/python3", std::string(source != nullptr ? source : ".") + "/examples/python_trainer/" + file});
}

void TrainerProcess::send(const json& object) { send_text(object.dump() + "\n"); }

void TrainerProcess::send_text(const std::string& bytes) { REQUIRE(process_->write_stdin(bytes, 60'000).ok()); }

json TrainerProcess::next() {
  for (;;) {
    if (const std::size_t end = buffer_.find('\n'); end != std::string::npos) {
      const std::string line = buffer_.substr(0, end);
      buffer_.erase(0, end + 1);
      return json::parse(line);
    }
    pollfd waiting{process_->stdout_fd(), POLLIN, 0};
    REQUIRE(::poll(&waiting, 1, 60'000) > 0);
    const auto chunk = read_available(process_->stdout_fd());
    REQUIRE(chunk.ok());
    if (chunk->end) return nullptr;
    buffer_ += chunk->data;
  }
}

json TrainerProcess::ask(const json& object) {
  send(object);
  json line = next();
  while (line.is_object() && line["type"] == "progress") line = next();
  return line;
}

void TrainerProcess::kill() {
  process_->send_signal(SIGKILL);
  REQUIRE(process_->wait(10'000).has_value());
}

bool python_has(const std::string& module) { return run_program({"/usr/bin/python3", "-c", "import " + module}).ok(); }

std::vector<float> fragment_values(const std::string& path, const ModelLayout& layout, const std::string& fragment) {
  const auto file = FragmentFile::open(path, layout, fragment);
  INFO(path);
  REQUIRE(file.ok());
  std::vector<float> values(file->elements());
  REQUIRE(file->read(0, values).ok());
  return values;
}

void put_fragment(const std::string& path, const ModelLayout& layout, const std::vector<float>& values,
                  const std::string& fragment) {
  REQUIRE(write_fragment_file(path, layout, fragment, values, Durability::kScratch).ok());
}

World::World() {
  REQUIRE(make_directories(dir_ / "work").ok());
  std::string table = "a,b,y\n";
  for (int i = 0; i < 40; ++i) {
    const double a = (i * 7 % 20) / 10.0 - 1;
    const double b = (i * 3 % 19) / 9.0 - 1;
    table += std::to_string(a) + "," + std::to_string(b) + "," + (a > b ? "1" : "0") + "\n";
  }
  REQUIRE(write_file_atomic(dir_ / "table.csv", table).ok());
}

json World::open(const json& training, const json& model) {
  json section = {{"architecture", "linear"}, {"inputs", 2}, {"outputs", 2}};
  section.update(model);
  json train = {{"optimizer", "sgd"}, {"learning_rate", 0.5}, {"batch", 8}};
  train.update(training);
  const auto layout = build_layout(section);
  REQUIRE(layout.ok());
  layout_ = *layout;
  return {{"type", "open"},
          {"run", "r-1"},
          {"work_dir", dir_ / "work"},
          {"state_dir", dir_ / "state"},
          {"threads", 1},
          {"seed", 17},
          {"model", section},
          {"training", train},
          {"data",
           {{"kind", "csv"},
            {"path", dir_ / "table.csv"},
            {"schema", {{"features", {"a", "b"}}, {"label", "y"}, {"classes", 2}}},
            {"splits", {{"train", {{"from", 0.0}, {"to", 0.8}}}, {"holdout", {{"from", 0.8}, {"to", 1.0}}}}}}}};
}

}  // namespace skerry::test
