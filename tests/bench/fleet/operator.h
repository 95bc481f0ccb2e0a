// The operator's side of a measurement: invites, submits and reads figures over the coordinator's JSON API.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "common/identity/profile.h"
#include "common/net/http_client.h"

namespace skerry::bench {

/// Where a run stands.
struct RunState {
  std::string status;  ///< "waiting", "running", "completed", "stopped", "failed", …
  std::string reason;
  std::uint64_t round = 0;
  std::uint64_t discarded = 0;  ///< updates

  bool over() const { return status == "completed" || status == "stopped" || status == "failed"; }
};

/// One committed exchange.
struct ExchangeRow {
  std::uint64_t exchange = 0;
  std::uint64_t time_ms = 0;  ///< Unix time of the commit, by the coordinator's clock
  std::uint64_t updates = 0;
  double reduce_seconds = 0;
};

/// Any thread; one request at a time.
class Operator {
 public:
  /// `directory` is an operator's profile, for example HOME/operator.
  static Result<Operator> open(const std::string& directory);

  const Profile& profile() const { return profile_; }

  /// A join token for a node.
  Result<std::string> invite(const std::string& node);
  /// The new run's id. INVALID_ARGUMENT with the coordinator's reason where it refuses the spec.
  Result<std::string> submit(const std::string& spec_toml);
  Result<RunState> run(const std::string& run_id);
  /// Asks every `poll_ms` until the run is over; DEADLINE_EXCEEDED after `timeout_ms`.
  Result<RunState> wait(const std::string& run_id, std::uint64_t timeout_ms, std::uint64_t poll_ms = 100);
  Result<std::vector<ExchangeRow>> exchanges(const std::string& run_id);
  /// Nodes with an open session.
  Result<std::uint64_t> nodes_connected();
  /// The sum of all series of this name in /metrics; 0 where there is none.
  Result<double> metric(const std::string& name);

 private:
  Operator(Profile profile, HttpOptions options) : profile_(std::move(profile)), http_(std::move(options)) {}
  Result<std::string> ask(const std::string& method, const std::string& path, std::string body = {});

  Profile profile_;
  HttpClient http_;
};

}  // namespace skerry::bench
