// Sums and copies of vectors between the processes of an island, by c10d: Gloo, or NCCL where it was built with NCCL
// and there are GPUs (then every process needs one of its own). LibTorch stays behind this.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "common/base/result.h"

namespace skerry::trainer {

/// Where a group of processes meets. Those of one machine meet in a file, so that nothing listens but on 127.0.0.1.
struct Meeting {
  int rank = 0;
  int size = 1;
  std::string file;        ///< one machine; must not exist before the leader comes
  std::string host;        ///< several: where the leader listens
  std::uint16_t port = 0;  ///< several; the leader's 0: a free one
  std::string own_host;    ///< by which the others reach this process
  std::int64_t timeout_ms = 120'000;  ///< of the meeting and of every sum and copy
};

/// Not for several threads. All processes make the same calls in the same order with vectors of the same length. An
/// error (UNAVAILABLE: a process is gone or late) leaves a group that is of no more use.
class IslandGroup {
 public:
  /// Begins to wait for the others (the leader) or finds the leader; returns at once in the leader.
  static Result<std::unique_ptr<IslandGroup>> meet(const Meeting& meeting);
  virtual ~IslandGroup() = default;

  /// Where the leader listens.
  virtual std::uint16_t port() const = 0;

  /// Connects each with each.
  virtual Result<void> form() = 0;

  /// Element by element the sum over all processes, the same bits in each of them and every time: the order of the
  /// additions follows from the number of processes and elements alone. With two processes it is a + b.
  virtual Result<void> sum(std::span<float> values) = 0;

  /// The leader's values, to all.
  virtual Result<void> copy(std::span<float> values) = 0;
};

}  // namespace skerry::trainer
