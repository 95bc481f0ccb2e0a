// A trainer as its daemon sees it: lines in, lines out, over pipes.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "common/model/layout.h"
#include "common/os/process.h"
#include "tests/support/temp_dir.h"

namespace skerry::test {

using nlohmann::json;

class TrainerProcess {
 public:
  /// Starts it; the first line it says is hello().
  explicit TrainerProcess(const std::vector<std::string>& command);

  /// The C++ one, from SKERRY_BIN.
  static TrainerProcess shipped();
  /// One of examples/python_trainer, with Debian's Python.
  static TrainerProcess python(const std::string& file);

  const json& hello() const { return hello_; }

  void send(const json& object);
  void send_text(const std::string& bytes);

  /// The next line, within a minute; null at the end of its output.
  json next();

  /// Sends and returns the first line that is not a progress line.
  json ask(const json& object);

  void kill();
  pid_t pid() const { return process_->pid(); }
  void close_input() { process_->close_stdin(); }
  std::optional<ExitStatus> wait(std::int64_t timeout_ms) { return process_->wait(timeout_ms); }

 private:
  std::optional<Process> process_;
  std::string buffer_;
  json hello_;
};

/// Whether Debian's Python has the module; tests that need it say so and pass where it has not.
bool python_has(const std::string& module);

/// The values of a fragment file, in layout order.
std::vector<float> fragment_values(const std::string& path, const ModelLayout& layout,
                                   const std::string& fragment = "all");
void put_fragment(const std::string& path, const ModelLayout& layout, const std::vector<float>& values,
                  const std::string& fragment = "all");

/// Work and state directories and a small table: 40 rows "a,b,y", y = whether a > b, both in [-1, 1].
class World {
 public:
  World();
  std::string work(const std::string& name) const { return dir_ / ("work/" + name); }
  const std::string& path() const { return dir_.path(); }
  const ModelLayout& layout() const { return layout_; }

  /// An `open` line for `linear` with 2 inputs and 2 outputs over the table; `training` is added to {"optimizer":"sgd",
  /// "learning_rate":0.5,"batch":8}.
  json open(const json& training = json::object(), const json& model = json::object());

 private:
  TempDir dir_;
  ModelLayout layout_;
};

}  // namespace skerry::test
