// Who is calling: the one place where a certificate becomes an identity, or a reason why not.
//
// Neither TLS stack verifies client certificates; this runs on every call and every request instead. A member's role and
// name stand in a URI: skerry://<federation>/<role>/<name>.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <shared_mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "common/base/result.h"
#include "common/crypto/x509.h"

namespace skerry {

enum class Role { kNode, kOperator, kViewer, kServer };

/// "node", "operator", "viewer", "server".
std::string_view role_name(Role role);
/// INVALID_ARGUMENT names the text and lists the roles.
Result<Role> parse_role(std::string_view text);

/// INVALID_ARGUMENT unless `name` fits [a-z0-9][a-z0-9-]{0,62}: the rule for members and federations.
Result<void> check_member_name(std::string_view name);

/// How long after its end a certificate may still be renewed (and only that).
inline constexpr std::int64_t kRenewalGraceMs = std::int64_t{14} * 24 * 3600 * 1000;

struct Identity {
  Role role;
  std::string name;
  std::string federation;
  std::string thumbprint;       ///< hex SHA-256 of the certificate
  std::int64_t expires_ms = 0;  ///< Unix time
  PublicKey key;                ///< verifies the signatures of this member
};

/// "skerry://harbour/node/alder".
std::string identity_uri(std::string_view federation, Role role, std::string_view name);

/// The certificates that a federation trusts. Self-signed ones are anchors, others help to build chains.
class TrustAnchors {
 public:
  /// INVALID_ARGUMENT: damaged PEM, or no self-signed CA certificate in it, or anchors of different federations.
  static Result<TrustAnchors> from_pem(std::string_view pem);

  const std::vector<Certificate>& roots() const { return roots_; }
  const std::vector<Certificate>& intermediates() const { return intermediates_; }
  /// The anchors' organisation.
  const std::string& federation() const { return federation_; }

 private:
  std::vector<Certificate> roots_;
  std::vector<Certificate> intermediates_;
  std::string federation_;
};

/// What is revoked and why: the key is a thumbprint (one certificate) or "<role>/<name>" (a member, all certificates).
using Revocations = std::map<std::string, std::string, std::less<>>;

/// The identity that `chain_pem` (leaf first) proves at `now_ms`, or the reason why it proves none.
///
/// `expiry_grace_ms` accepts a certificate for that long after its end: kRenewalGraceMs where one is renewed, else 0.
/// Every failure is UNAUTHENTICATED, never retryable, and a sentence of its own: no certificate; damaged; not signed by this
/// federation's CA (names the issuer); expired (date, how long ago); not yet valid (by how much, and that a clock is
/// off); revoked (with the reason); no or a malformed skerry:// URI; another federation; a role that is not known; a key
/// that is not P-256; a certificate made for servers.
Result<Identity> authenticate(std::string_view chain_pem, const TrustAnchors& anchors, std::int64_t now_ms,
                              const Revocations& revoked, std::int64_t expiry_grace_ms = 0);

/// Whether a certificate that ends at `expires_ms` may be renewed at `now_ms`: before its end or up to `grace_ms` after.
constexpr bool within_grace(std::int64_t expires_ms, std::int64_t now_ms, std::int64_t grace_ms = kRenewalGraceMs) {
  return now_ms <= expires_ms + grace_ms;
}

/// authenticate() for a server: remembers chains it has verified, so that a further call costs a look-up, and still checks
/// time and revocation every time. Safe to use from any thread; anchors and revocations may be replaced while in use.
class Authenticator {
 public:
  explicit Authenticator(TrustAnchors anchors, Revocations revoked = {});

  /// As the function above, with this object's anchors and revocations.
  Result<Identity> authenticate(std::string_view chain_pem, std::int64_t now_ms, std::int64_t expiry_grace_ms = 0) const;

  /// Adds one revocation; `what` is a thumbprint or "<role>/<name>".
  void revoke(std::string what, std::string reason);
  void set_revocations(Revocations revoked);
  /// Forgets all remembered chains.
  void set_anchors(TrustAnchors anchors);

  std::string federation() const;

 private:
  struct Proven;  // a verified chain: identity, begin, and the earliest end of its CAs
  static constexpr std::size_t kRemembered = 4096;

  mutable std::shared_mutex mutex_;
  TrustAnchors anchors_;
  Revocations revoked_;
  std::uint64_t generation_ = 0;  // of the anchors
  // Shared because a caller may still read an entry that another thread drops.
  mutable std::unordered_map<std::string, std::shared_ptr<const Proven>> remembered_;
};

}  // namespace skerry
