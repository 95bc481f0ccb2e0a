// control.sock: how `skerry-client status` and its relatives speak with the running daemon. One JSON object a line, one answer
// a line.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include <nlohmann/json_fwd.hpp>

#include "client/daemon/loop/event_loop.h"
#include "common/base/result.h"

namespace skerry::client {

/// Lives on the loop's thread; the destructor closes and removes the socket.
class ControlServer {
 public:
  /// `answer` maps a request {"command":…} to its answer. The socket is made with mode 0600; a stale one is replaced.
  static Result<std::unique_ptr<ControlServer>> listen(EventLoop& loop, const std::string& path,
                                                       std::function<nlohmann::json(const nlohmann::json&)> answer);
  virtual ~ControlServer() = default;
};

/// Sends one request to the daemon of this home. UNAVAILABLE where none is running.
Result<nlohmann::json> ask_daemon(const std::string& socket_path, const nlohmann::json& request);

}  // namespace skerry::client
