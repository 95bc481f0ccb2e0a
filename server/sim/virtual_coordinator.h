// The coordinator's own shell of one run, in a directory of its own and on a clock that only the simulation moves.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "common/os/clock.h"
#include "server/coordinator/run_host.h"

namespace skerry::sim {

/// Begins at 0, which is midnight of 2000-01-01 UTC, and stands still until it is moved.
class VirtualClock final : public Clock {
 public:
  std::int64_t monotonic_ms() const override { return now_ms_; }
  std::int64_t unix_ms() const override { return 946'684'800'000 + now_ms_; }
  void move_to(std::int64_t now_ms) { now_ms_ = now_ms; }

 private:
  std::int64_t now_ms_ = 0;
};

/// Everything happens inside the calls, on the caller's thread (and the engine's).
class VirtualCoordinator {
 public:
  struct Wires {
    std::function<void(const std::string& node, v1::ToNode message)> send;
    std::function<bool(const std::string& node)> is_there;
    std::function<void()> released;  ///< a version, which the store has after settle()
  };

  /// Makes the run in `home`, which must be empty; nothing has happened yet. `initial`: the file of model.initial, or
  /// empty. `clock` must outlive it.
  static Result<std::unique_ptr<VirtualCoordinator>> make(const std::string& home, server::RunPlan plan,
                                                          const std::string& initial, const VirtualClock& clock,
                                                          unsigned threads, Wires wires);

  server::RunHost& run() { return *run_; }
  server::Store& store() { return store_; }
  server::CargoStore& cargo() { return *cargo_; }

  /// Does all that is due at the clock's present, and says when more will be; nothing: only news can bring work.
  /// An error where the store failed.
  Result<std::optional<std::int64_t>> settle();

 private:
  VirtualCoordinator(server::Store store, std::unique_ptr<server::CargoStore> cargo, const VirtualClock& clock,
                     unsigned threads, Wires wires);

  const VirtualClock& clock_;
  server::Store store_;
  std::unique_ptr<server::CargoStore> cargo_;
  server::CommitGroup commit_;
  server::CoreLoop core_;
  server::CoreLoop bulk_;
  server::AggregationEngine engine_;
  server::Metrics metrics_;
  server::RunServices services_;
  std::unique_ptr<server::RunHost> run_;
};

}  // namespace skerry::sim
