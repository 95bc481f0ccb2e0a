#include "server/net/listener.h"

#include "server/metrics/metrics.h"
#include "server/net/access.h"

#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <vector>

namespace skerry::server {

using asio::ip::tcp;

struct Listener::Shared {
  Shared(asio::io_context& i, std::chrono::milliseconds h, Connections& c, Metrics& m, Take t)
      : io(i),
        strand(asio::make_strand(i)),
        acceptor(strand),
        pause(strand),
        handshake(h),
        connections(c),
        metrics(m),
        take(std::move(t)) {}

  void refused(std::string_view reason) {
    metrics
        .counter("skerry_connections_refused_total", "Connections ended before any protocol began, by reason.",
                 {{"reason", std::string(reason)}})
        .add();
  }

  asio::io_context& io;
  Strand strand;
  asio::basic_socket_acceptor<tcp, Strand> acceptor;
  StrandTimer pause;
  const std::chrono::milliseconds handshake;
  Connections& connections;
  Metrics& metrics;
  const Take take;
};

namespace {

constexpr std::string_view kPlainHttpAnswer =
    "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: 45\r\n\r\n"
    "This port speaks HTTPS: TLS 1.3, nothing less";

// Peeks at one new connection until its ClientHello is whole, its deadline is over, or it is none.
class Greeting : public std::enable_shared_from_this<Greeting> {
 public:
  Greeting(Listener::Shared& shared, StrandSocket socket, std::string peer, Connections::Slot slot)
      : shared_(shared),
        socket_(std::move(socket)),
        timer_(socket_.get_executor()),
        peer_(std::move(peer)),
        slot_(std::move(slot)),
        began_(std::chrono::steady_clock::now()) {}

  void start() {
    asio::post(socket_.get_executor(), [self = shared_from_this()] {
      self->timer_.expires_after(self->shared_.handshake);
      self->timer_.async_wait([weak = self->weak_from_this()](boost::system::error_code error) {
        const auto held = weak.lock();
        if (error || !held || held->done_) return;
        held->shared_.refused("no_client_hello");
        held->end();
      });
      self->look();
    });
  }

 private:
  void look() {
    if (done_) return;
    // As much as was promised to be there; a ClientHello nearly always fits into the first 2 KiB.
    std::array<std::uint8_t, kMaxClientHelloWireBytes> bytes;
    const ssize_t count = ::recv(socket_.native_handle(), bytes.data(), bytes.size(), MSG_PEEK | MSG_DONTWAIT);
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) return wait_for(1);
    if (count <= 0) return refuse("closed_early", {});
    const auto have = static_cast<std::size_t>(count);
    const auto parsed = parse_client_hello(std::span(bytes).first(have));
    if (const auto* more = std::get_if<NeedMore>(&parsed)) {
      if (have == seen_ && hung_up()) return refuse("closed_early", {});
      seen_ = have;
      return wait_for(more->at_least);
    }
    if (const auto* wrong = std::get_if<NotClientHello>(&parsed)) {
      if (wrong->plain_http) return refuse("plain_http", kPlainHttpAnswer);
      return alert(wrong->alert, wrong->alert == kAlertProtocolVersion ? "old_tls" : "not_tls");
    }
    const auto& hello = std::get<ClientHello>(parsed);
    if (!hello.offers_tls13) return alert(kAlertProtocolVersion, "old_tls");
    hand_over(hello);
  }

  // The kernel wakes us only when that many bytes are there (or the peer is gone): peeked bytes wake nobody again.
  void wait_for(std::size_t bytes) {
    const int low_water = static_cast<int>(bytes);
    ::setsockopt(socket_.native_handle(), SOL_SOCKET, SO_RCVLOWAT, &low_water, sizeof low_water);
    socket_.async_wait(StrandSocket::wait_read, [self = shared_from_this()](boost::system::error_code error) {
      if (!error) self->look();
    });
  }

  bool hung_up() const {
    pollfd state{};
    state.fd = const_cast<StrandSocket&>(socket_).native_handle();
    state.events = POLLRDHUP;
    return ::poll(&state, 1, 0) > 0 && (state.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
  }

  void alert(std::uint8_t description, std::string_view reason) {
    const std::array<char, 7> record{
        21, 3, 3, 0, 2, 2, static_cast<char>(description)};  // alert, TLS 1.2 framing, fatal
    refuse(reason, std::string_view(record.data(), record.size()));
  }

  // Sends the last words and closes; what the peer sent is read away first, so that it is a FIN and not a reset that
  // follows.
  void refuse(std::string_view reason, std::string_view last_words) {
    shared_.refused(reason);
    spdlog::debug("refusing {}: {}", peer_, reason);
    const int descriptor = socket_.native_handle();
    if (!last_words.empty()) {
      std::array<char, 4096> scrap;
      for (int i = 0; i < 16 && ::recv(descriptor, scrap.data(), scrap.size(), MSG_DONTWAIT) > 0; ++i) continue;
      // A few bytes into an empty send buffer: this cannot block, and if the peer is gone nobody misses it.
      [[maybe_unused]] const ssize_t sent =
          ::send(descriptor, last_words.data(), last_words.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    }
    end();
  }

  void hand_over(const ClientHello& hello) {
    done_ = true;
    timer_.cancel();
    const int low_water = 1;
    ::setsockopt(socket_.native_handle(), SOL_SOCKET, SO_RCVLOWAT, &low_water, sizeof low_water);
    const auto spent = std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() - began_);
    const auto left = std::max(shared_.handshake - spent, std::chrono::milliseconds(1));
    shared_.take({std::move(socket_), hello, std::move(peer_), std::move(slot_), left});
  }

  void end() {
    done_ = true;
    timer_.cancel();
    boost::system::error_code ignored;
    socket_.shutdown(StrandSocket::shutdown_both, ignored);
    socket_.close(ignored);
  }

  Listener::Shared& shared_;
  StrandSocket socket_;
  StrandTimer timer_;
  std::string peer_;
  Connections::Slot slot_;
  const std::chrono::steady_clock::time_point began_;
  std::size_t seen_ = 0;
  bool done_ = false;
};

}  // namespace

Listener::Listener(std::unique_ptr<Shared> shared) : shared_(std::move(shared)) {}
Listener::~Listener() = default;

Result<std::unique_ptr<Listener>> Listener::open(asio::io_context& io, const std::string& address, std::uint16_t port,
                                                 std::chrono::milliseconds handshake, Connections& connections,
                                                 Metrics& metrics, Take take) {
  boost::system::error_code error;
  const auto parsed = asio::ip::make_address(address, error);
  if (error) return invalid_argument("'" + address + "' is not an IPv4 or IPv6 address to listen on");
  const tcp::endpoint endpoint(parsed, port);
  auto shared = std::make_unique<Shared>(io, handshake, connections, metrics, std::move(take));
  auto& acceptor = shared->acceptor;
  const auto failed = [&](std::string_view what) {
    return unavailable("cannot " + std::string(what) + ' ' + address + " port " + std::to_string(port) + ": " +
                       error.message());
  };
  if (acceptor.open(endpoint.protocol(), error); error) return failed("open a socket for");
  ::fcntl(acceptor.native_handle(), F_SETFD, FD_CLOEXEC);
  acceptor.set_option(asio::socket_base::reuse_address(true), error);
  if (endpoint.protocol() == tcp::v6()) acceptor.set_option(asio::ip::v6_only(false), error);
  if (acceptor.bind(endpoint, error); error) return failed("bind");
  if (acceptor.listen(1024, error); error) return failed("listen on");
  acceptor.native_non_blocking(true, error);
  auto listener = std::unique_ptr<Listener>(new Listener(std::move(shared)));
  listener->port_ = listener->shared_->acceptor.local_endpoint(error).port();
  return listener;
}

void Listener::start() {
  asio::post(shared_->strand, [this] { accept(); });
}

void Listener::stop() {
  asio::post(shared_->strand, [this] {
    boost::system::error_code ignored;
    shared_->acceptor.close(ignored);
    shared_->pause.cancel();
  });
}

void Listener::accept() {
  if (!shared_->acceptor.is_open()) return;
  shared_->acceptor.async_wait(tcp::acceptor::wait_read, [this](boost::system::error_code error) {
    if (!error) accept_all();
  });
}

void Listener::accept_all() {
  for (;;) {
    const int descriptor = ::accept4(shared_->acceptor.native_handle(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (descriptor >= 0) {
      greet(descriptor);
      continue;
    }
    if (errno == EINTR || errno == ECONNABORTED) continue;
    if (errno == EAGAIN || errno == EWOULDBLOCK) return accept();
    // Out of descriptors or memory: the waiting connection stays in the queue, so look again a little later.
    spdlog::warn("cannot accept connections: {}; trying again in 100 ms", std::strerror(errno));
    shared_->refused("no_descriptors");
    shared_->pause.expires_after(std::chrono::milliseconds(100));
    shared_->pause.async_wait([this](boost::system::error_code error) {
      if (!error) accept_all();
    });
    return;
  }
}

void Listener::greet(int descriptor) {
  sockaddr_storage raw{};
  socklen_t length = sizeof raw;
  tcp::endpoint endpoint;
  if (::getpeername(descriptor, reinterpret_cast<sockaddr*>(&raw), &length) != 0 || length > endpoint.capacity()) {
    ::close(descriptor);
    return;
  }
  std::memcpy(endpoint.data(), &raw, length);
  endpoint.resize(length);
  std::string peer = peer_text(endpoint);
  auto slot = shared_->connections.admit(address_of_peer(peer));
  if (!slot.ok()) {
    spdlog::debug("refusing {}: {}", peer, slot.error().message);
    shared_->refused("too_many");
    ::close(descriptor);
    return;
  }
  const int on = 1;
  ::setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  const auto protocol = endpoint.protocol();
  StrandSocket socket(asio::make_strand(shared_->io), protocol, descriptor);
  // Shared because its timer and its wait both hold it.
  std::make_shared<Greeting>(*shared_, std::move(socket), std::move(peer), std::move(slot).value())->start();
}

}  // namespace skerry::server
