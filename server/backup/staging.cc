#include "server/backup/staging.h"

#include <vector>

namespace skerry::server {
namespace {

constexpr std::uint64_t kSpare = std::uint64_t{16} << 20;

std::string partial_of(const std::string& target) { return target + ".partial"; }

/// Syncs `root` and all directories below it.
Result<void> sync_directories(const std::string& root) {
  SKERRY_ASSIGN(const std::vector<DirectoryEntry> entries, list_directory(root));
  for (const DirectoryEntry& entry : entries)
    if (entry.is_directory) SKERRY_TRY(sync_directories(join_path(root, entry.name)));
  return fsync_directory(root);
}

}  // namespace

Scaffold::~Scaffold() {
  if (!path_.empty()) (void)remove_tree(path_).ok();
}

Staging::Staging(std::string target, HomeLock lock)
    : target_(std::move(target)), scaffold_(partial_of(target_)), lock_(std::move(lock)) {}

Result<Staging> Staging::begin(const std::string& target) {
  const std::string partial = partial_of(target);
  SKERRY_TRY(make_directories(partial));
  SKERRY_ASSIGN(HomeLock lock, HomeLock::acquire(partial));
  // It is ours: whatever is in it, a killed process left.
  SKERRY_ASSIGN(const std::vector<DirectoryEntry> left, list_directory(partial));
  for (const DirectoryEntry& entry : left)
    if (entry.name != "lock") SKERRY_TRY(remove_tree(join_path(partial, entry.name)));
  return Staging(target, std::move(lock));
}

Result<void> Staging::publish() {
  SKERRY_TRY(remove_file(join_path(path(), "lock")));
  SKERRY_TRY(sync_directories(path()));
  SKERRY_TRY(rename_durable(path(), target_));
  scaffold_.keep();
  return {};
}

Result<void> check_room(const std::string& directory, std::uint64_t bytes) {
  SKERRY_ASSIGN(const std::uint64_t free_bytes, free_disk_bytes(directory));
  if (free_bytes >= bytes + kSpare) return {};
  return resource_exhausted(directory + " has " + std::to_string(free_bytes) + " bytes free, " + std::to_string(bytes) +
                            " are needed; make room or choose another disk");
}

}  // namespace skerry::server
