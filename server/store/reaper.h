// Removes large files on a thread of its own: freeing the blocks of 100 MB takes a file system about 25 ms, too long
// for a thread that must answer. Internal to server/store.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "common/base/result.h"

namespace skerry::server {

/// Thread-safe. Its thread starts with the first large file; the destructor waits until all are removed.
class Reaper {
 public:
  /// `directory`, on the same file system as what is removed, takes files until they are gone; whoever owns it empties
  /// it at start, so that nothing is left of a process that was killed.
  explicit Reaper(std::string directory) : directory_(std::move(directory)) {}
  ~Reaper();
  Reaper(const Reaper&) = delete;
  Reaper& operator=(const Reaper&) = delete;

  /// When it returns, there is nothing at `path`. Success if there was nothing before.
  Result<void> remove(const std::string& path);

 private:
  void work();

  std::string directory_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::string> condemned_;
  std::uint64_t serial_ = 0;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace skerry::server
