// A whole federation of real processes for a test: a coordinator, daemons beside data sets, the operator's command. It
// lives in a directory of its own and on a free port of 127.0.0.1, and nothing of it outlives the test.
//
// Members throw std::runtime_error, with the ends of all logs, where something that is not the test's subject goes wrong.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "tests/support/child.h"
#include "tests/support/temp_dir.h"

namespace skerry::test {

/// What a holder allows and has; the defaults allow everything and hold a small table that a line separates.
struct NodeOptions {
  std::vector<std::string> purposes = {"*"};
  std::vector<std::string> metrics = {"*"};
  std::string error_messages = "full";        ///< none, code, full
  std::uint64_t task_seconds = 0;             ///< 0: not limited
  std::uint64_t threads = 1;
  std::vector<std::string> trainer;           ///< the trainer's command; empty: skerry-trainer
  bool scripted = false;                      ///< scripted_trainer.py, told what to do by Node::script()
  std::string sandbox = "none";               ///< none, bubblewrap
  std::string policy;                         ///< a whole policy.toml instead of all the above; "@CA@" is the root's fingerprint
  unsigned rows = 200;                        ///< of the table
  std::string kind = "csv", path, indices;    ///< another data set: its kind and place
  double holdout = 0.1;
  std::string proxy;                          ///< CONNECT proxy for joining and running
  bool start = true;                          ///< start the daemon, and wait until it is online
};

struct ServerOptions {
  unsigned threads = 0;               ///< that aggregate
  std::uint32_t heartbeat_ms = 2'000;
  std::string plugins = {};           ///< [[plugins]] tables of server.toml
  /// Makes the home (arguments: its path, the coordinator's address); empty: `skerry-server init`.
  std::function<void(const std::string& home, const std::string& address)> init = {};
};

/// A run spec in parts; each section is TOML lines.
struct RunText {
  std::string name = "test";
  std::string top = "purpose = \"test\"\n";
  std::string model = "architecture = \"linear\"\ninputs = 4\noutputs = 2\n";
  std::string data = "kind = \"csv\"\nschema = { features = [\"a\", \"b\", \"c\", \"d\"], label = \"y\", classes = 2 }\n";
  std::string training = "optimizer = \"sgd\"\nlearning_rate = 0.1\nbatch = 16\nsteps = 5\n";
  std::string participation = "start_nodes = 2\nquorum = 2\n";
  std::string exchange;
  std::string aggregation;
  std::string outer;
  std::string evaluation = "every = 0\n";
  std::string limits;
  unsigned rounds = 5;

  std::string toml() const;
};

class Federation;

/// A data holder's machine: a home, and the daemon while it runs.
class Node {
 public:
  const std::string& name() const { return name_; }
  const std::string& home() const { return home_; }

  void start();
  /// SIGTERM and the end.
  ExitStatus stop();
  /// SIGKILL to the daemon and its trainer, as a power cut.
  void kill();
  Child& daemon() { return *daemon_; }
  bool running() const { return daemon_.has_value(); }

  /// What all its daemons wrote so far.
  std::string log() const;
  bool wait_for_log(const std::string& text, std::int64_t timeout_ms = 20'000) const;

  /// `skerry-client --home HOME …`, to its end.
  Finished command(std::vector<std::string> words) const;
  nlohmann::json status() const;

  /// Tells a scripted trainer what to do from now on: see scripted_trainer.py.
  void script(const nlohmann::json& script) const;

 private:
  friend class Federation;
  std::string name_, home_, script_path_, proxy_;
  std::optional<Child> daemon_;
  std::string earlier_log_;
};

class Federation {
 public:
  explicit Federation(ServerOptions options = {});
  ~Federation();
  Federation(const Federation&) = delete;
  Federation& operator=(const Federation&) = delete;

  // ---- the coordinator

  void start_server();
  /// SIGKILL.
  void kill_server();
  /// SIGTERM and the end.
  ExitStatus stop_server();
  /// Has every daemon dial now instead of after its backoff, and waits until all are online.
  void reconnect();
  /// Takes effect with the next start.
  void configure_server(ServerOptions options);
  Child& server() { return *server_; }
  bool server_runs() const { return server_.has_value(); }
  std::string server_log() const;
  bool wait_for_server_log(const std::string& text, std::int64_t timeout_ms = 20'000) const;
  std::string server_home() const { return directory_ / "server"; }
  std::string operator_profile() const { return directory_ / "server/operator"; }
  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }
  const TempDir& directory() const { return directory_; }

  /// The sum of all series of a metric whose labels contain `labels`.
  double metric(const std::string& name, const std::string& labels = {});

  // ---- the operator

  /// `skerry --profile OPERATOR …`, to its end.
  Finished skerry(std::vector<std::string> words, std::int64_t timeout_ms = 60'000) const;
  /// The same with --json: it must succeed.
  nlohmann::json ask(std::vector<std::string> words) const;
  std::string invite(const std::string& node) const;

  // ---- nodes

  /// Invited and joined, with data set "table" (or what the options say) and policy.
  Node& add_node(const std::string& name, NodeOptions options = {});
  Node& node(const std::string& name);
  /// A home that was made in some other way (a copy, say) and that is looked after from now on.
  Node& adopt_home(const std::string& name, const std::string& home, const Node& like);
  /// Waits until the operator sees the node in this state.
  void wait_for_node(const std::string& name, const std::string& state = "connected", std::int64_t timeout_ms = 20'000);
  std::string node_state(const std::string& name) const;

  // ---- runs

  /// Submits; the run's id.
  std::string submit(const RunText& run);
  /// Writes the spec to a file; its path.
  std::string spec_file(const RunText& run) const;
  nlohmann::json show(const std::string& run) const;
  std::string status_of(const std::string& run) const;
  /// Waits until `condition` holds of what `skerry run show` says; the last of it.
  nlohmann::json wait_for(const std::string& run, const std::string& what, const std::function<bool(const nlohmann::json&)>& condition,
                          std::int64_t timeout_ms = 60'000);
  /// Waits for a status; any other end of the run is an error.
  nlohmann::json wait_for_status(const std::string& run, const std::string& status, std::int64_t timeout_ms = 60'000);
  /// Content id of each fragment's newest version.
  std::map<std::string, std::string> final_model(const std::string& run) const;
  /// One metric of every exchange or evaluation (of all nodes together), in order.
  std::vector<double> metric_rows(const std::string& run, const std::string& kind, const std::string& metric) const;

  /// One participant of a run; null where it is none.
  static nlohmann::json participant(const nlohmann::json& detail, const std::string& node);
  /// Numbers of 64 bits are texts in protobuf's JSON.
  static std::uint64_t number(const nlohmann::json& value);

  /// The ends of all logs, for a message.
  std::string logs() const;

 private:
  [[noreturn]] void fail(const std::string& what) const;

  TempDir directory_;
  int port_ = 0;
  ServerOptions options_;
  std::optional<Child> server_;
  std::string earlier_log_;
  std::map<std::string, std::unique_ptr<Node>> nodes_;
};

}  // namespace skerry::test
