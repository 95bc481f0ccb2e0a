// What all HTTP connections of a port share.
#pragma once

#include "server/net/asio.h"
#include "server/net/connections.h"
#include "server/net/http_router.h"
#include "server/net/port.h"

#include <boost/asio/thread_pool.hpp>

#include <atomic>
#include <memory>
#include <string_view>
#include <unordered_map>

namespace skerry::server {

class Counter;

/// What the port answers by itself instead of a handler.
enum class BuiltIn { kNone, kCargoDownload, kCargoUpload, kUploadStatus, kMeasureSource, kMeasureSink };

struct HttpSide {
  /// Adds the port's own routes to `router`; INTERNAL where a route has no entry in the access table.
  static Result<std::unique_ptr<HttpSide>> make(const PortOptions& options, HttpRouter router,
                                                Connections& connections);

  struct RouteFacts {
    BuiltIn built_in = BuiltIn::kNone;
    Access access = Access::kDenied;
  };

  HttpSide(const PortOptions& o, HttpRouter r, Connections& c);
  const RouteFacts& facts(const HttpRouter::Route& route) const { return facts_.at(&route); }
  Counter& bytes(std::string_view direction, std::string_view member);
  void count_request(std::string_view method, std::string_view route, int status, std::int64_t took_ms);

  const PortOptions options;
  const HttpRouter router;
  Connections& connections;
  std::unordered_map<const HttpRouter::Route*, RouteFacts> facts_;
  std::atomic<std::size_t> queued{0};    ///< requests that wait for a worker or run on one
  std::atomic<std::uint64_t> all_up{0};  ///< bytes of bodies, all members together
  std::atomic<std::uint64_t> all_down{0};
  std::atomic<bool> draining{false};  ///< answer what is under way, then close
  Counter& slow_peers;
  asio::thread_pool workers;  ///< handlers
  asio::thread_pool disk;     ///< cargo
};

}  // namespace skerry::server
