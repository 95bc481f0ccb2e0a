#include <memory>

#include "common/crypto/keys.h"
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
  for (const Certificate& issuing : authority.anchors().intermediates())
    if (chain->front().is_signed_by(issuing)) return {};
  return data_loss(path + " is not signed by the CA in " + home + "/ca; put it back from a backup");
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

}  // namespace

Result<std::vector<std::string>> verify_home(const std::string& home, Random& random, std::int64_t now_ms, const OnProgress& progress) {
  if (!path_exists(home)) return not_found("there is no coordinator in " + home + "; name its home with --home");
  SKERRY_ASSIGN(const HomeLock lock, HomeLock::acquire(home));
  std::vector<std::string> findings;
  const auto found = [&findings](const Result<void>& result) {
    if (!result.ok()) findings.push_back(result.error().message);
  };
  progress("identity");
  const auto authority = CertificateAuthority::open(home);
  if (!authority.ok()) findings.push_back(authority.error().message);
  else found(check_server_certificate(home, *authority));
  if (const auto key = load_ticket_key(home); !key.ok()) findings.push_back(key.error().message);

  SKERRY_ASSIGN(const std::unique_ptr<CargoStore> cargo, CargoStore::open(home));
  found(check_database(home, *cargo, progress, findings));
  // The rest, such as chain.head against the chain's end, is what every start checks.
  if (findings.empty()) {
    if (const auto store = Store::open(home, random, {.now_ms = now_ms}); !store.ok()) findings.push_back(store.error().message);
  }
  return findings;
}

}  // namespace skerry::server
