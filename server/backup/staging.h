// A directory that is made beside its name and gets it when it is complete. Internal to server/backup.
#pragma once

#include <optional>
#include <string>
#include <utility>

#include "common/base/result.h"
#include "common/os/files.h"

namespace skerry::server {

/// A directory that is removed at the end, with all that is in it.
class Scaffold {
 public:
  explicit Scaffold(std::string path) : path_(std::move(path)) {}
  Scaffold(Scaffold&& other) noexcept : path_(std::exchange(other.path_, {})) {}
  Scaffold& operator=(Scaffold&&) = delete;
  ~Scaffold();

  const std::string& path() const { return path_; }
  void keep() { path_.clear(); }

 private:
  std::string path_;
};

/// `<target>.partial` until publish() renames it; locked meanwhile, so that what a killed process left can be told from
/// another's work. Without publish() it goes.
class Staging {
 public:
  /// FAILED_PRECONDITION: another process is making the same.
  static Result<Staging> begin(const std::string& target);

  const std::string& path() const { return scaffold_.path(); }

  /// Syncs the directories and renames it to its name, where nothing or an empty directory may be.
  Result<void> publish();

 private:
  Staging(std::string target, HomeLock lock);

  std::string target_;
  Scaffold scaffold_;
  std::optional<HomeLock> lock_;
};

/// RESOURCE_EXHAUSTED if the disk of `directory` has no room for so many bytes.
Result<void> check_room(const std::string& directory, std::uint64_t bytes);

}  // namespace skerry::server
