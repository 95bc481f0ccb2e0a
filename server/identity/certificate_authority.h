// The coordinator's certificate authority: its files, what it issues, and the change from one root to the next.
//
// Below the server's home:
//   ca/root.crt ca/root.key        the root; root.key may (and should) be kept offline: only init and rollover need it
//   ca/issuing.crt ca/issuing.key  the online CA, signed by the root, path length 0
//   ca/anchor-*.crt                further trust anchors, during a rollover
//   ca-previous/                   the CA before switch_rollover, until finish_rollover removes it with its keys
//   ca/next/                       the coming root and issuing CA, between start_rollover and switch_rollover
//   server.crt server.key          the coordinator's own chain and key
//   ticket.key                     32 random bytes in hex, for cargo tickets, and 16 digits of their hex's SHA-256
//   operator/                      the first operator's profile
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.h"
#include "common/crypto/keys.h"
#include "common/crypto/x509.h"
#include "common/identity/authenticate.h"

namespace skerry::server {

inline constexpr std::int64_t kDayMs = std::int64_t{24} * 3600 * 1000;
inline constexpr std::int64_t kRootLifetimeMs = 20 * 365 * kDayMs;
inline constexpr std::int64_t kIssuingLifetimeMs = 5 * 365 * kDayMs;
inline constexpr std::int64_t kServerLifetimeMs = 90 * kDayMs;
inline constexpr std::int64_t kMemberLifetimeMs = 30 * kDayMs;

struct InitOptions {
  std::string federation;          ///< [a-z0-9][a-z0-9-]{0,62}
  std::string server_name = "coordinator";
  std::vector<std::string> hosts;  ///< host names and IP addresses for the server's certificate, at least one
  std::string address;             ///< "host:port" for the operator's profile
  std::string operator_name = "operator";
  std::int64_t now_ms = 0;         ///< Unix time
};

/// Makes a new server home: CA, server certificate, ticket key, the first operator's profile, and the member tables in
/// skerry.db with that operator in them. ALREADY_EXISTS if `home` has a CA; INVALID_ARGUMENT: a name, host or address.
Result<void> init_home(const std::string& home, const InitOptions& options);

/// Everything a peer needs to present: a certificate and the CAs above it, without the root.
struct IssuedCertificate {
  Certificate certificate;
  std::string chain_pem;  ///< leaf, then the issuing CA
};

/// The opened CA. Immutable but for the rollover calls; issuing is safe from several threads.
class CertificateAuthority {
 public:
  /// Reads ca/ below `home`. NOT_FOUND (says to run init), INVALID_ARGUMENT or DATA_LOSS naming the file: keys and certificates that do
  /// not belong together, a chain that does not hold.
  static Result<CertificateAuthority> open(const std::string& home);

  const std::string& federation() const { return anchors_.federation(); }
  /// For an Authenticator.
  const TrustAnchors& anchors() const { return anchors_; }
  /// What GET /api/v1/ca answers and what members store: all anchors, then the issuing CA, PEM.
  const std::string& ca_pem() const { return ca_pem_; }
  /// Hex SHA-256 of the current root: what join tokens pin.
  const std::string& root_fingerprint() const { return root_.thumbprint(); }
  std::int64_t issuing_expires_ms() const { return issuing_.not_after_ms(); }

  /// A client certificate for a member, valid from now. INVALID_ARGUMENT: the name, or role `server`.
  Result<IssuedCertificate> issue_member(const PublicKey& key, Role role, std::string_view name, std::int64_t now_ms,
                                         std::int64_t lifetime_ms = kMemberLifetimeMs) const;

  /// A server certificate for these host names and IP addresses.
  Result<IssuedCertificate> issue_server(const PublicKey& key, std::string_view name,
                                         const std::vector<std::string>& hosts, std::int64_t now_ms,
                                         std::int64_t lifetime_ms = kServerLifetimeMs) const;

  /// Replaces server.crt (same key, name and hosts) if two thirds of its lifetime have passed, or if the current issuing CA
  /// did not sign it. True if it did: then reload it.
  Result<bool> renew_server_certificate(std::int64_t now_ms) const;
  /// Replaces server.crt so that it names these hosts.
  Result<void> set_server_hosts(const std::vector<std::string>& hosts, std::int64_t now_ms) const;

  /// Rollover, step 1: makes a root and an issuing CA in ca/next/ and trusts the new root besides the old one. Members learn it
  /// with their next renewal (within 20 days). ALREADY_EXISTS if one is under way. Step 2 follows when all have renewed.
  Result<void> start_rollover(std::int64_t now_ms);
  /// Step 2: issues from the new CA; the old root stays trusted; server.crt is replaced. NOT_FOUND without step 1.
  Result<void> switch_rollover(std::int64_t now_ms);
  /// Step 3: distrusts every root but the current one, once no member's certificate leads to it, and removes the old keys.
  /// FAILED_PRECONDITION before step 2.
  Result<void> finish_rollover();

  const std::string& home() const { return home_; }

 private:
  CertificateAuthority(std::string home, TrustAnchors anchors, Certificate root, Certificate issuing, PrivateKey key,
                       std::string ca_pem)
      : home_(std::move(home)),
        anchors_(std::move(anchors)),
        root_(std::move(root)),
        issuing_(std::move(issuing)),
        issuing_key_(std::move(key)),
        ca_pem_(std::move(ca_pem)) {}

  Result<void> reopen();

  std::string home_;
  TrustAnchors anchors_;
  Certificate root_;
  Certificate issuing_;
  PrivateKey issuing_key_;
  std::string ca_pem_;
};

/// The key for cargo tickets from `home`/ticket.key: 32 bytes. NOT_FOUND or INVALID_ARGUMENT names the file.
Result<std::string> load_ticket_key(const std::string& home);

}  // namespace skerry::server
