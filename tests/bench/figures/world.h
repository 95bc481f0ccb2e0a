// The processes of a measurement: a coordinator, daemons with their trainers, a fleet; each one a process of its own, speaking
// TLS, all files below one directory.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "common/base/result.h"
#include "tests/bench/fleet/operator.h"
#include "tests/support/child.h"

namespace skerry::bench {

struct WorldOptions {
  std::string programs;   ///< directory of skerry-server, skerry-client, skerry-bench
  std::string trainer;    ///< skerry-trainer; empty: none, so daemons cannot train
  std::string directory;  ///< on the disk that is measured
};

/// Its processes end with it; its files stay.
class World {
 public:
  /// Makes a new federation in `directory`/server, whose members, once made, serve every measurement.
  static Result<std::unique_ptr<World>> create(WorldOptions options);
  ~World();

  /// Starts the coordinator in a fresh process, after `prefix` (a program that becomes the coordinator, as
  /// `strace -D` does). The seconds from the start to
  /// the open port.
  Result<double> start_coordinator(const std::vector<std::string>& prefix = {});
  void stop_coordinator();
  pid_t coordinator_pid() const { return coordinator_ ? coordinator_->pid() : 0; }

  Result<Operator> open_operator() const { return Operator::open(server_home() + "/operator"); }
  std::string operator_profile() const { return server_home() + "/operator"; }
  std::string server_home() const { return options_.directory + "/server"; }
  const WorldOptions& options() const { return options_; }

  /// A gRPC server of its own that serves nothing: seconds until its port is open, and its resident bytes after `settle_ms`.
  struct Bare {
    double seconds = 0;
    std::uint64_t resident_bytes = 0;
  };
  Result<Bare> bare_server(unsigned settle_ms);

  /// Runs `skerry-bench fleet` with so many clients through one run of this spec; its report.
  Result<nlohmann::json> fleet(unsigned clients, const std::string& spec_toml, unsigned seconds);

  /// Joins holders with a small CSV data set each (99 features, 10 classes) who allow everything, unless they have joined before.
  Result<void> make_holders(unsigned count);
  /// Where holder `index` has its certificates, and its data in rows.csv.
  std::string holder_home(unsigned index) const { return options_.directory + "/holder-" + std::to_string(index); }
  /// Has its daemon dial another port of this machine from now on: a line on the way to the coordinator.
  Result<void> route_holder(unsigned index, int port) const;
  int coordinator_port() const { return port_; }
  /// Starts the daemon of holder `index`; the seconds until its session stands.
  Result<double> start_daemon(unsigned index);
  void stop_daemons();
  pid_t daemon_pid(unsigned index) const { return daemons_.at(index).pid(); }

 private:
  explicit World(WorldOptions options) : options_(std::move(options)) {}

  WorldOptions options_;
  int port_ = 0;
  std::unique_ptr<test::Child> coordinator_;
  std::vector<test::Child> daemons_;
};

}  // namespace skerry::bench
