#include "server/coordinator/fleet_service.h"

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include <deque>
#include <mutex>
#include <optional>
#include <utility>

#include "server/coordinator/grpc_status.h"
#include "skerry/v1/fleet.grpc.pb.h"

namespace skerry::server {
namespace {

constexpr std::size_t kMaxQueuedBytes = 8u << 20;  // beyond a single message, which may carry many small fragments

class FleetStream;

// What the core holds. It outlives the stream, which gRPC deletes when it is done.
class FleetSession final : public Session, public std::enable_shared_from_this<FleetSession> {
 public:
  FleetSession(Identity identity, std::string address) : identity_(std::move(identity)), address_(std::move(address)) {}

  const Identity& identity() const override { return identity_; }
  const std::string& address() const override { return address_; }
  void send(v1::ToNode message) override;
  void queue(v1::ToNode message) override;
  void flush() override;
  void close(Error reason) override;
  void read_next() override;

  void attach(FleetStream* stream) {
    std::lock_guard lock(mutex_);
    stream_ = stream;
  }
  void detach() { attach(nullptr); }

 private:
  const Identity identity_;
  const std::string address_;
  std::mutex mutex_;
  FleetStream* stream_ = nullptr;
};

class FleetStream final : public grpc::ServerBidiReactor<v1::FromNode, v1::ToNode> {
 public:
  FleetStream(SessionEvents& events, grpc::CallbackServerContext& context, Result<Identity> caller) : events_(events), context_(context) {
    if (!caller.ok()) {
      Finish(to_grpc_status(caller.error()));
      return;
    }
    session_ = std::make_shared<FleetSession>(std::move(caller).value(), context.peer());
    session_->attach(this);
    events_.opened(session_);
  }

  void queue(v1::ToNode message) {
    std::lock_guard lock(mutex_);
    if (finish_) return;
    queued_bytes_ += message.ByteSizeLong();
    outgoing_.push_back(std::move(message));
    if (queued_bytes_ > kMaxQueuedBytes && outgoing_.size() > 2) {
      outgoing_.resize(writing_ ? 1 : 0);
      finish_ = Error{Code::kResourceExhausted, "the daemon does not read: more than 8 MiB are waiting for it", true};
    }
  }

  void flush() {
    std::lock_guard lock(mutex_);
    advance();
  }

  void close(Error reason) {
    std::lock_guard lock(mutex_);
    if (finish_ && writing_) context_.TryCancel();
    if (!finish_) finish_ = std::move(reason);
    advance();
  }

  void read_next() {
    std::lock_guard lock(mutex_);
    if (!finish_) StartRead(&incoming_);
  }

 private:
  void OnReadDone(bool ok) override {
    if (ok) {
      events_.received(session_, std::move(incoming_));
    } else {
      close({Code::kOk, ""});  // the daemon is done talking
    }
  }

  void OnWriteDone(bool ok) override {
    std::lock_guard lock(mutex_);
    writing_ = false;
    queued_bytes_ -= outgoing_.front().ByteSizeLong();
    outgoing_.pop_front();
    if (!ok) {
      outgoing_.clear();
      if (!finish_) finish_ = Error{Code::kUnavailable, "the connection broke", true};
    }
    advance();
  }

  void OnCancel() override { close({Code::kCancelled, "the daemon went away"}); }

  void OnDone() override {
    if (session_) {
      session_->detach();
      events_.ended(session_);
    }
    delete this;
  }

  // Starts the next write, or the end. Holds mutex_.
  void advance() {
    if (writing_ || finished_) return;
    if (!outgoing_.empty()) {
      writing_ = true;
      // gRPC holds back what is followed by more, so that it leaves in one segment.
      grpc::WriteOptions options;
      if (outgoing_.size() > 1) options.set_buffer_hint();
      StartWrite(&outgoing_.front(), options);
    } else if (finish_) {
      finished_ = true;
      Finish(finish_->code == Code::kOk ? grpc::Status::OK : to_grpc_status(*finish_));
    }
  }

  SessionEvents& events_;
  grpc::CallbackServerContext& context_;
  std::shared_ptr<FleetSession> session_;
  v1::FromNode incoming_;

  std::mutex mutex_;
  std::deque<v1::ToNode> outgoing_;  // the front one is being written where writing_
  std::size_t queued_bytes_ = 0;
  bool writing_ = false;
  bool finished_ = false;
  std::optional<Error> finish_;
};

void FleetSession::send(v1::ToNode message) {
  std::lock_guard lock(mutex_);
  if (!stream_) return;
  stream_->queue(std::move(message));
  stream_->flush();
}

void FleetSession::queue(v1::ToNode message) {
  std::lock_guard lock(mutex_);
  if (stream_) stream_->queue(std::move(message));
}

void FleetSession::flush() {
  std::lock_guard lock(mutex_);
  if (stream_) stream_->flush();
}

void FleetSession::close(Error reason) {
  std::lock_guard lock(mutex_);
  if (stream_) stream_->close(std::move(reason));
}

void FleetSession::read_next() {
  std::lock_guard lock(mutex_);
  if (stream_) stream_->read_next();
}

class FleetService final : public v1::Fleet::CallbackService {
 public:
  FleetService(Gate& gate, SessionEvents& events) : gate_(gate), events_(events) {}

  grpc::ServerBidiReactor<v1::FromNode, v1::ToNode>* Session(grpc::CallbackServerContext* context) override {
    return new FleetStream(events_, *context, gate_.authorize(*context, "/skerry.v1.Fleet/Session"));
  }

 private:
  Gate& gate_;
  SessionEvents& events_;
};

}  // namespace

std::unique_ptr<grpc::Service> make_fleet_service(Gate& gate, SessionEvents& events) {
  return std::make_unique<FleetService>(gate, events);
}

}  // namespace skerry::server
