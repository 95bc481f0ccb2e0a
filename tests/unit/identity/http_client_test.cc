#include "common/net/http_client.h"

#include <openssl/ssl.h>

#include <chrono>
#include <thread>

#include <catch2/catch.hpp>

#include "common/base/encoding_text.h"
#include "common/crypto/content_id.h"
#include "common/os/clock.h"
#include "common/os/files.h"
#include "tests/unit/identity/tls_server.h"
#include "tests/unit/identity/world.h"

using namespace skerry;
using namespace skerry::test;

namespace {

std::int64_t real_now() { return SystemClock().unix_ms(); }

// A coordinator's home whose certificates hold now, and a server with its certificate.
struct Port {
  explicit Port(std::function<std::string(const std::string&, const std::string&)> answer, int max_version = 0)
      : server({world.home + "/server.crt", world.home + "/server.key", max_version, std::move(answer)}) {}

  HttpOptions options() const {
    HttpOptions http;
    http.ca_pem = world.authority.ca_pem();
    return http;
  }
  Result<HttpResponse> get(const HttpOptions& http, const std::string& path = "/") const {
    HttpRequest request;
    request.url = server.url(path);
    return HttpClient(http).send(request);
  }

  World world{"harbour", real_now()};
  TlsServer server;
};

std::string echo(const std::string& head, const std::string& body) { return http_answer(200, head.substr(0, head.find("\r\n")) + "|" + body, "X-Test: Yes \r\n"); }

}  // namespace

TEST_CASE("a request is answered over verified TLS, and any status is an answer") {
  const Port port([](const std::string& head, const std::string& body) {
    return head.find("/missing") != std::string::npos ? http_answer(404, "not here") : echo(head, body);
  });
  const auto found = port.get(port.options(), "/a?b=c");
  REQUIRE(found.ok());
  CHECK(found->status == 200);
  CHECK(found->body == "GET /a?b=c HTTP/1.1|");
  CHECK(found->header("x-test") == "Yes");
  const auto missing = port.get(port.options(), "/missing");
  REQUIRE(missing.ok());
  CHECK(missing->status == 404);
  CHECK(missing->body == "not here");
}

TEST_CASE("requests of one client share one connection, and a dead one is replaced") {
  Port port(echo);
  HttpClient client(port.options());
  HttpRequest request;
  request.url = port.server.url("/");
  request.method = "POST";
  request.body = "{}";
  for (int i = 0; i < 5; ++i) REQUIRE(client.send(request).ok());
  CHECK(port.server.connections() == 1);
  port.server.drop();
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  const auto after = client.send(request);
  REQUIRE(after.ok());
  CHECK(after->body == "POST / HTTP/1.1|{}");
  CHECK(port.server.connections() == 2);
}

TEST_CASE("a slice of a file and memory are uploaded as they are") {
  const Port port([](const std::string&, const std::string& body) { return http_answer(200, content_id(body)); });
  std::string content(3'000'000, '\0');
  for (std::size_t i = 0; i < content.size(); ++i) content[i] = static_cast<char>(i * 31 % 251);
  const std::string path = port.world.directory / "upload";
  REQUIRE(write_file_atomic(path, content).ok());
  const auto file = File::open(path, OpenMode::kRead);
  HttpClient client(port.options());
  HttpRequest request;
  request.method = "PUT";
  request.url = port.server.url("/");
  request.file = FileSlice{file->fd(), 1000, 2'500'000};
  CHECK(client.send(request)->body == content_id(content.substr(1000, 2'500'000)));
  request.file.reset();
  request.memory = bytes_of(content);
  CHECK(client.send(request)->body == content_id(content));
}

TEST_CASE("a file that is shorter than promised ends the upload with that reason") {
  const Port port(echo);
  const std::string path = port.world.directory / "short";
  REQUIRE(write_file_atomic(path, "abc").ok());
  const auto file = File::open(path, OpenMode::kRead);
  HttpRequest request;
  request.method = "PUT";
  request.url = port.server.url("/");
  request.file = FileSlice{file->fd(), 0, 100};
  const auto sent = HttpClient(port.options()).send(request);
  REQUIRE_FALSE(sent.ok());
  CHECK(has(sent.error(), "shorter than it was"));
}

TEST_CASE("a sink takes the body piece by piece, only of a success, and may end it") {
  const Port port([](const std::string& head, const std::string&) {
    return head.find("/bad") != std::string::npos ? http_answer(416, "no such range") : http_answer(206, std::string(100'000, 'x'), "Content-Range: bytes 5-\r\n");
  });
  std::size_t taken = 0;
  HttpRequest request;
  request.url = port.server.url("/good");
  request.range_first = 5;
  request.max_body = 100;
  request.sink = [&](int status, std::span<const std::byte> piece) -> Result<void> {
    CHECK(status == 206);
    taken += piece.size();
    return {};
  };
  HttpClient client(port.options());
  const auto good = client.send(request);
  REQUIRE(good.ok());
  CHECK(good->status == 206);
  CHECK(good->body.empty());
  CHECK(taken == 100'000);
  request.url = port.server.url("/bad");
  CHECK(client.send(request)->body == "no such range");
  request.url = port.server.url("/good");
  request.sink = [](int, std::span<const std::byte>) -> Result<void> { return data_loss("disk gone"); };
  CHECK(client.send(request).error().message == "disk gone");
}

TEST_CASE("a range is asked for as bytes") {
  std::string range;
  Port port([&](const std::string& head, const std::string&) {
    const std::size_t at = head.find("Range: ");
    range = at == std::string::npos ? "" : head.substr(at, head.find("\r\n", at) - at);
    return http_answer(206, "x");
  });
  HttpClient client(port.options());
  HttpRequest request;
  request.url = port.server.url("/");
  request.range_first = 4;
  REQUIRE(client.send(request).ok());
  CHECK(range == "Range: bytes=4-");
  request.range_last = 9;
  REQUIRE(client.send(request).ok());
  CHECK(range == "Range: bytes=4-9");
}

TEST_CASE("an answer longer than expected is refused") {
  const Port port([](const std::string&, const std::string&) { return http_answer(200, std::string(5000, 'x')); });
  HttpRequest request;
  request.url = port.server.url("/");
  request.max_body = 4999;
  const auto sent = HttpClient(port.options()).send(request);
  REQUIRE_FALSE(sent.ok());
  CHECK(sent.error().code == Code::kResourceExhausted);
  CHECK_FALSE(sent.error().retryable);
}

TEST_CASE("a server of another CA, of another host and one that is expired are told apart") {
  Port port(echo);
  SECTION("another CA") {
    HttpOptions http = port.options();
    http.ca_pem = World("lagoon", real_now()).authority.ca_pem();
    const auto sent = port.get(http);
    REQUIRE_FALSE(sent.ok());
    CHECK(sent.error().code == Code::kUnauthenticated);
    CHECK(has(sent.error(), "signed by another CA"));
  }
  SECTION("another host") {
    REQUIRE(port.world.authority.set_server_hosts({"elsewhere.example.org"}, real_now()).ok());
    const auto sent = port.get(port.options());
    REQUIRE_FALSE(sent.ok());
    INFO(sent.error().message);
    CHECK(has(sent.error(), "for another host name"));
  }
  SECTION("expired") {
    REQUIRE(port.world.authority.set_server_hosts({"127.0.0.1"}, real_now() - 100 * kDay).ok());
    CHECK(has(port.get(port.options()).error(), "expired"));
  }
  SECTION("not yet valid") {
    REQUIRE(port.world.authority.set_server_hosts({"127.0.0.1"}, real_now() + 10 * kDay).ok());
    const auto sent = port.get(port.options());
    CHECK(has(sent.error(), "not yet valid"));
    CHECK(has(sent.error(), "a clock is off"));
  }
  SECTION("a member that poses as a server") {
    const PrivateKey key = *PrivateKey::generate();
    TlsServer impostor({port.world.directory / "m.crt", port.world.directory / "m.key", 0, echo});
    REQUIRE(write_file_atomic(port.world.directory / "m.crt", port.world.chain(Role::kNode, "alder", key)).ok());
    REQUIRE(key.save(port.world.directory / "m.key").ok());
    HttpRequest request;
    request.url = impostor.url("/");
    const auto sent = HttpClient(port.options()).send(request);
    REQUIRE_FALSE(sent.ok());
    CHECK(sent.error().code == Code::kUnauthenticated);
    CHECK(has(sent.error(), "not a server's certificate"));
  }
  SECTION("not verified at all, to fetch a CA") {
    HttpOptions http;
    http.verify_server = false;
    CHECK(port.get(http).ok());
  }
}

TEST_CASE("a server that speaks only TLS 1.2 is refused with that reason") {
  const Port port(echo, TLS1_2_VERSION);
  const auto sent = port.get(port.options());
  REQUIRE_FALSE(sent.ok());
  CHECK(sent.error().code == Code::kFailedPrecondition);
  CHECK(has(sent.error(), "TLS 1.3"));
}

TEST_CASE("a refused connection and an unknown host are retryable, with the next step") {
  const Port port(echo);
  HttpRequest request;
  request.url = "https://127.0.0.1:" + std::to_string(closed_port()) + "/";
  const auto refused = HttpClient(port.options()).send(request);
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().code == Code::kUnavailable);
  CHECK(refused.error().retryable);
  CHECK(has(refused.error(), "check that the coordinator runs"));
  request.url = "https://no-such-host.invalid/";
  const auto unknown = HttpClient(port.options()).send(request);
  REQUIRE_FALSE(unknown.ok());
  CHECK(has(unknown.error(), "cannot be resolved"));
}

TEST_CASE("a proxy carries the connection, refuses it, wants a password or is not there: each is said") {
  const Port port(echo);
  HttpOptions http = port.options();
  SECTION("carries") {
    const ConnectProxy proxy(200);
    http.proxy = proxy.url();
    REQUIRE(port.get(http).ok());
    CHECK(proxy.seen() == "CONNECT 127.0.0.1:" + std::to_string(port.server.port()) + " HTTP/1.1");
  }
  SECTION("refuses") {
    const ConnectProxy proxy(403);
    http.proxy = proxy.url();
    const auto sent = port.get(http);
    REQUIRE_FALSE(sent.ok());
    CHECK(has(sent.error(), "refused to connect"));
    CHECK(has(sent.error(), "403"));
  }
  SECTION("wants a password, which no message shows") {
    const ConnectProxy proxy(407);
    http.proxy = "http://user:hunter2@" + proxy.url().substr(7);
    const auto sent = port.get(http);
    REQUIRE_FALSE(sent.ok());
    CHECK(has(sent.error(), "407"));
    CHECK_FALSE(has(sent.error(), "hunter2"));
  }
  SECTION("is not there") {
    http.proxy = "http://127.0.0.1:" + std::to_string(closed_port());
    const auto sent = port.get(http);
    REQUIRE_FALSE(sent.ok());
    CHECK(has(sent.error(), "the proxy"));
    CHECK(sent.error().retryable);
  }
}

TEST_CASE("a request without progress is ended, and a cancelled one soon") {
  const Port port([](const std::string&, const std::string&) { return std::string(); });
  HttpOptions http = port.options();
  SECTION("stalled") {
    http.stall_timeout_s = 1;
    const auto sent = port.get(http);
    REQUIRE_FALSE(sent.ok());
    CHECK(sent.error().retryable);
    CHECK(has(sent.error(), "no progress for 1 s"));
  }
  SECTION("cancelled") {
    std::atomic<bool> cancelled = false;
    http.cancelled = &cancelled;
    std::thread canceller([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(200));
      cancelled = true;
    });
    const auto sent = port.get(http);
    canceller.join();
    REQUIRE_FALSE(sent.ok());
    CHECK(sent.error().code == Code::kCancelled);
  }
}

TEST_CASE("nothing but https leaves, and own certificate files must be usable") {
  const Port port(echo);
  HttpRequest request;
  request.url = "http://127.0.0.1:1/";
  CHECK(HttpClient(port.options()).send(request).error().code == Code::kInvalidArgument);
  request.url = "file:///etc/passwd";
  CHECK(HttpClient(port.options()).send(request).error().code == Code::kInvalidArgument);
  HttpOptions http = port.options();
  http.certificate_path = "/nonexistent/cert.pem";
  http.key_path = "/nonexistent/key.pem";
  const auto sent = port.get(http);
  REQUIRE_FALSE(sent.ok());
  CHECK(sent.error().code == Code::kInvalidArgument);
  CHECK(has(sent.error(), "/nonexistent/cert.pem"));
  CHECK(port.get(HttpOptions{}).error().code == Code::kInvalidArgument);
  request.url = port.server.url("/");
  request.headers = {{"X-A", "1\r\nX-B: 2"}};
  CHECK(HttpClient(port.options()).send(request).error().code == Code::kInvalidArgument);
}

TEST_CASE("a redirect is an answer, not followed") {
  const Port port([](const std::string&, const std::string&) { return http_answer(302, "", "Location: https://127.0.0.1:1/\r\n"); });
  CHECK(port.get(port.options())->status == 302);
}

TEST_CASE("a machine joins over real TLS and shows its certificate") {
  World* coordinator = nullptr;
  Port port([&](const std::string& head, const std::string& body) {
    HttpRequest request;
    request.url = "https://x" + head.substr(head.find('/'), head.find(" HTTP") - head.find('/'));
    request.body = body;
    const auto response = coordinator->answer({}, request);
    return http_answer(response->status, response->body);
  });
  coordinator = &port.world;
  EnrolOptions options;
  options.address = "127.0.0.1:" + std::to_string(port.server.port());
  const std::string token = port.world.members.invite(Role::kNode, "alder", 0, real_now())->token;
  const auto profile = join(token, port.world.directory / "alder", options);
  if (!profile.ok()) FAIL(profile.error().message);
  CHECK(profile->address == options.address);
  CHECK(load_profile(profile->directory).ok());
  HttpOptions http = port.options();
  http.certificate_path = profile->certificate_path();
  http.key_path = profile->key_path();
  CHECK(port.get(http, "/api/v1/whoami").ok());
}

TEST_CASE("percent-encoding leaves only unreserved characters") { CHECK(url_encode("a b/ü~") == "a%20b%2F%C3%BC~"); }
