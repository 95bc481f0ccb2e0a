// A port in this process with a CA, members and a small cargo store, and clients that speak to it over real TLS.
#pragma once

#include "common/crypto/keys.h"
#include "common/identity/authenticate.h"
#include "common/os/clock.h"
#include "server/identity/certificate_authority.h"
#include "server/metrics/metrics.h"
#include "server/net/port.h"
#include "server/store/cargo_store.h"
#include "tests/support/child.h"
#include "tests/support/temp_dir.h"

#include <openssl/types.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace grpc {
class Service;
}

namespace skerry::test {

/// A certificate and key in files.
struct Member {
  std::string certificate_file;
  std::string key_file;
  std::string thumbprint;
};

/// Opens a port on 127.0.0.1 with the routes of `make_routes`; cargo may be read by everybody with access, uploads need
/// the ticket "good". `change` may set limits before the port opens.
class World {
 public:
  explicit World(const std::function<void(server::PortOptions&)>& change = {}, server::RateLimits rates = {});
  ~World();

  /// A certificate of this federation; `lifetime_ms` from now, so a negative one has expired.
  Member member(Role role, const std::string& name, std::int64_t lifetime_ms = server::kMemberLifetimeMs);
  void revoke(const Member& member);

  /// curl to `path` with these further arguments; its exit code, output and errors.
  Finished curl(const std::string& path, std::vector<std::string> arguments, const Member* as = nullptr) const;
  /// Only the status code.
  std::string status(const std::string& path, std::vector<std::string> arguments, const Member* as = nullptr) const;

  std::string url(const std::string& path) const;
  /// The GetStatus call's outcome over gRPC: "OK <name>" or "<code name>: message".
  std::string get_status(const Member* as, const std::string& ca_file = "") const;

  TempDir dir;
  std::string home;
  SystemClock clock;
  server::Metrics metrics;
  std::unique_ptr<server::CertificateAuthority> authority;
  std::unique_ptr<Authenticator> authenticator;
  std::unique_ptr<server::Gate> gate;
  std::unique_ptr<server::CargoStore> cargo;
  std::shared_ptr<grpc::Service> control;  // shared: its destructor is known only where it was made
  std::unique_ptr<server::Port> port;
  std::atomic<int> slow_handlers{0};
};

/// The Control service with GetStatus and WatchRun (which answers once and then stays open until it is cancelled).
std::shared_ptr<grpc::Service> make_control(server::Gate& gate);

/// A gRPC client with one open WatchRun stream.
class Watcher {
 public:
  Watcher(const World& world, const Member& as);
  ~Watcher();
  bool first_answer();  ///< whether the stream brought its first message
  std::string end();    ///< waits for the stream's end: the status' code name

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// A TLS client on a raw socket, so that tests can misbehave.
struct TlsOptions {
  const Member* as = nullptr;
  std::vector<std::string> alpn;
  int min_version = 0;  ///< OpenSSL's numbers; 0: the default
  int max_version = 0;
};

class Raw {
 public:
  explicit Raw(std::uint16_t port);
  ~Raw();
  Raw(const Raw&) = delete;
  Raw& operator=(const Raw&) = delete;

  void send_plain(std::string_view bytes);
  /// All that comes until the end of the stream or the timeout; `ended` tells which.
  std::string receive_plain(std::int64_t timeout_ms);
  bool ended() const { return ended_; }

  /// "" or why the handshake failed.
  std::string handshake(const TlsOptions& options = {});
  bool send(std::string_view bytes);
  /// Until the end of the stream or the timeout.
  std::string receive(std::int64_t timeout_ms);
  std::string protocol() const;  ///< what ALPN chose
  std::string server_serial() const;
  int descriptor() const { return socket_; }

 private:
  int socket_ = -1;
  bool ended_ = false;
  std::unique_ptr<SSL_CTX, void (*)(SSL_CTX*)> context_;
  std::unique_ptr<SSL, void (*)(SSL*)> ssl_;
};

/// The bytes a TLS client would send first, without any server.
std::string client_hello_bytes(const std::vector<std::string>& alpn);

std::string pattern_bytes(std::size_t count);

}  // namespace skerry::test
