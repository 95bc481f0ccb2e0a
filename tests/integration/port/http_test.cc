#include "common/crypto/content_id.h"
#include "common/os/files.h"
#include "tests/integration/port/world.h"

#include <catch2/catch.hpp>

#include <chrono>

using namespace skerry;
using namespace skerry::test;

namespace {

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("requests on one connection are answered one after another, HEAD without a body") {
  World world;
  Raw raw(world.port->port());
  REQUIRE(raw.handshake() == "");
  raw.send(
      "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nHEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /nothing "
      "HTTP/1.1\r\nConnection: close\r\n\r\n");
  const std::string answers = raw.receive(5000);
  CHECK(raw.ended());
  const std::size_t second = answers.find("HTTP/1.1 200 OK", 10);
  REQUIRE(second != std::string::npos);
  CHECK(has(answers.substr(0, second), "ok\n"));
  const std::size_t third = answers.find("HTTP/1.1 404 Not Found");
  REQUIRE(third != std::string::npos);
  const std::string head = answers.substr(second, third - second);
  CHECK(has(head, "Content-Length: 3\r\n"));
  CHECK(head.substr(head.size() - 4) == "\r\n\r\n");
  for (const char* header :
       {"Date: ", "X-Content-Type-Options: nosniff", "Content-Security-Policy: ", "Server: skerry"})
    CHECK(has(head, header));
}

TEST_CASE("an unknown method is 405 with Allow, a handler's exception 500, and the connection lives on") {
  World world;
  const Member root = world.member(Role::kOperator, "root");
  CHECK(has(world.curl("/healthz", {"-X", "DELETE", "-i"}).out, "Allow: GET, HEAD"));
  CHECK(world.status("/healthz", {"-X", "DELETE"}) == "405");
  CHECK(world.status("/api/v1/runs", {"-d", "{}"}, &root) == "500");
  CHECK(world.curl("/api/v1/runs/r%2D1?q=a%20b+c", {}, &root).out == R"({"q":"a b c","run":"r-1"})");
  CHECK(world.status("/api/v1/runs/r%zz", {}, &root) == "404");
}

TEST_CASE("a page of another site cannot act with the certificate of a browser's owner") {
  World world;
  const Member root = world.member(Role::kOperator, "root");
  const std::string own = "Origin: https://127.0.0.1:" + std::to_string(world.port->port());
  CHECK(world.status("/api/v1/renew", {"-d", "x", "-H", "Origin: https://elsewhere.example"}, &root) == "403");
  CHECK(world.status("/api/v1/renew", {"-d", "x", "-H", "Origin: null"}, &root) == "403");
  CHECK(world.status("/api/v1/renew", {"-d", "x", "-H", own}, &root) == "200");
  CHECK(world.status("/api/v1/whoami", {"-H", "Origin: https://elsewhere.example"}, &root) == "200");
}

TEST_CASE("a body is taken with Content-Length, with Expect and in chunks, and refused beyond its route's limit") {
  World world;
  const std::string body = pattern_bytes(90'000);
  REQUIRE(write_file_atomic(world.dir / "body", body).ok());
  REQUIRE(write_file_atomic(world.dir / "large", pattern_bytes(3'000'000)).ok());
  const std::string at = "@" + world.dir / "body";
  const std::string large = "@" + world.dir / "large";
  CHECK(world.curl("/api/v1/enrol", {"--data-binary", at}).out == body);
  CHECK(world.curl("/api/v1/enrol", {"--data-binary", at, "-H", "Expect: 100-continue"}).out == body);
  CHECK(world.curl("/api/v1/enrol", {"--data-binary", at, "-H", "Transfer-Encoding: chunked"}).out == body);
  CHECK(world.status("/api/v1/enrol", {"--data-binary", large}) == "413");
  CHECK(world.status("/api/v1/enrol", {"--data-binary", large, "-H", "Transfer-Encoding: chunked"}) == "413");
  CHECK(world.status("/api/v1/enrol", {"--data-binary", large, "-H", "Expect:"}) == "413");
}

TEST_CASE("a header that is too long is 431, one that is none is 400") {
  World world;
  CHECK(world.status("/healthz", {"-H", "X-Long: " + std::string(20'000, 'a')}) == "431");
  Raw raw(world.port->port());
  REQUIRE(raw.handshake() == "");
  raw.send("HELLO\r\n\r\n");
  CHECK(raw.receive(5000).find("HTTP/1.1 400") == 0);
  CHECK(raw.ended());
}

TEST_CASE("a header that never ends, an idle connection and a body without progress are cut off") {
  World world([](server::PortOptions& options) {
    options.limits.header_time = std::chrono::milliseconds(400);
    options.limits.keep_alive = std::chrono::milliseconds(400);
    options.limits.progress_interval = std::chrono::milliseconds(400);
    options.limits.progress_bytes = 1000;
  });
  Raw header(world.port->port());
  REQUIRE(header.handshake() == "");
  header.send("GET /healthz HTTP/1.1\r\nX-Slow: ");
  header.receive(3000);
  CHECK(header.ended());

  Raw idle(world.port->port());
  REQUIRE(idle.handshake() == "");
  idle.receive(3000);
  CHECK(idle.ended());

  Raw slow(world.port->port());
  REQUIRE(slow.handshake() == "");
  slow.send("POST /api/v1/enrol HTTP/1.1\r\nContent-Length: 90000\r\n\r\n");
  bool cut = false;
  for (int i = 0; i < 100 && !cut; ++i) {
    slow.send("drip");
    slow.receive(50);
    cut = slow.ended();
  }
  CHECK(cut);

  // Slow, but above the least rate: 12 pieces take three intervals, and the request succeeds.
  Raw steady(world.port->port());
  REQUIRE(steady.handshake() == "");
  steady.send("POST /api/v1/enrol HTTP/1.1\r\nContent-Length: 12000\r\nConnection: close\r\n\r\n");
  for (int i = 0; i < 12; ++i) {
    steady.send(std::string(1000, 'a'));
    pause_ms(100);
  }
  CHECK(steady.receive(3000).find("HTTP/1.1 200 OK") == 0);
}

TEST_CASE("a reader that takes nothing of a large download is cut off") {
  World world([](server::PortOptions& options) {
    options.limits.progress_interval = std::chrono::milliseconds(400);
    options.limits.progress_bytes = 1000;
  });
  const Member node = world.member(Role::kNode, "alder");
  Raw deaf(world.port->port());
  REQUIRE(deaf.handshake({&node, {"http/1.1"}, 0, 0}) == "");
  deaf.send("GET /api/v1/measure/source?bytes=1000000000 HTTP/1.1\r\n\r\n");
  CHECK(eventually([&] { return world.port->open_connections() == 1; }));
  CHECK(eventually([&] { return world.port->open_connections() == 0; }, 5000));
}

TEST_CASE("too many requests of one caller are 429 with Retry-After") {
  server::RateLimits rates;
  rates.anonymous_per_second = 0.5;
  rates.anonymous_burst = 3;
  World world({}, rates);
  const Member root = world.member(Role::kOperator, "root");
  for (int i = 0; i < 3; ++i) CHECK(world.status("/healthz", {}) == "200");
  const std::string refused = world.curl("/healthz", {"-i"}).out;
  CHECK(has(refused, "429 Too Many Requests"));
  CHECK(has(refused, "Retry-After: "));
  CHECK(world.status("/healthz", {}, &root) == "200");
}

TEST_CASE("cargo comes whole, in ranges and not at all where the client has it") {
  World world;
  const Member node = world.member(Role::kNode, "alder");
  const std::string bytes = pattern_bytes(3'000'001);
  const auto id = world.cargo->put_bytes(as_bytes_of(bytes));
  REQUIRE(id.ok());
  const std::string path = "/api/v1/cargo/" + id.value();

  CHECK(world.curl(path, {}, &node).out == bytes);
  const std::string head = world.curl(path, {"-I"}, &node).out;
  CHECK(has(head, "Content-Length: 3000001\r\n"));
  CHECK(has(head, "ETag: \"" + id.value() + "\""));
  CHECK(has(head, "Accept-Ranges: bytes"));
  CHECK(world.curl(path, {"-r", "1000-1999"}, &node).out == bytes.substr(1000, 1000));
  CHECK(world.curl(path, {"-r", "-7"}, &node).out == bytes.substr(3'000'001 - 7));
  const std::string part = world.curl(path, {"-r", "2999999-", "-i"}, &node).out;
  CHECK(has(part, "206 Partial Content"));
  CHECK(has(part, "Content-Range: bytes 2999999-3000000/3000001"));
  CHECK(world.status(path, {"-r", "3000001-"}, &node) == "416");
  CHECK(world.status(path, {"-H", "If-None-Match: \"" + id.value() + "\""}, &node) == "304");
  CHECK(world.status(path, {"-r", "0-9", "-H", "If-Range: \"" + id.value() + "\""}, &node) == "206");
  CHECK(world.status(path, {"-r", "0-9", "-H", "If-Range: \"other\""}, &node) == "200");
  CHECK(world.status("/api/v1/cargo/b2-" + std::string(64, '0'), {}, &node) == "404");
  CHECK(world.status("/api/v1/cargo/nonsense", {}, &node) == "400");
  CHECK(world.status(path, {}) == "401");
  CHECK(world.port->traffic_of("node/alder").bytes_down > 3'000'000);
}

TEST_CASE("an upload resumes at the chunks that are missing and is sealed when its content is right") {
  World world;
  const Member node = world.member(Role::kNode, "alder");
  const std::string bytes = pattern_bytes(10'000'000);
  const std::string id = content_id(bytes);
  const std::string path = "/api/v1/cargo/" + id;
  const std::vector<std::string> ticket{"-H", "Skerry-Ticket: good"};
  const auto put = [&](std::size_t offset, const std::string& body, std::vector<std::string> more = {}) {
    REQUIRE(write_file_atomic(world.dir / "body", body).ok());
    std::vector<std::string> arguments{
        "-X", "PUT", "-H", "Skerry-Ticket: good", "--data-binary", "@" + world.dir / "body"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return world.curl(path + "?offset=" + std::to_string(offset) + "&size=10000000", arguments, &node).out;
  };
  const auto missing = [&] { return world.curl(path + "/upload?size=10000000", ticket, &node).out; };

  CHECK(missing() == R"({"complete":false,"missing":[[0,9999999]]})");
  CHECK(put(4 << 20, bytes.substr(4 << 20, 4 << 20)) ==
        R"({"complete":false,"missing":[[0,4194303],[8388608,9999999]]})");

  // A connection that breaks in the middle of its second chunk keeps the first one.
  {
    Raw broken(world.port->port());
    REQUIRE(broken.handshake({&node, {"http/1.1"}, 0, 0}) == "");
    broken.send("PUT " + path +
                "?offset=0&size=10000000 HTTP/1.1\r\nSkerry-Ticket: good\r\nContent-Length: 10000000\r\n\r\n");
    broken.send(bytes.substr(0, 5'000'000));
    CHECK(eventually([&] { return has(missing(), "[[8388608,9999999]]"); }));
  }
  CHECK(put(8 << 20, bytes.substr(8 << 20), {"-H", "Expect:"}) == R"({"complete":true,"missing":[]})");
  CHECK(missing() == R"({"complete":true,"missing":[]})");
  CHECK(put(0, bytes) == R"({"complete":true,"missing":[]})");  // once more does no harm
  const auto sealed = world.cargo->spool_file("run.1", id);
  REQUIRE(sealed.ok());
  CHECK(read_file(sealed.value(), 1 << 30).value() == bytes);
  CHECK(world.port->traffic().bytes_up >= 10'000'000);
}

TEST_CASE("an upload is refused for its content, its ticket, its size and its place") {
  World world([](server::PortOptions& options) { options.limits.cargo_bytes = 20'000'000; });
  const Member node = world.member(Role::kNode, "alder");
  const Member viewer = world.member(Role::kViewer, "vera");
  REQUIRE(write_file_atomic(world.dir / "body", "not what was promised").ok());
  const std::string path = "/api/v1/cargo/" + content_id(std::string_view("what was promised"));
  const auto put = [&](const std::string& query, const std::string& ticket, const Member* as,
                       std::vector<std::string> more = {}) {
    std::vector<std::string> arguments{
        "-X", "PUT", "-H", "Skerry-Ticket: " + ticket, "--data-binary", "@" + world.dir / "body"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return world.status(path + query, arguments, as);
  };
  CHECK(put("?offset=0&size=21", "good", &node) == "422");
  CHECK(put("?offset=0&size=21", "bad", &node) == "401");
  CHECK(put("?offset=0&size=21", "good", &viewer) == "403");
  CHECK(put("?offset=0&size=21", "good", nullptr) == "401");
  CHECK(put("?offset=0&size=20", "good", &node) == "400");
  CHECK(put("?offset=7&size=2000", "good", &node) == "400");
  CHECK(put("?offset=0", "good", &node) == "400");
  CHECK(put("?size=21", "good", &node) == "400");
  CHECK(put("?offset=0&size=30000000", "good", &node) == "413");
  CHECK(put("?offset=0&size=21", "good", &node, {"-H", "Transfer-Encoding: chunked"}) == "411");
}

TEST_CASE("the figures name what happened") {
  World world;
  const Member vera = world.member(Role::kViewer, "vera");
  CHECK(world.status("/healthz", {}) == "200");
  CHECK(world.get_status(&vera) == "OK vera");
  const Finished metrics = world.curl("/metrics", {}, &vera);
  CHECK(has(metrics.out, R"(skerry_http_requests_total{method="GET",route="/healthz",status="200"} 1)"));
  CHECK(has(metrics.out, R"(skerry_connections_total{protocol="grpc"} 1)"));
  CHECK(world.status("/metrics", {}) == "401");
}
