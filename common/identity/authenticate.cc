#include "common/identity/authenticate.h"

#include "common/base/encoding_text.h"

#include <algorithm>
#include <array>
#include <mutex>
#include <optional>

namespace skerry {
namespace {

constexpr std::string_view kScheme = "skerry://";
constexpr std::size_t kMaxChainBytes = 64 * 1024;

struct RoleName {
  Role role;
  std::string_view name;
};
constexpr std::array<RoleName, 4> kRoles{
    {{Role::kNode, "node"}, {Role::kOperator, "operator"}, {Role::kViewer, "viewer"}, {Role::kServer, "server"}}};

// Text from a certificate, fit for a message: printable and short.
std::string shown(std::string_view text) { return one_line(text, 120); }

bool is_name(std::string_view name) {
  const auto is_letter_or_digit = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); };
  return !name.empty() && name.size() <= 63 && is_letter_or_digit(name.front()) &&
         std::all_of(name.begin(), name.end(), [&](char c) { return is_letter_or_digit(c) || c == '-'; });
}

struct UriParts {
  std::string_view federation;
  Role role;
  std::string_view name;
};

Result<UriParts> parse_uri(std::string_view uri) {
  const std::string_view path = uri.substr(kScheme.size());
  const std::size_t first = path.find('/');
  const std::size_t second = first == path.npos ? path.npos : path.find('/', first + 1);
  if (second == path.npos || !is_name(path.substr(0, first)) || !is_name(path.substr(second + 1)))
    return unauthenticated("the certificate's URI '" + shown(uri) +
                           "' is malformed: it must be skerry://<federation>/<role>/<name>; enrol again with a new token");
  auto role = parse_role(path.substr(first + 1, second - first - 1));
  if (!role.ok())
    return unauthenticated("the certificate's URI '" + shown(uri) + "' names a role that this version does not know: " +
                           role.error().message);
  return UriParts{path.substr(0, first), *role, path.substr(second + 1)};
}

Result<Identity> identity_of(const Certificate& leaf, const std::string& federation) {
  std::optional<std::string> uri;
  for (std::string& candidate : leaf.uris()) {
    if (candidate.compare(0, kScheme.size(), kScheme) != 0) continue;
    if (uri) return unauthenticated("the certificate has two skerry:// URIs, so it names nobody; enrol again");
    uri = std::move(candidate);
  }
  if (!uri)
    return unauthenticated("the certificate of '" + shown(leaf.subject()) +
                           "' has no skerry:// URI, so it names no role and no member; enrol with a join token");
  SKERRY_ASSIGN(const UriParts parts, parse_uri(*uri));
  if (parts.federation != federation)
    return unauthenticated("the certificate is for the federation '" + shown(parts.federation) + "', this is '" + federation + "'");
  if (parts.role != Role::kServer && !leaf.is_for(LeafUse::kClient))
    return unauthenticated("the certificate of '" + shown(leaf.subject()) + "' is not made for clients; enrol with a join token");
  auto key = leaf.public_key();
  if (!key.ok()) return unauthenticated("the certificate of '" + shown(leaf.subject()) + "' is not usable: " + key.error().message);
  return Identity{parts.role,        std::string(parts.name), std::string(parts.federation), leaf.thumbprint(),
                  leaf.not_after_ms(), *std::move(key)};
}

}  // namespace

// What a chain proves whatever the time. The times are those of the certificates it came from.
struct Authenticator::Proven {
  Identity identity;
  std::int64_t begins_ms;
  std::int64_t authority_ends_ms;  // the earliest end among the CAs of this chain
  std::string authority;
  std::uint64_t generation;

  static Result<Proven> prove(std::string_view chain_pem, const TrustAnchors& anchors);
  Result<void> check_now(std::int64_t now_ms, const Revocations& revoked, std::int64_t expiry_grace_ms) const;
};

Result<Authenticator::Proven> Authenticator::Proven::prove(std::string_view pem, const TrustAnchors& anchors) {
  if (pem.empty())
    return unauthenticated(
        "no client certificate was presented: use a profile (skerry --profile DIR, skerry-client --home DIR) or join "
        "with a token first");
  if (pem.size() > kMaxChainBytes)
    return unauthenticated("the certificate chain has " + std::to_string(pem.size()) + " bytes, at most " +
                           std::to_string(kMaxChainBytes) + " are read");
  auto chain = parse_chain(pem);
  if (!chain.ok()) return unauthenticated("the certificate presented is damaged: " + chain.error().message);
  if (chain->empty()) return unauthenticated("what was presented as a certificate chain holds no certificate");
  const Certificate& leaf = chain->front();
  if (auto verified = verify_chain(*chain, anchors.roots(), anchors.intermediates()); !verified.ok())
    return unauthenticated("the certificate of '" + shown(leaf.subject()) + "' was issued by '" + shown(leaf.issuer()) +
                           "', which is not signed by the CA of the federation '" + anchors.federation() + "' (" +
                           verified.error().message + "); join this federation with a token of its operator");
  auto identity = identity_of(leaf, anchors.federation());
  if (!identity.ok()) return std::move(identity).error();
  Proven proven{*std::move(identity), leaf.not_before_ms(), INT64_MAX, "", 0};
  // The CAs above the leaf: whichever of those at hand signed it, and in turn that one.
  std::vector<const Certificate*> authorities;
  for (std::size_t i = 1; i < chain->size(); ++i) authorities.push_back(&(*chain)[i]);
  for (const Certificate& c : anchors.intermediates()) authorities.push_back(&c);
  for (const Certificate& c : anchors.roots()) authorities.push_back(&c);
  const Certificate* below = &leaf;
  for (int depth = 0; depth < 3 && !below->is_self_signed(); ++depth) {
    const auto found = std::find_if(authorities.begin(), authorities.end(),
                                    [&](const Certificate* c) { return below->is_signed_by(*c); });
    if (found == authorities.end()) break;
    below = *found;
    if (below->not_after_ms() >= proven.authority_ends_ms) continue;
    proven.authority_ends_ms = below->not_after_ms();
    proven.authority = below->subject();
  }
  return proven;
}

Result<void> Authenticator::Proven::check_now(std::int64_t now_ms, const Revocations& revoked,
                                              std::int64_t expiry_grace_ms) const {
  const std::string who = std::string(role_name(identity.role)) + " '" + identity.name + "'";
  const std::string member = std::string(role_name(identity.role)) + "/" + identity.name;
  auto revocation = revoked.find(member);
  if (revocation == revoked.end()) revocation = revoked.find(identity.thumbprint);
  if (revocation != revoked.end())
    return unauthenticated("the certificate of " + who + " is revoked: " + revocation->second +
                           "; speak to the operator of the federation");
  if (now_ms < begins_ms)
    return unauthenticated("the certificate of " + who + " is not yet valid: it begins on " + format_utc(begins_ms) +
                           ", " + format_duration(begins_ms - now_ms) + " after this machine's time (" + format_utc(now_ms) +
                           "); a clock is off, compare both machines with date -u");
  if (!within_grace(identity.expires_ms, now_ms, expiry_grace_ms))
    return unauthenticated("the certificate of " + who + " expired on " + format_utc(identity.expires_ms) + ", " +
                           format_duration(now_ms - identity.expires_ms) + " ago; " +
                           (within_grace(identity.expires_ms, now_ms)
                                ? "it can still be renewed until " + format_utc(identity.expires_ms + kRenewalGraceMs)
                                : "join again with a new token") +
                           " (if that date is not past, a clock is off)");
  if (now_ms > authority_ends_ms)
    return unauthenticated("the CA '" + authority + "' that issued the certificate of " + who + " expired on " +
                           format_utc(authority_ends_ms) + "; the operator must roll the CA over");
  return {};
}

std::string_view role_name(Role role) {
  for (const RoleName& known : kRoles)
    if (known.role == role) return known.name;
  return "unknown";
}

Result<Role> parse_role(std::string_view text) {
  for (const RoleName& known : kRoles)
    if (known.name == text) return known.role;
  return invalid_argument("'" + shown(text) + "' is not a role; roles are node, operator, viewer and server");
}

Result<void> check_member_name(std::string_view name) {
  if (is_name(name)) return {};
  return invalid_argument("'" + shown(name) +
                          "' is not a name: 1 to 63 of a-z, 0-9 and '-', the first one a letter or a digit");
}

std::string identity_uri(std::string_view federation, Role role, std::string_view name) {
  std::string uri(kScheme);
  return uri.append(federation).append("/").append(role_name(role)).append("/").append(name);
}

Result<TrustAnchors> TrustAnchors::from_pem(std::string_view pem) {
  SKERRY_ASSIGN(const std::vector<Certificate> certificates, parse_chain(pem));
  TrustAnchors anchors;
  for (const Certificate& certificate : certificates) {
    if (!certificate.is_ca()) return invalid_argument("'" + shown(certificate.subject()) + "' is not a CA certificate");
    if (!certificate.is_self_signed()) {
      anchors.intermediates_.push_back(certificate);
      continue;
    }
    const std::string federation = certificate.organisation();
    if (!is_name(federation))
      return invalid_argument("the root '" + shown(certificate.subject()) + "' names no federation (O=)");
    if (!anchors.roots_.empty() && federation != anchors.federation_)
      return invalid_argument("the trust anchors are of two federations, '" + anchors.federation_ + "' and '" + federation + "'");
    anchors.federation_ = federation;
    anchors.roots_.push_back(certificate);
  }
  if (anchors.roots_.empty()) return invalid_argument("there is no self-signed CA certificate among the trust anchors");
  for (const Certificate& issuing : anchors.intermediates_) {
    const bool vouched = std::any_of(anchors.roots_.begin(), anchors.roots_.end(),
                                     [&](const Certificate& root) { return issuing.is_signed_by(root); });
    if (!vouched)
      return invalid_argument("the CA certificate '" + shown(issuing.subject()) +
                              "' is not signed by a root among the trust anchors: one of them is damaged");
  }
  return anchors;
}

Result<Identity> authenticate(std::string_view chain_pem, const TrustAnchors& anchors, std::int64_t now_ms,
                              const Revocations& revoked, std::int64_t expiry_grace_ms) {
  return Authenticator(anchors, revoked).authenticate(chain_pem, now_ms, expiry_grace_ms);
}

Authenticator::Authenticator(TrustAnchors anchors, Revocations revoked)
    : anchors_(std::move(anchors)), revoked_(std::move(revoked)) {}

Result<Identity> Authenticator::authenticate(std::string_view chain_pem, std::int64_t now_ms,
                                             std::int64_t expiry_grace_ms) const {
  const std::string key(chain_pem);
  std::optional<TrustAnchors> anchors;
  std::uint64_t generation = 0;
  {
    std::shared_lock lock(mutex_);
    if (const auto found = remembered_.find(key); found != remembered_.end()) {
      SKERRY_TRY(found->second->check_now(now_ms, revoked_, expiry_grace_ms));
      return found->second->identity;
    }
    anchors = anchors_;
    generation = generation_;
  }
  SKERRY_ASSIGN(Proven fresh, Proven::prove(chain_pem, *anchors));
  const auto proven = std::make_shared<const Proven>(std::move(fresh));
  std::unique_lock lock(mutex_);
  if (generation == generation_) {
    if (remembered_.size() >= kRemembered) remembered_.clear();
    remembered_.emplace(key, proven);
  }
  SKERRY_TRY(proven->check_now(now_ms, revoked_, expiry_grace_ms));
  return proven->identity;
}

void Authenticator::revoke(std::string what, std::string reason) {
  std::unique_lock lock(mutex_);
  revoked_.insert_or_assign(std::move(what), std::move(reason));
}

void Authenticator::set_revocations(Revocations revoked) {
  std::unique_lock lock(mutex_);
  revoked_ = std::move(revoked);
}

void Authenticator::set_anchors(TrustAnchors anchors) {
  std::unique_lock lock(mutex_);
  anchors_ = std::move(anchors);
  remembered_.clear();
  ++generation_;
}

std::string Authenticator::federation() const {
  std::shared_lock lock(mutex_);
  return anchors_.federation();
}

}  // namespace skerry
