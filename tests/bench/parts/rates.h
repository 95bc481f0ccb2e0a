// What the machine can do with bytes: hash them, make them durable, carry them through our port. All in bytes a second.
#pragma once

#include <cstdint>
#include <string>

#include "common/base/result.h"
#include "common/identity/profile.h"

namespace skerry::bench {

/// Hashing chunks of memory into a content id on `threads` threads.
double hash_rate(std::uint64_t bytes, unsigned threads);

/// Writing a new file in `directory` in order and making it durable.
Result<double> write_rate(const std::string& directory, std::uint64_t bytes);
/// The same without making it durable: into the page cache.
Result<double> cached_write_rate(const std::string& directory, std::uint64_t bytes);

/// Small durable commits a second: append to a log of `directory` and fdatasync.
Result<double> commit_rate(const std::string& directory, unsigned commits, std::size_t commit_bytes);

/// Verifications of P-256 signatures a second on one core.
Result<double> verify_rate(unsigned count);

/// Through the port's measuring routes with our own HTTP client: neither hashing nor disk at either end.
Result<double> sink_rate(const Profile& profile, std::uint64_t bytes);
Result<double> source_rate(const Profile& profile, std::uint64_t bytes);

/// Uploads a new file of `bytes` bytes as cargo with an operator's profile: until the coordinator says that it is complete,
/// verified and durable. The file is made, and its id computed, beforehand.
Result<double> cargo_upload_rate(const Profile& profile, const std::string& directory, std::uint64_t bytes);

}  // namespace skerry::bench
