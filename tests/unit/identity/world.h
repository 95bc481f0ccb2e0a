// A coordinator's home with its CA and members, made at a fixed time, for the tests of identity.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/identity/enrol.h"
#include "server/identity/certificate_authority.h"
#include "server/identity/members.h"
#include "tests/support/temp_dir.h"

namespace skerry::test {

inline constexpr std::int64_t kNow = 1'800'000'000'000;  // 2027-01-15 08:00:00 UTC
inline constexpr std::int64_t kMinute = 60'000;
inline constexpr std::int64_t kDay = server::kDayMs;

struct World {
  explicit World(const std::string& federation = "harbour", std::int64_t now = kNow);

  TempDir directory;
  std::string home = directory / "server";
  std::int64_t now_ms;
  server::CertificateAuthority authority;
  server::Members members;
  Revocations revoked;  // what a coordinator's Authenticator would have been told

  /// A member's chain, not in the registry.
  std::string chain(Role role, std::string_view name, const PrivateKey& key, std::int64_t lifetime_ms = 30 * kDay) const;
  std::string chain(Role role, std::string_view name) const;

  /// What a coordinator answers at /api/v1/ca, /enrol, /renew and /whoami, for EnrolOptions::send.
  Result<HttpResponse> answer(const HttpOptions& options, const HttpRequest& request);
  std::vector<HttpRequest> requests;  ///< all that answer() saw
  std::string date;                   ///< the answers' Date header

  EnrolOptions enrol_options();
};

/// Whether the error's message contains `part`.
bool has(const Error& error, std::string_view part);

}  // namespace skerry::test
