#include "tests/integration/port/world.h"

#include <openssl/ssl.h>
#include <catch2/catch.hpp>

#include <chrono>
#include <thread>

using namespace skerry;
using namespace skerry::test;

namespace {

double seconds_of(const std::function<void()>& work) {
  const auto began = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
}

const std::string kAlertProtocolVersion = {21, 3, 3, 0, 2, 2, 70};

}  // namespace

TEST_CASE("one port answers gRPC and HTTPS to the same member") {
  World world;
  const Member alice = world.member(Role::kOperator, "alice");
  CHECK(world.get_status(&alice) == "OK alice");
  CHECK(world.curl("/api/v1/whoami", {}, &alice).out.find("\"name\":\"alice\"") != std::string::npos);
  CHECK(world.curl("/api/v1/whoami", {"--http1.1"}, &alice).out.find("\"role\":\"operator\"") != std::string::npos);
}

TEST_CASE("who offers h2 and http/1.1, as curl and browsers do, speaks HTTP/1.1") {
  World world;
  Raw browser(world.port->port());
  REQUIRE(browser.handshake({nullptr, {"h2", "http/1.1"}, 0, 0}) == "");
  CHECK(browser.protocol() == "http/1.1");
  browser.send("GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  CHECK(browser.receive(5000).find("HTTP/1.1 200 OK") == 0);

  Raw grpc(world.port->port());
  REQUIRE(grpc.handshake({nullptr, {"grpc-exp", "h2"}, 0, 0}) == "");
  CHECK((grpc.protocol() == "h2" || grpc.protocol() == "grpc-exp"));

  Raw without(world.port->port());
  REQUIRE(without.handshake() == "");
  without.send("GET /healthz HTTP/1.0\r\n\r\n");
  CHECK(without.receive(5000).find("HTTP/1.1 200 OK") == 0);
}

TEST_CASE("TLS 1.2 is refused with an alert that says so, for gRPC and for HTTP") {
  World world;
  for (const std::vector<std::string>& alpn : {std::vector<std::string>{"h2"}, {"h2", "http/1.1"}, {}}) {
    Raw old(world.port->port());
    const std::string reason = old.handshake({nullptr, alpn, 0, TLS1_2_VERSION});
    CHECK(reason.find("protocol version") != std::string::npos);
  }
  Raw raw(world.port->port());
  raw.send_plain(std::string("\x16\x02\x00\x00\x05hello", 10));
  CHECK(raw.receive_plain(5000) == kAlertProtocolVersion);
}

TEST_CASE("bytes that are not TLS are answered and cut off") {
  World world;
  Raw http(world.port->port());
  http.send_plain("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
  CHECK(http.receive_plain(5000).find("This port speaks HTTPS") != std::string::npos);
  CHECK(http.ended());

  Raw garbage(world.port->port());
  garbage.send_plain("\x01\x02\x03 what is this?");
  CHECK(garbage.receive_plain(5000).size() == 7);
  CHECK(garbage.ended());
  CHECK(world.curl("/healthz", {}).out == "ok\n");
}

TEST_CASE("half a ClientHello and then silence is cut off at the handshake's deadline, without using the processor") {
  World world([](server::PortOptions& options) { options.limits.handshake = std::chrono::milliseconds(600); });
  const std::string hello = client_hello_bytes({"h2"});
  Raw half(world.port->port());
  half.send_plain(hello.substr(0, hello.size() / 2));
  timespec before{};
  timespec after{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
  const double took = seconds_of([&] { half.receive_plain(5000); });
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
  CHECK(half.ended());
  CHECK(took > 0.4);
  CHECK(took < 2.0);
  const double cpu =
      static_cast<double>(after.tv_sec - before.tv_sec) + static_cast<double>(after.tv_nsec - before.tv_nsec) / 1e9;
  CHECK(cpu < 0.2);

  Raw silent(world.port->port());
  silent.receive_plain(5000);
  CHECK(silent.ended());
  CHECK(eventually([&] { return world.port->open_connections() == 0; }));
}

TEST_CASE("a ClientHello that comes byte by byte is understood") {
  World world;
  const std::string hello = client_hello_bytes({"http/1.1"});
  Raw slow(world.port->port());
  for (std::size_t i = 0; i < hello.size(); ++i) {
    slow.send_plain(hello.substr(i, 1));
    if (i % 40 == 0) pause_ms(1);
  }
  const std::string answer = slow.receive_plain(1000);
  REQUIRE(answer.size() > 100);
  CHECK(static_cast<unsigned char>(answer[0]) == 22);  // a ServerHello
}

TEST_CASE("a whole TLS connection that goes silent before its handshake ends is cut off") {
  World world([](server::PortOptions& options) { options.limits.handshake = std::chrono::milliseconds(500); });
  Raw http(world.port->port());
  http.send_plain(client_hello_bytes({"http/1.1"}));
  http.receive_plain(4000);
  CHECK(http.ended());
  Raw grpc(world.port->port());
  grpc.send_plain(client_hello_bytes({"h2"}));
  grpc.receive_plain(4000);
  CHECK(grpc.ended());
  CHECK(eventually([&] { return world.port->open_connections() == 0; }));
}

TEST_CASE("every reason why a certificate is not accepted reaches the client, over gRPC and HTTP") {
  World world;
  World stranger_world;
  const Member expired = world.member(Role::kViewer, "late", -3'600'000);
  const Member revoked = world.member(Role::kViewer, "gone");
  const Member stranger = stranger_world.member(Role::kOperator, "mallory");
  const Member node = world.member(Role::kNode, "alder");
  world.revoke(revoked);

  const auto both = [&](const Member* as, const std::string& code, const std::string& http, const std::string& reason) {
    INFO(reason);
    const std::string call = world.get_status(as);
    CHECK(call.find(code) == 0);
    CHECK(call.find(reason) != std::string::npos);
    const Finished answer = world.curl("/api/v1/status", {"-w", " %{http_code}"}, as);
    CHECK(answer.out.find("\"code\":\"" + code + "\"") != std::string::npos);
    CHECK(answer.out.find(reason) != std::string::npos);
    CHECK(answer.out.substr(answer.out.size() - 3) == http);
  };
  both(nullptr, "UNAUTHENTICATED", "401", "certificate");
  both(&expired, "UNAUTHENTICATED", "401", "expired");
  both(&revoked, "UNAUTHENTICATED", "401", "stolen");
  both(&stranger, "UNAUTHENTICATED", "401", "sign");
  both(&node, "PERMISSION_DENIED", "403", "role node");

  const std::string who = world.curl("/api/v1/whoami", {}, &expired).out;
  CHECK(who.find("anonymous") != std::string::npos);
  CHECK(who.find("expired") != std::string::npos);
  CHECK(world.curl("/api/v1/renew", {"-d", "x"}, &expired).out.find("\"name\":\"late\"") != std::string::npos);
  CHECK(world.status("/api/v1/renew", {"-d", "x"}, &revoked) == "401");
}

TEST_CASE("revocation ends the live connections of a certificate, gRPC and HTTP, and no others") {
  World world;
  const Member bad = world.member(Role::kViewer, "bad");
  const Member good = world.member(Role::kViewer, "good");
  Watcher watcher(world, bad);
  Watcher other(world, good);
  REQUIRE(watcher.first_answer());
  REQUIRE(other.first_answer());
  Raw http(world.port->port());
  REQUIRE(http.handshake({&bad, {"http/1.1"}, 0, 0}) == "");
  http.send("GET /api/v1/whoami HTTP/1.1\r\nHost: x\r\n\r\n");
  REQUIRE(http.receive(500).find("\"bad\"") != std::string::npos);
  REQUIRE_FALSE(http.ended());
  CHECK(world.port->open_connections() == 3);

  world.revoke(bad);
  CHECK(world.port->end_connections(bad.thumbprint) == 2);
  CHECK(watcher.end() == "UNAVAILABLE");
  http.receive(3000);
  CHECK(http.ended());
  CHECK(eventually([&] { return world.port->open_connections() == 1; }));
  CHECK(world.get_status(&bad).find("UNAUTHENTICATED") == 0);
  CHECK(world.get_status(&good) == "OK good");
}

TEST_CASE("connections beyond the limit are refused and the place is free again after one ends") {
  World world([](server::PortOptions& options) { options.limits.connections_per_address = 2; });
  auto first = std::make_unique<Raw>(world.port->port());
  Raw second(world.port->port());
  REQUIRE(first->handshake() == "");
  REQUIRE(second.handshake() == "");
  Raw third(world.port->port());
  CHECK(third.handshake() != "");
  first.reset();
  CHECK(eventually([&] { return world.port->open_connections() == 1; }));
  Raw fourth(world.port->port());
  CHECK(fourth.handshake() == "");
}

TEST_CASE("a gRPC connection that its client ends gives its place back") {
  World world;
  const Member alice = world.member(Role::kViewer, "alice");
  for (int i = 0; i < 5; ++i) CHECK(world.get_status(&alice) == "OK alice");
  CHECK(eventually([&] { return world.port->open_connections() == 0; }));
}

TEST_CASE("a renewed server certificate is used without a restart") {
  World world;
  const Member alice = world.member(Role::kViewer, "alice");
  const auto serial = [&](const std::vector<std::string>& alpn) {
    Raw raw(world.port->port());
    REQUIRE(raw.handshake({nullptr, alpn, 0, 0}) == "");
    return raw.server_serial();
  };
  const std::string http_before = serial({"http/1.1"});
  const std::string grpc_before = serial({"h2"});
  CHECK(http_before == grpc_before);
  REQUIRE(world.authority->set_server_hosts({"127.0.0.1", "harbour.example"}, world.clock.unix_ms()).ok());
  CHECK(eventually([&] { return serial({"http/1.1"}) != http_before; }, 5000));
  CHECK(eventually([&] { return serial({"h2"}) != grpc_before; }, 8000));
  CHECK(world.get_status(&alice) == "OK alice");

  REQUIRE(write_file_atomic(world.home + "/server.crt", "not a certificate").ok());
  CHECK_FALSE(world.port->reload_certificate().ok());
  CHECK(serial({"http/1.1"}) != http_before);
}

TEST_CASE("shutdown lets a request under way finish and is bounded by its grace") {
  World world;
  const Member alice = world.member(Role::kViewer, "alice");
  std::string slow;
  std::thread client([&] { slow = world.curl("/api/v1/status", {}, &alice).out; });
  REQUIRE(eventually([&] { return world.slow_handlers == 1; }));
  Raw idle(world.port->port());
  REQUIRE(idle.handshake() == "");
  const double took = seconds_of([&] { world.port->shutdown(std::chrono::seconds(3)); });
  client.join();
  CHECK(slow == "slow\n");
  CHECK(took < 2.0);
}
