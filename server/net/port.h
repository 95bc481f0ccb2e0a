// The coordinator's one TLS 1.3 port: gRPC for the conversation, HTTPS for cargo, JSON, metrics and the dashboard.
//
// docs/wire-protocol.md says what a peer sees. The accepting socket reads the ClientHello without consuming it and
// gives the connection to gRPC or to the HTTP side by its ALPN list. Both request a client certificate and verify
// nothing: who is calling is decided by the Gate (server/net/access.h) on each call and request.
#pragma once

#include "common/base/result.h"
#include "server/net/access.h"
#include "server/net/http_router.h"

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace grpc {
class Service;
}

namespace skerry {
class Clock;
}

namespace skerry::server {

class CargoStore;
class Metrics;

/// Everything a stranger could exhaust has a limit.
struct PortLimits {
  std::size_t connections = 8000;  ///< open at once; each gRPC connection needs two file descriptors
  std::size_t connections_per_address = 4000;
  std::chrono::milliseconds handshake{10'000};    ///< from accept to the end of the TLS handshake
  std::chrono::milliseconds keep_alive{60'000};   ///< an HTTP connection between two requests
  std::chrono::milliseconds header_time{10'000};  ///< from a request's first byte to the end of its header
  std::size_t header_bytes = 16 * 1024;           ///< request line and headers: 431 beyond
  /// A body, up or down, must move at least `progress_bytes` in every `progress_interval`, else the connection is
  /// closed.
  std::chrono::milliseconds progress_interval{10'000};
  std::size_t progress_bytes = 8 * 1024;
  std::uint64_t cargo_bytes = std::uint64_t{1} << 40;  ///< one cargo file: 413 beyond
  std::size_t queued_requests = 1024;                  ///< waiting for a worker thread: 503 beyond
  std::size_t grpc_message_bytes = 1024 * 1024;
  int grpc_streams = 64;  ///< open calls on one gRPC connection
};

/// Decisions about cargo that belong to the coordinator. Called from I/O threads: must not block for long.
struct CargoAccess {
  /// Whether the caller may download this content id. PERMISSION_DENIED or NOT_FOUND.
  std::function<Result<void>(const Identity& caller, const std::string& content_id)> may_read;
  /// Checks the upload ticket (node) or the role (operator); returns the task the cargo belongs to ("" for an
  /// operator). UNAUTHENTICATED (ticket missing, forged, expired, someone else's), RESOURCE_EXHAUSTED (larger than the
  /// ticket permits).
  std::function<Result<std::string>(const Identity& caller, const std::string& thumbprint, const std::string& ticket,
                                    const std::string& content_id, std::uint64_t size)>
      check_upload;
  /// So many bytes of this cargo went to the caller; may be empty. Called from I/O threads, often: must only count.
  std::function<void(const Identity& caller, const std::string& content_id, std::uint64_t bytes)> sent;
};

struct PortOptions {
  std::string address = "0.0.0.0";  ///< numeric IPv4 or IPv6 address to listen on
  std::uint16_t port = 0;           ///< 0: any free one
  std::string certificate_file;     ///< PEM, leaf first, then the issuing CA
  std::string key_file;             ///< PEM
  PortLimits limits;
  Gate* gate = nullptr;          ///< required; outlives the port
  const Clock* clock = nullptr;  ///< required; outlives the port
  Metrics* metrics = nullptr;    ///< required; outlives the port
  CargoStore* cargo = nullptr;   ///< null: no cargo routes; outlives the port
  CargoAccess cargo_access;
  unsigned io_threads = 0;      ///< 0: one a core, at least two
  unsigned worker_threads = 4;  ///< run HTTP handlers and what waits for the disk
  /// GET /api/v1/measure/source?bytes=N and PUT /api/v1/measure/sink move bytes without hashing and disk (benchmark).
  bool measure_routes = false;
  std::chrono::seconds certificate_check{2};  ///< how often the certificate files are looked at for a change
};

/// An open port. Thread-safe.
class Port {
 public:
  /// Listens and serves until `shutdown`. The services call `Gate::authorize` in each handler.
  ///
  /// INVALID_ARGUMENT (address, certificate or key that cannot be read or do not belong together), UNAVAILABLE (address
  /// in use), INTERNAL (a route without an entry in the access table).
  static Result<std::unique_ptr<Port>> open(PortOptions options, std::vector<grpc::Service*> services,
                                            HttpRouter router);

  ~Port();  ///< as shutdown(1 s)

  std::uint16_t port() const;

  /// The gRPC connection from `peer` (gRPC's spelling, `context.peer()`) belongs to this certificate; whether that is
  /// new. Gate::authorize calls it.
  bool note_identity(std::string_view peer, std::string_view thumbprint);

  /// Ends every live connection of a certificate, gRPC and HTTP, at once; the number of them. Revoke first, then call
  /// this.
  std::size_t end_connections(std::string_view thumbprint);

  std::size_t open_connections() const;

  struct Traffic {
    std::uint64_t bytes_up = 0;    ///< HTTP bodies received: cargo and requests
    std::uint64_t bytes_down = 0;  ///< HTTP bodies sent
  };
  Traffic traffic() const;
  Traffic traffic_of(std::string_view identity_name) const;  ///< of one member ("node/alice")

  /// Looks at the certificate files now instead of within `certificate_check` (HTTP at once, gRPC within seconds). The
  /// old certificate stays in use if the new files are not valid: INVALID_ARGUMENT says why.
  Result<void> reload_certificate();

  /// Stops accepting, lets requests and calls under way finish for at most `grace`, then ends them. Returns when all
  /// threads are gone. A second call does nothing.
  void shutdown(std::chrono::milliseconds grace);

 private:
  class Impl;
  explicit Port(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace skerry::server
