// The one-time token by which a machine joins: "skj1." base64url(JSON) "." checksum.
//
// The checksum (first 6 bytes of SHA-256) catches a token that was cut or mistyped; it is no protection, and needs
// none: the secret inside is what the coordinator checks.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "common/base/result.h"
#include "common/identity/authenticate.h"

namespace skerry {

struct JoinToken {
  std::string address;         ///< "host:port" of the coordinator
  std::string ca_fingerprint;  ///< hex SHA-256 of the root certificate
  std::string secret;          ///< base64url of 32 random bytes; never logged
  std::int64_t expires_ms = 0;
  Role role = Role::kNode;
  std::string name;
};

/// The token as one word that a shell does not change.
std::string format_join_token(const JoinToken& token);

/// INVALID_ARGUMENT: not a token, another version ("skj2."), incomplete or changed (checksum), a field that is missing.
/// FAILED_PRECONDITION: expired at `now_ms` (with the date). Spaces and line breaks around it are ignored. No message quotes
/// the token.
Result<JoinToken> parse_join_token(std::string_view text, std::int64_t now_ms);

}  // namespace skerry
