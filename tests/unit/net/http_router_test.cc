#include "server/net/http_router.h"

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

using namespace skerry;
using namespace skerry::server;

namespace {

HttpRouter routes() {
  const auto nothing = [](const HttpRequest&) { return HttpResponse(); };
  HttpRouter router;
  router.add("GET", "/", nothing);
  router.add("GET", "/runs", nothing);
  router.add("POST", "/runs", nothing);
  router.add("GET", "/runs/{run}", nothing);
  router.add("GET", "/runs/latest", nothing);
  router.add("POST", "/runs/{run}/{action}", nothing);
  router.add("GET", "/files/{path...}", nothing);
  return router;
}

std::string found(const HttpRouter& router, std::string_view method, std::string_view path) {
  const auto result = router.find(method, path);
  if (const auto* none = std::get_if<HttpRouter::NoMatch>(&result)) {
    std::string text = "allow";
    for (const auto& one : none->allow) text += " " + one;
    return text;
  }
  const auto& match = std::get<HttpRouter::Match>(result);
  std::string text = match.route->pattern;
  for (const auto& [name, value] : match.params) text += " " + name + "=" + value;
  return text;
}

}  // namespace

TEST_CASE("a path finds its pattern and its parameters are decoded") {
  const HttpRouter router = routes();
  CHECK(found(router, "GET", "/") == "/");
  CHECK(found(router, "HEAD", "/runs") == "/runs");
  CHECK(found(router, "GET", "/runs/r%2D1%2F2") == "/runs/{run} run=r-1/2");
  CHECK(found(router, "POST", "/runs/r1/stop") == "/runs/{run}/{action} action=stop run=r1");
  CHECK(found(router, "GET", "/files/a/b.css") == "/files/{path...} path=a/b.css");
}

TEST_CASE("a literal segment wins over a parameter, wherever it was added") {
  CHECK(found(routes(), "GET", "/runs/latest") == "/runs/latest");
}

TEST_CASE("a known path with another method names the methods, an unknown path none") {
  const HttpRouter router = routes();
  CHECK(found(router, "DELETE", "/runs") == "allow GET HEAD POST");
  CHECK(found(router, "GET", "/runs/r1/stop") == "allow POST");
  for (const char* path : {"/run", "/runs/", "/runs//stop", "/files/", "runs", "", "/runs/%zz", "/runs/a%00b"}) {
    INFO(path);
    CHECK(found(router, "GET", path) == "allow");
  }
}

TEST_CASE("queries are decoded, the last of equal names counts, and broken escapes are noticed") {
  const auto query = parse_query("a=1&b=x%20y+z&a=2&flag&=&");
  REQUIRE(query.has_value());
  CHECK(query->at("a") == "2");
  CHECK(query->at("b") == "x y z");
  CHECK(query->at("flag").empty());
  for (const char* broken : {"a=%", "a=%1", "a=%g1", "%00=1"}) CHECK_FALSE(parse_query(broken).has_value());
}

TEST_CASE("an error becomes JSON with its code and the fitting status") {
  const HttpResponse response = HttpResponse::error(not_found("no run 'r9'"));
  CHECK(response.status == 404);
  CHECK(response.body == R"({"error":{"code":"NOT_FOUND","message":"no run 'r9'"}})");
  CHECK(HttpResponse::json("\xff").body == "\"\xef\xbf\xbd\"");
}
