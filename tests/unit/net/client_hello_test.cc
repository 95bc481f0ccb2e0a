#include "server/net/client_hello.h"

#include "common/os/files.h"

#include <catch2/catch.hpp>

#include <cstdlib>

using namespace skerry;
using namespace skerry::server;

namespace {

// Captured from the real programs by tests/fuzz/corpus/client_hello.
std::vector<std::uint8_t> captured(const std::string& name) {
  const char* source = std::getenv("SKERRY_SOURCE");
  REQUIRE(source != nullptr);
  auto text = read_file(std::string(source) + "/tests/fuzz/corpus/client_hello/" + name, 1 << 20);
  REQUIRE(text.ok());
  return {text->begin(), text->end()};
}

ClientHello hello_of(const std::vector<std::uint8_t>& bytes) {
  const auto parsed = parse_client_hello(bytes);
  REQUIRE(std::holds_alternative<ClientHello>(parsed));
  return std::get<ClientHello>(parsed);
}

using Protocols = std::vector<std::string>;

}  // namespace

TEST_CASE("the ClientHellos of gRPC, curl and openssl go where the port's rule says") {
  const ClientHello grpc = hello_of(captured("grpc"));
  CHECK(grpc.alpn == Protocols{"grpc-exp", "h2"});
  CHECK(grpc.offers_tls13);
  CHECK(speaks_grpc(grpc));

  const ClientHello curl = hello_of(captured("curl_default"));
  CHECK(curl.alpn == Protocols{"h2", "http/1.1"});
  CHECK(curl.offers_tls13);
  CHECK(curl.server_name == "localhost");
  CHECK_FALSE(speaks_grpc(curl));

  CHECK(hello_of(captured("curl_http11")).alpn == Protocols{"http/1.1"});
  CHECK_FALSE(speaks_grpc(hello_of(captured("curl_http11"))));
  CHECK(hello_of(captured("openssl_default")).alpn.empty());
  CHECK_FALSE(speaks_grpc(hello_of(captured("openssl_default"))));
  CHECK_FALSE(speaks_grpc(hello_of(captured("openssl_browser_alpn"))));
}

TEST_CASE("a client that speaks only TLS 1.2 is known by its ClientHello") {
  const ClientHello old = hello_of(captured("openssl_tls12"));
  CHECK_FALSE(old.offers_tls13);
  CHECK(old.alpn == Protocols{"h2"});
}

TEST_CASE("every prefix of a ClientHello asks for more bytes, never more than the whole") {
  for (const char* name : {"grpc", "curl_default", "openssl_default", "openssl_tls12", "cut_into_records"}) {
    const auto bytes = captured(name);
    for (std::size_t count = 0; count < bytes.size(); ++count) {
      const auto parsed = parse_client_hello(std::span(bytes).first(count));
      INFO(name << " cut at " << count);
      REQUIRE(std::holds_alternative<NeedMore>(parsed));
      const std::size_t wanted = std::get<NeedMore>(parsed).at_least;
      REQUIRE(wanted > count);
      REQUIRE(wanted <= bytes.size());
    }
  }
}

TEST_CASE("a ClientHello cut into many records reads as the whole one, also with other bytes behind it") {
  const ClientHello cut = hello_of(captured("cut_into_records"));
  const ClientHello whole = hello_of(captured("openssl_browser_alpn"));
  CHECK(cut.alpn == whole.alpn);
  CHECK(cut.offers_tls13 == whole.offers_tls13);
  auto longer = captured("cut_into_records");
  longer.insert(longer.end(), 100, 0);
  CHECK(hello_of(longer).alpn == whole.alpn);
}

TEST_CASE("what is not a ClientHello is refused with the fitting alert") {
  const auto refusal = [](std::vector<std::uint8_t> bytes) {
    const auto parsed = parse_client_hello(bytes);
    REQUIRE(std::holds_alternative<NotClientHello>(parsed));
    return std::get<NotClientHello>(parsed);
  };
  CHECK(refusal(captured("plain_http")).plain_http);
  CHECK(refusal({0x80, 0x2e, 0x01, 0x03, 0x01}).alert == kAlertUnexpectedMessage);  // SSL 2
  CHECK(refusal({22, 2, 0, 0, 5}).alert == kAlertProtocolVersion);
  CHECK(refusal({22, 3, 1, 0, 0}).alert == kAlertDecodeError);                    // an empty record
  CHECK(refusal({22, 3, 1, 0xff, 0xff}).alert == kAlertDecodeError);              // 64 KiB
  CHECK(refusal({22, 3, 1, 0, 4, 2, 0, 0, 0}).alert == kAlertUnexpectedMessage);  // a ServerHello
  CHECK(refusal({22, 3, 1, 0, 4, 1, 1, 0, 0}).alert == kAlertDecodeError);        // 64 KiB long
  CHECK(refusal({22, 3, 1, 0, 6, 1, 0, 0, 2, 3, 3}).alert == kAlertDecodeError);  // nothing behind the version

  auto truncated = captured("curl_default");
  truncated[8] = static_cast<std::uint8_t>(truncated[8] - 3);  // the message says it is shorter than its extensions
  CHECK(refusal(truncated).alert == kAlertDecodeError);
}

TEST_CASE("a ClientHello in one-byte records is refused before it costs much") {
  const auto whole = captured("curl_default");
  std::vector<std::uint8_t> bytes;
  for (std::size_t i = 0; i < 20'000; ++i)
    bytes.insert(bytes.end(), {22, 3, 1, 0, 1, i < whole.size() - 5 && i != 2 ? whole[5 + i] : std::uint8_t{0x3f}});
  CHECK(std::holds_alternative<NotClientHello>(parse_client_hello(bytes)));
}
