// Reads the first bytes of a TLS connection without consuming them: which protocols and versions does the client offer?
//
// Pure; source: RFC 8446 §4.1.2, §4.2.1, §5.1; RFC 7301; RFC 6066 §3. The bytes come from strangers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace skerry::server {

/// A ClientHello with its handshake header is refused beyond this (browsers with post-quantum keys send about 2 KiB).
inline constexpr std::size_t kMaxClientHelloBytes = 16 * 1024;
/// Bytes on the wire, with record headers: more than this is never needed to see a whole ClientHello. A client that
/// splits its ClientHello into records of fewer than 16 bytes is refused.
inline constexpr std::size_t kMaxClientHelloWireBytes = 24 * 1024;

struct ClientHello {
  std::vector<std::string> alpn;  ///< in the client's order; empty: no such extension
  bool offers_tls13 = false;      ///< supported_versions contains 0x0304
  std::string server_name;        ///< SNI host name; empty: none

  bool offers(std::string_view protocol) const;
};

/// More bytes are needed: at least `at_least` in all.
struct NeedMore {
  std::size_t at_least = 0;
};

/// Not a ClientHello. `alert` is the TLS alert that says so (RFC 8446 §6.2), `reason` a sentence for the log.
struct NotClientHello {
  std::uint8_t alert = 0;
  std::string_view reason;
  bool plain_http = false;  ///< the bytes look like an HTTP request without TLS
};

/// `bytes` are the connection's first bytes, all of them so far, perhaps with more behind the ClientHello.
std::variant<NeedMore, ClientHello, NotClientHello> parse_client_hello(std::span<const std::uint8_t> bytes);

/// The port's rule: to gRPC iff the client offers h2 and not http/1.1 (gRPC offers grpc-exp, h2; browsers, curl, Go and
/// Prometheus offer both). Everything else speaks HTTP/1.1.
bool speaks_grpc(const ClientHello& hello);

inline constexpr std::uint8_t kAlertUnexpectedMessage = 10;
inline constexpr std::uint8_t kAlertDecodeError = 50;
inline constexpr std::uint8_t kAlertProtocolVersion = 70;

}  // namespace skerry::server
