#include "tests/bench/parts/raw_tls.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <sys/socket.h>

#include <cerrno>
#include <chrono>
#include <memory>
#include <thread>
#include <vector>

#include "common/os/files.h"

namespace skerry::bench {
namespace {

struct Release {
  void operator()(SSL_CTX* context) const { SSL_CTX_free(context); }
  void operator()(SSL* ssl) const { SSL_free(ssl); }
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
  void operator()(X509* certificate) const { X509_free(certificate); }
};
template <typename T>
using Owned = std::unique_ptr<T, Release>;

Error openssl_error(const char* what) {
  char text[256];
  ERR_error_string_n(ERR_get_error(), text, sizeof text);
  return internal_error(std::string(what) + ": " + text);
}

/// A context with a self-signed P-256 certificate of this minute.
Result<Owned<SSL_CTX>> server_context() {
  Owned<SSL_CTX> context(SSL_CTX_new(TLS_server_method()));
  Owned<EVP_PKEY> key(EVP_EC_gen("P-256"));
  Owned<X509> certificate(X509_new());
  if (!context || !key || !certificate) return openssl_error("making a key");
  X509_gmtime_adj(X509_getm_notBefore(certificate.get()), -3600);
  X509_gmtime_adj(X509_getm_notAfter(certificate.get()), 3600);
  X509_set_pubkey(certificate.get(), key.get());
  if (X509_sign(certificate.get(), key.get(), EVP_sha256()) == 0) return openssl_error("signing a certificate");
  if (SSL_CTX_use_certificate(context.get(), certificate.get()) != 1 || SSL_CTX_use_PrivateKey(context.get(), key.get()) != 1)
    return openssl_error("using a certificate");
  SSL_CTX_set_min_proto_version(context.get(), TLS1_3_VERSION);
  return context;
}

struct Pair {
  FileDescriptor client, server;
};

Result<Pair> connected_pair() {
  const FileDescriptor listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  if (!listener || ::bind(listener.get(), generic, size) != 0 || ::listen(listener.get(), 1) != 0 ||
      ::getsockname(listener.get(), generic, &size) != 0)
    return file_error(errno, "listen on", "127.0.0.1");
  Pair pair;
  pair.client = FileDescriptor(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (::connect(pair.client.get(), generic, size) != 0) return file_error(errno, "connect to", "127.0.0.1");
  pair.server = FileDescriptor(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!pair.server) return file_error(errno, "accept on", "127.0.0.1");
  const int on = 1;
  for (const int fd : {pair.client.get(), pair.server.get()}) (void)::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  return pair;
}

}  // namespace

Result<double> raw_tls_rate(std::uint64_t bytes, std::size_t piece) {
  SKERRY_ASSIGN(const Owned<SSL_CTX> server_side, server_context());
  const Owned<SSL_CTX> client_side(SSL_CTX_new(TLS_client_method()));
  SKERRY_ASSIGN(const Pair sockets, connected_pair());
  const Owned<SSL> server(SSL_new(server_side.get()));
  const Owned<SSL> client(SSL_new(client_side.get()));
  SSL_set_fd(server.get(), sockets.server.get());
  SSL_set_fd(client.get(), sockets.client.get());

  std::uint64_t received = 0;
  std::thread receiver([&] {
    if (SSL_accept(server.get()) != 1) return;
    std::vector<char> buffer(piece);
    while (received < bytes) {
      const int count = SSL_read(server.get(), buffer.data(), static_cast<int>(buffer.size()));
      if (count <= 0) return;
      received += static_cast<std::uint64_t>(count);
    }
  });
  std::chrono::steady_clock::time_point start;
  bool sent_all = false;
  if (SSL_connect(client.get()) == 1) {
    start = std::chrono::steady_clock::now();
    const std::vector<char> buffer(piece, 'x');
    std::uint64_t sent = 0;
    while (sent < bytes) {
      const int wanted = static_cast<int>(std::min<std::uint64_t>(piece, bytes - sent));
      const int count = SSL_write(client.get(), buffer.data(), wanted);
      if (count <= 0) break;
      sent += static_cast<std::uint64_t>(count);
    }
    sent_all = sent == bytes;
  }
  if (!sent_all) (void)::shutdown(sockets.client.get(), SHUT_RDWR);
  receiver.join();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (!sent_all || received != bytes) return openssl_error("TLS over loopback");
  return static_cast<double>(bytes) / seconds;
}

}  // namespace skerry::bench
