#include "server/store/reaper.h"

#include <cerrno>
#include <cstdio>
#include <utility>

#include "common/os/files.h"

namespace skerry::server {
namespace {

/// Smaller ones are removed at once.
constexpr std::uint64_t kLargeBytes = std::uint64_t{1} << 20;

}  // namespace

Reaper::~Reaper() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  if (thread_.joinable()) thread_.join();
}

Result<void> Reaper::remove(const std::string& path) {
  const auto size = file_size(path);
  if (!size.ok() || *size < kLargeBytes) return remove_file(path);
  std::lock_guard lock(mutex_);
  const std::string grave = join_path(directory_, "condemned-" + std::to_string(serial_++));
  if (std::rename(path.c_str(), grave.c_str()) != 0) {
    return errno == ENOENT ? Result<void>() : remove_file(path);
  }
  condemned_.push_back(grave);
  if (!thread_.joinable()) thread_ = std::thread([this] { work(); });
  wake_.notify_one();
  return {};
}

void Reaper::work() {
  for (;;) {
    std::vector<std::string> paths;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [this] { return stopping_ || !condemned_.empty(); });
      if (condemned_.empty()) return;
      paths = std::exchange(condemned_, {});
    }
    for (const std::string& path : paths) (void)remove_file(path).ok();  // what fails is tried again at the next start
  }
}

}  // namespace skerry::server
