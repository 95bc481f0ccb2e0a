// The operator's line to a coordinator: a profile, the Control service, cargo over HTTPS.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "common/base/result.h"
#include "common/identity/profile.h"
#include "skerry/v1/control.pb.h"

namespace skerry::ctl {

/// One coordinator. Errors that only say "unavailable" are explained by asking /api/v1/whoami.
class Connection {
 public:
  /// Reads the profile; connects with the first call.
  static Result<Connection> open(const std::string& profile_directory);
  Connection(Connection&&) noexcept;
  Connection& operator=(Connection&&) noexcept;
  ~Connection();

  Result<v1::CoordinatorStatus> status();
  Result<v1::SubmitRunReply> submit(const v1::SubmitRunRequest& request);
  Result<v1::ListRunsReply> list_runs();
  Result<v1::RunDetail> get_run(const std::string& run);
  Result<v1::RunDetail> change_run(const v1::ChangeRunRequest& request);
  Result<v1::RunMetrics> run_metrics(const std::string& run);
  Result<v1::ListVersionsReply> list_versions(const std::string& run);
  Result<v1::InviteMemberReply> invite(const v1::InviteMemberRequest& request);
  Result<v1::RevokeMemberReply> revoke(const v1::RevokeMemberRequest& request);
  Result<v1::ListMembersReply> list_members(const std::string& role);

  /// Calls `update` for each change until the run ends or `update` returns false.
  Result<void> watch(const std::string& run, const std::function<bool(const v1::RunDetail&)>& update);

  /// Writes the blob's bytes to `path`, checked against its content id.
  Result<void> download(const v1::Blob& blob, const std::string& path);

  /// Uploads a file as cargo, as far as the coordinator does not have it; its content id.
  Result<std::string> upload(const std::string& path);

  /// GET of a path below /; the body.
  Result<std::string> get(const std::string& path);

  const Profile& profile() const;

 private:
  struct State;
  explicit Connection(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace skerry::ctl
