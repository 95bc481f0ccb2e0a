#include "server/net/tls_stream.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include <algorithm>
#include <array>

namespace skerry::server {
namespace {

// How much one read(2) may take: several records of 16 KiB. Released again when the connection is idle.
constexpr std::size_t kReadAheadBytes = 128 * 1024;
constexpr long kMaxPeerChainBytes = 32 * 1024;

std::string openssl_reason() {
  const unsigned long code = ERR_get_error();
  ERR_clear_error();
  if (code == 0) return "unknown reason";
  std::array<char, 256> text{};
  ERR_error_string_n(code, text.data(), text.size());
  return text.data();
}

int choose_protocol(SSL*, const unsigned char** out, unsigned char* out_length, const unsigned char* in,
                    unsigned in_length, void*) {
  static constexpr std::array<unsigned char, 9> kHttp11{8, 'h', 't', 't', 'p', '/', '1', '.', '1'};
  unsigned char* chosen = nullptr;
  if (SSL_select_next_proto(&chosen, out_length, kHttp11.data(), kHttp11.size(), in, in_length) !=
      OPENSSL_NPN_NEGOTIATED)
    return SSL_TLSEXT_ERR_ALERT_FATAL;
  *out = chosen;
  return SSL_TLSEXT_ERR_OK;
}

void append_pem(std::string& out, X509* certificate) {
  const std::unique_ptr<BIO, int (*)(BIO*)> bio(BIO_new(BIO_s_mem()), BIO_free);
  if (!bio || PEM_write_bio_X509(bio.get(), certificate) != 1) return;
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio.get(), &data);
  if (size > 0) out.append(data, static_cast<std::size_t>(size));
}

}  // namespace

Result<std::shared_ptr<SSL_CTX>> make_server_context(const std::string& certificate_file, const std::string& key_file) {
  ERR_clear_error();
  std::shared_ptr<SSL_CTX> context(SSL_CTX_new(TLS_server_method()), SSL_CTX_free);
  if (!context) return internal_error("OpenSSL gave no TLS context: " + openssl_reason());
  SSL_CTX* ctx = context.get();
  if (SSL_CTX_use_certificate_chain_file(ctx, certificate_file.c_str()) != 1)
    return invalid_argument("the server's certificate " + certificate_file + " cannot be used: " + openssl_reason());
  if (SSL_CTX_use_PrivateKey_file(ctx, key_file.c_str(), SSL_FILETYPE_PEM) != 1)
    return invalid_argument("the server's key " + key_file + " cannot be used: " + openssl_reason());
  if (SSL_CTX_check_private_key(ctx) != 1)
    return invalid_argument("the server's key " + key_file + " does not belong to " + certificate_file + ": " +
                            openssl_reason());

  SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION);
  SSL_CTX_set_mode(ctx, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_RELEASE_BUFFERS);
  SSL_CTX_set_read_ahead(ctx, 1);
  SSL_CTX_set_default_read_buffer_len(ctx, kReadAheadBytes);
  SSL_CTX_set_max_cert_list(ctx, kMaxPeerChainBytes);
  SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET | SSL_OP_IGNORE_UNEXPECTED_EOF);
  SSL_CTX_set_num_tickets(ctx, 0);
  SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER, nullptr);
  SSL_CTX_set_cert_verify_callback(
      ctx, [](X509_STORE_CTX*, void*) { return 1; }, nullptr);
  SSL_CTX_set_alpn_select_cb(ctx, choose_protocol, nullptr);
  return context;
}

TlsStream::TlsStream(StrandSocket socket, SSL_CTX* context)
    : socket_(std::move(socket)), ssl_(SSL_new(context), SSL_free) {
  if (!ssl_ || SSL_set_fd(ssl_.get(), socket_.native_handle()) != 1) {
    closed_ = true;
    return;
  }
  SSL_set_accept_state(ssl_.get());
}

TlsStream::~TlsStream() = default;

// Waits until the socket is ready for what OpenSSL wants; `again(false)` where it is a failure.
void TlsStream::wait_then(int ssl_error, std::function<void(bool)> again) {
  if (closed_ || (ssl_error != SSL_ERROR_WANT_READ && ssl_error != SSL_ERROR_WANT_WRITE)) {
    asio::post(socket_.get_executor(), [again = std::move(again)] { again(false); });
    return;
  }
  const auto direction = ssl_error == SSL_ERROR_WANT_READ ? StrandSocket::wait_read : StrandSocket::wait_write;
  socket_.async_wait(direction,
                     [this, again = std::move(again)](boost::system::error_code error) { again(!error && !closed_); });
}

void TlsStream::handshake(Done done) {
  if (closed_) return wait_then(SSL_ERROR_SSL, std::move(done));
  ERR_clear_error();
  const int result = SSL_do_handshake(ssl_.get());
  if (result == 1) {
    asio::post(socket_.get_executor(), [done = std::move(done)] { done(true); });
    return;
  }
  const int error = SSL_get_error(ssl_.get(), result);
  if (error != SSL_ERROR_WANT_READ && error != SSL_ERROR_WANT_WRITE) return wait_then(SSL_ERROR_SSL, std::move(done));
  wait_then(error, [this, done = std::move(done)](bool ok) {
    if (ok) return handshake(done);
    done(false);
  });
}

void TlsStream::read_some(std::span<std::byte> into, ReadDone done) {
  std::size_t got = 0;
  int error = SSL_ERROR_SSL;
  while (!closed_ && got < into.size()) {
    ERR_clear_error();
    std::size_t count = 0;
    const int result = SSL_read_ex(ssl_.get(), into.data() + got, into.size() - got, &count);
    if (result != 1) {
      error = SSL_get_error(ssl_.get(), result);
      break;
    }
    got += count;
  }
  progress_ += got;
  if (got > 0) {
    asio::post(socket_.get_executor(), [got, done = std::move(done)] { done(got); });
    return;
  }
  wait_then(error, [this, into, done = std::move(done)](bool ok) {
    if (ok) return read_some(into, done);
    done(0);
  });
}

void TlsStream::write(std::span<const std::byte> bytes, Done done) {
  int error = SSL_ERROR_SSL;
  while (!closed_ && !bytes.empty()) {
    ERR_clear_error();
    std::size_t count = 0;
    const int result = SSL_write_ex(ssl_.get(), bytes.data(), bytes.size(), &count);
    if (result != 1) {
      error = SSL_get_error(ssl_.get(), result);
      break;
    }
    bytes = bytes.subspan(count);
    progress_ += count;
  }
  if (bytes.empty() && !closed_) {
    asio::post(socket_.get_executor(), [done = std::move(done)] { done(true); });
    return;
  }
  wait_then(error, [this, bytes, done = std::move(done)](bool ok) {
    if (ok) return write(bytes, done);
    done(false);
  });
}

void TlsStream::finish_writing() {
  if (closed_) return;
  ERR_clear_error();
  SSL_shutdown(ssl_.get());
  boost::system::error_code ignored;
  socket_.shutdown(StrandSocket::shutdown_send, ignored);
}

void TlsStream::drain(Done done) {
  std::array<std::byte, 16 * 1024> scrap;
  while (!closed_) {
    const ssize_t count = ::recv(socket_.native_handle(), scrap.data(), scrap.size(), MSG_DONTWAIT);
    if (count > 0) continue;
    const bool more = count < 0 && (errno == EAGAIN || errno == EINTR);
    if (!more) break;
    wait_then(SSL_ERROR_WANT_READ, [this, done = std::move(done)](bool ok) {
      if (ok) return drain(done);
      done(false);
    });
    return;
  }
  asio::post(socket_.get_executor(), [done = std::move(done)] { done(true); });
}

void TlsStream::close() {
  if (closed_) return;
  closed_ = true;
  boost::system::error_code ignored;
  socket_.shutdown(StrandSocket::shutdown_both, ignored);
  socket_.close(ignored);
}

std::string TlsStream::peer_chain_pem() const {
  std::string chain;
  if (!ssl_) return chain;
  const std::unique_ptr<X509, void (*)(X509*)> leaf(SSL_get1_peer_certificate(ssl_.get()), X509_free);
  if (!leaf) return chain;
  append_pem(chain, leaf.get());
  const STACK_OF(X509)* others = SSL_get_peer_cert_chain(ssl_.get());
  for (int i = 0; others && i < std::min(sk_X509_num(others), 8); ++i) append_pem(chain, sk_X509_value(others, i));
  return chain;
}

}  // namespace skerry::server
