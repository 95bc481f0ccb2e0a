// A backup's manifest and the copying of its files. Internal to server/backup.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "server/backup/backup.h"

namespace skerry::server {

struct BackupFile {
  std::string path;  ///< below the backup, and below a home
  std::uint64_t size = 0;
  std::string digest;  ///< its content id
};

struct Manifest {
  BackupSummary summary;  ///< without `path`
  std::vector<BackupFile> files;
};

std::string manifest_text(const Manifest& manifest);

/// DATA_LOSS (not a manifest, or its digest is wrong), FAILED_PRECONDITION (a later format).
Result<Manifest> parse_manifest(const std::string& text, const std::string& path);

/// Cargo, states and spool files are sealed (0440), certificates may be read by all (0644), the rest only by its owner.
unsigned permissions_of(const std::string& path);

/// Told the number of bytes of each piece; an error ends the work.
using OnBytes = std::function<Result<void>(std::uint64_t)>;

/// The digest of a file's bytes.
Result<std::string> digest_file(const std::string& path, const OnBytes& add);

/// Copies the file `path` below `from` to the same path below `to`, making its directories, and syncs it; the digest is
/// taken on the way.
Result<BackupFile> copy_file(const std::string& from, const std::string& to, const std::string& path, const OnBytes& add);

/// DATA_LOSS naming the file at `path` if it does not have the digest it should have.
Result<void> check_digest(const std::string& path, const std::string& found, const std::string& expected);

}  // namespace skerry::server
