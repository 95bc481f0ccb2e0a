// Which connections are open, whose they are, and how to end them.
#pragma once

#include "common/base/result.h"
#include "server/net/asio.h"

#include <boost/asio/posix/stream_descriptor.hpp>

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>

namespace skerry::server {

class Gauge;
class Metrics;

/// gRPC's spelling of a peer, never percent-encoded: "ipv4:192.0.2.7:41234", "ipv6:[2001:db8::1]:41234". IPv4 addresses
/// inside IPv6 ones are written as IPv4.
std::string peer_text(const asio::ip::tcp::endpoint& endpoint);

/// Thread-safe. Outlives every Slot.
class Connections {
 public:
  /// One admitted connection; counted until it goes.
  class Slot {
   public:
    Slot(Connections& connections, std::string address) : connections_(&connections), address_(std::move(address)) {}
    Slot(Slot&& other) noexcept
        : connections_(std::exchange(other.connections_, nullptr)), address_(std::move(other.address_)) {}
    Slot& operator=(Slot&&) = delete;
    ~Slot() {
      if (connections_) connections_->release(address_);
    }

   private:
    Connections* connections_;
    std::string address_;
  };

  Connections(std::size_t most, std::size_t most_per_address, Metrics& metrics);
  ~Connections();

  /// RESOURCE_EXHAUSTED where there are too many, in all or from this address.
  Result<Slot> admit(const std::string& address);
  std::size_t open() const;

  /// Keeps `descriptor` (a dup of a socket that now belongs to gRPC) until gRPC has shut that socket down.
  void add_grpc(std::string peer, int descriptor, Slot slot);
  /// Watches for ended gRPC connections, on `io`; at most once. Stop it after `io`'s threads ended and before `io`
  /// goes.
  Result<void> watch_grpc(asio::io_context& io);
  void stop_watching();

  /// An HTTP connection: `close` ends it from any thread, at once or when its request is answered.
  using Close = std::function<void(bool at_once)>;
  std::uint64_t add_http(Close close);
  void remove_http(std::uint64_t id);
  /// Ends all of them.
  void close_http(bool at_once);
  /// Waits until none is left; false when the time is over.
  bool wait_for_http(std::chrono::milliseconds most);

  /// The connection from `peer` (or HTTP connection `id`) is of this certificate; whether that is new.
  bool note_grpc(std::string_view peer, std::string_view thumbprint);
  bool note_http(std::uint64_t id, std::string_view thumbprint);

  /// Ends all connections of a certificate; how many.
  std::size_t end(std::string_view thumbprint);

 private:
  struct Grpc {
    std::uint64_t id;
    int descriptor;
    std::string thumbprint;
    Slot slot;
  };
  struct Http {
    Close close;
    std::string thumbprint;
  };

  void release(const std::string& address);
  void wait_for_ends();
  void reap();

  const std::size_t most_;
  const std::size_t most_per_address_;
  Gauge& grpc_gauge_;
  Gauge& http_gauge_;
  mutable std::mutex count_mutex_;
  std::size_t count_ = 0;
  std::unordered_map<std::string, std::size_t> by_address_;

  mutable std::mutex mutex_;
  std::uint64_t next_id_ = 1;
  std::unordered_map<std::string, Grpc> grpc_;              // by peer
  std::unordered_map<std::uint64_t, std::string> peer_of_;  // by id
  std::map<std::uint64_t, Http> http_;
  std::condition_variable http_gone_;
  // An epoll set of its own, which reports only hang-ups: payload on gRPC's sockets wakes nobody here.
  int hang_ups_ = -1;
  std::unique_ptr<asio::posix::stream_descriptor> hang_up_wait_;
};

}  // namespace skerry::server
