#include "tests/bench/fleet/enrolment.h"

#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "common/identity/enrol.h"
#include "common/identity/join_token.h"
#include "common/os/files.h"

namespace skerry::bench {
namespace {

constexpr unsigned kThreads = 4;
constexpr int kAttempts = 100;
constexpr std::chrono::milliseconds kPause{200};
constexpr std::uint64_t kMaxTokenFile = 16u << 20;

/// Joins; the coordinator limits how often an address may ask without a certificate, so that a large fleet has to wait
/// now and then.
Result<Profile> join_patiently(const std::string& token, const std::string& home) {
  for (int attempt = 1;; ++attempt) {
    auto joined = join(token, home);
    if (joined.ok() || !joined.error().retryable || attempt == kAttempts) return joined;
    std::this_thread::sleep_for(kPause);
  }
}

std::int64_t unix_ms() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::system_clock::now().time_since_epoch()).count();
}

/// Calls `make(index)` for each index on a few threads; the first error ends it.
template <typename Make>
Result<std::vector<Profile>> make_all(std::size_t count, Make make) {
  std::vector<std::optional<Profile>> made(count);
  std::atomic<std::size_t> next{0};
  std::mutex mutex;
  std::optional<Error> failed;
  const auto work = [&] {
    for (std::size_t index = next++; index < count; index = next++) {
      auto profile = make(index);
      std::lock_guard lock(mutex);
      if (profile.ok()) made[index] = std::move(profile).value();
      else if (!failed) failed = std::move(profile).error();
      if (failed) return;
    }
  };
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < kThreads; ++i) threads.emplace_back(work);
  for (std::thread& thread : threads) thread.join();
  if (failed) return *failed;
  std::vector<Profile> profiles;
  profiles.reserve(count);
  for (auto& profile : made) profiles.push_back(*std::move(profile));
  return profiles;
}

}  // namespace

Result<std::vector<Profile>> enrol_fleet(Operator& inviter, const std::string& directory, const std::string& prefix, unsigned count) {
  SKERRY_TRY(make_directories(directory));
  std::mutex inviting;
  return make_all(count, [&](std::size_t index) -> Result<Profile> {
    const std::string name = prefix + "-" + std::to_string(index);
    const std::string home = join_path(directory, name);
    if (has_profile(home)) {
      auto known = load_profile(home);
      if (known.ok() && known->ca_pem == inviter.profile().ca_pem && known->address == inviter.profile().address && known->expires_ms > unix_ms())
        return known;
      SKERRY_TRY(remove_tree(home));
    }
    std::string token;
    {
      std::lock_guard lock(inviting);
      SKERRY_ASSIGN(token, inviter.invite(name));
    }
    return join_patiently(token, home);
  });
}

Result<std::vector<Profile>> enrol_with_tokens(const std::string& token_file, const std::string& directory) {
  SKERRY_TRY(make_directories(directory));
  SKERRY_ASSIGN(const std::string text, read_file(token_file, kMaxTokenFile));
  std::vector<std::pair<std::string, std::string>> tokens;  // node, token
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    const std::string token = text.substr(at, end - at);
    at = end + 1;
    if (token.empty()) continue;
    SKERRY_ASSIGN(const JoinToken parsed, parse_join_token(token, 0));
    tokens.emplace_back(parsed.name, token);
  }
  return make_all(tokens.size(), [&](std::size_t index) -> Result<Profile> {
    const std::string home = join_path(directory, tokens[index].first);
    if (has_profile(home)) return load_profile(home);
    return join_patiently(tokens[index].second, home);
  });
}

}  // namespace skerry::bench
