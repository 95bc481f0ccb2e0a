#include <utility>

#include "common/os/files.h"
#include "common/sqlite/database.h"
#include "server/backup/backup.h"
#include "server/backup/manifest.h"
#include "server/backup/staging.h"
#include "server/store/store.h"

namespace skerry::server {
namespace {

constexpr std::uint64_t kMaxManifest = std::uint64_t{1} << 30;

Result<Manifest> read_manifest(const std::string& backup) {
  const std::string path = join_path(backup, "manifest.json");
  auto text = read_file(path, kMaxManifest);
  if (!text.ok()) {
    if (text.error().code == Code::kNotFound)
      return not_found(backup + " is not a backup: it has no manifest.json; name a directory that skerry-server backup made");
    return text.error();
  }
  SKERRY_ASSIGN(Manifest manifest, parse_manifest(*text, path));
  manifest.summary.path = backup;
  return manifest;
}

bool is_empty_or_absent(const std::string& directory) {
  if (!path_exists(directory)) return true;
  const auto entries = list_directory(directory);
  return entries.ok() && entries->empty();
}

}  // namespace

Result<CheckedBackup> check_backup(const std::string& path, const OnBackupProgress& report) {
  SKERRY_ASSIGN(Manifest manifest, read_manifest(path));
  CheckedBackup checked{manifest.summary, {}};
  BackupProgress progress{"checks", 0, manifest.summary.bytes};
  const OnBytes add = [&](std::uint64_t bytes) {
    progress.done_bytes += bytes;
    return report(progress);
  };
  for (const BackupFile& file : manifest.files) {
    const auto digest = digest_file(join_path(path, file.path), add);
    if (!digest.ok() && digest.error().code == Code::kCancelled) return digest.error();
    const auto checked_digest = digest.ok() ? check_digest(join_path(path, file.path), *digest, file.digest) : Result<void>(digest.error());
    if (!checked_digest.ok()) checked.findings.push_back(checked_digest.error().message);
  }
  return checked;
}

Result<RestoredHome> restore_backup(const std::string& backup, const std::string& home, Random& random, std::int64_t now_ms,
                                    const OnBackupProgress& report) {
  if (!is_empty_or_absent(home))
    return already_exists(home + " is not empty; name a new directory, or move what is there aside (do not delete it yet)");
  SKERRY_ASSIGN(Manifest manifest, read_manifest(backup));
  SKERRY_TRY(make_directories(parent_directory(home)));
  SKERRY_TRY(check_room(parent_directory(home), manifest.summary.bytes));
  SKERRY_ASSIGN(Staging staging, Staging::begin(home));

  BackupProgress progress{"files", 0, manifest.summary.bytes};
  const OnBytes add = [&](std::uint64_t bytes) {
    progress.done_bytes += bytes;
    return report(progress);
  };
  for (const BackupFile& file : manifest.files) {
    SKERRY_ASSIGN(const BackupFile copied, copy_file(backup, staging.path(), file.path, add));
    SKERRY_TRY(check_digest(join_path(backup, file.path), copied.digest, file.digest));
  }

  RestoredHome restored{manifest.summary, {}, {}};
  progress.what = "checks";
  SKERRY_TRY(report(progress));
  {
    SKERRY_ASSIGN(Store store, Store::open(staging.path(), random, {.restored = true, .now_ms = now_ms}));
    SKERRY_ASSIGN(const std::unique_ptr<CargoStore> cargo, CargoStore::open(staging.path()));
    SKERRY_TRY(store.verify(*cargo));
    restored.epoch = store.epoch();
  }
  for (const char* file : {"ca/issuing.key", "server.key", "ticket.key"})
    if (!path_exists(join_path(staging.path(), file))) restored.missing.push_back(file);
  SKERRY_TRY(staging.publish());
  return restored;
}

}  // namespace skerry::server
