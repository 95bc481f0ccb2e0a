#include "server/coordinator/control_service.h"

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "server/coordinator/grpc_status.h"
#include "skerry/v1/control.grpc.pb.h"

namespace skerry::server {
namespace {

// Shared by the stream, which gRPC deletes, and the coordinator's watcher, which may come after it.
struct WatchState {
  std::mutex mutex;
  class WatchStream* stream = nullptr;
};

class WatchStream final : public grpc::ServerWriteReactor<v1::RunDetail> {
 public:
  WatchStream(Coordinator& coordinator, const std::string& run) : state_(std::make_shared<WatchState>()) {
    state_->stream = this;
    coordinator.watch(
        run,
        [state = state_](const v1::RunDetail& detail) {
          std::lock_guard lock(state->mutex);
          return state->stream && state->stream->offer(detail);
        },
        [state = state_](const Error& error) {
          std::lock_guard lock(state->mutex);
          if (state->stream) state->stream->end(to_grpc_status(error));
        });
  }
  explicit WatchStream(const Error& error) : state_(std::make_shared<WatchState>()) { end(to_grpc_status(error)); }

 private:
  // Keeps only the newest detail while an older one is being written. The caller holds the state's mutex.
  bool offer(const v1::RunDetail& detail) {
    if (ended_) return false;
    next_ = detail;
    write_next();
    return true;
  }

  void write_next() {
    if (writing_ || ended_ || !next_) return;
    current_ = std::move(*next_);
    next_.reset();
    writing_ = true;
    StartWrite(&current_);
  }

  void end(grpc::Status status) {
    if (std::exchange(ended_, true)) return;
    Finish(std::move(status));
  }

  void OnWriteDone(bool ok) override {
    std::lock_guard lock(state_->mutex);
    writing_ = false;
    const bool over = current_.summary().ended_ms() != 0 && !next_;
    if (!ok || over) end(grpc::Status::OK);
    else write_next();
  }
  void OnCancel() override {
    std::lock_guard lock(state_->mutex);
    end(grpc::Status::CANCELLED);
  }
  void OnDone() override {
    {
      std::lock_guard lock(state_->mutex);
      state_->stream = nullptr;
    }
    delete this;
  }

  // Shared because the coordinator's watcher may outlive the stream.
  std::shared_ptr<WatchState> state_;
  v1::RunDetail current_;
  std::optional<v1::RunDetail> next_;
  bool writing_ = false;
  bool ended_ = false;
};

// Ends a call exactly once: with its answer, or, where the coordinator stops before it answers, with UNAVAILABLE.
template <typename Reply>
class PendingCall {
 public:
  PendingCall(grpc::ServerUnaryReactor* reactor, Reply* reply) : reactor_(reactor), reply_(reply) {}
  PendingCall(const PendingCall&) = delete;
  PendingCall& operator=(const PendingCall&) = delete;
  ~PendingCall() {
    if (reactor_) reactor_->Finish({grpc::StatusCode::UNAVAILABLE, "the coordinator is stopping; try again soon"});
  }
  void answer(Result<Reply> result) {
    if (!reactor_) return;
    if (result.ok()) *reply_ = std::move(result).value();
    std::exchange(reactor_, nullptr)->Finish(result.ok() ? grpc::Status::OK : to_grpc_status(result.error()));
  }

 private:
  grpc::ServerUnaryReactor* reactor_;
  Reply* reply_;
};

class ControlService final : public v1::Control::CallbackService {
 public:
  ControlService(Gate& gate, Coordinator& coordinator) : gate_(gate), coordinator_(coordinator) {}

  grpc::ServerUnaryReactor* GetStatus(grpc::CallbackServerContext* context, const v1::GetStatusRequest*, v1::CoordinatorStatus* reply) override {
    return answer(context, "GetStatus", reply, [&](const std::string&, auto done) { coordinator_.status(done); });
  }
  grpc::ServerUnaryReactor* SubmitRun(grpc::CallbackServerContext* context, const v1::SubmitRunRequest* request, v1::SubmitRunReply* reply) override {
    return answer(context, "SubmitRun", reply, [&](const std::string& who, auto done) { coordinator_.submit(*request, who, done); });
  }
  grpc::ServerUnaryReactor* ListRuns(grpc::CallbackServerContext* context, const v1::ListRunsRequest*, v1::ListRunsReply* reply) override {
    return answer(context, "ListRuns", reply, [&](const std::string&, auto done) { coordinator_.list_runs(done); });
  }
  grpc::ServerUnaryReactor* GetRun(grpc::CallbackServerContext* context, const v1::GetRunRequest* request, v1::RunDetail* reply) override {
    return answer(context, "GetRun", reply, [&](const std::string&, auto done) { coordinator_.get_run(request->run_id(), done); });
  }
  grpc::ServerWriteReactor<v1::RunDetail>* WatchRun(grpc::CallbackServerContext* context, const v1::GetRunRequest* request) override {
    const auto caller = gate_.authorize(*context, "/skerry.v1.Control/WatchRun");
    return caller.ok() ? new WatchStream(coordinator_, request->run_id()) : new WatchStream(caller.error());
  }
  grpc::ServerUnaryReactor* ChangeRun(grpc::CallbackServerContext* context, const v1::ChangeRunRequest* request, v1::RunDetail* reply) override {
    return answer(context, "ChangeRun", reply, [&](const std::string& who, auto done) { coordinator_.change_run(*request, who, done); });
  }
  grpc::ServerUnaryReactor* GetRunMetrics(grpc::CallbackServerContext* context, const v1::GetRunRequest* request, v1::RunMetrics* reply) override {
    return answer(context, "GetRunMetrics", reply, [&](const std::string&, auto done) { coordinator_.run_metrics(request->run_id(), done); });
  }
  grpc::ServerUnaryReactor* InviteMember(grpc::CallbackServerContext* context, const v1::InviteMemberRequest* request, v1::InviteMemberReply* reply) override {
    return answer(context, "InviteMember", reply, [&](const std::string& who, auto done) { coordinator_.invite(*request, who, done); });
  }
  grpc::ServerUnaryReactor* RevokeMember(grpc::CallbackServerContext* context, const v1::RevokeMemberRequest* request, v1::RevokeMemberReply* reply) override {
    return answer(context, "RevokeMember", reply, [&](const std::string& who, auto done) { coordinator_.revoke(*request, who, done); });
  }
  grpc::ServerUnaryReactor* ListMembers(grpc::CallbackServerContext* context, const v1::ListMembersRequest* request, v1::ListMembersReply* reply) override {
    return answer(context, "ListMembers", reply, [&](const std::string&, auto done) { coordinator_.list_members(request->role(), done); });
  }
  grpc::ServerUnaryReactor* ListVersions(grpc::CallbackServerContext* context, const v1::GetRunRequest* request, v1::ListVersionsReply* reply) override {
    return answer(context, "ListVersions", reply, [&](const std::string&, auto done) { coordinator_.list_versions(request->run_id(), done); });
  }

 private:
  // Authorizes the caller, then calls `ask(who, done)`; `done` fills the reply and ends the call.
  template <typename Reply, typename Ask>
  grpc::ServerUnaryReactor* answer(grpc::CallbackServerContext* context, const std::string& method, Reply* reply, const Ask& ask) {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    const auto caller = gate_.authorize(*context, "/skerry.v1.Control/" + method);
    if (!caller.ok()) {
      reactor->Finish(to_grpc_status(caller.error()));
      return reactor;
    }
    // Shared because std::function copies what it holds.
    auto call = std::make_shared<PendingCall<Reply>>(reactor, reply);
    ask(std::string(role_name(caller->role)) + "/" + caller->name, [call](Result<Reply> result) { call->answer(std::move(result)); });
    return reactor;
  }

  Gate& gate_;
  Coordinator& coordinator_;
};

}  // namespace

std::unique_ptr<grpc::Service> make_control_service(Gate& gate, Coordinator& coordinator) {
  return std::make_unique<ControlService>(gate, coordinator);
}

}  // namespace skerry::server
