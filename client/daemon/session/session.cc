#include "client/daemon/session/session.h"

#include <grpcpp/alarm.h>
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <deque>
#include <mutex>
#include <utility>

#include "common/os/files.h"
#include "skerry/v1/fleet.grpc.pb.h"

namespace skerry::client {
namespace {

constexpr int kMaxMessageBytes = 64 << 20;  // a task may bring hundreds of small fragments
constexpr std::size_t kMaxQueuedMessages = 4096;

/// The stream's reactor. It owns itself until gRPC calls OnDone, so that a Session may go at any time.
class Stream final : public grpc::ClientBidiReactor<v1::FromNode, v1::ToNode>, public std::enable_shared_from_this<Stream> {
 public:
  Stream(std::shared_ptr<grpc::Channel> channel, SessionEvents events)
      : channel_(std::move(channel)), stub_(v1::Fleet::NewStub(channel_)), events_(std::move(events)) {}

  void start() {
    self_ = shared_from_this();
    stub_->async()->Session(&context_, this);
    AddHold();  // for writes that start outside a reaction
    StartRead(&incoming_);
    StartCall();
  }

  void send(v1::FromNode message) {
    std::lock_guard lock(mutex_);
    if (finished_ || closing_) return;
    if (queue_.size() >= kMaxQueuedMessages) {
      context_.TryCancel();
      return;
    }
    queue_.push_back(std::move(message));
    if (!writing_) write_next();
  }

  void close(unsigned patience_ms) {
    std::lock_guard lock(mutex_);
    if (finished_ || closing_) return;
    closing_ = true;
    if (!writing_) finish_writing();
    alarm_.Set(std::chrono::system_clock::now() + std::chrono::milliseconds(patience_ms), [self = weak_from_this()](bool fired) {
      const auto stream = self.lock();
      if (fired && stream != nullptr) stream->context_.TryCancel();
    });
  }

  void OnReadDone(bool ok) override {
    if (!ok) return release_hold();
    events_.received(std::move(incoming_));
    incoming_.Clear();
    StartRead(&incoming_);
  }

  void OnWriteDone(bool ok) override {
    std::lock_guard lock(mutex_);
    queue_.pop_front();
    writing_ = false;
    if (!ok) finished_ = true;
    if (finished_) return;
    if (!queue_.empty()) write_next();
    else if (closing_) finish_writing();
  }

  void OnWritesDoneDone(bool) override {}

  void OnDone(const grpc::Status& status) override {
    {
      std::lock_guard lock(mutex_);
      finished_ = true;
    }
    alarm_.Cancel();
    Error error{static_cast<Code>(status.error_code()), status.error_message(), false};
    if (status.ok()) error = {Code::kUnavailable, "the coordinator ended the session", true};
    error.retryable = error.code == Code::kUnavailable || error.code == Code::kResourceExhausted || error.code == Code::kDeadlineExceeded;
    const auto ended = std::move(events_.ended);
    ended(std::move(error), std::move(self_));
  }

 private:
  // With the lock held:
  void write_next() {
    writing_ = true;
    StartWrite(&queue_.front());
  }
  void finish_writing() {
    if (writes_done_) return;
    writes_done_ = true;
    StartWritesDone();
  }

  void release_hold() {
    {
      std::lock_guard lock(mutex_);
      finished_ = true;  // no write may start after the hold is gone
      if (hold_released_) return;
      hold_released_ = true;
    }
    RemoveHold();
  }

  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Fleet::Stub> stub_;
  grpc::ClientContext context_;
  SessionEvents events_;
  v1::ToNode incoming_;
  std::mutex mutex_;
  std::deque<v1::FromNode> queue_;  // its front is being written while `writing_`
  bool writing_ = false;
  bool writes_done_ = false;
  bool closing_ = false;
  bool finished_ = false;
  bool hold_released_ = false;
  grpc::Alarm alarm_;
  std::shared_ptr<Stream> self_;  // shared with gRPC's reactions, which end with OnDone
};

class GrpcSession final : public Session {
 public:
  explicit GrpcSession(std::shared_ptr<Stream> stream) : stream_(std::move(stream)) {}
  ~GrpcSession() override { stream_->close(0); }
  void send(v1::FromNode message) override { stream_->send(std::move(message)); }
  void close(unsigned patience_ms) override { stream_->close(patience_ms); }

 private:
  std::shared_ptr<Stream> stream_;  // shared with the reactor itself
};

}  // namespace

std::unique_ptr<Session> Session::open(const SessionOptions& options, SessionEvents events) {
  grpc::SslCredentialsOptions tls;
  tls.pem_root_certs = options.ca_pem;
  tls.pem_cert_chain = options.chain_pem;
  tls.pem_private_key = options.key_pem;
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 30'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 15'000);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  // Each session has a connection of its own: another certificate, another fate.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  if (options.proxy.empty()) arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  else arguments.SetString(GRPC_ARG_HTTP_PROXY, options.proxy);
  auto channel = grpc::CreateCustomChannel(options.address, grpc::SslCredentials(tls), arguments);
  auto stream = std::make_shared<Stream>(std::move(channel), std::move(events));
  stream->start();
  return std::make_unique<GrpcSession>(std::move(stream));
}

Result<SessionOptions> session_options(const Profile& profile, std::string proxy) {
  SessionOptions options;
  options.address = profile.address;
  options.ca_pem = profile.ca_pem;
  options.chain_pem = profile.chain_pem;
  options.proxy = std::move(proxy);
  SKERRY_ASSIGN(options.key_pem, read_file(profile.key_path(), 64 * 1024));
  return options;
}

}  // namespace skerry::client
