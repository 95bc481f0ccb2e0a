// The daemon: carries out what ClientMachine commands, on one thread, with a few beside it for bulk work.
#pragma once

#include <memory>
#include <string>

#include "client/daemon/app/home.h"
#include "common/base/result.h"

namespace skerry::client {

struct DaemonOptions {
  Home home;
  std::string proxy;              ///< "http://host:port"; empty: as `join` remembered it, or none
  std::string program_directory;  ///< where skerry-client lies: skerry-trainer stands beside it
  bool leave = false;             ///< say farewell for good as soon as a session stands, then end
  std::string leave_reason;
};

/// How a daemon ended.
enum class DaemonEnd { kStopped, kLeft, kFailed, kNotReached };

class Daemon {
 public:
  /// Everything is loaded and checked; nothing was sent. FAILED_PRECONDITION (another daemon runs in this home; the
  /// coordinator is not one that policy allows), NOT_FOUND (not joined, no policy), INVALID_ARGUMENT (policy), DATA_LOSS.
  static Result<std::unique_ptr<Daemon>> create(DaemonOptions options);
  virtual ~Daemon() = default;

  /// Until a signal, `leave`, or a failure that leaves no choice.
  virtual DaemonEnd run() = 0;
};

/// The hex SHA-256 of the root certificate of a PEM bundle, as policies name coordinators. The first root.
Result<std::string> root_fingerprint(const std::string& ca_pem);

/// How long two thirds of a certificate's life still last, at least 0.
std::uint64_t renewal_delay_ms(std::int64_t not_before_ms, std::int64_t expires_ms, std::int64_t now_ms);

}  // namespace skerry::client
