// Who belongs to the federation: invitations, certificates, revocations, last seen. In SQLite; secrets only as SHA-256.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/base/result.h"
#include "common/identity/authenticate.h"
#include "common/sqlite/database.h"
#include "server/identity/certificate_authority.h"

namespace skerry::server {

inline constexpr std::int64_t kInvitationMs = kDayMs;
inline constexpr std::int64_t kLongestInvitationMs = 30 * kDayMs;

struct Invitation {
  std::string token;  ///< show it once, never log it
  std::int64_t expires_ms = 0;
};

struct Enrolment {
  Role role = Role::kNode;
  std::string name;
  std::string thumbprint;
  std::int64_t expires_ms = 0;
  std::string chain_pem;
  /// Of certificates that this one replaces because the member enrolled anew: end their connections.
  std::vector<std::string> replaced;
};

struct Revocation {
  std::vector<std::string> thumbprints;  ///< of the certificates that were valid until now
};

struct MemberRecord {
  Role role = Role::kNode;
  std::string name;
  enum class State { kInvited, kActive, kRevoked } state = State::kInvited;
  std::string revoked_reason;
  std::string thumbprint;                   ///< of the newest certificate
  std::int64_t certificate_expires_ms = 0;  ///< of the newest certificate; of the invitation while kInvited
  std::int64_t created_ms = 0;
  std::int64_t last_seen_ms = 0;  ///< 0: never
};

/// The registry. Safe from any thread: one mutex around it; give it a Database connection of its own (several connections,
/// also of several processes, to one file are fine). `authority` must outlive it; `address` ("host:port") goes into tokens.
///
/// Every change that matters is durable when the call returns. Times are Unix milliseconds.
class Members {
 public:
  static Result<void> create_schema(sqlite::Database& database);

  Members(sqlite::Database database, const CertificateAuthority& authority, std::string address);

  /// A one-time token for a node, operator or viewer. `ttl_ms` 0: 24 hours; at most 30 days. Older unused invitations of the
  /// same name end. INVALID_ARGUMENT (name, role, ttl), FAILED_PRECONDITION (the name is revoked: choose another).
  Result<Invitation> invite(Role role, std::string_view name, std::int64_t ttl_ms, std::int64_t now_ms);

  /// Trades a token's secret for a certificate, once. Two racing calls: one wins. A member that was active before loses its older
  /// certificates. UNAUTHENTICATED (secret unknown), FAILED_PRECONDITION (used at …, expired at …, replaced by a newer invitation, the
  /// name was revoked), INVALID_ARGUMENT (signing request, key type).
  Result<Enrolment> redeem(std::string_view secret, std::string_view request_pem, std::int64_t now_ms);

  /// A new certificate for a caller that authenticate() accepted with kRenewalGraceMs. The older one stays valid until its end.
  /// INVALID_ARGUMENT (signing request, or its key is not the caller's), UNAUTHENTICATED (revoked meanwhile).
  Result<Enrolment> renew(const Identity& caller, std::string_view request_pem, std::int64_t now_ms);

  /// Revokes a member for good: its certificates, its open invitations, its name. Afterwards call Authenticator::revoke with
  /// member_key(role, name) and end its connections. NOT_FOUND, FAILED_PRECONDITION (revoked already, when and why; or the
  /// last operator).
  Result<Revocation> revoke(Role role, std::string_view name, std::string_view reason, std::int64_t now_ms);

  /// Records a certificate that was issued outside (the first operator's).
  Result<void> record(Role role, std::string_view name, const Certificate& certificate, std::int64_t now_ms);

  /// All members by role and name.
  Result<std::vector<MemberRecord>> list() const;
  /// NOT_FOUND.
  Result<MemberRecord> find(Role role, std::string_view name) const;

  /// Notes that a member was here; costs a map look-up. Written by flush_seen (call it once a minute and at the end).
  void seen(const Identity& caller, std::int64_t now_ms);
  Result<void> flush_seen();

  /// For an Authenticator at start.
  Result<Revocations> revocations() const;

  /// The bodies of POST /api/v1/enrol {"secret","csr"} and POST /api/v1/renew {"csr"}, answered by
  /// {"certificate": chain PEM, "ca": trust anchors PEM, "address"}. INVALID_ARGUMENT: not such JSON; else as redeem() and renew().
  struct Answer {
    std::string json;
    Enrolment enrolment;
  };
  Result<Answer> answer_enrol(std::string_view body, std::int64_t now_ms);
  Result<Answer> answer_renew(const Identity& caller, std::string_view body, std::int64_t now_ms);

 private:
  Result<Enrolment> issue(const PublicKey& key, Role role, std::string_view name, std::int64_t now_ms);
  Result<std::vector<MemberRecord>> select(std::string_view where, std::string_view role, std::string_view name) const;
  std::string answer_json(const Enrolment& enrolment) const;

  mutable std::mutex mutex_;
  mutable sqlite::Database database_;
  const CertificateAuthority& authority_;
  std::string address_;
  std::map<std::pair<Role, std::string>, std::int64_t> seen_;  // not yet written
};

/// "node/alder": a member's key in Revocations.
std::string member_key(Role role, std::string_view name);

}  // namespace skerry::server
