#include "server/net/access.h"

#include "common/os/clock.h"
#include "server/metrics/metrics.h"
#include "server/net/http_router.h"

#include <grpcpp/server_context.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <mutex>
#include <unordered_map>

namespace skerry::server {
namespace {

// Refusals told in the log, for each address: a flood of them must not fill the disk. All are counted.
constexpr double kToldPerSecond = 1;
constexpr double kToldBurst = 50;

// Every RPC and every path. What is missing here is denied.
constexpr std::array kTable = std::to_array<AccessRule>({
    {"GRPC", "/skerry.v1.Fleet/Session", Access::kNode},

    {"GRPC", "/skerry.v1.Control/GetStatus", Access::kViewer},
    {"GRPC", "/skerry.v1.Control/SubmitRun", Access::kOperator},
    {"GRPC", "/skerry.v1.Control/ListRuns", Access::kViewer},
    {"GRPC", "/skerry.v1.Control/GetRun", Access::kViewer},
    {"GRPC", "/skerry.v1.Control/WatchRun", Access::kViewer},
    {"GRPC", "/skerry.v1.Control/ChangeRun", Access::kOperator},
    {"GRPC", "/skerry.v1.Control/GetRunMetrics", Access::kViewer},
    {"GRPC", "/skerry.v1.Control/InviteMember", Access::kOperator},
    {"GRPC", "/skerry.v1.Control/RevokeMember", Access::kOperator},
    {"GRPC", "/skerry.v1.Control/ListMembers", Access::kViewer},
    {"GRPC", "/skerry.v1.Control/ListVersions", Access::kViewer},

    {"GET", "/healthz", Access::kAnyone},
    {"GET", "/metrics", Access::kViewer},
    {"GET", "/api/v1/ca", Access::kAnyone},
    {"POST", "/api/v1/enrol", Access::kAnyone},
    {"GET", "/api/v1/whoami", Access::kAnyone},
    {"POST", "/api/v1/renew", Access::kGraceMember},

    {"GET", "/api/v1/cargo/{id}", Access::kNodeOrViewer},
    {"PUT", "/api/v1/cargo/{id}", Access::kNodeOrOperator},
    {"GET", "/api/v1/cargo/{id}/upload", Access::kNodeOrOperator},
    {"GET", "/api/v1/measure/source", Access::kNodeOrOperator},
    {"PUT", "/api/v1/measure/sink", Access::kNodeOrOperator},

    {"GET", "/api/v1/status", Access::kViewer},
    {"GET", "/api/v1/rules", Access::kViewer},
    {"GET", "/api/v1/runs", Access::kViewer},
    {"POST", "/api/v1/runs", Access::kOperator},
    {"GET", "/api/v1/runs/{run}", Access::kViewer},
    {"POST", "/api/v1/runs/{run}/{action}", Access::kOperator},
    {"GET", "/api/v1/runs/{run}/metrics", Access::kViewer},
    {"GET", "/api/v1/runs/{run}/versions", Access::kViewer},
    {"GET", "/api/v1/members", Access::kViewer},
    {"POST", "/api/v1/members/invite", Access::kOperator},
    {"POST", "/api/v1/members/revoke", Access::kOperator},

    // The dashboard's page and its files hold no data; what they show they fetch from the API above.
    {"GET", "/", Access::kAnyone},
    {"GET", "/dashboard", Access::kAnyone},
    {"GET", "/dashboard/{file...}", Access::kAnyone},
    {"GET", "/favicon.ico", Access::kAnyone},
});

bool role_fits(Access access, Role role) {
  switch (access) {
    case Access::kDenied: return false;
    case Access::kAnyone: return true;
    case Access::kAnyMember:
    case Access::kGraceMember: return role != Role::kServer;
    case Access::kNode: return role == Role::kNode;
    case Access::kNodeOrViewer: return role == Role::kNode || role == Role::kViewer || role == Role::kOperator;
    case Access::kNodeOrOperator: return role == Role::kNode || role == Role::kOperator;
    case Access::kViewer: return role == Role::kViewer || role == Role::kOperator;
    case Access::kOperator: return role == Role::kOperator;
  }
  return false;
}

std::string_view wanted(Access access) {
  switch (access) {
    case Access::kNode: return "a node's";
    case Access::kNodeOrViewer: return "a node's, a viewer's or an operator's";
    case Access::kNodeOrOperator: return "a node's or an operator's";
    case Access::kViewer: return "a viewer's or an operator's";
    case Access::kOperator: return "an operator's";
    case Access::kDenied:
    case Access::kAnyone:
    case Access::kAnyMember:
    case Access::kGraceMember: break;
  }
  return "a member's";
}

std::string first_property(const grpc::AuthContext& auth, const char* name) {
  const auto values = auth.FindPropertyValues(name);
  return values.empty() ? std::string() : std::string(values.front().data(), values.front().size());
}

}  // namespace

std::span<const AccessRule> access_table() { return kTable; }

Access access_for(std::string_view method, std::string_view pattern) {
  if (method == "HEAD") method = "GET";
  for (const AccessRule& rule : kTable) {
    if (rule.method == method && rule.pattern == pattern) return rule.access;
  }
  return Access::kDenied;
}

Result<void> check_access(Access access, std::string_view what, const Identity* identity, std::string_view anonymous_reason) {
  const std::string call(what);
  if (access == Access::kAnyone) return {};
  if (access == Access::kDenied) return permission_denied(call + " is not open to anybody");
  if (!identity) {
    return unauthenticated(call + " needs " + std::string(wanted(access)) + " certificate: " + std::string(anonymous_reason));
  }
  if (role_fits(access, identity->role)) return {};
  return permission_denied(call + " needs " + std::string(wanted(access)) + " certificate, and '" + identity->name +
                           "' has the role " + std::string(role_name(identity->role)));
}

struct RateLimiter::State {
  struct Bucket {
    double tokens = 0;
    std::int64_t at_ms = 0;
  };
  double per_second = 0;
  double burst = 0;
  std::mutex mutex;
  std::unordered_map<std::string, Bucket> buckets;
  std::int64_t swept_ms = 0;
};

RateLimiter::RateLimiter(double per_second, double burst) : state_(std::make_unique<State>()) {
  state_->per_second = per_second;
  state_->burst = std::max(burst, 1.0);
}
RateLimiter::~RateLimiter() = default;

std::int64_t RateLimiter::take(std::string_view key, std::int64_t monotonic_ms) {
  State& s = *state_;
  if (s.per_second <= 0) return 0;
  const std::lock_guard lock(s.mutex);
  const double fill_ms = s.burst / s.per_second * 1000;
  if (static_cast<double>(monotonic_ms - s.swept_ms) > std::max(fill_ms, 1000.0)) {
    std::erase_if(s.buckets, [&](const auto& entry) { return static_cast<double>(monotonic_ms - entry.second.at_ms) > fill_ms; });
    s.swept_ms = monotonic_ms;
  }
  auto& bucket = s.buckets.try_emplace(std::string(key), State::Bucket{s.burst, monotonic_ms}).first->second;
  bucket.tokens = std::min(s.burst, bucket.tokens + static_cast<double>(monotonic_ms - bucket.at_ms) * s.per_second / 1000);
  bucket.at_ms = monotonic_ms;
  if (bucket.tokens >= 1) {
    bucket.tokens -= 1;
    return 0;
  }
  return static_cast<std::int64_t>((1 - bucket.tokens) * 1000 / s.per_second) + 1;
}

struct Gate::State {
  State(const Authenticator& a, const Clock& c, const RateLimits& limits)
      : authenticator(a),
        clock(c),
        members(limits.member_per_second, limits.member_burst),
        strangers(limits.anonymous_per_second, limits.anonymous_burst) {}

  const Authenticator& authenticator;
  const Clock& clock;
  RateLimiter members;
  RateLimiter strangers;
  RateLimiter told{kToldPerSecond, kToldBurst};
  Counter* refused_identity = nullptr;
  Counter* refused_role = nullptr;
  Counter* refused_rate = nullptr;
  std::mutex mutex;
  std::function<bool(std::string_view, std::string_view)> observer;
};

Gate::Gate(const Authenticator& authenticator, const Clock& clock, RateLimits limits, Metrics* metrics)
    : state_(std::make_unique<State>(authenticator, clock, limits)) {
  if (!metrics) return;
  constexpr std::string_view name = "skerry_calls_refused_total";
  constexpr std::string_view help = "gRPC calls and HTTP requests refused before their handler, by reason.";
  state_->refused_identity = &metrics->counter(name, help, {{"reason", "identity"}});
  state_->refused_role = &metrics->counter(name, help, {{"reason", "role"}});
  state_->refused_rate = &metrics->counter(name, help, {{"reason", "rate"}});
}
Gate::~Gate() = default;

void Gate::on_caller(std::function<bool(std::string_view, std::string_view)> observer) {
  const std::lock_guard lock(state_->mutex);
  state_->observer = std::move(observer);
}

Gate::Caller Gate::identify(std::string_view chain_pem, Access access) const {
  const std::int64_t grace = access == Access::kGraceMember ? kRenewalGraceMs : 0;
  auto identity = state_->authenticator.authenticate(chain_pem, state_->clock.unix_ms(), grace);
  if (!identity.ok()) return {std::nullopt, identity.error().message};
  return {std::move(identity).value(), ""};
}

std::int64_t Gate::take_rate(const Caller& caller, std::string_view peer_address) {
  const std::int64_t now = state_->clock.monotonic_ms();
  const std::int64_t wait = caller.identity ? state_->members.take(caller.identity->thumbprint, now)
                                            : state_->strangers.take(peer_address, now);
  if (wait > 0 && state_->refused_rate) state_->refused_rate->add();
  return wait;
}

Result<void> Gate::check(Access access, std::string_view what, const Caller& caller, std::string_view peer_address) {
  auto checked = check_access(access, what, caller.identity ? &*caller.identity : nullptr, caller.anonymous_reason);
  if (!checked.ok()) {
    Counter* counter = checked.error().code == Code::kUnauthenticated ? state_->refused_identity : state_->refused_role;
    if (counter) counter->add();
    tell(checked.error(), peer_address);
  }
  return checked;
}

void Gate::tell(const Error& refusal, std::string_view peer_address) {
  if (state_->told.take(peer_address, state_->clock.monotonic_ms()) > 0) return;
  std::string text = refusal.message;
  // A path may hold any character: none of them writes a log line of its own.
  std::replace_if(text.begin(), text.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; }, '?');
  spdlog::warn("refused a caller at {}: {}", peer_address, text);
}

Result<Identity> Gate::authorize(const grpc::ServerContextBase& context, std::string_view full_method) {
  const std::shared_ptr<const grpc::AuthContext> auth = context.auth_context();
  std::string chain;
  if (auth) {
    // On a server OpenSSL's chain lacks the leaf.
    chain = first_property(*auth, "x509_pem_cert") + first_property(*auth, "x509_pem_cert_chain");
  }
  const std::string peer = context.peer();
  const Access access = access_for("GRPC", full_method);
  Caller caller = identify(chain, access);
  if (caller.identity) {
    std::function<bool(std::string_view, std::string_view)> observer;
    {
      const std::lock_guard lock(state_->mutex);
      observer = state_->observer;
    }
    // A certificate revoked between the check and the note would leave its connection alive: after a first note, check again.
    if (observer && observer(peer, caller.identity->thumbprint)) caller = identify(chain, access);
  }
  if (const std::int64_t wait = take_rate(caller, address_of_peer(peer)); wait > 0)
    return resource_exhausted("too many calls; try again in " + std::to_string(wait) + " ms");
  SKERRY_TRY(check(access, full_method, caller, address_of_peer(peer)));
  if (!caller.identity) return unauthenticated(std::string(full_method) + " needs a certificate: " + caller.anonymous_reason);
  return *std::move(caller.identity);
}

std::string address_of_peer(std::string_view encoded_peer) {
  const std::string peer_text = percent_decode(encoded_peer).value_or(std::string(encoded_peer));
  const std::string_view peer = peer_text;
  const std::size_t scheme = peer.find(':');
  const std::size_t port = peer.rfind(':');
  if (scheme == std::string_view::npos || port <= scheme) return std::string(peer);
  std::string_view address = peer.substr(scheme + 1, port - scheme - 1);
  if (address.size() >= 2 && address.front() == '[' && address.back() == ']') address = address.substr(1, address.size() - 2);
  return std::string(address);
}

}  // namespace skerry::server
