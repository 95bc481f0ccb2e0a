// Backups of a coordinator's home: made while it runs, checked, and turned into a home of a new epoch.
//
// A backup is a directory:
//
//   manifest.json              what it is and every file in it with size and digest; written last, with a digest of itself
//   skerry.db                  a snapshot of the database, consistent in itself
//   cargo/…  spool/…           the files that the snapshot refers to, where a home has them
//   ca/*.crt server.crt server.toml       certificates and settings
//   ca/*.key server.key ticket.key operator/…   keys, only if they were asked for
//
// It is written beside its name and renamed when all of it is on the disk: a backup that has its name is whole.
// docs/storage.md has the manifest's members.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "common/os/random.h"

namespace skerry::server {

struct BackupProgress {
  std::string what;  ///< "snapshot", "cargo", …
  std::uint64_t done_bytes = 0;
  std::uint64_t total_bytes = 0;
};

/// Told from time to time; an error from it ends the work, which then leaves nothing behind.
using OnBackupProgress = std::function<Result<void>(const BackupProgress&)>;

struct BackupOptions {
  bool with_keys = false;  ///< the CA's, the coordinator's and the first operator's: such a backup is as secret as the home
  bool link = false;       ///< hard links instead of copies where the file system allows: fast, but one disk error hits both
  std::int64_t now_ms = 0;
  OnBackupProgress progress = [](const BackupProgress&) { return Result<void>(); };
};

/// What a backup holds, from its manifest.
struct BackupSummary {
  std::string path;
  std::string federation;
  std::string epoch;
  std::int64_t created_ms = 0;
  std::uint64_t receipts = 0;
  std::string chain_head;
  std::uint64_t files = 0;
  std::uint64_t bytes = 0;
  bool with_keys = false;
};

/// Backs up the home of a coordinator, whether it runs or not, to the new directory `target`. What is committed when it
/// begins is in it. Every file is compared with its content id on the way, and the snapshot is checked as by find_damage.
/// NOT_FOUND (no home), ALREADY_EXISTS (`target` is there), DATA_LOSS naming what is damaged in the home,
/// RESOURCE_EXHAUSTED (disk full, said before anything is copied if it can be known), UNAVAILABLE (files went while they
/// were collected, each time it was tried). After an error nothing is left.
Result<BackupSummary> make_backup(const std::string& home, const std::string& target, const BackupOptions& options);

/// Reads all of a backup and compares it with its manifest. A sentence for each file that is damaged or missing.
/// NOT_FOUND (no backup there), DATA_LOSS (the manifest itself), FAILED_PRECONDITION (a newer Skerry's).
struct CheckedBackup {
  BackupSummary summary;
  std::vector<std::string> findings;
};
Result<CheckedBackup> check_backup(const std::string& path, const OnBackupProgress& progress);

struct RestoredHome {
  BackupSummary backup;
  std::string epoch;                 ///< the new one
  std::vector<std::string> missing;  ///< keys that the backup has not and a coordinator needs
};

/// Makes the home `home` from a backup, which is checked first, and begins a new epoch in it. `home` must not be there, or
/// be an empty directory (ALREADY_EXISTS). Else the errors of check_backup; DATA_LOSS names the first damaged file. After an
/// error nothing is left.
Result<RestoredHome> restore_backup(const std::string& backup, const std::string& home, Random& random, std::int64_t now_ms,
                                    const OnBackupProgress& progress);

/// The keys and certificates of a home are whole and belong together: the CA's, the root's key where it is there, the
/// coordinator's, the ticket key. DATA_LOSS, INVALID_ARGUMENT or NOT_FOUND naming the file.
Result<void> check_identity(const std::string& home);

/// Everything of the home of a stopped coordinator: keys and certificates that belong together, the database and its
/// witnesses, every file. A sentence for each thing that is damaged or missing, saying what to do.
/// FAILED_PRECONDITION while a coordinator runs; NOT_FOUND.
Result<std::vector<std::string>> verify_home(const std::string& home, Random& random, std::int64_t now_ms,
                                             const std::function<void(const std::string& what)>& progress);

}  // namespace skerry::server
