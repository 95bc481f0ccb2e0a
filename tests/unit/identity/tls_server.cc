#include "tests/unit/identity/tls_server.h"

#include <arpa/inet.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>

namespace skerry::test {
namespace {

int listen_on_loopback(int& port) {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  if (fd < 0 || ::bind(fd, reinterpret_cast<sockaddr*>(&address), size) != 0 || ::listen(fd, 16) != 0 ||
      ::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0)
    std::abort();
  port = ntohs(address.sin_port);
  return fd;
}

// The next connection, or -1 once `ending`.
int accept_until(int listener, const std::atomic<bool>& ending) {
  while (!ending) {
    pollfd waiting{listener, POLLIN, 0};
    if (::poll(&waiting, 1, 20) == 1) return ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
  }
  return -1;
}

std::size_t content_length(const std::string& head) {
  const std::size_t at = head.find("Content-Length: ");
  return at == std::string::npos ? 0 : std::strtoull(head.c_str() + at + 16, nullptr, 10);
}

}  // namespace

TlsServer::TlsServer(TlsServerOptions options) : options_(std::move(options)) {
  std::signal(SIGPIPE, SIG_IGN);
  listener_ = listen_on_loopback(port_);
  thread_ = std::thread([this] { serve(); });
}

TlsServer::~TlsServer() {
  ending_ = true;
  drop();
  thread_.join();
  ::close(listener_);
}

void TlsServer::drop() {
  const int fd = current_;
  if (fd >= 0) ::shutdown(fd, SHUT_RDWR);
}

void TlsServer::serve() {
  for (int fd = accept_until(listener_, ending_); fd >= 0; fd = accept_until(listener_, ending_)) {
    current_ = fd;
    serve_one(fd);
    current_ = -1;
    ::close(fd);
  }
}

void TlsServer::serve_one(int fd) {
  SSL_CTX* context = SSL_CTX_new(TLS_server_method());
  SSL_CTX_use_certificate_chain_file(context, options_.certificate_path.c_str());
  SSL_CTX_use_PrivateKey_file(context, options_.key_path.c_str(), SSL_FILETYPE_PEM);
  if (options_.max_version != 0) SSL_CTX_set_max_proto_version(context, options_.max_version);
  SSL_CTX_set_verify(context, SSL_VERIFY_PEER, [](int, X509_STORE_CTX*) { return 1; });
  SSL* ssl = SSL_new(context);
  SSL_set_fd(ssl, fd);
  if (SSL_accept(ssl) == 1) {
    ++connections_;
    std::string pending;
    std::string buffer(1 << 16, '\0');
    for (int got = SSL_read(ssl, buffer.data(), static_cast<int>(buffer.size())); got > 0;
         got = SSL_read(ssl, buffer.data(), static_cast<int>(buffer.size()))) {
      pending.append(buffer, 0, static_cast<std::size_t>(got));
      const std::size_t end = pending.find("\r\n\r\n");
      if (end == std::string::npos) continue;
      const std::string head = pending.substr(0, end + 2);
      const std::size_t whole = end + 4 + content_length(head);
      if (pending.size() < whole) continue;
      const std::string answer = options_.answer(head, pending.substr(end + 4, whole - end - 4));
      pending.erase(0, whole);
      if (!answer.empty() && SSL_write(ssl, answer.data(), static_cast<int>(answer.size())) <= 0) break;
    }
    SSL_shutdown(ssl);
  }
  ERR_clear_error();
  SSL_free(ssl);
  SSL_CTX_free(context);
}

ConnectProxy::ConnectProxy(int status) : status_(status) {
  listener_ = listen_on_loopback(port_);
  thread_ = std::thread([this] { serve(); });
}

ConnectProxy::~ConnectProxy() {
  ending_ = true;
  thread_.join();
  ::close(listener_);
}

std::string ConnectProxy::seen() const {
  const std::scoped_lock lock(mutex_);
  return seen_;
}

void ConnectProxy::serve() {
  for (int fd = accept_until(listener_, ending_); fd >= 0; fd = accept_until(listener_, ending_)) {
    std::string head;
    char buffer[1 << 14];
    while (head.find("\r\n\r\n") == std::string::npos) {
      const ssize_t got = ::read(fd, buffer, sizeof buffer);
      if (got <= 0) break;
      head.append(buffer, static_cast<std::size_t>(got));
    }
    {
      const std::scoped_lock lock(mutex_);
      seen_ = head.substr(0, head.find("\r\n"));
    }
    const std::string answer = "HTTP/1.1 " + std::to_string(status_) + " X\r\n" + (status_ == 200 ? "" : "Content-Length: 0\r\n") + "\r\n";
    (void)!::write(fd, answer.data(), answer.size());
    if (status_ == 200) {
      const std::size_t colon = head.find(':');
      sockaddr_in address{};
      address.sin_family = AF_INET;
      address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
      address.sin_port = htons(static_cast<std::uint16_t>(std::atoi(head.c_str() + colon + 1)));
      const int target = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
      if (::connect(target, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0) {
        for (bool open = true; open && !ending_;) {
          pollfd ends[2] = {{fd, POLLIN, 0}, {target, POLLIN, 0}};
          if (::poll(ends, 2, 20) <= 0) continue;
          for (int i = 0; i < 2 && open; ++i) {
            if ((ends[i].revents & (POLLIN | POLLHUP)) == 0) continue;
            const ssize_t got = ::read(ends[i].fd, buffer, sizeof buffer);
            open = got > 0 && ::write(ends[1 - i].fd, buffer, static_cast<std::size_t>(got)) == got;
          }
        }
      }
      ::close(target);
    }
    ::close(fd);
  }
}

std::string http_answer(int status, const std::string& body, const std::string& headers) {
  return "HTTP/1.1 " + std::to_string(status) + " X\r\nContent-Length: " + std::to_string(body.size()) + "\r\n" + headers + "\r\n" + body;
}

int closed_port() {
  int port = 0;
  ::close(listen_on_loopback(port));
  return port;
}

}  // namespace skerry::test
