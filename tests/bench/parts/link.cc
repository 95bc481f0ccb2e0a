#include "tests/bench/parts/link.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <deque>
#include <list>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "common/os/files.h"

namespace skerry::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kAhead = 0.003;          // seconds of bytes that the line accepts before it can pass them
constexpr double kLate = 0.1;             // seconds that a line with work does not lose where its thread sleeps too long
constexpr std::size_t kPiece = 16 << 10;  // read at once: connections take turns
constexpr std::size_t kMostQueued = 32 << 20;
constexpr int kSocketBuffer = 256 << 10;  // several segments of loopback, or senders wait for timers

double now_s() { return std::chrono::duration<double>(Clock::now().time_since_epoch()).count(); }

FileDescriptor new_socket() {
  FileDescriptor socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  // Small: what waits in the kernel has not been accepted by the line.
  (void)::setsockopt(socket.get(), SOL_SOCKET, SO_RCVBUF, &kSocketBuffer, sizeof kSocketBuffer);
  return socket;
}

sockaddr_in loopback(int port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  return address;
}

FileDescriptor dial(int port) {
  FileDescriptor socket = new_socket();
  const sockaddr_in address = loopback(port);
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) return FileDescriptor();
  return socket;
}

void no_delay(int socket) {
  const int yes = 1;
  (void)::setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
}

struct Listener {
  FileDescriptor socket;
  int port = 0;
};

Result<Listener> listen_on_loopback() {
  Listener listener{new_socket(), 0};
  sockaddr_in address = loopback(0);
  socklen_t length = sizeof address;
  if (::bind(listener.socket.get(), reinterpret_cast<sockaddr*>(&address), length) != 0 || ::listen(listener.socket.get(), 256) != 0 ||
      ::getsockname(listener.socket.get(), reinterpret_cast<sockaddr*>(&address), &length) != 0)
    return unavailable(std::string("the emulated line cannot listen: ") + std::strerror(errno));
  listener.port = ntohs(address.sin_port);
  return listener;
}

/// Bytes on their way; none: the sender has closed its side.
struct Piece {
  double arrives = 0;
  std::string bytes;
  std::size_t sent = 0;
};

/// One way of one connection.
struct Way {
  int from = -1, to = -1;
  std::deque<Piece> under_way;
  std::size_t queued = 0;
  bool ended = false;    // nothing more comes
  bool closed = false;   // and all was handed over
  bool blocked = false;  // the receiver takes nothing at the moment
};

struct Connection {
  FileDescriptor client, server;
  std::array<Way, 2> ways;
  bool broken = false;
};

}  // namespace

struct Link::State {
  Listener listener;
  int to_port = 0;
  std::mutex mutex;  // of rate
  LineRate rate;
  std::atomic<bool> ending{false};
  std::array<std::atomic<std::uint64_t>, 2> bytes{};
  std::array<double, 2> free_at{};  // when the line can pass the next byte
  std::array<bool, 2> busy{};       // somebody has had to wait for that
  std::list<Connection> connections;
  std::thread thread;

  LineRate current() {
    const std::lock_guard lock(mutex);
    return rate;
  }

  void accept_one() {
    Connection connection{FileDescriptor(::accept4(listener.socket.get(), nullptr, nullptr, SOCK_CLOEXEC)), dial(to_port), {}, false};
    if (!connection.client || !connection.server) return;
    no_delay(connection.client.get());
    no_delay(connection.server.get());
    connection.ways[0].from = connection.ways[1].to = connection.client.get();
    connection.ways[0].to = connection.ways[1].from = connection.server.get();
    connections.push_back(std::move(connection));
  }

  void take(Connection& connection, std::size_t which, const LineRate& line, double now) {
    Way& way = connection.ways[which];
    if (way.ended || way.queued >= kMostQueued || free_at[which] > now + kAhead) return;
    std::array<char, kPiece> buffer;
    const ssize_t got = ::recv(way.from, buffer.data(), buffer.size(), MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return;  // nothing here
    if (got < 0) connection.broken = true;
    if (got <= 0) way.ended = true;
    const double pace = which == 0 ? line.up : line.down;
    const double begins = std::max(free_at[which], busy[which] ? now - kLate : now);
    free_at[which] = pace > 0 && got > 0 ? begins + static_cast<double>(got) / pace : begins;
    way.under_way.push_back({free_at[which] + line.delay_ms / 1000, std::string(buffer.data(), static_cast<std::size_t>(std::max<ssize_t>(got, 0))), 0});
    way.queued += static_cast<std::size_t>(std::max<ssize_t>(got, 0));
  }

  void hand_over(Connection& connection, std::size_t which, double now) {
    Way& way = connection.ways[which];
    way.blocked = false;
    while (!way.under_way.empty() && way.under_way.front().arrives <= now) {
      Piece& piece = way.under_way.front();
      if (piece.bytes.empty()) {
        (void)::shutdown(way.to, SHUT_WR);
        way.closed = true;
      }
      while (piece.sent < piece.bytes.size()) {
        const ssize_t sent = ::send(way.to, piece.bytes.data() + piece.sent, piece.bytes.size() - piece.sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
          way.blocked = true;
          return;
        }
        if (sent < 0 && errno != EINTR) {
          connection.broken = true;
          return;
        }
        if (sent > 0) {
          piece.sent += static_cast<std::size_t>(sent);
          bytes[which] += static_cast<std::uint64_t>(sent);
        }
      }
      way.queued -= piece.bytes.size();
      way.under_way.pop_front();
    }
  }

  /// Sleeps until something can be done.
  void wait(double now) {
    std::vector<pollfd> watched{{listener.socket.get(), POLLIN, 0}};
    double wake = now + 0.02;
    std::array<bool, 2> full{};
    for (const Connection& connection : connections) {
      for (std::size_t which = 0; which < 2; ++which) {
        const Way& way = connection.ways[which];
        if (!way.ended && way.queued < kMostQueued) {
          if (free_at[which] <= now + kAhead) {
            watched.push_back({way.from, POLLIN, 0});
          } else {
            wake = std::min(wake, free_at[which] - kAhead);
            full[which] = true;
          }
        }
        if (way.blocked) watched.push_back({way.to, POLLOUT, 0});
        else if (!way.under_way.empty()) wake = std::min(wake, way.under_way.front().arrives);
      }
    }
    busy = full;
    const double left = std::max(wake - now_s(), 0.0);
    const timespec timeout{0, static_cast<long>(left * 1e9)};
    (void)::ppoll(watched.data(), watched.size(), &timeout, nullptr);
    if ((watched[0].revents & POLLIN) != 0) accept_one();
  }

  void run() {
    while (!ending) {
      const LineRate line = current();
      for (Connection& connection : connections)
        for (std::size_t which = 0; which < 2; ++which) {
          take(connection, which, line, now_s());
          hand_over(connection, which, now_s());
        }
      connections.remove_if([](const Connection& one) { return one.broken || (one.ways[0].closed && one.ways[1].closed); });
      if (!connections.empty()) connections.splice(connections.end(), connections, connections.begin());  // another is the first now
      wait(now_s());
    }
  }
};

Link::Link(std::unique_ptr<State> state) : state_(std::move(state)) {}

Result<std::unique_ptr<Link>> Link::open(int to_port, LineRate rate) {
  auto state = std::make_unique<State>();
  SKERRY_ASSIGN(state->listener, listen_on_loopback());
  state->to_port = to_port;
  state->rate = rate;
  State* const own = state.get();
  own->thread = std::thread([own] { own->run(); });
  return std::unique_ptr<Link>(new Link(std::move(state)));
}

Link::~Link() {
  state_->ending = true;
  state_->thread.join();
}

int Link::port() const { return state_->listener.port; }
std::uint64_t Link::bytes_up() const { return state_->bytes[0]; }
std::uint64_t Link::bytes_down() const { return state_->bytes[1]; }

void Link::set_rate(LineRate rate) {
  const std::lock_guard lock(state_->mutex);
  state_->rate = rate;
}

namespace {

bool send_all(int socket, std::size_t size) {
  const std::string zeros(64 << 10, '\0');
  while (size > 0) {
    const ssize_t sent = ::send(socket, zeros.data(), std::min(size, zeros.size()), MSG_NOSIGNAL);
    if (sent <= 0) return false;
    size -= static_cast<std::size_t>(sent);
  }
  return true;
}

bool receive_all(int socket, std::size_t size) {
  std::string buffer(64 << 10, '\0');
  while (size > 0) {
    const ssize_t got = ::recv(socket, buffer.data(), std::min(size, buffer.size()), 0);
    if (got <= 0) return false;
    size -= static_cast<std::size_t>(got);
  }
  return true;
}

/// Bytes a second from one socket to another: the time from the first byte's start to the last one's arrival, less the delay.
Result<double> rate_between(int from, int to, double pace, double seconds, double delay_s) {
  const auto size = static_cast<std::size_t>(std::clamp(pace * seconds, 64e3, 64e6));
  const double begin = now_s();
  std::thread sender([&] { (void)send_all(from, size); });
  const bool came = receive_all(to, size);
  const double taken = now_s() - begin - delay_s;
  sender.join();
  if (!came) return unavailable("the emulated line broke");
  return static_cast<double>(size) / std::max(taken, 1e-9);
}

}  // namespace

Result<LineAccuracy> measure_line(LineRate rate, double seconds) {
  SKERRY_ASSIGN(const Listener far_end, listen_on_loopback());
  SKERRY_ASSIGN(const std::unique_ptr<Link> link, Link::open(far_end.port, rate));
  const FileDescriptor near = dial(link->port());
  const FileDescriptor away(::accept4(far_end.socket.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!near || !away) return unavailable("the emulated line does not connect");
  no_delay(near.get());
  no_delay(away.get());
  LineAccuracy accuracy;
  std::vector<double> trips;
  for (int i = 0; i < 20; ++i) {
    const double begin = now_s();
    if (!send_all(near.get(), 1) || !receive_all(away.get(), 1) || !send_all(away.get(), 1) || !receive_all(near.get(), 1))
      return unavailable("the emulated line broke");
    trips.push_back((now_s() - begin) * 1000);
  }
  std::nth_element(trips.begin(), trips.begin() + 10, trips.end());
  accuracy.rtt_ms = trips[10];
  SKERRY_ASSIGN(accuracy.up, rate_between(near.get(), away.get(), rate.up > 0 ? rate.up : 1e9, seconds, rate.delay_ms / 1000));
  SKERRY_ASSIGN(accuracy.down, rate_between(away.get(), near.get(), rate.down > 0 ? rate.down : 1e9, seconds, rate.delay_ms / 1000));
  return accuracy;
}

}  // namespace skerry::bench
