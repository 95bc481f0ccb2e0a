#include "server/net/connections.h"

#include "server/metrics/metrics.h"
#include "server/net/http_router.h"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <vector>

namespace skerry::server {
namespace {
constexpr std::string_view kOpenName = "skerry_connections_open";
constexpr std::string_view kOpenHelp = "Open connections, by protocol.";
}  // namespace

std::string peer_text(const asio::ip::tcp::endpoint& endpoint) {
  auto address = endpoint.address();
  if (address.is_v6() && address.to_v6().is_v4_mapped())
    address = asio::ip::make_address_v4(asio::ip::v4_mapped, address.to_v6());
  const std::string port = std::to_string(endpoint.port());
  if (address.is_v4()) return "ipv4:" + address.to_string() + ':' + port;
  return "ipv6:[" + address.to_string() + "]:" + port;
}

Connections::Connections(std::size_t most, std::size_t most_per_address, Metrics& metrics)
    : most_(most),
      most_per_address_(most_per_address),
      grpc_gauge_(metrics.gauge(kOpenName, kOpenHelp, {{"protocol", "grpc"}})),
      http_gauge_(metrics.gauge(kOpenName, kOpenHelp, {{"protocol", "http"}})) {}

Connections::~Connections() {
  for (auto& [peer, connection] : grpc_) ::close(connection.descriptor);
  grpc_.clear();
}

Result<Connections::Slot> Connections::admit(const std::string& address) {
  const std::lock_guard lock(count_mutex_);
  if (count_ >= most_) return resource_exhausted("all " + std::to_string(most_) + " connections are in use");
  std::size_t& of_address = by_address_[address];
  if (of_address >= most_per_address_) {
    return resource_exhausted(address + " has " + std::to_string(of_address) +
                              " connections open, the most that is allowed");
  }
  ++of_address;
  ++count_;
  return Slot(*this, address);
}

void Connections::release(const std::string& address) {
  const std::lock_guard lock(count_mutex_);
  --count_;
  const auto found = by_address_.find(address);
  if (--found->second == 0) by_address_.erase(found);
}

std::size_t Connections::open() const {
  const std::lock_guard lock(count_mutex_);
  return count_;
}

void Connections::add_grpc(std::string peer, int descriptor, Slot slot) {
  const std::lock_guard lock(mutex_);
  if (const auto old = grpc_.find(peer); old != grpc_.end()) {  // gone, and its port was given out anew
    ::close(old->second.descriptor);
    peer_of_.erase(old->second.id);
    grpc_.erase(old);
  }
  const std::uint64_t id = next_id_++;
  epoll_event event{};
  event.events = EPOLLET;  // hang-ups and errors are always reported
  event.data.u64 = id;
  peer_of_.emplace(id, peer);
  grpc_.emplace(std::move(peer), Grpc{id, descriptor, "", std::move(slot)});
  grpc_gauge_.set(static_cast<double>(grpc_.size()));
  ::epoll_ctl(hang_ups_, EPOLL_CTL_ADD, descriptor, &event);
}

Result<void> Connections::watch_grpc(asio::io_context& io) {
  hang_ups_ = ::epoll_create1(EPOLL_CLOEXEC);
  if (hang_ups_ < 0) return internal_error(std::string("epoll_create1: ") + std::strerror(errno));
  hang_up_wait_ = std::make_unique<asio::posix::stream_descriptor>(io, hang_ups_);
  wait_for_ends();
  return {};
}

void Connections::wait_for_ends() {
  hang_up_wait_->async_wait(asio::posix::stream_descriptor::wait_read, [this](boost::system::error_code error) {
    if (error) return;
    reap();
    wait_for_ends();
  });
}

void Connections::stop_watching() { hang_up_wait_.reset(); }

void Connections::reap() {
  std::array<epoll_event, 64> events{};
  for (;;) {
    const int count = ::epoll_wait(hang_ups_, events.data(), static_cast<int>(events.size()), 0);
    if (count <= 0) return;
    const std::lock_guard lock(mutex_);
    for (int i = 0; i < count; ++i) {
      const auto peer = peer_of_.find(events[static_cast<std::size_t>(i)].data.u64);
      if (peer == peer_of_.end()) continue;
      const auto connection = grpc_.find(peer->second);
      ::close(connection->second.descriptor);
      grpc_.erase(connection);
      peer_of_.erase(peer);
    }
    grpc_gauge_.set(static_cast<double>(grpc_.size()));
  }
}

std::uint64_t Connections::add_http(Close close) {
  const std::lock_guard lock(mutex_);
  const std::uint64_t id = next_id_++;
  http_.emplace(id, Http{std::move(close), ""});
  http_gauge_.set(static_cast<double>(http_.size()));
  return id;
}

void Connections::remove_http(std::uint64_t id) {
  const std::lock_guard lock(mutex_);
  http_.erase(id);
  http_gauge_.set(static_cast<double>(http_.size()));
  if (http_.empty()) http_gone_.notify_all();
}

bool Connections::wait_for_http(std::chrono::milliseconds most) {
  std::unique_lock lock(mutex_);
  return http_gone_.wait_for(lock, most, [this] { return http_.empty(); });
}

void Connections::close_http(bool at_once) {
  std::vector<Close> closers;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [id, connection] : http_) closers.push_back(connection.close);
  }
  for (const auto& close : closers) close(at_once);
}

bool Connections::note_grpc(std::string_view peer, std::string_view thumbprint) {
  // gRPC percent-encodes the brackets of IPv6 addresses.
  const std::string key = percent_decode(peer).value_or(std::string(peer));
  const std::lock_guard lock(mutex_);
  const auto found = grpc_.find(key);
  if (found == grpc_.end() || found->second.thumbprint == thumbprint) return false;
  found->second.thumbprint = thumbprint;
  return true;
}

bool Connections::note_http(std::uint64_t id, std::string_view thumbprint) {
  const std::lock_guard lock(mutex_);
  const auto found = http_.find(id);
  if (found == http_.end() || found->second.thumbprint == thumbprint) return false;
  found->second.thumbprint = thumbprint;
  return true;
}

std::size_t Connections::end(std::string_view thumbprint) {
  std::vector<Close> closers;
  std::size_t ended = 0;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [peer, connection] : grpc_) {
      if (connection.thumbprint != thumbprint) continue;
      ::shutdown(connection.descriptor, SHUT_RDWR);  // the hang-up that follows removes it here
      ++ended;
    }
    for (const auto& [id, connection] : http_) {
      if (connection.thumbprint == thumbprint) closers.push_back(connection.close);
    }
  }
  for (const auto& close : closers) close(true);
  return ended + closers.size();
}

}  // namespace skerry::server
