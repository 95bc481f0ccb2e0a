// The session: greeting, heartbeats, reconnects.
#include "client/daemon/machine/client_machine.h"

#include "client/daemon/machine/shared.h"

#include <algorithm>
#include <utility>

namespace skerry::client {
namespace {

constexpr std::uint64_t kLeastHeartbeatMs = 100;
constexpr std::uint64_t kSettledSessionMs = 10'000;    // a session that lasted this long ends a row of failures
constexpr std::uint64_t kReannounceWithinMs = 60'000;  // a run that is not announced again within this time is over
constexpr std::uint64_t kRefusedBaseMs = 5'000;

}  // namespace

void ClientMachine::on(const Started&) {
  if (session_ == Session::kIdle) reconnect_after(0);
}

void ClientMachine::on(const Connected&) {
  if (session_ != Session::kConnecting) {
    out_.emplace_back(CloseSession{"the session is not wanted any more"});
    return;
  }
  session_ = Session::kGreeting;
  last_heard_ = now_;
  hello();
}

void ClientMachine::hello() {
  v1::FromNode message;
  auto* hello = message.mutable_hello();
  hello->set_protocol_version(1);
  hello->set_software(options_.software);
  hello->set_previous_incarnation(incarnation_);
  for (const auto& data_set : options_.data_sets) *hello->add_data_sets() = data_set;
  hello->set_threads(options_.threads);
  hello->set_memory_bytes(options_.memory_bytes);
  hello->set_paused(!may_work());
  out_.emplace_back(Send{std::move(message)});
}

void ClientMachine::on(const Disconnected& event) {
  if (session_ == Session::kIdle || session_ == Session::kDismissed || session_ == Session::kLeft) return;
  disconnected(event.error);
}

void ClientMachine::disconnected(const Error& error) {
  const bool settled = session_ == Session::kOpen && now_ - welcomed_at_ >= kSettledSessionMs;
  if (settled) attempts_ = 0;
  detail_ = to_string(error);
  for (auto& [id, entry] : outbox_)
    if (entry.phase != OutboxEntry::Phase::kUploading) entry.phase = OutboxEntry::Phase::kWaiting;
  if (exiting_) {
    session_ = Session::kLeft;
    return;
  }
  std::uint64_t delay = 0;
  switch (error.code) {
    case Code::kAborted:
      note(Note::Level::kError,
           "another machine opened a session with this node's identity; if it is not yours, ask the operator to revoke this "
           "node and join again with a new token. Next attempt in " +
               std::to_string(options_.conflict_wait_ms / 1000) + " s at most");
      delay = options_.conflict_wait_ms / 2 + jitter(options_.conflict_wait_ms / 2);
      break;
    case Code::kUnauthenticated:
    case Code::kPermissionDenied:
    case Code::kFailedPrecondition:
      delay = backoff(attempts_, kRefusedBaseMs, options_.refused_cap_ms);
      break;
    default: delay = backoff(attempts_, options_.backoff_base_ms, options_.backoff_cap_ms);
  }
  ++attempts_;
  note(Note::Level::kWarning, "no session with the coordinator: " + detail_ + "; next attempt in " + std::to_string(delay) + " ms");
  reconnect_after(delay);
}

void ClientMachine::reconnect_after(std::uint64_t delay_ms) {
  session_ = Session::kConnecting;
  connect_at_ = now_ + delay_ms;
  out_.emplace_back(ConnectAfter{delay_ms});
}

std::uint64_t ClientMachine::backoff(std::uint32_t attempts, std::uint64_t base_ms, std::uint64_t cap_ms) {
  const std::uint64_t ceiling = attempts >= 20 ? cap_ms : std::min(cap_ms, base_ms << attempts);
  return jitter(ceiling);
}

// SplitMix64: good enough to spread reconnects, and the same on every machine.
std::uint64_t ClientMachine::jitter(std::uint64_t below) {
  if (below == 0) return 0;
  random_state_ += 0x9E3779B97F4A7C15ULL;
  std::uint64_t z = random_state_;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
  return (z ^ (z >> 31)) % below;
}

void ClientMachine::on(const IdentityRenewed&) {
  if (session_ == Session::kConnecting || session_ == Session::kDismissed) {
    attempts_ = 0;
    reconnect_after(0);
  }
}

void ClientMachine::on(const Received& event) {
  if (session_ != Session::kGreeting && session_ != Session::kOpen) return;
  last_heard_ = now_;
  const auto& message = event.message;
  if (session_ == Session::kGreeting && !message.has_welcome() && !message.has_goodbye()) {
    out_.emplace_back(CloseSession{"the coordinator spoke before its welcome"});
    disconnected(error_of(Code::kFailedPrecondition, "the coordinator spoke before its welcome; is it a Skerry coordinator?"));
    return;
  }
  switch (message.message_case()) {
    case v1::ToNode::kWelcome: on_message(message.welcome()); break;
    case v1::ToNode::kRun: on_message(message.run()); break;
    case v1::ToNode::kTask: on_message(message.task()); break;
    case v1::ToNode::kCancel: on_message(message.cancel()); break;
    case v1::ToNode::kReceipt: on_message(message.receipt()); break;
    case v1::ToNode::kRunEnded: on_message(message.run_ended()); break;
    case v1::ToNode::kGoodbye: on_message(message.goodbye()); break;
    case v1::ToNode::kDelivery: on_message(message.delivery()); break;
    case v1::ToNode::kHeartbeat:
    case v1::ToNode::MESSAGE_NOT_SET: break;
  }
}

void ClientMachine::on_message(const v1::Welcome& welcome) {
  if (session_ != Session::kGreeting) return;
  session_ = Session::kOpen;
  welcomed_at_ = now_;
  decided_.clear();
  detail_.clear();
  incarnation_ = welcome.incarnation();
  coordinator_ = welcome.coordinator();
  heartbeat_ms_ = welcome.heartbeat_ms() == 0 ? 0 : std::max<std::uint64_t>(welcome.heartbeat_ms(), kLeastHeartbeatMs);
  next_heartbeat_ = now_ + heartbeat_ms_ / 2;
  note(Note::Level::kInfo, "connected to " + coordinator_);
  for (auto& [id, run] : runs_) run.stale_at = now_ + kReannounceWithinMs;
  if (!may_work()) say_availability();  // what changed while the welcome was under way
  while (!unsent_failures_.empty()) {
    v1::FromNode message;
    *message.mutable_failure() = std::move(unsent_failures_.front());
    unsent_failures_.pop_front();
    send(std::move(message));
  }
  query_receipts();
}

void ClientMachine::on_message(const v1::Goodbye& goodbye) {
  if (goodbye.retry_after_ms() > 0) {
    out_.emplace_back(CloseSession{"the coordinator said goodbye"});
    detail_ = "the coordinator said goodbye: " + goodbye.reason();
    note(Note::Level::kInfo, detail_);
    for (auto& [id, entry] : outbox_)
      if (entry.phase != OutboxEntry::Phase::kUploading) entry.phase = OutboxEntry::Phase::kWaiting;
    if (exiting_) session_ = Session::kLeft;
    else reconnect_after(goodbye.retry_after_ms() + jitter(goodbye.retry_after_ms() / 2));
    return;
  }
  out_.emplace_back(CloseSession{"the coordinator said goodbye"});
  session_ = exiting_ ? Session::kLeft : Session::kDismissed;
  detail_ = "the coordinator ended the session for good: " + goodbye.reason();
  note(Note::Level::kError, detail_ + "; `skerry-client resume` tries again");
}

void ClientMachine::watch_session() {
  const bool open = session_ == Session::kOpen;
  if (!(open && heartbeat_ms_ > 0) && session_ != Session::kGreeting) return;
  if (open && now_ >= next_heartbeat_) {
    v1::FromNode message;
    message.mutable_heartbeat()->set_token(++heartbeat_token_);
    message.mutable_heartbeat()->set_paused(!may_work());
    send(std::move(message));
    next_heartbeat_ = now_ + heartbeat_ms_ / 2;
  }
  if (now_ - last_heard_ >= (open ? 3 * heartbeat_ms_ : kGreetingMs)) {
    const std::string reason = "the coordinator was silent for " + std::to_string(now_ - last_heard_) + " ms";
    out_.emplace_back(CloseSession{reason});
    disconnected(unavailable(reason));
  }
}

void ClientMachine::say_availability() {
  if (session_ != Session::kOpen) return;
  v1::FromNode message;
  message.mutable_heartbeat()->set_token(++heartbeat_token_);
  message.mutable_heartbeat()->set_paused(!may_work());
  send(std::move(message));
}

}  // namespace skerry::client
