#include "client/daemon/app/daemon_loop.h"

#include "client/daemon/app/status.h"
#include "common/crypto/sha256.h"
#include "common/crypto/x509.h"
#include "common/identity/enrol.h"

#include <nlohmann/json.hpp>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <future>
#include <memory>

namespace skerry::client {
namespace {

using nlohmann::json;

constexpr std::uint64_t kShutdownMs = 4'000;
constexpr std::int64_t kDayMs = 24ll * 3600 * 1000;

v1::DataSetSummary summary_of(const DataSet& set) {
  v1::DataSetSummary summary;
  summary.set_name(set.name);
  summary.set_kind(set.kind);
  summary.set_schema_json(set.schema_json);
  for (const auto& [split, count] : set.examples()) (*summary.mutable_examples())[split] = count;
  return summary;
}

/// The profile with only those roots that the policy trusts: no other certificate can stand for the coordinator.
Result<Profile> pinned(Profile profile, const Policy& policy, const std::string& policy_path, std::string& fingerprint) {
  SKERRY_ASSIGN(const auto certificates, parse_chain(profile.ca_pem));
  SKERRY_ASSIGN(const TrustAnchors anchors, TrustAnchors::from_pem(profile.ca_pem));
  std::vector<Certificate> kept;
  fingerprint.clear();
  std::string offered;
  for (const auto& root : anchors.roots()) {
    offered += (offered.empty() ? "" : ", ") + root.thumbprint();
    if (std::find(policy.coordinators.begin(), policy.coordinators.end(), root.thumbprint()) == policy.coordinators.end()) continue;
    kept.push_back(root);
    if (fingerprint.empty()) fingerprint = root.thumbprint();
  }
  if (kept.empty())
    return permission_denied("the policy does not trust this coordinator: its root certificate is " + offered + ", coordinators in " + policy_path +
                             " lists others");
  for (const auto& intermediate : anchors.intermediates()) kept.push_back(intermediate);
  profile.ca_pem = chain_pem(kept);
  return profile;
}

std::uint64_t renewal_retry_ms(const Profile& profile) {
  const std::int64_t life = profile.expires_ms - profile.not_before_ms;
  return static_cast<std::uint64_t>(std::clamp<std::int64_t>(life / 50, 1'000, 300'000));
}

}  // namespace

Result<void> DaemonLoop::load_policy_and_catalogue() {
  SKERRY_ASSIGN(Policy policy, load_policy(home_.policy()));
  SKERRY_ASSIGN(Catalogue catalogue, Catalogue::load(home_.catalogue()));
  std::string fingerprint;
  SKERRY_ASSIGN(Profile profile, pinned(*stored_profile_, policy, home_.policy(), fingerprint));
  policy_ = std::move(policy);
  catalogue_ = std::move(catalogue);
  profile_ = std::make_shared<const Profile>(std::move(profile));
  ca_fingerprint_ = std::move(fingerprint);
  return {};
}

PolicyChanged DaemonLoop::policy_event() const {
  PolicyChanged event;
  event.max_trainers = policy_.trainers;
  event.max_task_ms = policy_.task_seconds * 1000;
  event.threads = policy_.threads;
  event.memory_bytes = policy_.memory_mb * 1'000'000;
  for (const auto& set : catalogue_.sets()) event.data_sets.push_back(summary_of(set));
  return event;
}

void DaemonLoop::reload(const char* why) {
  auto loaded = load_policy_and_catalogue();
  if (!loaded.ok()) {
    policy_trouble_ = to_string(loaded.error());
    log(Note::Level::kError, "the changed policy or catalogue is not used, the one before stays in force: " + policy_trouble_);
    // A coordinator that is no longer trusted is left at once.
    if (loaded.error().code == Code::kPermissionDenied) shut_down(false, "the policy no longer trusts this coordinator");
    return;
  }
  policy_trouble_.clear();
  log(Note::Level::kInfo, std::string("policy and catalogue loaded: ") + why);
  feed(policy_event());
  watch_availability();
}

void DaemonLoop::watch_availability() {
  Availability now;
  const time_t seconds = static_cast<time_t>(unix_ms() / 1000);
  tm local{};
  ::localtime_r(&seconds, &local);
  if (!policy_.hours.open_at(local.tm_wday, local.tm_hour * 60 + local.tm_min)) {
    now.open = false;
    now.reason = "outside the policy's hours";
  } else if (policy_.rounds_a_day > 0) {
    const auto used = database_.updates_since(unix_ms() - kDayMs);
    if (used.ok() && *used >= policy_.rounds_a_day) {
      now.open = false;
      now.reason = "limits.rounds_a_day is used up (" + std::to_string(*used) + " in the last 24 hours)";
    }
  }
  if (now.open == available_) return;
  available_ = now.open;
  log(Note::Level::kInfo, now.open ? "work is allowed again" : "no new work: " + now.reason);
  feed(std::move(now));
}

void DaemonLoop::schedule_renewal() {
  loop_->cancel(renewal_timer_);
  // At most an hour ahead: a machine that slept, or whose clock was set, looks again soon.
  const auto delay = std::min<std::uint64_t>(renewal_delay_ms(profile_->not_before_ms, profile_->expires_ms, unix_ms()), 3'600'000);
  renewal_timer_ = loop_->after(delay, [this] {
    if (renewal_due(*profile_, unix_ms())) renew_certificate();
    else schedule_renewal();
  });
}

void DaemonLoop::renew_certificate() {
  workers_.run([this, trusted = profile_] {
    EnrolOptions options;
    options.proxy = options_.proxy;
    options.cancelled = &stopping_workers_;
    // The signing request leaves this machine: like everything else, not before its row is durable.
    options.send = [this](const HttpOptions& http, const HttpRequest& request) -> Result<HttpResponse> {
      if (request.method == "POST") {
        auto durable = std::make_shared<std::promise<void>>();  // shared with the loop
        auto row_is_durable = durable->get_future();
        loop_->post([this, durable, bytes = request.body.size(), digest = sha256_hex(request.body)] {
          EgressRow row;
          row.time_ms = unix_ms();
          row.kind = "signing-request";
          row.bytes = bytes;
          row.sha256 = digest;
          const auto write = [&]() -> Result<void> {
            SKERRY_TRY(database_.begin());
            return database_.append(std::move(row));
          };
          if (auto done = write(); !done.ok()) return fail_for_good(done.error());
          after_commit_.emplace_back([durable] { durable->set_value(); });
        });
        while (row_is_durable.wait_for(std::chrono::milliseconds(50)) != std::future_status::ready)
          if (stopping_workers_) return Error{Code::kCancelled, "the daemon is ending", true};
      }
      return HttpClient(http).send(request);
    };
    auto renewed = renew(*trusted, options);
    loop_->post([this, renewed = std::move(renewed)] {
      if (!renewed.ok()) {
        log(Note::Level::kWarning, "the certificate could not be renewed: " + to_string(renewed.error()));
        renewal_timer_ = loop_->after(renewal_retry_ms(*profile_), [this] { renew_certificate(); });
        return;
      }
      stored_profile_ = std::make_shared<const Profile>(*renewed);
      std::string fingerprint;
      auto profile = pinned(*stored_profile_, policy_, home_.policy(), fingerprint);
      if (!profile.ok()) return fail_for_good(profile.error());
      profile_ = std::make_shared<const Profile>(*std::move(profile));
      log(Note::Level::kInfo, "the certificate was renewed; it ends on " + format_utc(profile_->expires_ms));
      feed(IdentityRenewed{});
      schedule_renewal();
    });
  });
}

void DaemonLoop::shut_down(bool leaving, std::string reason) {
  if (shutting_down_) return;
  shutting_down_ = true;
  if (leaving) options_.leave = true;
  log(Note::Level::kInfo, leaving ? "leaving the federation" : "ending: " + reason);
  if (leaving) feed(Leave{std::move(reason)});
  else feed(Shutdown{});
  loop_->after(kShutdownMs, [this] { loop_->stop(); });
}

json DaemonLoop::control(const json& request) {
  const std::string command = request.is_object() ? request.value("command", "") : "";
  if (command == "status") {
    json status = status_json(machine_->status());
    status["pid"] = ::getpid();
    status["coordinator_address"] = profile_->address;
    status["federation"] = profile_->federation;
    status["node"] = profile_->name;
    status["certificate_expires"] = format_utc(profile_->expires_ms);
    status["policy"] = policy_trouble_.empty() ? "in force" : "not used: " + policy_trouble_;
    return status;
  }
  if (command == "pause") {
    feed(Pause{request.value("now", false)});
    return {{"ok", true}, {"message", "paused; `skerry-client resume` goes on"}};
  }
  if (command == "resume") {
    feed(Resume{});
    return {{"ok", true}, {"message", "resumed"}};
  }
  if (command == "leave") {
    const bool connected = machine_->status().session == "connected";
    shut_down(true, request.value("reason", ""));
    return {{"ok", connected},
            {"message", connected ? "left; the daemon ends" : "the daemon ends, but the coordinator could not be told: there is no session"}};
  }
  return {{"ok", false}, {"message", "unknown command; known: status, pause, resume, leave"}};
}

}  // namespace skerry::client
