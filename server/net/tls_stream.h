// TLS over a non-blocking socket, with OpenSSL writing to the socket itself.
//
// asio::ssl::stream passes each 16 KiB record through a memory buffer and the event loop; here one call moves a whole
// piece of up to 256 KiB, and reads take several records from the kernel at once. Used from one strand; one read and
// one write may be under way at a time, and callbacks never run inside the call that started them.
#pragma once

#include "common/base/result.h"
#include "server/net/asio.h"

#include <openssl/types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

namespace skerry::server {

/// A TLS 1.3 server context: the certificate, ALPN http/1.1, client certificates requested but not verified, no
/// resumption (a resumed session would not show its certificate chain again). INVALID_ARGUMENT names the file and why.
Result<std::shared_ptr<SSL_CTX>> make_server_context(const std::string& certificate_file, const std::string& key_file);

class TlsStream {
 public:
  /// Whether it went well; false also at the end of the stream, after which the connection is of no more use.
  using Done = std::function<void(bool ok)>;
  using ReadDone = std::function<void(std::size_t bytes)>;  ///< 0: the end, or an error

  TlsStream(StrandSocket socket, SSL_CTX* context);
  ~TlsStream();
  TlsStream(const TlsStream&) = delete;
  TlsStream& operator=(const TlsStream&) = delete;

  void handshake(Done done);
  /// Reads what is there, at least one byte and at most `into`.
  void read_some(std::span<std::byte> into, ReadDone done);
  /// Writes all of `bytes`, which stay valid until `done`.
  void write(std::span<const std::byte> bytes, Done done);

  /// Says that nothing more will be written (close_notify, FIN).
  void finish_writing();
  /// Throws away what still arrives, so that the peer reads our last answer; `done` at the end of the stream.
  void drain(Done done);
  /// Ends everything under way at once; callbacks come with failure.
  void close();

  /// The certificates the peer showed, PEM, leaf first; "" where it showed none.
  std::string peer_chain_pem() const;
  /// Bytes of payload moved so far, both ways.
  std::uint64_t progress() const { return progress_; }
  Strand executor() { return socket_.get_executor(); }

 private:
  void wait_then(int ssl_error, std::function<void(bool)> again);

  StrandSocket socket_;
  std::unique_ptr<SSL, void (*)(SSL*)> ssl_;
  std::uint64_t progress_ = 0;
  bool closed_ = false;
};

}  // namespace skerry::server
