// Certificates: a self-signed root, an issuing CA below it, leaves for servers and members, and signing requests.
//
// Everything is ECDSA P-256 with SHA-256. Times are Unix milliseconds (certificates keep whole seconds). A certificate
// is back-dated by kBackdateMs so that a holder whose clock is slightly slow can use it at once.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.h"
#include "common/crypto/keys.h"

struct x509_st;  // OpenSSL's X509

namespace skerry {

inline constexpr std::int64_t kBackdateMs = 5 * 60 * 1000;

/// What a leaf is for: it sets the extended key usage, so that a member cannot pose as a server.
enum class LeafUse { kClient, kServer };

/// An X.509 certificate. Copies share one immutable OpenSSL object.
class Certificate {
 public:
  /// From DER or from the first certificate of a PEM text. INVALID_ARGUMENT: there is none, or it is damaged.
  static Result<Certificate> from_der(std::string_view der);
  static Result<Certificate> from_pem(std::string_view pem);

  std::string pem() const;
  std::string der() const;
  /// Hex SHA-256 of der(): 64 lower-case digits.
  const std::string& thumbprint() const { return thumbprint_; }

  /// Distinguished names for people, for example "O=harbour, CN=Skerry root".
  std::string subject() const;
  std::string issuer() const;
  /// The subject's organisation (the federation's name in certificates of ours); empty if there is none.
  std::string organisation() const;
  std::int64_t not_before_ms() const;
  std::int64_t not_after_ms() const;
  /// Hex.
  std::string serial() const;

  /// Subject alternative names, each kind in the certificate's order.
  std::vector<std::string> uris() const;
  std::vector<std::string> dns_names() const;
  std::vector<std::string> ip_addresses() const;

  bool is_ca() const;
  /// Whether its extended key usage permits `use`; a certificate without one is not for either.
  bool is_for(LeafUse use) const;
  bool is_self_signed() const;
  /// INVALID_ARGUMENT if it is not a P-256 key.
  Result<PublicKey> public_key() const;
  /// Whether the signature is `issuer`'s and the names fit.
  bool is_signed_by(const Certificate& issuer) const;

  x509_st* handle() const { return certificate_.get(); }
  static Certificate adopt(std::shared_ptr<x509_st> certificate);

 private:
  explicit Certificate(std::shared_ptr<x509_st> certificate) : certificate_(std::move(certificate)) {}
  std::shared_ptr<x509_st> certificate_;  // shared because OpenSSL counts references; immutable once made
  std::string thumbprint_;
};

/// All certificates of a PEM text, in order; text between them is skipped, an empty text gives none. INVALID_ARGUMENT names
/// the position of the first damaged one, or says that there are more than 16.
Result<std::vector<Certificate>> parse_chain(std::string_view pem);
std::string chain_pem(const std::vector<Certificate>& chain);

/// INVALID_ARGUMENT unless `chain`'s first certificate leads to one of the self-signed `anchors` through the rest of the
/// chain or through `intermediates`; the message is OpenSSL's reason. Does not look at times, so that the caller can
/// explain them.
Result<void> verify_chain(const std::vector<Certificate>& chain, const std::vector<Certificate>& anchors,
                          const std::vector<Certificate>& intermediates = {});

/// A root that signs itself: O=`organisation`, CN=`common_name`; may sign CAs.
Result<Certificate> make_root(const PrivateKey& key, const std::string& organisation, const std::string& common_name,
                              std::int64_t now_ms, std::int64_t lifetime_ms);

/// An issuing CA signed by `root`; may sign leaves only (path length 0). It ends no later than the root.
Result<Certificate> make_issuing_ca(const PublicKey& key, const std::string& common_name, const Certificate& root,
                                    const PrivateKey& root_key, std::int64_t now_ms, std::int64_t lifetime_ms);

struct LeafOptions {
  std::string common_name;
  std::string uri;                        ///< skerry://<federation>/<role>/<name>
  std::vector<std::string> dns_names;     ///< host names
  std::vector<std::string> ip_addresses;  ///< IPv4 or IPv6 as text
  LeafUse use = LeafUse::kClient;
  std::int64_t now_ms = 0;
  std::int64_t lifetime_ms = 0;
};

/// A leaf for `key`. It ends no later than the issuing CA. INVALID_ARGUMENT: a host name or address that is none.
Result<Certificate> make_leaf(const PublicKey& key, const LeafOptions& options, const Certificate& issuing,
                              const PrivateKey& issuing_key);

/// A PKCS#10 signing request in PEM, signed with `key`.
Result<std::string> make_signing_request(const PrivateKey& key, const std::string& common_name);

/// The key a signing request asks a certificate for, once its signature shows that the sender holds the key.
/// INVALID_ARGUMENT: over 16 KiB, no PEM request, a key other than P-256 (named), or a wrong signature.
Result<PublicKey> check_signing_request(std::string_view pem);

/// "2027-03-01 12:00:00 UTC".
std::string format_utc(std::int64_t unix_ms);

/// "3 minutes", "2 days": the largest unit that fits, rounded down; the sign is ignored.
std::string format_duration(std::int64_t ms);

}  // namespace skerry
