// Who may call what: one table for every RPC and every path, one place where a caller is authenticated.
#pragma once

#include "common/base/result.h"
#include "common/identity/authenticate.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace grpc {
class ServerContextBase;
}

namespace skerry {
class Clock;
}

namespace skerry::server {

class Counter;
class Metrics;

/// The least a caller must be.
enum class Access {
  kDenied,         ///< nobody: what has no entry in the table
  kAnyone,         ///< also without a certificate, or with one that is not valid
  kAnyMember,      ///< any valid certificate: node, viewer or operator
  kGraceMember,    ///< as kAnyMember, also with a certificate that expired within kRenewalGraceMs (renewal)
  kNode,           ///< a node
  kNodeOrViewer,   ///< a node, a viewer or an operator: released models
  kNodeOrOperator, ///< a node (with a ticket) or an operator: uploads
  kViewer,         ///< a viewer or an operator: what only reads
  kOperator,       ///< an operator
};

struct AccessRule {
  std::string_view method;   ///< "GRPC" or an HTTP method
  std::string_view pattern;  ///< "/skerry.v1.Fleet/Session" or an HttpRouter pattern
  Access access;
};

/// The whole table, in server/net/access.cc.
std::span<const AccessRule> access_table();

/// kDenied where the table has no entry. HEAD is looked up as GET.
Access access_for(std::string_view method, std::string_view pattern);

/// Whether `identity` (null: anonymous) may. The error is UNAUTHENTICATED with `anonymous_reason` where a certificate is
/// needed and none is valid, PERMISSION_DENIED naming both roles where the role is wrong.
Result<void> check_access(Access access, std::string_view what, const Identity* identity,
                          std::string_view anonymous_reason);

/// Requests a second and burst, for each identity (certificate) or, anonymous, each address. 0: no limit.
struct RateLimits {
  double member_per_second = 2000;
  double member_burst = 4000;
  double anonymous_per_second = 100;
  double anonymous_burst = 2000;
};

/// Token buckets by key; forgets keys that are full again. Thread-safe.
class RateLimiter {
 public:
  RateLimiter(double per_second, double burst);
  ~RateLimiter();
  /// 0 if one more request at `monotonic_ms` is within the limit, else milliseconds to wait.
  std::int64_t take(std::string_view key, std::int64_t monotonic_ms);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Authenticates every call and request. Made before the services, which keep a reference; outlives the Port.
class Gate {
 public:
  /// `authenticator` and `clock` outlive the gate; so does `metrics`, which may be null.
  Gate(const Authenticator& authenticator, const Clock& clock, RateLimits limits, Metrics* metrics);
  ~Gate();

  /// For every gRPC call, first thing in the handler: who calls, if the table lets them.
  ///
  ///     auto caller = gate_.authorize(*context, "/skerry.v1.Fleet/Session");
  ///     if (!caller.ok()) return finish(to_grpc_status(caller.error()));
  ///
  /// UNAUTHENTICATED (no certificate or one that is not valid, with the reason), PERMISSION_DENIED (role, or no entry in
  /// the table), RESOURCE_EXHAUSTED (rate).
  Result<Identity> authorize(const grpc::ServerContextBase& context, std::string_view full_method);

  /// Who is calling over HTTP. Never fails: an anonymous caller carries the reason.
  struct Caller {
    std::optional<Identity> identity;
    std::string anonymous_reason;
  };
  /// `access` is the route's: kGraceMember accepts what expired within its grace.
  Caller identify(std::string_view chain_pem, Access access) const;

  /// check_access, counted and logged.
  Result<void> check(Access access, std::string_view what, const Caller& caller, std::string_view peer_address);

  /// Logs a refusal, unless this address had too many lately.
  void tell(const Error& refusal, std::string_view peer_address);

  /// Takes one request from the caller's rate: 0, or milliseconds to wait.
  std::int64_t take_rate(const Caller& caller, std::string_view peer_address);

  /// Told about each authenticated gRPC caller: (peer, thumbprint) → whether this peer was not known by it before. Set by
  /// the Port.
  void on_caller(std::function<bool(std::string_view peer, std::string_view thumbprint)> observer);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// "ipv4:192.0.2.7:41234" → "192.0.2.7"; "ipv6:[2001:db8::1]:41234" → "2001:db8::1"; anything else unchanged.
std::string address_of_peer(std::string_view peer);

}  // namespace skerry::server
