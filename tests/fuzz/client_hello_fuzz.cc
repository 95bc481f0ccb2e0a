// A ClientHello is the first thing a stranger sends: whatever the bytes, the parser must answer, and must ask for more
// only while more may come and can help.
#include "server/net/client_hello.h"

#include <cstdlib>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using skerry::server::NeedMore;
  const std::span<const std::uint8_t> bytes(data, size);
  const auto parsed = skerry::server::parse_client_hello(bytes);
  if (const auto* more = std::get_if<NeedMore>(&parsed)) {
    if (more->at_least <= size || more->at_least > skerry::server::kMaxClientHelloWireBytes) std::abort();
    return 0;
  }
  // What is decided stays decided when more bytes follow.
  std::vector<std::uint8_t> longer(bytes.begin(), bytes.end());
  longer.push_back(0);
  if (skerry::server::parse_client_hello(longer).index() != parsed.index()) std::abort();
  return 0;
}
