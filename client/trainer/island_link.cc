#include "client/trainer/island_link.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstring>
#include <memory>

namespace skerry::trainer {
namespace {

constexpr std::int64_t kSendMs = 60'000;

std::int64_t now_ms() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

Error gone(const std::string& why) { return unavailable("the other process of the island is gone: " + why); }

using AddressInfo = std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)>;

Result<AddressInfo> resolve(const IslandAddress& address) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  if (::getaddrinfo(address.host.c_str(), std::to_string(address.port).c_str(), &hints, &found) != 0) {
    return invalid_argument("\"" + address.host + "\" is no IP address; an island's address is written in digits");
  }
  return AddressInfo(found, &::freeaddrinfo);
}

std::string host_of(const sockaddr_storage& address, socklen_t length) {
  char host[64] = {};
  if (::getnameinfo(reinterpret_cast<const sockaddr*>(&address), length, host, sizeof host, nullptr, 0, NI_NUMERICHOST) != 0) return "";
  return host;
}

std::uint16_t port_of(const sockaddr_storage& address) {
  return ntohs(address.ss_family == AF_INET6 ? reinterpret_cast<const sockaddr_in6&>(address).sin6_port
                                             : reinterpret_cast<const sockaddr_in&>(address).sin_port);
}

Result<FileDescriptor> new_socket(const addrinfo& at) {
  FileDescriptor socket(::socket(at.ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket) return unavailable(std::string("no socket: ") + std::strerror(errno));
  return socket;
}

/// Waits until `fd` can be read or written; false at the deadline (negative: never).
bool wait_for(int fd, short events, std::int64_t deadline_ms) {
  for (;;) {
    const std::int64_t left = deadline_ms < 0 ? -1 : deadline_ms - now_ms();
    if (deadline_ms >= 0 && left <= 0) return false;
    pollfd waiting{fd, events, 0};
    const int ready = ::poll(&waiting, 1, static_cast<int>(left));
    if (ready > 0) return true;
    if (ready < 0 && errno != EINTR) return true;  // the call that follows says what is wrong
  }
}

}  // namespace

Result<IslandAddress> parse_island_address(std::string_view text) {
  const auto wrong = [&] {
    return invalid_argument("island address \"" + std::string(text) + "\" must be IP:PORT in digits, for example 10.0.0.1:29400 or [fd00::1]:29400");
  };
  const auto colon = text.rfind(':');
  if (colon == std::string_view::npos) return wrong();
  std::string_view host = text.substr(0, colon);
  const std::string_view port = text.substr(colon + 1);
  const bool bracketed = host.size() > 2 && host.front() == '[' && host.back() == ']';
  if (bracketed) host = host.substr(1, host.size() - 2);
  IslandAddress address{std::string(host), 0};
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), address.port);
  if (error != std::errc() || end != port.data() + port.size() || address.port == 0) return wrong();
  const auto known = resolve(address);
  if (!known.ok() || bracketed != ((*known)->ai_family == AF_INET6)) return wrong();
  return address;
}

IslandLink::IslandLink(FileDescriptor socket) : socket_(std::move(socket)) {
  const auto set = [&](int level, int option, int value) { (void)::setsockopt(socket_.get(), level, option, &value, sizeof value); };
  set(IPPROTO_TCP, TCP_NODELAY, 1);
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, 10);
  set(IPPROTO_TCP, TCP_KEEPINTVL, 5);
  set(IPPROTO_TCP, TCP_KEEPCNT, 3);
  set(IPPROTO_TCP, TCP_USER_TIMEOUT, 30'000);
}

Result<IslandLink> IslandLink::connect(const IslandAddress& to) {
  SKERRY_ASSIGN(const AddressInfo target, resolve(to));
  SKERRY_ASSIGN(FileDescriptor socket, new_socket(*target));
  if (::connect(socket.get(), target->ai_addr, target->ai_addrlen) != 0) {
    return unavailable("no connection to the island's leader at " + to.host + " port " + std::to_string(to.port) + ": " + std::strerror(errno));
  }
  return IslandLink(std::move(socket));
}

Result<void> IslandLink::send(FrameKind kind, std::span<const std::span<const std::byte>> pieces) {
  std::uint64_t size = 0;
  for (const auto& piece : pieces) size += piece.size();
  std::array<std::byte, 9> head{static_cast<std::byte>(kind)};
  for (int i = 0; i < 8; ++i) head[static_cast<std::size_t>(i) + 1] = static_cast<std::byte>(size >> (8 * i));
  const auto write = [&](std::span<const std::byte> bytes) -> Result<void> {
    const std::int64_t deadline = now_ms() + kSendMs;
    while (!bytes.empty()) {
      const ssize_t sent = ::send(socket_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (sent > 0) {
        bytes = bytes.subspan(static_cast<std::size_t>(sent));
      } else if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
        if (!wait_for(socket_.get(), POLLOUT, deadline)) return gone("it reads nothing");
      } else if (sent < 0 && errno != EINTR) {
        return gone(std::strerror(errno));
      }
    }
    return {};
  };
  SKERRY_TRY(write(head));
  for (const auto& piece : pieces) SKERRY_TRY(write(piece));
  return {};
}

Result<void> IslandLink::send(FrameKind kind, std::string_view payload) {
  const std::span<const std::byte> pieces[] = {as_bytes_of(payload)};
  return send(kind, pieces);
}

Result<void> IslandLink::read_exactly(std::byte* out, std::size_t size, std::int64_t deadline_ms) {
  while (size > 0) {
    const ssize_t got = ::recv(socket_.get(), out, size, MSG_DONTWAIT);
    if (got > 0) {
      out += got;
      size -= static_cast<std::size_t>(got);
    } else if (got == 0) {
      return gone("it closed the connection");
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      if (!wait_for(socket_.get(), POLLIN, deadline_ms)) {
        return Error{Code::kDeadlineExceeded, "a process of the island says nothing", true};
      }
    } else if (errno != EINTR) {
      return gone(std::strerror(errno));
    }
  }
  return {};
}

Result<Frame> IslandLink::receive(std::int64_t timeout_ms, std::uint64_t most) {
  const std::int64_t deadline = timeout_ms < 0 ? -1 : now_ms() + timeout_ms;
  std::array<std::byte, 9> head{};
  SKERRY_TRY(read_exactly(head.data(), head.size(), deadline));
  std::uint64_t size = 0;
  for (std::size_t i = 0; i < 8; ++i) size |= std::to_integer<std::uint64_t>(head[i + 1]) << (8 * i);
  const auto kind = std::to_integer<std::uint8_t>(head[0]);
  if (kind < static_cast<std::uint8_t>(FrameKind::kHello) || kind > static_cast<std::uint8_t>(FrameKind::kClose) || size > most) {
    return invalid_argument("who has connected speaks no island's language");
  }
  Frame frame{static_cast<FrameKind>(kind), std::string(size, '\0')};
  SKERRY_TRY(read_exactly(reinterpret_cast<std::byte*>(frame.payload.data()), frame.payload.size(), deadline));
  return frame;
}

Result<std::string> IslandLink::expect(FrameKind kind, std::int64_t timeout_ms, std::uint64_t most) {
  SKERRY_ASSIGN(Frame frame, receive(timeout_ms, most));
  if (frame.kind == kind) return std::move(frame.payload);
  if (frame.kind == FrameKind::kError) return unavailable(frame.payload);
  return internal_error("an island's process answers out of turn");
}

std::string IslandLink::local_host() const {
  sockaddr_storage own{};
  socklen_t length = sizeof own;
  if (::getsockname(socket_.get(), reinterpret_cast<sockaddr*>(&own), &length) != 0) return "127.0.0.1";
  return host_of(own, length);
}

Result<IslandDoor> IslandDoor::open(const IslandAddress& at) {
  const std::string where = at.host + " port " + std::to_string(at.port);
  SKERRY_ASSIGN(const AddressInfo target, resolve(at));
  IslandDoor door;
  SKERRY_ASSIGN(door.socket_, new_socket(*target));
  const int yes = 1;
  (void)::setsockopt(door.socket_.get(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  sockaddr_storage own{};
  socklen_t length = sizeof own;
  if (::bind(door.socket_.get(), target->ai_addr, target->ai_addrlen) != 0 || ::listen(door.socket_.get(), 128) != 0 ||
      ::getsockname(door.socket_.get(), reinterpret_cast<sockaddr*>(&own), &length) != 0) {
    return unavailable("the island cannot listen on " + where + ": " + std::strerror(errno));
  }
  door.address_ = {at.host, port_of(own)};
  return door;
}

Result<IslandLink> IslandDoor::accept(std::int64_t timeout_ms) {
  if (!wait_for(socket_.get(), POLLIN, now_ms() + timeout_ms)) return Error{Code::kDeadlineExceeded, "nobody came", true};
  FileDescriptor socket(::accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!socket) return unavailable(std::string("a connection to the island was lost: ") + std::strerror(errno));
  return IslandLink(std::move(socket));
}

}  // namespace skerry::trainer
