#include "server/net/client_hello.h"

#include <algorithm>
#include <optional>

namespace skerry::server {
namespace {

constexpr std::uint8_t kHandshakeRecord = 22;
constexpr std::uint8_t kClientHelloType = 1;
constexpr std::size_t kRecordHeader = 5;
constexpr std::size_t kMaxRecord = 16 * 1024;

// Reads big-endian fields; after the first read past the end every answer is empty and `failed()`.
class Reader {
 public:
  explicit Reader(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}

  std::size_t number(std::size_t width) {
    std::size_t value = 0;
    for (const std::uint8_t byte : take(width)) value = value << 8 | byte;
    return value;
  }

  std::span<const std::uint8_t> take(std::size_t count) {
    if (failed_ || count > bytes_.size()) {
      failed_ = true;
      return {};
    }
    const auto taken = bytes_.first(count);
    bytes_ = bytes_.subspan(count);
    return taken;
  }

  // A vector: its length in `width` bytes, then that many bytes.
  std::span<const std::uint8_t> vector(std::size_t width) { return take(number(width)); }

  bool done() const { return failed_ || bytes_.empty(); }
  bool failed() const { return failed_; }

 private:
  std::span<const std::uint8_t> bytes_;
  bool failed_ = false;
};

std::string text_of(std::span<const std::uint8_t> bytes) { return std::string(bytes.begin(), bytes.end()); }

bool read_alpn(std::span<const std::uint8_t> extension, ClientHello& hello) {
  Reader reader(extension);
  Reader names(reader.vector(2));
  while (!names.done()) {
    const auto name = names.vector(1);
    if (name.empty()) return false;
    hello.alpn.push_back(text_of(name));
  }
  return !names.failed() && !reader.failed() && !hello.alpn.empty();
}

bool read_versions(std::span<const std::uint8_t> extension, ClientHello& hello) {
  Reader reader(extension);
  Reader versions(reader.vector(1));
  while (!versions.done()) {
    if (versions.number(2) == 0x0304) hello.offers_tls13 = !versions.failed();
  }
  return !versions.failed() && !reader.failed();
}

bool read_server_name(std::span<const std::uint8_t> extension, ClientHello& hello) {
  Reader reader(extension);
  Reader names(reader.vector(2));
  while (!names.done()) {
    const std::size_t type = names.number(1);
    const auto name = names.vector(2);
    if (type == 0 && hello.server_name.empty()) hello.server_name = text_of(name);
  }
  return !names.failed() && !reader.failed();
}

NotClientHello broken(std::string_view reason) { return {kAlertDecodeError, reason}; }

std::variant<NeedMore, ClientHello, NotClientHello> parse_body(std::span<const std::uint8_t> body) {
  Reader reader(body);
  if (reader.number(2) >> 8 != 3) return NotClientHello{kAlertProtocolVersion, "the ClientHello's version is not TLS"};
  reader.take(32);   // random
  reader.vector(1);  // session id
  reader.vector(2);  // cipher suites
  reader.vector(1);  // compression methods
  if (reader.failed()) return broken("the ClientHello is shorter than its fields");

  ClientHello hello;
  if (reader.done()) return hello;  // no extensions: TLS 1.2 or older
  Reader extensions(reader.vector(2));
  if (reader.failed() || !reader.done()) return broken("the ClientHello's extensions do not fill it");
  bool seen_alpn = false;
  bool seen_versions = false;
  bool seen_name = false;
  while (!extensions.done()) {
    const std::size_t type = extensions.number(2);
    const auto extension = extensions.vector(2);
    if (extensions.failed()) break;
    bool good = true;
    if (type == 0) {
      good = !seen_name && read_server_name(extension, hello);
      seen_name = true;
    } else if (type == 16) {
      good = !seen_alpn && read_alpn(extension, hello);
      seen_alpn = true;
    } else if (type == 43) {
      good = !seen_versions && read_versions(extension, hello);
      seen_versions = true;
    }
    if (!good) return broken("a ClientHello extension is malformed or stands twice");
  }
  if (extensions.failed()) return broken("a ClientHello extension is longer than the rest");
  return hello;
}

bool looks_like_http(std::span<const std::uint8_t> bytes) {
  for (const std::string_view method : {"GET ", "HEAD ", "POST ", "PUT ", "PRI ", "DELETE ", "OPTIONS ", "CONNECT "}) {
    const std::size_t count = std::min(method.size(), bytes.size());
    if (count >= 3 && std::equal(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(count), method.begin()))
      return true;
  }
  return false;
}

}  // namespace

bool ClientHello::offers(std::string_view protocol) const {
  return std::find(alpn.begin(), alpn.end(), protocol) != alpn.end();
}

std::variant<NeedMore, ClientHello, NotClientHello> parse_client_hello(std::span<const std::uint8_t> bytes) {
  // The handshake message may be cut into any number of records; join their payloads until it is whole.
  std::vector<std::uint8_t> message;
  std::size_t position = 0;
  for (;;) {
    const auto rest = bytes.subspan(position);
    if (!rest.empty() && rest[0] != kHandshakeRecord) {
      if (position != 0) return NotClientHello{kAlertUnexpectedMessage, "another record inside the ClientHello"};
      if (rest.size() < 3) {
        const bool letters = std::all_of(rest.begin(), rest.end(), [](std::uint8_t c) { return c >= 'A' && c <= 'Z'; });
        if (letters) return NeedMore{3};
      }
      return NotClientHello{kAlertUnexpectedMessage, "the first bytes are not a TLS handshake", looks_like_http(rest)};
    }
    if (rest.size() >= 2 && rest[1] != 3)
      return NotClientHello{kAlertProtocolVersion, "the record's version is not TLS"};
    if (rest.size() < kRecordHeader) {
      if (position + kRecordHeader > kMaxClientHelloWireBytes)
        return broken("the ClientHello is cut into too many records");
      return NeedMore{position + kRecordHeader};
    }
    const std::size_t length = static_cast<std::size_t>(rest[3]) << 8 | rest[4];
    if (length == 0 || length > kMaxRecord) return broken("a record of the ClientHello is empty or longer than 16 KiB");
    const std::size_t end = position + kRecordHeader + length;
    if (end > kMaxClientHelloWireBytes) return broken("the ClientHello is too long");
    const auto payload = rest.subspan(kRecordHeader, std::min(length, rest.size() - kRecordHeader));
    message.insert(message.end(), payload.begin(), payload.end());

    if (!message.empty() && message[0] != kClientHelloType)
      return NotClientHello{kAlertUnexpectedMessage, "the first handshake message is not a ClientHello"};
    if (message.size() >= 4) {
      const std::size_t size =
          static_cast<std::size_t>(message[1]) << 16 | static_cast<std::size_t>(message[2]) << 8 | message[3];
      if (size + 4 > kMaxClientHelloBytes) return broken("the ClientHello is longer than 16 KiB");
      if (message.size() >= size + 4) return parse_body(std::span(message).subspan(4, size));
      if (payload.size() < length) return NeedMore{std::min(end, bytes.size() + (size + 4 - message.size()))};
    } else if (payload.size() < length) {
      return NeedMore{std::min(end, bytes.size() + 4 - message.size())};
    }
    position = end;
  }
}

bool speaks_grpc(const ClientHello& hello) { return hello.offers("h2") && !hello.offers("http/1.1"); }

}  // namespace skerry::server
