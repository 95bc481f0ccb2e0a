#include "server/identity/certificate_authority.h"

#include <arpa/inet.h>

#include "common/base/encoding_text.h"
#include "common/crypto/random.h"
#include "common/crypto/sha256.h"
#include "common/identity/profile.h"
#include "common/os/files.h"
#include "common/sqlite/database.h"
#include "server/identity/members.h"

namespace skerry::server {
namespace {

constexpr std::uint64_t kMaxFile = 64 * 1024;
constexpr std::size_t kTicketKeyBytes = 32;

std::string ca_path(const std::string& home, const std::string& file) { return home + "/ca/" + file; }

bool is_ip_address(const std::string& text) {
  unsigned char bytes[16];
  return inet_pton(AF_INET, text.c_str(), bytes) == 1 || inet_pton(AF_INET6, text.c_str(), bytes) == 1;
}

Result<Certificate> load_certificate(const std::string& path) {
  SKERRY_ASSIGN(const std::string pem, read_file(path, kMaxFile));
  auto certificate = Certificate::from_pem(pem);
  if (!certificate.ok()) return with_context(std::move(certificate).error(), path);
  return certificate;
}

struct NewCa {
  Certificate root;
  Certificate issuing;
  PrivateKey issuing_key;
};

// A root and an issuing CA in `directory`; the certificates are written last, so that an interrupted attempt shows.
Result<NewCa> make_ca(const std::string& directory, const std::string& federation, std::int64_t now_ms) {
  SKERRY_TRY(make_directories(directory, 0700));
  SKERRY_ASSIGN(const PrivateKey root_key, PrivateKey::generate());
  SKERRY_ASSIGN(PrivateKey issuing_key, PrivateKey::generate());
  // The serial in the names keeps the certificates of two generations apart when chains are built.
  SKERRY_ASSIGN(const std::string bytes, random_secret(4));
  const std::string generation = to_hex(bytes);
  SKERRY_ASSIGN(Certificate root, make_root(root_key, federation, "Skerry root " + generation, now_ms, kRootLifetimeMs));
  SKERRY_ASSIGN(Certificate issuing, make_issuing_ca(issuing_key.public_key(), "Skerry issuing CA " + generation, root,
                                                     root_key, now_ms, kIssuingLifetimeMs));
  SKERRY_TRY(root_key.save(directory + "/root.key"));
  SKERRY_TRY(issuing_key.save(directory + "/issuing.key"));
  SKERRY_TRY(write_file_atomic(directory + "/issuing.crt", issuing.pem(), 0644));
  SKERRY_TRY(write_file_atomic(directory + "/root.crt", root.pem(), 0644));
  return NewCa{std::move(root), std::move(issuing), std::move(issuing_key)};
}

std::string anchor_file(const Certificate& root) { return "anchor-" + root.thumbprint().substr(0, 16) + ".crt"; }

// switch_rollover moves directories in three steps; this ends or undoes one that was interrupted.
Result<void> repair_switch(const std::string& home) {
  const std::string coming = home + "/ca-next";
  if (!path_exists(coming)) return {};
  return rename_durable(coming, path_exists(home + "/ca") ? home + "/ca/next" : home + "/ca");
}

Result<void> check_init(const InitOptions& options) {
  if (auto checked = check_member_name(options.federation); !checked.ok())
    return with_context(std::move(checked).error(), "federation name");
  if (auto checked = check_member_name(options.server_name); !checked.ok())
    return with_context(std::move(checked).error(), "server name");
  if (auto checked = check_member_name(options.operator_name); !checked.ok())
    return with_context(std::move(checked).error(), "operator name");
  if (options.hosts.empty())
    return invalid_argument("no host name or IP address is given for the server's certificate; name those that clients will use");
  const std::size_t colon = options.address.rfind(':');
  if (colon == std::string::npos || colon == 0 || colon + 1 == options.address.size())
    return invalid_argument("the address '" + options.address + "' is not host:port");
  return {};
}

/// Finds damage of the ticket key's file.
std::string ticket_check(std::string_view digits) { return sha256_hex(digits).substr(0, 16); }

}  // namespace

Result<void> init_home(const std::string& home, const InitOptions& options) {
  SKERRY_TRY(check_init(options));
  if (path_exists(ca_path(home, "root.crt")))
    return already_exists(home + " has a CA already; use it, or choose another home (a new CA would lock every member out)");
  SKERRY_TRY(make_directories(home, 0700));
  SKERRY_TRY(make_ca(home + "/ca", options.federation, options.now_ms));
  SKERRY_ASSIGN(const CertificateAuthority authority, CertificateAuthority::open(home));

  SKERRY_ASSIGN(const PrivateKey server_key, PrivateKey::generate());
  SKERRY_ASSIGN(const IssuedCertificate server,
                authority.issue_server(server_key.public_key(), options.server_name, options.hosts, options.now_ms));
  SKERRY_TRY(server_key.save(home + "/server.key"));
  SKERRY_TRY(write_file_atomic(home + "/server.crt", server.chain_pem, 0644));

  SKERRY_ASSIGN(std::string ticket_key, random_secret(kTicketKeyBytes));
  std::string ticket_text = to_hex(ticket_key);
  ticket_text += " " + ticket_check(ticket_text) + "\n";
  cleanse(ticket_key);
  auto written = write_file_atomic(home + "/ticket.key", ticket_text, 0600);
  cleanse(ticket_text);
  SKERRY_TRY(std::move(written));

  SKERRY_ASSIGN(const PrivateKey operator_key, PrivateKey::generate());
  SKERRY_ASSIGN(const IssuedCertificate first, authority.issue_member(operator_key.public_key(), Role::kOperator,
                                                                      options.operator_name, options.now_ms));
  SKERRY_TRY(create_profile(home + "/operator", options.address, authority.ca_pem(), first.chain_pem, operator_key));
  SKERRY_ASSIGN(sqlite::Database database, sqlite::Database::open(home + "/skerry.db"));
  SKERRY_TRY(Members::create_schema(database));
  Members members(std::move(database), authority, options.address);
  return members.record(Role::kOperator, options.operator_name, first.certificate, options.now_ms);
}

Result<CertificateAuthority> CertificateAuthority::open(const std::string& home) {
  SKERRY_TRY(repair_switch(home));
  const std::string root_path = ca_path(home, "root.crt");
  if (!path_exists(root_path))
    return not_found("there is no CA in " + home + " (" + root_path + " is missing); run: skerry-server init --home " + home);
  SKERRY_ASSIGN(Certificate root, load_certificate(root_path));
  SKERRY_ASSIGN(Certificate issuing, load_certificate(ca_path(home, "issuing.crt")));
  SKERRY_ASSIGN(PrivateKey key, PrivateKey::load(ca_path(home, "issuing.key")));
  if (!root.is_ca() || !root.is_self_signed()) return data_loss(root_path + " is not a self-signed CA certificate; restore it from a backup");
  if (!issuing.is_ca() || !issuing.is_signed_by(root))
    return data_loss(ca_path(home, "issuing.crt") + " is not signed by " + root_path + "; restore both from one backup");
  SKERRY_ASSIGN(const PublicKey issuing_public, issuing.public_key());
  if (!(issuing_public == key.public_key()))
    return data_loss(ca_path(home, "issuing.key") + " is not the key of " + ca_path(home, "issuing.crt") + "; restore both from one backup");
  std::string pem = root.pem();
  SKERRY_ASSIGN(const std::vector<DirectoryEntry> entries, list_directory(home + "/ca"));
  for (const DirectoryEntry& entry : entries) {
    if (entry.is_directory || entry.name.compare(0, 7, "anchor-") != 0) continue;
    SKERRY_ASSIGN(const std::string anchor, read_file(ca_path(home, entry.name), kMaxFile));
    pem += anchor;
  }
  pem += issuing.pem();
  auto anchors = TrustAnchors::from_pem(pem);
  if (!anchors.ok()) return with_context(std::move(anchors).error(), home + "/ca");
  return CertificateAuthority(home, *std::move(anchors), std::move(root), std::move(issuing), std::move(key), std::move(pem));
}

Result<void> CertificateAuthority::reopen() {
  SKERRY_ASSIGN(CertificateAuthority fresh, open(home_));
  *this = std::move(fresh);
  return {};
}

Result<IssuedCertificate> CertificateAuthority::issue_member(const PublicKey& key, Role role, std::string_view name,
                                                             std::int64_t now_ms, std::int64_t lifetime_ms) const {
  SKERRY_TRY(check_member_name(name));
  if (role == Role::kServer) return invalid_argument("members are nodes, operators or viewers, not servers");
  LeafOptions options;
  options.common_name = name;
  options.uri = identity_uri(federation(), role, name);
  options.use = LeafUse::kClient;
  options.now_ms = now_ms;
  options.lifetime_ms = lifetime_ms;
  SKERRY_ASSIGN(Certificate certificate, make_leaf(key, options, issuing_, issuing_key_));
  std::string chain = certificate.pem() + issuing_.pem();
  return IssuedCertificate{std::move(certificate), std::move(chain)};
}

Result<IssuedCertificate> CertificateAuthority::issue_server(const PublicKey& key, std::string_view name,
                                                             const std::vector<std::string>& hosts, std::int64_t now_ms,
                                                             std::int64_t lifetime_ms) const {
  SKERRY_TRY(check_member_name(name));
  LeafOptions options;
  options.common_name = name;
  options.uri = identity_uri(federation(), Role::kServer, name);
  for (const std::string& host : hosts) (is_ip_address(host) ? options.ip_addresses : options.dns_names).push_back(host);
  options.use = LeafUse::kServer;
  options.now_ms = now_ms;
  options.lifetime_ms = lifetime_ms;
  SKERRY_ASSIGN(Certificate certificate, make_leaf(key, options, issuing_, issuing_key_));
  std::string chain = certificate.pem() + issuing_.pem();
  return IssuedCertificate{std::move(certificate), std::move(chain)};
}

Result<bool> CertificateAuthority::renew_server_certificate(std::int64_t now_ms) const {
  SKERRY_ASSIGN(const Certificate current, load_certificate(home_ + "/server.crt"));
  const std::int64_t lifetime = current.not_after_ms() - current.not_before_ms();
  if (current.is_signed_by(issuing_) && now_ms < current.not_before_ms() + lifetime / 3 * 2) return false;
  std::vector<std::string> hosts = current.dns_names();
  for (std::string& address : current.ip_addresses()) hosts.push_back(std::move(address));
  SKERRY_TRY(set_server_hosts(hosts, now_ms));
  return true;
}

Result<void> CertificateAuthority::set_server_hosts(const std::vector<std::string>& hosts, std::int64_t now_ms) const {
  SKERRY_ASSIGN(const Certificate current, load_certificate(home_ + "/server.crt"));
  SKERRY_ASSIGN(const PrivateKey key, PrivateKey::load(home_ + "/server.key"));
  const std::string prefix = identity_uri(federation(), Role::kServer, "");
  std::string name = "coordinator";
  for (const std::string& uri : current.uris())
    if (uri.compare(0, prefix.size(), prefix) == 0) name = uri.substr(prefix.size());
  SKERRY_ASSIGN(const IssuedCertificate issued, issue_server(key.public_key(), name, hosts, now_ms));
  return write_file_atomic(home_ + "/server.crt", issued.chain_pem, 0644);
}

Result<void> CertificateAuthority::start_rollover(std::int64_t now_ms) {
  const std::string next = home_ + "/ca/next";
  if (path_exists(next + "/root.crt"))
    return already_exists("a CA rollover is under way (" + next + "); go on with its next step");
  SKERRY_TRY(remove_tree(next));  // what an interrupted attempt left
  SKERRY_ASSIGN(const NewCa made, make_ca(next, federation(), now_ms));
  SKERRY_TRY(write_file_atomic(ca_path(home_, anchor_file(made.root)), made.root.pem(), 0644));
  return reopen();
}

Result<void> CertificateAuthority::switch_rollover(std::int64_t now_ms) {
  const std::string next = home_ + "/ca/next";
  const std::string previous = home_ + "/ca-previous";
  const std::string ca = home_ + "/ca";
  if (!path_exists(next + "/root.crt"))
    return not_found("no CA rollover has been started (" + next + " is missing); start one first");
  SKERRY_ASSIGN(const Certificate new_root, load_certificate(next + "/root.crt"));
  // The new directory is complete, anchors included, before it takes the old one's place.
  SKERRY_ASSIGN(const std::vector<DirectoryEntry> entries, list_directory(ca));
  for (const DirectoryEntry& entry : entries) {
    if (entry.is_directory || entry.name.compare(0, 7, "anchor-") != 0 || entry.name == anchor_file(new_root)) continue;
    SKERRY_ASSIGN(const std::string pem, read_file(ca_path(home_, entry.name), kMaxFile));
    SKERRY_TRY(write_file_atomic(next + "/" + entry.name, pem, 0644));
  }
  SKERRY_TRY(write_file_atomic(next + "/" + anchor_file(root_), root_.pem() + issuing_.pem(), 0644));
  SKERRY_TRY(remove_tree(previous));
  SKERRY_TRY(rename_durable(next, home_ + "/ca-next"));
  SKERRY_TRY(rename_durable(ca, previous));
  SKERRY_TRY(rename_durable(home_ + "/ca-next", ca));
  SKERRY_TRY(reopen());
  SKERRY_TRY(renew_server_certificate(now_ms));
  return {};
}

Result<void> CertificateAuthority::finish_rollover() {
  if (path_exists(home_ + "/ca/next/root.crt"))
    return failed_precondition("the CA rollover has only been started: switch to the new CA and let all members renew first");
  SKERRY_ASSIGN(const std::vector<DirectoryEntry> entries, list_directory(home_ + "/ca"));
  for (const DirectoryEntry& entry : entries)
    if (!entry.is_directory && entry.name.compare(0, 7, "anchor-") == 0)
      SKERRY_TRY(remove_file(ca_path(home_, entry.name)));
  SKERRY_TRY(remove_tree(home_ + "/ca-previous"));
  return reopen();
}

Result<std::string> load_ticket_key(const std::string& home) {
  const std::string path = home + "/ticket.key";
  SKERRY_ASSIGN(std::string text, read_file(path, 1024));
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r')) text.pop_back();
  // Keys that people wrote, and those of earlier versions, have no check behind them.
  const std::string_view digits = std::string_view(text).substr(0, 2 * kTicketKeyBytes);
  const std::string_view check = std::string_view(text).substr(digits.size());
  const bool whole = check.empty() || check == " " + ticket_check(digits);
  auto key = from_hex(digits);
  cleanse(text);
  if (!whole) return data_loss(path + " is damaged; put it back from a backup, or remove it and write 32 new random bytes in hexadecimal");
  if (!key.ok() || key->size() != kTicketKeyBytes)
    return invalid_argument(path + " does not hold 32 bytes in hexadecimal; remove it and write new random ones");
  return key;
}

}  // namespace skerry::server
