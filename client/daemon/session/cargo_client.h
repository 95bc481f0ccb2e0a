// Bulk bytes over HTTPS: downloads that resume and are verified while they stream, uploads in chunks that resume.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "common/identity/profile.h"
#include "common/net/http_client.h"
#include "common/os/files.h"

namespace skerry::client {

/// One connection, kept alive. Not for use by two threads at once.
class CargoClient {
 public:
  /// `cancelled`, if given, outlives this.
  CargoClient(const Profile& profile, const std::string& proxy, const std::atomic<bool>* cancelled = nullptr);

  /// Fetches cargo into `path`. What a broken attempt left in `path`.part is kept and continued. The file appears whole and
  /// with exactly the bytes that `content_id` names. NOT_FOUND (no such cargo), DATA_LOSS and retryable (other bytes came:
  /// nothing is kept), RESOURCE_EXHAUSTED (disk full), and HttpClient's errors.
  Result<void> download(const std::string& content_id, std::uint64_t size, const std::string& path);

  /// Sends the bytes of `path` that the coordinator still lacks. PERMISSION_DENIED (the ticket is not accepted, with the
  /// reason), DATA_LOSS (the file is not what its id says), RESOURCE_EXHAUSTED and retryable, HttpClient's errors.
  Result<void> upload(const std::string& path, const std::string& content_id, std::uint64_t size, const std::string& ticket);

  /// Another flag to give up by from now on, or none.
  void watch(const std::atomic<bool>* cancelled) { http_.watch(cancelled); }

 private:
  Result<bool> put(const File& file, std::uint64_t first, std::uint64_t bytes, const std::string& content_id, std::uint64_t size,
                   const std::string& ticket);

  std::string base_;  // "https://host:port/api/v1/cargo/"
  HttpClient http_;
};

/// Clients between two jobs: the next job needs no new connection, which on a long line costs several round trips. Any
/// thread.
class CargoPool {
 public:
  /// A client for this profile, kept for the next job when the last copy of the answer goes; the pool outlives it.
  std::shared_ptr<CargoClient> borrow(const std::shared_ptr<const Profile>& profile, const std::string& proxy,
                                      const std::atomic<bool>* cancelled);
  /// Closes the connections of those that wait.
  void clear();

 private:
  struct Idle {
    std::shared_ptr<const Profile> profile;
    std::unique_ptr<CargoClient> client;
  };
  std::mutex mutex_;
  std::vector<Idle> idle_;
};

}  // namespace skerry::client
