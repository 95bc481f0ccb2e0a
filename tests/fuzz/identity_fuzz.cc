// Any bytes as what strangers may send: a certificate chain, a signing request, a join token, a cargo ticket, a content id.
// Each is an error with a short message, or what was read can be written and reads again as the same.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "common/base/encoding_text.h"
#include "common/crypto/content_id.h"
#include "common/crypto/sha256.h"
#include "common/crypto/x509.h"
#include "common/identity/authenticate.h"
#include "common/identity/join_token.h"
#include "server/identity/ticket.h"

namespace {

constexpr std::int64_t kNow = 1'800'000'000'000;

void require(bool holds) {
  if (!holds) std::abort();
}

template <typename T>
bool read(const skerry::Result<T>& result) {
  if (!result.ok()) require(!result.error().message.empty() && result.error().message.size() < 2000);
  return result.ok();
}

void try_chain(std::string_view text) {
  const auto chain = skerry::parse_chain(text);
  if (!read(chain)) return;
  for (const skerry::Certificate& certificate : *chain) {
    require(certificate.thumbprint().size() == 64);
    (void)certificate.subject();
    (void)certificate.issuer();
    (void)certificate.uris();
    (void)certificate.dns_names();
    (void)certificate.ip_addresses();
    (void)certificate.is_self_signed();
    read(certificate.public_key());
  }
  if (!chain->empty()) require(skerry::parse_chain(skerry::chain_pem(*chain))->size() == chain->size());
  const auto anchors = skerry::TrustAnchors::from_pem(text);
  if (read(anchors)) read(skerry::authenticate(text, *anchors, kNow, {}));
}

// Behind a right checksum and a right code, because these are what a stranger can compute (or, for the code, a bug of ours).
void try_wrapped(std::string_view text) {
  const std::string body = "skj1." + skerry::to_base64url(text);
  const auto token = skerry::parse_join_token(body + "." + skerry::to_base64url(skerry::sha256(body)).substr(0, 8), kNow);
  if (read(token)) {
    const auto again = skerry::parse_join_token(skerry::format_join_token(*token), kNow);
    require(again.ok() && again->secret == token->secret && again->name == token->name && again->address == token->address);
  }
  const std::string ticket = skerry::to_base64url(text);
  read(skerry::server::check_ticket("key", ticket + "." + skerry::to_base64url(skerry::hmac_sha256("key", ticket)), {"aaaa", 1}, kNow));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try_chain(text);
  try_wrapped(text);
  read(skerry::check_signing_request(text));
  read(skerry::parse_join_token(text, kNow));
  read(skerry::server::check_ticket("key", text, {"aaaa", 1}, kNow));
  const auto checked = skerry::check_content_id(text);
  require(checked.ok() || checked.error().message.size() < 400);
  const auto hex = skerry::from_hex(text);
  if (hex.ok()) require(skerry::to_hex(*hex).size() == text.size());
  const auto bytes = skerry::from_base64url(text);
  if (bytes.ok()) require(skerry::to_base64url(*bytes) == text);
  return 0;
}
