// One daemon's live conversation, as the coordinator's core sees it.
#pragma once

#include <memory>
#include <string>

#include "common/base/result.h"
#include "common/identity/authenticate.h"
#include "skerry/v1/fleet.pb.h"

namespace skerry::server {

/// A stream to one daemon. All members may be called from any thread; after the stream's end they do nothing.
class Session {
 public:
  virtual ~Session() = default;

  virtual const Identity& identity() const = 0;  ///< its key verifies the daemon's updates
  virtual const std::string& address() const = 0;          ///< "ipv4:127.0.0.1:51234"

  /// Queues one message; messages arrive in order. A daemon that lets several messages of more than 8 MiB queue up is disconnected.
  virtual void send(v1::ToNode message) = 0;

  /// As send(), but the message may wait for flush(): what is queued in between then travels in one segment.
  virtual void queue(v1::ToNode message) = 0;
  virtual void flush() = 0;

  /// Ends the stream with this status, after what was queued. Called again, it cuts off a stream whose daemon does not read.
  virtual void close(Error reason) = 0;

  /// Reads the daemon's next message. Called once for each message received, when it was dealt with: a daemon cannot
  /// send faster than the core works.
  virtual void read_next() = 0;
};

/// What becomes of sessions; called on gRPC's threads, each call short.
class SessionEvents {
 public:
  virtual ~SessionEvents() = default;
  /// Opened and authenticated; the first message is not read yet (call read_next()).
  virtual void opened(std::shared_ptr<Session> session) = 0;
  virtual void received(const std::shared_ptr<Session>& session, v1::FromNode message) = 0;
  /// The last call for this session.
  virtual void ended(const std::shared_ptr<Session>& session) = 0;
};

}  // namespace skerry::server
