// A conversation with the coordinator: one gRPC stream over mutual TLS. The daemon opens one at a time; `skerry-bench fleet`
// opens thousands, each with its own identity.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "common/base/result.h"
#include "common/identity/profile.h"
#include "skerry/v1/fleet.pb.h"

namespace skerry::client {

struct SessionOptions {
  std::string address;    ///< "host:port"
  std::string ca_pem;     ///< trusted roots
  std::string chain_pem;  ///< own certificate chain
  std::string key_pem;    ///< own key; never logged
  std::string proxy;      ///< "http://host:port" of a CONNECT proxy; empty: dial directly
};

/// What is left of a session when it ended. Let it go on a thread of your own, never inside a callback: with the last
/// channel of a process gRPC joins the very threads that call back.
using SessionRemains = std::shared_ptr<void>;

/// Called on gRPC's threads, never two at a time for one session, and never after `ended` returned.
struct SessionEvents {
  std::function<void(v1::ToNode)> received;
  /// The last call. OK is told as UNAVAILABLE: a stream that lasts is never ended without a reason.
  std::function<void(Error, SessionRemains)> ended;
};

/// Any thread may call any member; destroy it on a thread of your own.
class Session {
 public:
  virtual ~Session() = default;
  /// Dials at once; what is sent before the connection stands is queued. Failures come through `ended`.
  static std::unique_ptr<Session> open(const SessionOptions& options, SessionEvents events);

  /// Messages leave in order. After the end they are dropped.
  virtual void send(v1::FromNode message) = 0;

  /// Sends what is queued, then ends the stream; `ended` follows within `patience_ms` even if the other side is silent.
  virtual void close(unsigned patience_ms = 1000) = 0;
};

/// SessionOptions of a stored profile; reads its key. Errors of reading the files.
Result<SessionOptions> session_options(const Profile& profile, std::string proxy);

}  // namespace skerry::client
