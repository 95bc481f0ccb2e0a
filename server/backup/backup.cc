#include "server/backup/backup.h"

#include <unistd.h>

#include <utility>

#include "common/os/files.h"
#include "common/sqlite/database.h"
#include "server/backup/manifest.h"
#include "server/backup/staging.h"
#include "server/identity/certificate_authority.h"
#include "server/store/store.h"

namespace skerry::server {
namespace {

constexpr int kAttempts = 5;

bool link_file(const std::string& from, const std::string& to) { return ::link(from.c_str(), to.c_str()) == 0; }

std::string cargo_path(const std::string& content_id) { return "cargo/" + content_id.substr(3, 2) + "/" + content_id; }

/// Links every sealed file of the home that is in `directory` into the pins, so that none goes while it is wanted.
Result<void> pin_directory(const std::string& home, const std::string& directory, const std::string& pins) {
  const std::string source = join_path(home, directory);
  if (!path_exists(source)) return {};
  SKERRY_TRY(make_directories(join_path(pins, directory)));
  SKERRY_ASSIGN(const std::vector<DirectoryEntry> entries, list_directory(source));
  for (const DirectoryEntry& entry : entries) {
    const bool arriving = entry.name.ends_with(".part") || entry.name.ends_with(".info");
    if (entry.is_directory || arriving) continue;
    (void)link_file(join_path(source, entry.name), join_path(join_path(pins, directory), entry.name));  // gone already: not wanted
  }
  return {};
}

Result<void> pin_all(const std::string& home, const std::string& pins) {
  SKERRY_ASSIGN(const std::vector<DirectoryEntry> directories, list_directory(join_path(home, "cargo")));
  for (const DirectoryEntry& directory : directories)
    if (directory.is_directory && (directory.name.size() == 2 || directory.name == "state"))
      SKERRY_TRY(pin_directory(home, "cargo/" + directory.name, pins));
  return pin_directory(home, "spool", pins);
}

struct Snapshot {
  BackupSummary summary;
  std::vector<BackupFile> files;  // that it refers to, with their content ids where they have one
};

/// The files that a database refers to.
Result<Snapshot> read_snapshot(const std::string& path) {
  sqlite::OpenOptions options;
  options.read_only = true;
  SKERRY_ASSIGN(sqlite::Database database, sqlite::Database::open(path, options));
  Snapshot snapshot;
  {
    SKERRY_ASSIGN(auto row, database.query("SELECT (SELECT value FROM meta WHERE key = 'epoch'), (SELECT count(*) FROM receipts), "
                                           "(SELECT lower(hex(hash)) FROM receipts ORDER BY sequence DESC LIMIT 1)"));
    SKERRY_TRY(row.next());
    snapshot.summary.epoch = row.text(0);
    snapshot.summary.receipts = row.uint64(1);
    snapshot.summary.chain_head = row.is_null(2) ? std::string(64, '0') : row.text(2);
  }
  StoreReader reader(std::move(database));
  SKERRY_ASSIGN(const LiveFiles live, reader.live_files());
  for (const std::string& id : live.cargo) snapshot.files.push_back({cargo_path(id), 0, id});
  for (const std::string& name : live.states) snapshot.files.push_back({"cargo/state/" + name, 0, ""});
  SKERRY_ASSIGN(const std::vector<RunRecord> runs, reader.runs());
  for (const RunRecord& run : runs) {
    SKERRY_ASSIGN(const std::vector<UpdateRecord> accepted, reader.accepted_updates(run.run_id));
    for (const UpdateRecord& update : accepted)
      for (const SpooledPayload& payload : update.spooled)
        snapshot.files.push_back({"spool/" + update.task_id + "." + payload.content_id, 0, payload.content_id});
  }
  return snapshot;
}

/// Snapshots the database until every file it refers to is pinned: a file may go between the two.
Result<Snapshot> take_snapshot(const std::string& home, const std::string& to, const std::string& pins) {
  std::string gone;
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    SKERRY_TRY(remove_file(to));
    SKERRY_TRY(pin_all(home, pins));
    {
      sqlite::OpenOptions options;
      options.read_only = true;
      SKERRY_ASSIGN(sqlite::Database database, sqlite::Database::open(join_path(home, "skerry.db"), options));
      SKERRY_TRY(database.backup_to(to));
    }
    SKERRY_TRY(pin_all(home, pins));  // what came in between
    SKERRY_ASSIGN(Snapshot snapshot, read_snapshot(to));
    gone.clear();
    for (const BackupFile& file : snapshot.files)
      if (!path_exists(join_path(pins, file.path))) gone = file.path;
    if (gone.empty()) return snapshot;
  }
  if (HomeLock::acquire(home).ok())
    return data_loss(join_path(home, gone) + " is missing; run skerry-server verify and put it back from a backup");
  return unavailable(join_path(home, gone) + " went while the backup was made, " + std::to_string(kAttempts) +
                     " times; try again, or while the runs are paused");
}

/// Certificates, settings and, if wanted, keys, as far as there are any.
Result<std::vector<std::string>> identity_files(const std::string& home, bool with_keys) {
  std::vector<std::string> files;
  for (const char* directory : {"ca", "ca/next", "ca-previous", "operator"}) {
    const std::string path = join_path(home, directory);
    if (!path_exists(path) || (!with_keys && std::string(directory) == "operator")) continue;
    SKERRY_ASSIGN(const std::vector<DirectoryEntry> entries, list_directory(path));
    for (const DirectoryEntry& entry : entries)
      if (!entry.is_directory && (with_keys || entry.name.ends_with(".crt")))
        files.push_back(std::string(directory) + "/" + entry.name);
  }
  for (const char* file : {"server.crt", "server.toml", "server.key", "ticket.key"})
    if (path_exists(join_path(home, file)) && (with_keys || !std::string(file).ends_with(".key"))) files.emplace_back(file);
  return files;
}

}  // namespace

Result<BackupSummary> make_backup(const std::string& home, const std::string& target, const BackupOptions& options) {
  if (!path_exists(join_path(home, "skerry.db")))
    return not_found("there is no coordinator's database in " + home + "; name its home with --home");
  if (path_exists(target)) return already_exists(target + " is there already; name a new directory for the backup");
  SKERRY_TRY(make_directories(parent_directory(target)));
  SKERRY_ASSIGN(Staging staging, Staging::begin(target));
  const std::string partial = staging.path();
  const Scaffold pins(join_path(home, "cargo/scratch/backup-" + std::to_string(::getpid())));
  SKERRY_TRY(make_directories(pins.path()));

  BackupProgress progress{"snapshot", 0, 0};
  SKERRY_TRY(options.progress(progress));
  SKERRY_ASSIGN(const std::uint64_t database_bytes, file_size(join_path(home, "skerry.db")));
  SKERRY_TRY(check_room(parent_directory(target), database_bytes));
  const std::string database_path = join_path(partial, "skerry.db");
  SKERRY_ASSIGN(Snapshot snapshot, take_snapshot(home, database_path, pins.path()));

  progress.what = "files";
  for (const BackupFile& file : snapshot.files) {
    SKERRY_ASSIGN(const std::uint64_t size, file_size(join_path(pins.path(), file.path)));
    progress.total_bytes += size;
  }
  if (!options.link) SKERRY_TRY(check_room(parent_directory(target), progress.total_bytes));
  const OnBytes add = [&](std::uint64_t bytes) {
    progress.done_bytes += bytes;
    return options.progress(progress);
  };
  Manifest manifest;
  manifest.summary = snapshot.summary;
  for (const BackupFile& file : snapshot.files) {
    const std::string pinned = join_path(pins.path(), file.path);
    const std::string target_path = join_path(partial, file.path);
    BackupFile entry{file.path, 0, ""};
    SKERRY_TRY(make_directories(parent_directory(target_path)));
    if (options.link && link_file(pinned, target_path)) {
      SKERRY_ASSIGN(entry.size, file_size(target_path));
      SKERRY_ASSIGN(entry.digest, digest_file(target_path, add));
    } else {
      SKERRY_ASSIGN(entry, copy_file(pins.path(), partial, file.path, add));
    }
    if (!file.digest.empty()) SKERRY_TRY(check_digest(join_path(home, file.path), entry.digest, file.digest));
    manifest.files.push_back(std::move(entry));
  }
  progress.what = "identity";
  SKERRY_ASSIGN(const std::vector<std::string> identity, identity_files(home, options.with_keys));
  for (const std::string& file : identity) {
    SKERRY_ASSIGN(BackupFile copied, copy_file(home, partial, file, add));
    manifest.files.push_back(std::move(copied));
  }

  progress.what = "checks";
  SKERRY_TRY(options.progress(progress));
  {
    sqlite::OpenOptions reading;
    reading.read_only = true;
    SKERRY_ASSIGN(sqlite::Database database, sqlite::Database::open(database_path, reading));
    const std::vector<std::string> findings = find_damage(database, nullptr);
    if (!findings.empty()) return data_loss("the database of " + home + " is damaged: " + findings.front());
  }
  for (const char* log : {"-wal", "-shm"}) SKERRY_TRY(remove_file(database_path + log));
  {
    SKERRY_ASSIGN(File database, File::open(database_path, OpenMode::kReadWrite));
    SKERRY_TRY(database.set_permissions(0600));
    SKERRY_TRY(database.fsync());
    BackupFile entry{"skerry.db", 0, ""};
    SKERRY_ASSIGN(entry.size, database.size());
    SKERRY_ASSIGN(entry.digest, digest_file(database_path, add));
    manifest.files.push_back(std::move(entry));
  }
  BackupSummary& summary = manifest.summary;
  if (const auto authority = CertificateAuthority::open(home); authority.ok()) summary.federation = authority->federation();
  summary.created_ms = options.now_ms;
  summary.with_keys = options.with_keys;
  SKERRY_TRY(write_file_atomic(join_path(partial, "manifest.json"), manifest_text(manifest), 0600));
  SKERRY_TRY(staging.publish());
  summary.path = target;
  summary.files = manifest.files.size();
  for (const BackupFile& file : manifest.files) summary.bytes += file.size;
  return summary;
}

}  // namespace skerry::server
