#include "client/daemon/app/daemon_loop.h"

#include "common/crypto/random.h"
#include "common/crypto/sha256.h"
#include "common/crypto/x509.h"
#include "common/identity/enrol.h"

#include <cstdlib>

namespace skerry::client {
namespace {

constexpr std::int64_t kClockToleranceMs = 120'000;
constexpr std::uint64_t kMaxSpecBytes = 1 << 20;

}  // namespace

void DaemonLoop::execute(ConnectAfter& command) {
  loop_->cancel(connect_timer_);
  connect_timer_ = loop_->after(command.delay_ms, [this] { connect(); });
}

void DaemonLoop::connect() {
  const std::uint64_t generation = ++generation_;
  session_.reset();
  welcomed_ = false;
  auto session = session_options(*profile_, options_.proxy);
  if (!session.ok()) return feed(Disconnected{std::move(session).error()});
  {
    std::lock_guard lock(live_mutex_);
    ++live_sessions_;
  }
  session_ = Session::open(*session, {.received =
                                          [this, generation](v1::ToNode message) {
                                            loop_->post([this, generation, message = std::move(message)]() mutable {
                                              if (generation == generation_) received(std::move(message));
                                            });
                                          },
                                      .ended =
                                          [this, generation](Error error, SessionRemains remains) {
                                            loop_->post([this, generation, error = std::move(error), remains = std::move(remains)]() mutable {
                                              if (generation == generation_) session_ended(std::move(error));
                                            });
                                            std::lock_guard lock(live_mutex_);
                                            --live_sessions_;
                                            live_changed_.notify_all();
                                          }});
  cleanse(session->key_pem);
  feed(Connected{});
}

void DaemonLoop::received(v1::ToNode message) {
  if (message.has_welcome()) {
    welcomed_ = true;
    const auto& welcome = message.welcome();
    inline_limit_ = welcome.inline_limit() > 0 ? std::min(welcome.inline_limit(), kInlineLimit) : kInlineLimit;
    const std::int64_t off = unix_ms() - static_cast<std::int64_t>(welcome.server_time_ms());
    if (welcome.server_time_ms() > 0 && std::abs(off) > kClockToleranceMs)
      log(Note::Level::kWarning, "this machine's clock is " + format_duration(std::abs(off)) + (off > 0 ? " ahead of" : " behind") +
                                     " the coordinator's; certificates may be refused, set the clock");
  }
  // Names from outside become file names here; others are not ours to work with.
  const bool bad_run = message.has_run() && (!safe_name(message.run().run_id()) || message.run().spec_json().size() > kMaxSpecBytes);
  const bool bad_task = message.has_task() && (!safe_name(message.task().task_id()) || !safe_name(message.task().run_id()));
  if (bad_run || bad_task) return log(Note::Level::kError, "the coordinator sent a run or task with an impossible name; it is ignored");
  const bool first = message.has_welcome();
  feed(Received{std::move(message)});
  if (first && options_.leave && !shutting_down_) shut_down(true, options_.leave_reason);
}

void DaemonLoop::session_ended(Error error) {
  session_.reset();
  const bool explained = error.code == Code::kAborted || error.code == Code::kPermissionDenied || error.code == Code::kFailedPrecondition ||
                         error.code == Code::kResourceExhausted;
  if (welcomed_ || explained || shutting_down_) return feed(Disconnected{std::move(error)});
  // TLS says little of why; the coordinator's HTTP side says it in words.
  workers_.run([this, error = std::move(error), profile = profile_, generation = generation_]() mutable {
    EnrolOptions options;
    options.proxy = options_.proxy;
    options.cancelled = &stopping_workers_;
    if (auto checked = check_identity(*profile, options); !checked.ok()) {
      if (checked.error().code == Code::kUnauthenticated || error.code == Code::kUnavailable) error = std::move(checked).error();
    }
    loop_->post([this, error = std::move(error), generation]() mutable {
      if (generation == generation_) feed(Disconnected{std::move(error)});
    });
  });
}

void DaemonLoop::execute(Send& command) {
  auto& message = command.message;
  // A loss is a measurement of private data: it leaves only where the policy lets it.
  if (message.has_progress() && !fits_any(policy_.metrics, "train_loss") && !fits_any(policy_.metrics, "loss"))
    message.mutable_progress()->clear_loss();
  if (auto done = append_row(message); !done.ok()) return fail_for_good(done.error());
  outgoing_.emplace_back(std::move(message));
}

Result<void> DaemonLoop::append_row(const v1::FromNode& message) {
  EgressRow row;
  std::string payload;
  switch (message.message_case()) {
    case v1::FromNode::kHello: {
      row.kind = "data-summary";
      for (const auto& set : message.hello().data_sets()) row.detail += (row.detail.empty() ? "" : ", ") + set.name();
      payload = message.hello().SerializeAsString();
      break;
    }
    case v1::FromNode::kRunAnswer:
      row.kind = "run-answer";
      row.run = message.run_answer().run_id();
      row.detail = message.run_answer().accepted() ? "accepted with " + message.run_answer().data_set() : "refused";
      payload = message.run_answer().SerializeAsString();
      break;
    case v1::FromNode::kProgress:
      row.kind = "progress";
      row.task = message.progress().task_id();
      row.detail = "step " + std::to_string(message.progress().step()) + " of " + std::to_string(message.progress().of());
      payload = message.progress().SerializeAsString();
      break;
    case v1::FromNode::kFailure:
      row.kind = "error";
      row.task = message.failure().task_id();
      row.detail = message.failure().message();
      payload = message.failure().SerializeAsString();
      break;
    case v1::FromNode::kFarewell:
      row.kind = "farewell";
      row.detail = message.farewell().reason();
      payload = message.farewell().SerializeAsString();
      break;
    case v1::FromNode::kUpdate: {
      // The first time, its row was made together with the update itself.
      v1::UpdateBody body;
      if (!body.ParseFromString(message.update().body())) return internal_error("an update of the outbox is damaged");
      if (unsent_.erase(body.task_id()) > 0) return {};
      row.kind = "update-again";
      row.run = body.run_id();
      row.task = body.task_id();
      row.exchange = body.exchange();
      payload = message.update().body();
      break;
    }
    case v1::FromNode::kHeartbeat:
    case v1::FromNode::kReceiptQuery:
    case v1::FromNode::MESSAGE_NOT_SET: return {};  // ids and a sign of life, nothing of the holder's
  }
  row.time_ms = unix_ms();
  row.bytes = payload.size();
  row.sha256 = sha256_hex(payload);
  SKERRY_TRY(database_.begin());
  return database_.append(std::move(row));
}

}  // namespace skerry::client
