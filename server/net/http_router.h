// Which handler answers which HTTP request. Pure: no sockets; server/net/port.h runs it.
#pragma once

#include "common/base/result.h"
#include "common/identity/authenticate.h"

#include <nlohmann/json_fwd.hpp>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace skerry::server {

/// One request, whole: body read, peer authenticated, access granted by server/net/access.h.
struct HttpRequest {
  std::string method;                                       ///< "GET", "HEAD", "POST", …
  std::string path;                                         ///< decoded, without the query
  std::map<std::string, std::string, std::less<>> params;   ///< from the pattern: {run} → params["run"], decoded
  std::map<std::string, std::string, std::less<>> query;    ///< decoded; the last of equal names counts
  std::map<std::string, std::string, std::less<>> headers;  ///< names in lower case; repeated ones joined by ", "
  std::string body;
  std::optional<Identity> identity;  ///< empty: an anonymous caller
  std::string anonymous_reason;      ///< why anonymous: "no certificate", "certificate expired on …"
  std::string chain_pem;             ///< certificates shown, PEM, leaf first
  std::string peer;                  ///< "ipv4:192.0.2.7:41234" or "ipv6:[2001:db8::1]:41234"
  std::string peer_address;          ///< the address alone: "192.0.2.7"

  /// The value, or "" where there is none.
  std::string_view param(std::string_view name) const;
  std::string_view query_value(std::string_view name) const;
  std::string_view header(std::string_view lower_case_name) const;
};

/// The answer. `Content-Length`, `Date`, `Server` and the security headers are added by the port.
struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers;

  static HttpResponse json(const nlohmann::json& value, int status = 200);
  static HttpResponse text(std::string body, std::string content_type = "text/plain; charset=utf-8", int status = 200);
  /// {"error":{"code":"NOT_FOUND","message":…}} with the status of `http_status(error.code)`.
  static HttpResponse error(const Error& error);
};

/// 400 for INVALID_ARGUMENT and OUT_OF_RANGE, 401, 403, 404, 409 (ALREADY_EXISTS, ABORTED, FAILED_PRECONDITION), 422
/// (DATA_LOSS), 429 (RESOURCE_EXHAUSTED), 501, 503, 504; else 500.
int http_status(Code code);

/// Answers one request; may block (it runs on the port's worker threads) and is called from several threads at once. An
/// exception that escapes is answered with 500 and logged. HEAD is answered by the GET handler, its body cut off.
using HttpHandler = std::function<HttpResponse(const HttpRequest&)>;

/// Per route.
struct RouteOptions {
  std::size_t max_body_bytes = 64 * 1024;  ///< a larger body is answered with 413
};

/// Methods and path patterns. A pattern is "/" and segments joined by "/"; `{name}` matches one segment that is not
/// empty,
/// `{name...}` as the last one matches the rest (not empty). A literal segment wins over `{name}`, which wins over the
/// rest.
class HttpRouter {
 public:
  /// Who may call is looked up in server/net/access.cc by (method, pattern); a route without an entry there is refused
  /// at `Port::open`. Adding a method and pattern twice is our own mistake and is asserted.
  HttpRouter& add(std::string_view method, std::string_view pattern, HttpHandler handler, RouteOptions options = {});

  struct Route {
    std::string method;
    std::string pattern;
    HttpHandler handler;
    RouteOptions options;
  };
  struct Match {
    const Route* route = nullptr;
    std::map<std::string, std::string, std::less<>> params;
  };
  struct NoMatch {
    std::vector<std::string> allow;  ///< methods the path knows; empty: the path is unknown (404, else 405)
  };

  /// `path` is still percent-encoded. HEAD finds GET's route.
  std::variant<Match, NoMatch> find(std::string_view method, std::string_view path) const;
  const std::vector<Route>& routes() const { return routes_; }

 private:
  std::vector<Route> routes_;
};

/// `%41` → "A"; nothing where an escape is broken or makes a NUL byte.
std::optional<std::string> percent_decode(std::string_view text, bool plus_is_space = false);

/// "a=1&b=x%20y" → {a: "1", b: "x y"}; nothing where an escape is broken.
std::optional<std::map<std::string, std::string, std::less<>>> parse_query(std::string_view text);

}  // namespace skerry::server
