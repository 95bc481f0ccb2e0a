#include <algorithm>
#include <memory>

#include "common/crypto/keys.h"
#include "common/crypto/random.h"
#include "common/crypto/x509.h"
#include "common/os/files.h"
#include "common/sqlite/database.h"
#include "server/backup/backup.h"
#include "server/identity/certificate_authority.h"
#include "server/store/store.h"

namespace skerry::server {
namespace {

constexpr std::uint64_t kMaxCertificate = 64 * 1024;

/// The coordinator's certificate is whole, the CA's, and of the key beside it.
Result<void> check_server_certificate(const std::string& home, const CertificateAuthority& authority) {
  const std::string path = join_path(home, "server.crt");
  SKERRY_ASSIGN(const std::string pem, read_file(path, kMaxCertificate));
  auto chain = parse_chain(pem);
  if (!chain.ok() || chain->empty()) return data_loss(path + " is damaged; put it back from a backup");
  SKERRY_ASSIGN(const PublicKey certified, chain->front().public_key());
  SKERRY_ASSIGN(const PrivateKey key, PrivateKey::load(join_path(home, "server.key")));
  if (!(certified == key.public_key()))
    return data_loss(join_path(home, "server.key") + " is not the key of " + path + "; put both back from one backup");
  const auto is_ours = [&](const Certificate& certificate) {
    const auto& known = authority.anchors().intermediates();
    return std::any_of(known.begin(), known.end(), [&](const Certificate& issuing) { return issuing.thumbprint() == certificate.thumbprint(); });
  };
  const auto& known = authority.anchors().intermediates();
  const bool issued = std::any_of(known.begin(), known.end(), [&](const Certificate& issuing) { return chain->front().is_signed_by(issuing); });
  if (!issued || chain->size() < 2 || !std::all_of(chain->begin() + 1, chain->end(), is_ours))
    return data_loss(path + " is not what the CA in " + home + "/ca issued; put it back from a backup");
  return {};
}

Result<void> check_database(const std::string& home, const CargoStore& cargo, const OnProgress& progress,
                            std::vector<std::string>& findings) {
  const std::string path = join_path(home, "skerry.db");
  if (auto opened = sqlite::Database::open(path); !opened.ok()) findings.push_back(opened.error().message);
  sqlite::OpenOptions reading;
  reading.read_only = true;
  SKERRY_ASSIGN(sqlite::Database database, sqlite::Database::open(path, reading));
  SKERRY_TRY(check_schema(database));
  for (std::string& finding : find_damage(database, &cargo, progress)) findings.push_back(std::move(finding));
  return {};
}

/// The root's key, where it was not moved to a safe place.
Result<void> check_root_key(const std::string& home) {
  const std::string path = join_path(home, "ca/root.key");
  if (!path_exists(path)) return {};
  SKERRY_ASSIGN(const PrivateKey key, PrivateKey::load(path));
  SKERRY_ASSIGN(const std::string pem, read_file(join_path(home, "ca/root.crt"), kMaxCertificate));
  SKERRY_ASSIGN(const Certificate root, Certificate::from_pem(pem));
  SKERRY_ASSIGN(const PublicKey certified, root.public_key());
  if (certified == key.public_key()) return {};
  return data_loss(path + " is not the key of " + join_path(home, "ca/root.crt") + "; put both back from one backup");
}

}  // namespace

Result<void> check_identity(const std::string& home) {
  SKERRY_ASSIGN(const CertificateAuthority authority, CertificateAuthority::open(home));
  SKERRY_TRY(check_root_key(home));
  SKERRY_TRY(check_server_certificate(home, authority));
  SKERRY_ASSIGN(std::string key, load_ticket_key(home));
  cleanse(key);
  return {};
}

Result<std::vector<std::string>> verify_home(const std::string& home, Random& random, std::int64_t now_ms, const OnProgress& progress) {
  if (!path_exists(home)) return not_found("there is no coordinator in " + home + "; name its home with --home");
  SKERRY_ASSIGN(const HomeLock lock, HomeLock::acquire(home));
  std::vector<std::string> findings;
  const auto found = [&findings](const Result<void>& result) {
    if (!result.ok()) findings.push_back(result.error().message);
  };
  progress("identity");
  found(check_identity(home));
  SKERRY_ASSIGN(const std::unique_ptr<CargoStore> cargo, CargoStore::open(home));
  found(check_database(home, *cargo, progress, findings));
  // The rest, such as chain.head against the chain's end, is what every start checks.
  if (findings.empty()) {
    if (const auto store = Store::open(home, random, {.now_ms = now_ms}); !store.ok()) findings.push_back(store.error().message);
  }
  return findings;
}

}  // namespace skerry::server
