// HTTPS requests over libcurl: TLS 1.3, HTTP/1.1, one connection kept alive per client, no redirects, nothing but https.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/base/result.h"

namespace skerry {

struct HttpOptions {
  std::string ca_pem;            ///< trust exactly these anchors
  bool verify_server = true;     ///< false only to fetch a CA whose fingerprint is then compared
  std::string certificate_path;  ///< own chain, PEM; empty: anonymous
  std::string key_path;          ///< own key, PEM
  std::string proxy;             ///< "http://[user:password@]host:port", used with CONNECT; empty: dial directly
  int connect_timeout_ms = 10'000;           ///< TCP, proxy and TLS together
  std::int64_t min_bytes_per_second = 1;     ///< slower than this …
  int stall_timeout_s = 60;                  ///< … for this long: the request fails (there is no total timeout)
  const std::atomic<bool>* cancelled = nullptr;  ///< give up within a second after it becomes true
};

/// Bytes `offset` … `offset + size` of an open file; read with pread, so that the file's position does not matter.
struct FileSlice {
  int fd = -1;
  std::uint64_t offset = 0;
  std::uint64_t size = 0;
};

struct HttpRequest {
  std::string method = "GET";  ///< GET, HEAD, POST, PUT, DELETE
  std::string url;             ///< https://host:port/path
  std::vector<std::pair<std::string, std::string>> headers;

  std::string body;                        ///< for POST and PUT, unless one of the next is set
  std::optional<FileSlice> file;           ///< upload from a file
  std::span<const std::byte> memory = {};  ///< upload from memory that outlives the call

  /// Range: bytes=first-[last]. The answer is 206, or 200 where the server sends the whole.
  std::optional<std::uint64_t> range_first;
  std::optional<std::uint64_t> range_last;

  /// Takes the body of a 2xx answer piece by piece instead of HttpResponse::body; `status` is 200, 206 or the like. Its error
  /// ends the request and is returned.
  std::function<Result<void>(int status, std::span<const std::byte> piece)> sink;
  std::size_t max_body = 1 << 20;  ///< of HttpResponse::body; a longer one is RESOURCE_EXHAUSTED
};

struct HttpResponse {
  int status = 0;
  std::vector<std::pair<std::string, std::string>> headers;  ///< names in lower case
  std::string body;

  /// The first header of this (lower-case) name; empty if there is none.
  std::string_view header(std::string_view name) const;
};

/// One easy handle and its connection. Not for use by two threads at once.
class HttpClient {
 public:
  explicit HttpClient(HttpOptions options);
  ~HttpClient();
  HttpClient(HttpClient&&) noexcept;
  HttpClient& operator=(HttpClient&&) noexcept;

  /// Any HTTP status is an answer, not an error. Errors: UNAVAILABLE and retryable (name not resolved, refused, proxy, stalled,
  /// broken off), UNAUTHENTICATED (the server's certificate: another CA, another host, expired, not yet valid; or the server
  /// refused ours), FAILED_PRECONDITION (no TLS 1.3), INVALID_ARGUMENT (URL, own certificate files), CANCELLED,
  /// RESOURCE_EXHAUSTED (body over max_body), and what the sink says. Messages name host and next step, never headers or bodies.
  Result<HttpResponse> send(const HttpRequest& request);

  /// Another flag to give up by from now on, or none; the connection stays.
  void watch(const std::atomic<bool>* cancelled);

  /// Replaces the options (say, after a renewal) and closes the connection.
  void reconfigure(HttpOptions options);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Percent-encodes everything but unreserved characters.
std::string url_encode(std::string_view text);

}  // namespace skerry
