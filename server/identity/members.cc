#include "server/identity/members.h"

#include <algorithm>

#include <nlohmann/json.hpp>

#include "common/base/encoding_text.h"
#include "common/crypto/random.h"
#include "common/crypto/sha256.h"
#include "common/identity/join_token.h"

namespace skerry::server {
namespace {

constexpr std::size_t kSecretBytes = 32;
constexpr std::size_t kMaxBody = 64 * 1024;
constexpr std::size_t kMaxReason = 500;

constexpr const char* kSchema = R"sql(
CREATE TABLE IF NOT EXISTS members (
  role TEXT NOT NULL,
  name TEXT NOT NULL,
  created_ms INTEGER NOT NULL,
  last_seen_ms INTEGER NOT NULL DEFAULT 0,
  revoked_ms INTEGER,
  revoked_reason TEXT,
  PRIMARY KEY (role, name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS invitations (
  secret_sha256 TEXT PRIMARY KEY,
  role TEXT NOT NULL,
  name TEXT NOT NULL,
  created_ms INTEGER NOT NULL,
  expires_ms INTEGER NOT NULL,
  used_ms INTEGER,
  replaced_ms INTEGER
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS certificates (
  thumbprint TEXT PRIMARY KEY,
  role TEXT NOT NULL,
  name TEXT NOT NULL,
  serial TEXT NOT NULL,
  issued_ms INTEGER NOT NULL,
  expires_ms INTEGER NOT NULL,
  revoked_ms INTEGER,
  revoked_reason TEXT
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS certificates_by_member ON certificates (role, name, issued_ms);
)sql";

std::string who(Role role, std::string_view name) { return std::string(role_name(role)) + " '" + std::string(name) + "'"; }

Result<void> check_member(Role role, std::string_view name) {
  if (role == Role::kServer) return invalid_argument("members are nodes, operators or viewers, not servers");
  return check_member_name(name);
}

struct RevokedAt {
  std::int64_t revoked_ms = 0;  // 0: not revoked
  std::string reason;
};

Result<RevokedAt> revoked_at(sqlite::Database& database, Role role, std::string_view name) {
  SKERRY_ASSIGN(auto row, database.query("SELECT revoked_ms, revoked_reason FROM members WHERE role = ? AND name = ?",
                                         role_name(role), name));
  SKERRY_ASSIGN(const bool found, row.next());
  if (!found || row.is_null(0)) return RevokedAt{};
  return RevokedAt{row.int64(0), row.text(1)};
}

Error name_is_revoked(Role role, std::string_view name, const RevokedAt& revoked) {
  return failed_precondition(who(role, name) + " was revoked on " + format_utc(revoked.revoked_ms) + " (" + revoked.reason +
                             "); a revoked name is never used again, invite under another name");
}

Result<void> insert_member(sqlite::Database& database, Role role, std::string_view name, std::int64_t now_ms) {
  SKERRY_TRY(database.run("INSERT INTO members (role, name, created_ms) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                          role_name(role), name, now_ms));
  return {};
}

Result<void> insert_certificate(sqlite::Database& database, Role role, std::string_view name, const Certificate& certificate,
                                std::int64_t now_ms) {
  SKERRY_TRY(database.run(
      "INSERT INTO certificates (thumbprint, role, name, serial, issued_ms, expires_ms) VALUES (?, ?, ?, ?, ?, ?) "
      "ON CONFLICT DO NOTHING",
      certificate.thumbprint(), role_name(role), name, certificate.serial(), now_ms, certificate.not_after_ms()));
  return {};
}

// Thumbprints of a member's certificates that are still good at `now_ms`.
Result<std::vector<std::string>> good_certificates(sqlite::Database& database, Role role, std::string_view name,
                                                   std::int64_t now_ms) {
  SKERRY_ASSIGN(auto row, database.query("SELECT thumbprint FROM certificates WHERE role = ? AND name = ? AND revoked_ms IS NULL "
                                         "AND expires_ms + ? >= ? ORDER BY issued_ms, thumbprint",
                                         role_name(role), name, kRenewalGraceMs, now_ms));
  std::vector<std::string> thumbprints;
  for (;;) {
    SKERRY_ASSIGN(const bool more, row.next());
    if (!more) return thumbprints;
    thumbprints.push_back(row.text(0));
  }
}

Result<void> revoke_certificates(sqlite::Database& database, Role role, std::string_view name, std::string_view reason,
                                 std::int64_t now_ms) {
  SKERRY_TRY(database.run("UPDATE certificates SET revoked_ms = ?, revoked_reason = ? WHERE role = ? AND name = ? AND revoked_ms IS NULL",
                          now_ms, reason, role_name(role), name));
  return {};
}

// A reason for logs and error messages: one line, printable, not too long.
std::string clean_reason(std::string_view reason) {
  std::string clean(reason.substr(0, kMaxReason));
  for (char& c : clean)
    if (static_cast<unsigned char>(c) < ' ' || c == 127) c = ' ';
  return clean.empty() ? "no reason was given" : clean;
}

Result<std::string> text_field(const nlohmann::json& json, const char* name) {
  const auto field = json.find(name);
  if (field == json.end() || !field->is_string())
    return invalid_argument(std::string("the request lacks the text field '") + name + "'");
  return field->get<std::string>();
}

Result<nlohmann::json> parse_body(std::string_view body) {
  if (body.size() > kMaxBody)
    return invalid_argument("the request has " + std::to_string(body.size()) + " bytes, at most " + std::to_string(kMaxBody) + " are read");
  nlohmann::json json = nlohmann::json::parse(body, nullptr, false);
  if (!json.is_object()) return invalid_argument("the request is not a JSON object");
  return json;
}

}  // namespace

std::string member_key(Role role, std::string_view name) {
  return std::string(role_name(role)).append("/").append(name);
}

Result<void> Members::create_schema(sqlite::Database& database) { return database.execute(kSchema); }

Members::Members(sqlite::Database database, const CertificateAuthority& authority, std::string address)
    : database_(std::move(database)), authority_(authority), address_(std::move(address)) {}

Result<Invitation> Members::invite(Role role, std::string_view name, std::int64_t ttl_ms, std::int64_t now_ms) {
  SKERRY_TRY(check_member(role, name));
  if (ttl_ms == 0) ttl_ms = kInvitationMs;
  if (ttl_ms < 0 || ttl_ms > kLongestInvitationMs)
    return invalid_argument("an invitation may be valid for 1 second to 30 days, not for " +
                            (ttl_ms < 0 ? "-" + format_duration(ttl_ms) : format_duration(ttl_ms)));
  SKERRY_ASSIGN(std::string bytes, random_secret(kSecretBytes));
  const std::string secret = to_base64url(bytes);
  cleanse(bytes);
  const std::int64_t expires_ms = now_ms + ttl_ms;

  const std::scoped_lock lock(mutex_);
  SKERRY_ASSIGN(auto transaction, sqlite::Transaction::begin(database_));
  SKERRY_ASSIGN(const RevokedAt revoked, revoked_at(database_, role, name));
  if (revoked.revoked_ms != 0) return name_is_revoked(role, name, revoked);
  SKERRY_TRY(insert_member(database_, role, name, now_ms));
  SKERRY_TRY(database_.run("UPDATE invitations SET replaced_ms = ? WHERE role = ? AND name = ? AND used_ms IS NULL AND replaced_ms IS NULL",
                           now_ms, role_name(role), name));
  SKERRY_TRY(database_.run("INSERT INTO invitations (secret_sha256, role, name, created_ms, expires_ms) VALUES (?, ?, ?, ?, ?)",
                           sha256_hex(secret), role_name(role), name, now_ms, expires_ms));
  SKERRY_TRY(transaction.commit());
  return Invitation{format_join_token({address_, authority_.root_fingerprint(), secret, expires_ms, role, std::string(name)}),
                    expires_ms};
}

Result<Enrolment> Members::issue(const PublicKey& key, Role role, std::string_view name, std::int64_t now_ms) {
  SKERRY_ASSIGN(const IssuedCertificate issued, authority_.issue_member(key, role, name, now_ms));
  SKERRY_TRY(insert_certificate(database_, role, name, issued.certificate, now_ms));
  return Enrolment{role, std::string(name), issued.certificate.thumbprint(), issued.certificate.not_after_ms(), issued.chain_pem, {}};
}

Result<Enrolment> Members::redeem(std::string_view secret, std::string_view request_pem, std::int64_t now_ms) {
  // First, and outside the lock: a request that cannot be answered must not use the token up.
  SKERRY_ASSIGN(const PublicKey key, check_signing_request(request_pem));
  const std::string hash = sha256_hex(secret);

  const std::scoped_lock lock(mutex_);
  SKERRY_ASSIGN(auto transaction, sqlite::Transaction::begin(database_));
  Role role{};
  std::string name;
  {
    SKERRY_ASSIGN(auto row, database_.query("SELECT role, name, expires_ms, used_ms, replaced_ms FROM invitations WHERE secret_sha256 = ?", hash));
    SKERRY_ASSIGN(const bool found, row.next());
    if (!found)
      return unauthenticated("the join token's secret is unknown here: it was made by another coordinator, or before this one "
                             "was set up anew; ask the operator for a new token");
    SKERRY_ASSIGN(role, parse_role(row.text_view(0)));
    name = row.text(1);
    const std::string invitation = "the join token for " + who(role, name);
    if (!row.is_null(3))
      return failed_precondition(invitation + " was used on " + format_utc(row.int64(3)) +
                                 "; a token works once, ask the operator for a new one (and tell them if it was not you)");
    SKERRY_ASSIGN(const RevokedAt revoked, revoked_at(database_, role, name));
    if (revoked.revoked_ms != 0) return name_is_revoked(role, name, revoked);
    if (!row.is_null(4))
      return failed_precondition(invitation + " was replaced by a newer one on " + format_utc(row.int64(4)) + "; use the newest token");
    if (now_ms > row.int64(2))
      return failed_precondition(invitation + " expired on " + format_utc(row.int64(2)) + ", " +
                                 format_duration(now_ms - row.int64(2)) + " ago; ask the operator for a new one");
  }
  SKERRY_TRY(database_.run("UPDATE invitations SET used_ms = ? WHERE secret_sha256 = ?", now_ms, hash));
  SKERRY_ASSIGN(std::vector<std::string> replaced, good_certificates(database_, role, name, now_ms));
  SKERRY_TRY(revoke_certificates(database_, role, name, "replaced by a new enrolment of " + who(role, name) + " on " + format_utc(now_ms), now_ms));
  SKERRY_ASSIGN(Enrolment enrolment, issue(key, role, name, now_ms));
  enrolment.replaced = std::move(replaced);
  SKERRY_TRY(transaction.commit());
  return enrolment;
}

Result<Enrolment> Members::renew(const Identity& caller, std::string_view request_pem, std::int64_t now_ms) {
  SKERRY_TRY(check_member(caller.role, caller.name));
  SKERRY_ASSIGN(const PublicKey key, check_signing_request(request_pem));
  if (!(key == caller.key))
    return invalid_argument("the signing request is for another key than the certificate of " + who(caller.role, caller.name) +
                            "; a renewal keeps the key, a new key needs a new join token");
  const std::scoped_lock lock(mutex_);
  SKERRY_ASSIGN(auto transaction, sqlite::Transaction::begin(database_));
  SKERRY_ASSIGN(const RevokedAt revoked, revoked_at(database_, caller.role, caller.name));
  if (revoked.revoked_ms != 0)
    return unauthenticated(who(caller.role, caller.name) + " was revoked on " + format_utc(revoked.revoked_ms) + ": " + revoked.reason);
  {
    SKERRY_ASSIGN(auto row, database_.query("SELECT revoked_ms, revoked_reason FROM certificates WHERE thumbprint = ?", caller.thumbprint));
    SKERRY_ASSIGN(const bool found, row.next());
    if (found && !row.is_null(0))
      return unauthenticated("this certificate of " + who(caller.role, caller.name) + " was revoked on " + format_utc(row.int64(0)) + ": " + row.text(1));
  }
  // A restored backup may not know a member whose certificate is good.
  SKERRY_TRY(insert_member(database_, caller.role, caller.name, now_ms));
  SKERRY_ASSIGN(Enrolment enrolment, issue(key, caller.role, caller.name, now_ms));
  SKERRY_TRY(transaction.commit());
  return enrolment;
}

Result<Revocation> Members::revoke(Role role, std::string_view name, std::string_view reason, std::int64_t now_ms) {
  SKERRY_TRY(check_member(role, name));
  const std::string clean = clean_reason(reason);
  const std::scoped_lock lock(mutex_);
  SKERRY_ASSIGN(auto transaction, sqlite::Transaction::begin(database_));
  SKERRY_ASSIGN(const std::vector<MemberRecord> found, select("WHERE m.role = ? AND m.name = ?", role_name(role), name));
  if (found.empty()) return not_found("there is no " + who(role, name) + "; list the members for their names");
  SKERRY_ASSIGN(const RevokedAt before, revoked_at(database_, role, name));
  if (before.revoked_ms != 0)
    return failed_precondition(who(role, name) + " was revoked already, on " + format_utc(before.revoked_ms) + ": " + before.reason);
  if (role == Role::kOperator && found.front().state == MemberRecord::State::kActive) {
    SKERRY_ASSIGN(auto row, database_.query("SELECT count(DISTINCT m.name) FROM members m JOIN certificates c ON c.role = m.role AND c.name = m.name "
                                            "WHERE m.role = 'operator' AND m.revoked_ms IS NULL AND m.name <> ? AND c.revoked_ms IS NULL AND c.expires_ms > ?",
                                            name, now_ms));
    SKERRY_TRY(row.next());
    if (row.int64(0) == 0)
      return failed_precondition(who(role, name) + " is the last operator; invite another one first and let them join");
  }
  SKERRY_ASSIGN(Revocation result, [&]() -> Result<Revocation> {
    SKERRY_ASSIGN(std::vector<std::string> thumbprints, good_certificates(database_, role, name, now_ms));
    return Revocation{std::move(thumbprints)};
  }());
  SKERRY_TRY(database_.run("UPDATE members SET revoked_ms = ?, revoked_reason = ? WHERE role = ? AND name = ?", now_ms, clean, role_name(role), name));
  SKERRY_TRY(revoke_certificates(database_, role, name, clean, now_ms));
  SKERRY_TRY(transaction.commit());
  return result;
}

Result<void> Members::record(Role role, std::string_view name, const Certificate& certificate, std::int64_t now_ms) {
  SKERRY_TRY(check_member(role, name));
  const std::scoped_lock lock(mutex_);
  SKERRY_ASSIGN(auto transaction, sqlite::Transaction::begin(database_));
  SKERRY_TRY(insert_member(database_, role, name, now_ms));
  SKERRY_TRY(insert_certificate(database_, role, name, certificate, now_ms));
  return transaction.commit();
}

Result<std::vector<MemberRecord>> Members::select(std::string_view where, std::string_view role, std::string_view name) const {
  const std::string sql =
      "SELECT m.role, m.name, m.created_ms, m.last_seen_ms, m.revoked_ms, m.revoked_reason, c.thumbprint, c.expires_ms, "
      "(SELECT max(i.expires_ms) FROM invitations i WHERE i.role = m.role AND i.name = m.name AND i.used_ms IS NULL AND i.replaced_ms IS NULL) "
      "FROM members m LEFT JOIN certificates c ON c.thumbprint = (SELECT n.thumbprint FROM certificates n "
      "WHERE n.role = m.role AND n.name = m.name ORDER BY n.issued_ms DESC, n.expires_ms DESC LIMIT 1) " +
      std::string(where) + " ORDER BY m.role, m.name";
  SKERRY_ASSIGN(auto row, role.empty() ? database_.query(sql) : database_.query(sql, role, name));
  std::vector<MemberRecord> members;
  for (;;) {
    SKERRY_ASSIGN(const bool more, row.next());
    if (!more) return members;
    MemberRecord member;
    SKERRY_ASSIGN(member.role, parse_role(row.text_view(0)));
    member.name = row.text(1);
    member.created_ms = row.int64(2);
    member.last_seen_ms = row.int64(3);
    member.revoked_reason = row.text(5);
    member.thumbprint = row.text(6);
    member.certificate_expires_ms = row.is_null(6) ? row.int64(8) : row.int64(7);
    member.state = !row.is_null(4)  ? MemberRecord::State::kRevoked
                   : row.is_null(6) ? MemberRecord::State::kInvited
                                    : MemberRecord::State::kActive;
    if (const auto fresh = seen_.find({member.role, member.name}); fresh != seen_.end())
      member.last_seen_ms = std::max(member.last_seen_ms, fresh->second);
    members.push_back(std::move(member));
  }
}

Result<std::vector<MemberRecord>> Members::list() const {
  const std::scoped_lock lock(mutex_);
  return select("", "", "");
}

Result<MemberRecord> Members::find(Role role, std::string_view name) const {
  const std::scoped_lock lock(mutex_);
  SKERRY_ASSIGN(std::vector<MemberRecord> found, select("WHERE m.role = ? AND m.name = ?", role_name(role), name));
  if (found.empty()) return not_found("there is no " + who(role, name) + "; list the members for their names");
  return std::move(found.front());
}

void Members::seen(const Identity& caller, std::int64_t now_ms) {
  const std::scoped_lock lock(mutex_);
  std::int64_t& latest = seen_[{caller.role, caller.name}];
  latest = std::max(latest, now_ms);
}

Result<void> Members::flush_seen() {
  const std::scoped_lock lock(mutex_);
  if (seen_.empty()) return {};
  SKERRY_ASSIGN(auto transaction, sqlite::Transaction::begin(database_));
  for (const auto& [member, when] : seen_)
    SKERRY_TRY(database_.run("UPDATE members SET last_seen_ms = max(last_seen_ms, ?) WHERE role = ? AND name = ?", when,
                             role_name(member.first), member.second));
  SKERRY_TRY(transaction.commit());
  seen_.clear();
  return {};
}

Result<Revocations> Members::revocations() const {
  const std::scoped_lock lock(mutex_);
  Revocations revoked;
  SKERRY_ASSIGN(auto row, database_.query("SELECT role || '/' || name, revoked_reason FROM members WHERE revoked_ms IS NOT NULL "
                                          "UNION ALL SELECT thumbprint, revoked_reason FROM certificates WHERE revoked_ms IS NOT NULL"));
  for (;;) {
    SKERRY_ASSIGN(const bool more, row.next());
    if (!more) return revoked;
    revoked.emplace(row.text(0), row.text(1));
  }
}

std::string Members::answer_json(const Enrolment& enrolment) const {
  return nlohmann::json{{"certificate", enrolment.chain_pem}, {"ca", authority_.ca_pem()}, {"address", address_}}.dump();
}

Result<Members::Answer> Members::answer_enrol(std::string_view body, std::int64_t now_ms) {
  SKERRY_ASSIGN(const nlohmann::json json, parse_body(body));
  SKERRY_ASSIGN(const std::string secret, text_field(json, "secret"));
  SKERRY_ASSIGN(const std::string request, text_field(json, "csr"));
  SKERRY_ASSIGN(Enrolment enrolment, redeem(secret, request, now_ms));
  std::string answer = answer_json(enrolment);
  return Answer{std::move(answer), std::move(enrolment)};
}

Result<Members::Answer> Members::answer_renew(const Identity& caller, std::string_view body, std::int64_t now_ms) {
  SKERRY_ASSIGN(const nlohmann::json json, parse_body(body));
  SKERRY_ASSIGN(const std::string request, text_field(json, "csr"));
  SKERRY_ASSIGN(Enrolment enrolment, renew(caller, request, now_ms));
  std::string answer = answer_json(enrolment);
  return Answer{std::move(answer), std::move(enrolment)};
}

}  // namespace skerry::server
