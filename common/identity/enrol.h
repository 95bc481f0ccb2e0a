// Joining a federation with a token, and renewing a certificate. The key is made here and never leaves the machine.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "common/base/result.h"
#include "common/identity/profile.h"
#include "common/net/http_client.h"

namespace skerry {

/// Sends one request over a connection with these options. The default is HttpClient; tests bring their own.
using HttpSend = std::function<Result<HttpResponse>(const HttpOptions&, const HttpRequest&)>;

struct EnrolOptions {
  std::string proxy;                             ///< "http://host:port" of a CONNECT proxy; empty: none
  std::string address;                           ///< dial this "host:port" instead of the token's or profile's
  std::int64_t now_ms = 0;                       ///< Unix time; 0: the system's clock
  const std::atomic<bool>* cancelled = nullptr;  ///< give up soon after it becomes true
  HttpSend send;                                 ///< empty: HttpClient
};

/// Joins with a one-time token and stores the profile in `home`.
///
/// Fetches /api/v1/ca without trust, keeps only a root with the token's fingerprint, and from then on talks verified TLS:
/// POST /api/v1/enrol with a signing request for a fresh key. The returned certificate must be for our key, role and name
/// and lead to that root. Errors name the next step: INVALID_ARGUMENT (token damaged), FAILED_PRECONDITION (token expired, used,
/// unknown to the coordinator; this machine's clock is off), ALREADY_EXISTS (`home` has joined before), UNAUTHENTICATED (the
/// coordinator's CA is not the token's; a wrong certificate came back), UNAVAILABLE (refused connection, proxy; retryable).
Result<Profile> join(std::string_view token, const std::string& home, const EnrolOptions& options = {});

/// Fetches a new certificate for the same key (POST /api/v1/renew, with the old certificate, also within the grace after
/// its end) and the current trust anchors, and stores both. Connections opened before keep working. Errors as join();
/// FAILED_PRECONDITION beyond the grace or when revoked: ask the operator for a new token.
Result<Profile> renew(const Profile& profile, const EnrolOptions& options = {});

/// The profile in `directory`, renewed first if that is due: for programs that people start now and then. A renewal that fails
/// is an error only if the certificate has already expired; otherwise the next start tries again. Errors as load_profile() and
/// renew().
Result<Profile> open_profile(const std::string& directory, const EnrolOptions& options = {});

/// What the coordinator sees of this profile's certificate: GET /api/v1/whoami. OK if it is accepted as the profile's role and
/// name; otherwise UNAUTHENTICATED with the coordinator's reason, or why it could not be asked.
Result<void> check_identity(const Profile& profile, const EnrolOptions& options = {});

/// A sentence about this machine's clock if an HTTP Date header (`date`) differs from `now_ms` by more than two minutes;
/// empty otherwise or if `date` is no date.
std::string describe_clock_skew(std::string_view date, std::int64_t now_ms);

}  // namespace skerry
