#include "server/net/http_side.h"

#include "server/metrics/metrics.h"

#include <algorithm>
#include <array>

namespace skerry::server {
namespace {

struct OwnRoute {
  std::string_view method;
  std::string_view pattern;
  BuiltIn built_in;
};

constexpr std::array kCargoRoutes{
    OwnRoute{"GET", "/api/v1/cargo/{id}", BuiltIn::kCargoDownload},
    OwnRoute{"PUT", "/api/v1/cargo/{id}", BuiltIn::kCargoUpload},
    OwnRoute{"GET", "/api/v1/cargo/{id}/upload", BuiltIn::kUploadStatus},
};
constexpr std::array kMeasureRoutes{
    OwnRoute{"GET", "/api/v1/measure/source", BuiltIn::kMeasureSource},
    OwnRoute{"PUT", "/api/v1/measure/sink", BuiltIn::kMeasureSink},
};

BuiltIn built_in(const HttpRouter::Route& route) {
  const auto same = [&](const OwnRoute& own) { return own.method == route.method && own.pattern == route.pattern; };
  if (const auto* own = std::find_if(kCargoRoutes.begin(), kCargoRoutes.end(), same); own != kCargoRoutes.end())
    return own->built_in;
  const auto* own = std::find_if(kMeasureRoutes.begin(), kMeasureRoutes.end(), same);
  return own == kMeasureRoutes.end() ? BuiltIn::kNone : own->built_in;
}

HttpResponse never_called(const HttpRequest&) {
  return HttpResponse::error(internal_error("a built-in route was handled"));
}

}  // namespace

HttpSide::HttpSide(const PortOptions& o, HttpRouter r, Connections& c)
    : options(o),
      router(std::move(r)),
      connections(c),
      slow_peers(
          o.metrics->counter("skerry_slow_peers_total", "Connections closed because their body made no progress.")),
      workers(std::max(1u, o.worker_threads)),
      disk(std::max(1u, o.worker_threads)) {}

Result<std::unique_ptr<HttpSide>> HttpSide::make(const PortOptions& options, HttpRouter router,
                                                 Connections& connections) {
  if (options.cargo) {
    for (const OwnRoute& own : kCargoRoutes) router.add(own.method, own.pattern, never_called);
  }
  if (options.measure_routes) {
    for (const OwnRoute& own : kMeasureRoutes) router.add(own.method, own.pattern, never_called);
  }
  auto side = std::make_unique<HttpSide>(options, std::move(router), connections);
  for (const HttpRouter::Route& route : side->router.routes()) {
    const Access access = access_for(route.method, route.pattern);
    if (access == Access::kDenied) {
      return internal_error("the route " + route.method + ' ' + route.pattern +
                            " has no entry in the access table: add one in server/net/access.cc");
    }
    side->facts_.emplace(&route, RouteFacts{built_in(route), access});
  }
  return side;
}

Counter& HttpSide::bytes(std::string_view direction, std::string_view member) {
  return options.metrics->counter("skerry_http_body_bytes_total", "Bytes of HTTP bodies, by direction and member.",
                                  {{"direction", std::string(direction)}, {"member", std::string(member)}});
}

void HttpSide::count_request(std::string_view method, std::string_view route, int status, std::int64_t took_ms) {
  static constexpr std::array kKnown{"GET", "HEAD", "PUT", "POST", "DELETE"};
  const bool known = std::find(kKnown.begin(), kKnown.end(), method) != kKnown.end();
  options.metrics
      ->counter("skerry_http_requests_total", "HTTP requests, by method, route and status.",
                {{"method", std::string(known ? method : "other")},
                 {"route", std::string(route)},
                 {"status", std::to_string(status)}})
      .add();
  options.metrics
      ->histogram("skerry_http_request_seconds", "From a request's header to the end of its answer.", duration_bounds(),
                  {{"route", std::string(route)}})
      .observe(static_cast<double>(took_ms) / 1000);
}

}  // namespace skerry::server
