#include "server/net/port.h"

#include "common/os/clock.h"
#include "server/metrics/metrics.h"
#include "server/net/connections.h"
#include "server/net/grpc_side.h"
#include "server/net/http_connection.h"
#include "server/net/http_side.h"
#include "server/net/listener.h"
#include "server/net/tls_stream.h"

#include <fcntl.h>
#include <openssl/types.h>
#include <spdlog/spdlog.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <exception>
#include <mutex>
#include <thread>

namespace skerry::server {
namespace {

using WorkGuard = asio::executor_work_guard<asio::io_context::executor_type>;

// Changes whenever a file was replaced or written.
std::array<std::int64_t, 8> fingerprint(const std::string& certificate, const std::string& key) {
  std::array<std::int64_t, 8> print{};
  std::size_t i = 0;
  for (const std::string& path : {certificate, key}) {
    struct stat info {};
    if (::stat(path.c_str(), &info) == 0) {
      print[i] = static_cast<std::int64_t>(info.st_ino);
      print[i + 1] = info.st_size;
      print[i + 2] = info.st_mtim.tv_sec;
      print[i + 3] = info.st_mtim.tv_nsec;
    }
    i += 4;
  }
  return print;
}

// The usual soft limit of 1,024 open files is far below the port's own limit on connections.
void allow_descriptors(std::size_t wanted) {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= wanted) return;
  limit.rlim_cur = std::min<rlim_t>(wanted, limit.rlim_max);
  if (::setrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur < wanted)
    spdlog::warn("the port may need {} open files, and the system allows {}: raise LimitNOFILE", wanted,
                 limit.rlim_cur);
}

}  // namespace

class Port::Impl {
 public:
  explicit Impl(PortOptions o)
      : options(std::move(o)),
        connections(options.limits.connections, options.limits.connections_per_address, *options.metrics),
        guard(asio::make_work_guard(io)),
        certificate_timer(io) {}

  ~Impl() { shutdown(std::chrono::seconds(1)); }

  Result<void> start(const std::vector<grpc::Service*>& services, HttpRouter router) {
    SKERRY_TRY(reload());
    SKERRY_ASSIGN(http, HttpSide::make(options, std::move(router), connections));
    SKERRY_TRY(connections.watch_grpc(io));
    if (!services.empty()) {
      SKERRY_ASSIGN(grpc_side, GrpcSide::start(options, services));
      options.gate->on_caller([this](std::string_view peer, std::string_view thumbprint) {
        return connections.note_grpc(peer, thumbprint);
      });
    }
    SKERRY_ASSIGN(listener, Listener::open(io, options.address, options.port, options.limits.handshake, connections,
                                           *options.metrics, [this](Greeted greeted) { take(std::move(greeted)); }));
    const unsigned count =
        options.io_threads != 0 ? options.io_threads : std::max(2u, std::thread::hardware_concurrency());
    for (unsigned i = 0; i < count; ++i) threads.emplace_back([this] { serve(); });
    check_certificate_later();
    listener->start();
    return {};
  }

  // An I/O thread. What one connection throws (memory is short, say) ends that connection and nothing else.
  void serve() {
    for (;;) {
      try {
        io.run();
        return;
      } catch (const std::exception& problem) {
        spdlog::error("a connection failed: {}", problem.what());
      }
    }
  }

  void take(Greeted greeted) {
    const bool to_grpc = speaks_grpc(greeted.hello);
    options.metrics
        ->counter("skerry_connections_total", "Connections that began TLS, by protocol.",
                  {{"protocol", to_grpc ? "grpc" : "http"}})
        .add();
    if (!to_grpc) {
      serve_http(*http, std::move(greeted.socket), context(), std::move(greeted.slot), std::move(greeted.peer),
                 greeted.handshake_left);
      return;
    }
    if (!grpc_side) return;  // the socket closes
    boost::system::error_code error;
    const int descriptor = greeted.socket.release(error);
    if (error) return;
    const int copy = ::fcntl(descriptor, F_DUPFD_CLOEXEC, 0);
    if (copy < 0) {
      ::close(descriptor);
      return;
    }
    connections.add_grpc(std::move(greeted.peer), copy, std::move(greeted.slot));
    grpc_side->take(descriptor);
  }

  std::shared_ptr<SSL_CTX> context() {
    const std::lock_guard lock(context_mutex);
    return tls;
  }

  Result<void> reload() {
    const auto print = fingerprint(options.certificate_file, options.key_file);
    auto fresh = make_server_context(options.certificate_file, options.key_file);
    const std::lock_guard lock(context_mutex);
    certificate_print = print;
    if (!fresh.ok()) return fresh.error();
    tls = std::move(fresh).value();
    return {};
  }

  void check_certificate_later() {
    certificate_timer.expires_after(options.certificate_check);
    certificate_timer.async_wait([this](boost::system::error_code error) {
      if (error) return;
      bool changed = false;
      {
        const std::lock_guard lock(context_mutex);
        changed = certificate_print != fingerprint(options.certificate_file, options.key_file);
      }
      if (changed) {
        if (auto reloaded = reload(); reloaded.ok())
          spdlog::info("the port uses the new certificate in {}", options.certificate_file);
        else
          spdlog::warn("the port keeps its certificate: {}", reloaded.error().message);
      }
      check_certificate_later();
    });
  }

  void shutdown(std::chrono::milliseconds grace) {
    const std::lock_guard lock(shutdown_mutex);
    if (ended) return;
    ended = true;
    const auto deadline = std::chrono::steady_clock::now() + grace;
    if (listener) listener->stop();
    if (http) {
      http->draining = true;
      connections.close_http(false);
    }
    if (grpc_side) {
      options.gate->on_caller({});
      grpc_side->shutdown(std::chrono::system_clock::now() + grace);
    }
    if (http && !threads.empty()) {
      const auto left =
          std::chrono::duration_cast<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
      if (!connections.wait_for_http(std::max(left, std::chrono::milliseconds(0)))) {
        connections.close_http(true);
        connections.wait_for_http(std::chrono::milliseconds(200));
      }
    }
    if (http) {  // what was handed to a worker ends before what it uses
      http->workers.join();
      http->disk.join();
    }
    guard.reset();
    io.stop();
    for (std::thread& thread : threads) thread.join();
    threads.clear();
    connections.stop_watching();
    grpc_side.reset();
  }

  const PortOptions options;
  Connections connections;
  std::unique_ptr<HttpSide> http;  // outlives io, whose handlers hold connections that refer to it
  asio::io_context io;
  WorkGuard guard;
  std::unique_ptr<GrpcSide> grpc_side;
  std::unique_ptr<Listener> listener;
  asio::steady_timer certificate_timer;
  std::vector<std::thread> threads;
  std::mutex context_mutex;
  // Shared because a handshake under way may still use the old one after a reload.
  std::shared_ptr<SSL_CTX> tls;
  std::array<std::int64_t, 8> certificate_print{};
  std::mutex shutdown_mutex;
  bool ended = false;
};

Port::Port(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Port::~Port() = default;

Result<std::unique_ptr<Port>> Port::open(PortOptions options, std::vector<grpc::Service*> services, HttpRouter router) {
  if (!options.gate || !options.clock || !options.metrics)
    return internal_error("a port needs a gate, a clock and metrics");
  // OpenSSL writes to sockets without MSG_NOSIGNAL: a peer that is gone must be an error, not the end of the process.
  if (std::signal(SIGPIPE, SIG_IGN) == SIG_ERR) return internal_error("SIGPIPE cannot be ignored");
  allow_descriptors(2 * options.limits.connections + 512);
  auto impl = std::make_unique<Impl>(std::move(options));
  SKERRY_TRY(impl->start(services, std::move(router)));
  return std::unique_ptr<Port>(new Port(std::move(impl)));
}

std::uint16_t Port::port() const { return impl_->listener->port(); }

bool Port::note_identity(std::string_view peer, std::string_view thumbprint) {
  return impl_->connections.note_grpc(peer, thumbprint);
}

std::size_t Port::end_connections(std::string_view thumbprint) { return impl_->connections.end(thumbprint); }

std::size_t Port::open_connections() const { return impl_->connections.open(); }

Port::Traffic Port::traffic_of(std::string_view identity_name) const {
  return {static_cast<std::uint64_t>(impl_->http->bytes("up", identity_name).value()),
          static_cast<std::uint64_t>(impl_->http->bytes("down", identity_name).value())};
}

Port::Traffic Port::traffic() const {
  return {impl_->http->all_up.load(std::memory_order_relaxed), impl_->http->all_down.load(std::memory_order_relaxed)};
}

Result<void> Port::reload_certificate() { return impl_->reload(); }

void Port::shutdown(std::chrono::milliseconds grace) { impl_->shutdown(grace); }

}  // namespace skerry::server
