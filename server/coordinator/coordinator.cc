#include "server/coordinator/coordinator.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <utility>

#include "common/base/encoding_text.h"
#include "server/identity/ticket.h"
#include "strategies/catalogue.h"

namespace skerry::server {
namespace {

constexpr std::uint32_t kProtocolVersion = 1;
constexpr int kMaxDataSets = 256;
constexpr int kMaxQueriedTasks = 4096;
constexpr std::size_t kMaxTextBytes = 4096;
constexpr std::size_t kMaxNameBytes = 128;
constexpr int kMaxSplits = 16;
constexpr int kMaxReasons = 8;
constexpr std::size_t kMaxReasonBytes = 512;
constexpr std::uint64_t kSpoolSweepMs = 600'000;
constexpr unsigned kMaxRefusals = 100;            // of one node in one minute
constexpr std::uint64_t kRefusalsMs = 60'000;
constexpr std::int64_t kIdleUploadS = 24 * 3600;
constexpr std::uint64_t kGreetingMs = 10'000;

// Whether a Hello describes no more than anybody needs; its texts are then fit to be shown to people.
bool modest(v1::Hello& hello) {
  hello.set_software(one_line(hello.software(), kMaxNameBytes));
  if (hello.data_sets_size() > kMaxDataSets) return false;
  for (v1::DataSetSummary& set : *hello.mutable_data_sets()) {
    if (set.examples_size() > kMaxSplits || set.schema_json().size() > kMaxTextBytes) return false;
    for (const auto& [split, count] : set.examples())
      if (split.size() > kMaxNameBytes) return false;
    set.set_name(one_line(set.name(), kMaxNameBytes));
    set.set_kind(one_line(set.kind(), kMaxNameBytes));
    set.set_schema_json(one_line(set.schema_json(), kMaxTextBytes));
  }
  return true;
}

// What a holder says about a run, in bounds.
v1::RunAnswer modest(v1::RunAnswer answer) {
  answer.set_data_set(one_line(answer.data_set(), kMaxNameBytes));
  if (answer.reasons_size() > kMaxReasons) answer.mutable_reasons()->DeleteSubrange(kMaxReasons, answer.reasons_size() - kMaxReasons);
  for (std::string& reason : *answer.mutable_reasons()) reason = one_line(reason, kMaxReasonBytes);
  return answer;
}

std::string joined(const google::protobuf::RepeatedPtrField<std::string>& reasons) {
  std::string text;
  for (const std::string& reason : reasons) text += (text.empty() ? "" : "; ") + reason;
  return text.empty() ? "its holder gave no reason" : text;
}

// A task's id is "<run>.<epoch>.<serial>".
bool is_of(const std::string& task, const std::string& run_id) { return task.starts_with(run_id + "."); }

std::uint64_t examples_of(const v1::RunAnswer& answer, const std::string& split) {
  const auto found = answer.examples().find(split);
  return found == answer.examples().end() ? 0 : found->second;
}

}  // namespace

Coordinator::Coordinator(CoordinatorOptions options, CoordinatorParts parts)
    : options_(std::move(options)),
      parts_(parts),
      started_ms_(parts.clock.monotonic_ms()),
      engine_({.threads = options_.threads}),
      commit_(parts.store, parts.cargo, parts.clock),
      services_{parts.clock,
                parts.store,
                parts.cargo,
                commit_,
                core_,
                bulk_,
                engine_,
                parts.metrics,
                options_.ticket_key,
                [this](const std::string& node, v1::ToNode outgoing) {
                  const auto live = nodes_.find(node);
                  if (live == nodes_.end()) return;
                  if (!settling_) return live->second.session->send(std::move(outgoing));
                  live->second.session->queue(std::move(outgoing));
                  queued_.push_back(live->second.session);
                },
                [this](const std::string& node) -> std::optional<NodeSession> {
                  const auto live = nodes_.find(node);
                  if (live == nodes_.end()) return std::nullopt;
                  return NodeSession{live->second.incarnation, live->second.session->identity().thumbprint};
                },
                [this](const std::string& run_id) { changed_.insert(run_id); },
                [this](const RunHost& run) { publish_cargo(run); },
                [this](const std::string& node) { misbehaved(node); },
                options_.rules},
      bulk_(parts.clock, [] { return std::uint64_t{0}; }),
      core_(parts.clock, [this] { return settle(); }) {}

Coordinator::~Coordinator() { stop(); }

// Why a stored run cannot go on here although nothing is wrong with it.
std::optional<std::string> Coordinator::why_set_aside(const RunRecord& record) const {
  const auto spec = parse_resolved_spec(record.spec_json);
  if (!spec.ok()) return std::nullopt;  // restore says what is wrong
  const auto rule = options_.rules.make(strategies::aggregation_part(*spec));
  if (rule.ok()) return std::nullopt;
  return rule.error().message + "; the run goes on once [[plugins]] in server.toml has what it was submitted with, and the coordinator is restarted";
}

Result<void> Coordinator::start() {
  SKERRY_ASSIGN(std::vector<RunRecord> records, parts_.store.runs());
  for (RunRecord& record : records) {
    if (record.ended_ms != 0) continue;
    if (auto reason = why_set_aside(record)) {
      spdlog::error("run {} ({}) is paused: {}", record.run_id, record.name, *reason);
      set_aside_[record.run_id] = std::move(*reason);
      continue;
    }
    auto host = RunHost::restore(services_, record);
    if (!host.ok()) return with_context(host.error(), "run " + record.run_id + " (" + record.name + ")");
    spdlog::info("run {} ({}) goes on", record.run_id, record.name);
    publish_cargo(**host);
    runs_[record.run_id] = std::move(host).value();
  }
  SKERRY_ASSIGN(const CollectReport collected, parts_.store.collect(parts_.cargo));
  if (collected.files > 0) spdlog::info("removed {} files of {} bytes that nothing refers to", collected.files, collected.bytes);
  parts_.metrics.gauge_from("skerry_uptime_seconds", "Seconds since start", [this] {
    return static_cast<double>(parts_.clock.monotonic_ms() - started_ms_) / 1000.0;
  });
  bulk_.start();
  core_.start();
  core_.post([this] {
    for (auto& [id, run] : runs_) run->start();
    sweep_spool();
    every(kSpoolSweepMs, [this] { sweep_spool(); });
    every(5'000, [this] { sweep(); });
    every(500, [this] {
      count_sent_cargo();
      notify_watchers();
    });
    every(600'000, [this] { parts_.cargo.end_idle_uploads(kIdleUploadS); });
    every(60'000, [this] {
      if (auto flushed = parts_.members.flush_seen(); !flushed.ok()) spdlog::warn("{}", flushed.error().message);
    });
  });
  return {};
}

void Coordinator::stop() {
  if (std::exchange(stopped_, true)) return;
  core_.call([this] {
    for (auto& [name, live] : nodes_) live.session->close({Code::kUnavailable, "the coordinator is stopping; come back soon", true});
    dry_runs_.clear();  // who waits for an answer is told by its going
    watchers_.clear();
  });
  bulk_.stop();
  core_.stop();
  commit_.finish();
  (void)parts_.members.flush_seen().ok();
}

std::uint64_t Coordinator::settle() {
  const bool was_stuck = commit_.stuck();
  // What a commit lets us say to a node, its receipt and its next task, leaves together.
  settling_ = true;
  const std::uint64_t wait = commit_.settle();
  settling_ = false;
  for (const auto& session : std::exchange(queued_, {})) session->flush();
  if (commit_.fatal()) {
    spdlog::critical("the store failed: {}", commit_.fatal()->message);
    if (fatal_handler_) std::exchange(fatal_handler_, nullptr)(*commit_.fatal());
    return 0;
  }
  if (was_stuck && !commit_.stuck())
    for (const auto& session : std::exchange(unread_, {}))
      if (const auto open = session.lock()) open->read_next();
  parts_.metrics.gauge("skerry_commits", "Transactions of the core since start").set(static_cast<double>(commit_.commits()));
  return wait;
}

void Coordinator::every(std::uint64_t period_ms, std::function<void()> work) {
  core_.at(parts_.clock.monotonic_ms() + period_ms, [this, period_ms, work = std::move(work)] {
    work();
    every(period_ms, work);
  });
}

void Coordinator::sweep() {
  const std::uint64_t now = parts_.clock.monotonic_ms();
  const std::uint64_t patience = std::uint64_t{3} * options_.heartbeat_ms;
  for (auto& [name, live] : nodes_) {
    if (now - live.heard_ms > patience)
      end(live.session, {Code::kDeadlineExceeded, "nothing was heard of node '" + name + "' for " + std::to_string(patience / 1000) + " s", true});
    else if (live.session->identity().expires_ms < unix_now())
      end(live.session, unauthenticated("the certificate of node '" + name + "' has expired: renew it (the daemon does that by itself within its grace)"));
  }
  // A daemon that does not read keeps its stream from ending; asked again, it is cut off.
  for (const std::weak_ptr<Session>& ending : std::exchange(ending_, {}))
    if (const auto session = ending.lock()) end(session, {Code::kAborted, "the session ended before", true});
  parts_.metrics.gauge("skerry_nodes_connected", "Daemons with an open session").set(static_cast<double>(nodes_.size()));
  std::size_t active = 0;
  for (const auto& [id, run] : runs_) active += run->finished() ? 0 : 1;
  parts_.metrics.gauge("skerry_runs_active", "Runs that are not over").set(static_cast<double>(active));
  if (const auto bytes = parts_.cargo.free_bytes(); bytes.ok())
    parts_.metrics.gauge("skerry_disk_free_bytes", "Free space where the home is").set(static_cast<double>(*bytes));
}

// ---- sessions ----

void Coordinator::opened(std::shared_ptr<Session> session) {
  core_.post([this, session] {
    greeting_.insert(session.get());
    core_.at(parts_.clock.monotonic_ms() + kGreetingMs, [this, key = session.get(), weak = std::weak_ptr<Session>(session)] {
      if (const auto open = weak.lock(); open && greeting_.contains(key))
        end(open, {Code::kDeadlineExceeded, "the session began without a Hello", true});
    });
    session->read_next();
  });
}

void Coordinator::received(const std::shared_ptr<Session>& session, v1::FromNode message) {
  if (!message.has_update()) {
    core_.post([this, session, message = std::move(message)]() mutable { this->message(session, std::move(message)); });
    return;
  }
  // Signatures are checked here, on the connection's thread, so that the core does not wait for them.
  auto signed_update = std::make_shared<v1::SignedUpdate>(std::move(*message.mutable_update()));
  auto body = std::make_shared<Result<v1::UpdateBody>>(open_update(*signed_update, session->identity()));
  core_.post([this, session, body, signed_update] {
    const std::string& node = session->identity().name;
    const auto live = nodes_.find(node);
    if (live == nodes_.end() || live->second.session != session) return;
    live->second.heard_ms = parts_.clock.monotonic_ms();
    if (body->ok()) {
      update(node, std::move(body->value()), std::move(*signed_update));
    } else {
      v1::UpdateBody claimed;  // only to say which of the sender's updates was refused
      const bool legible = claimed.ParseFromString(signed_update->body());
      if (RunHost* run = legible ? find_run(claimed.run_id()) : nullptr) {
        run->invalid(claimed.task_id(), node, body->error());
      } else {
        spdlog::warn("node {} at {}: {}", node, session->address(), one_line(body->error().message, kMaxReasonBytes));
        parts_.metrics.counter("skerry_updates_refused_total", "Updates that failed a check", {{"node", node}, {"code", std::string(code_name(body->error().code))}}).add();
        misbehaved(node);
        v1::ToNode refusal;
        refusal.mutable_receipt()->set_task_id(claimed.task_id());
        refusal.mutable_receipt()->set_state(v1::UPDATE_DISCARDED);
        refusal.mutable_receipt()->set_reason(one_line(body->error().message, kMaxReasonBytes));
        session->send(std::move(refusal));
      }
    }
    if (commit_.stuck()) unread_.push_back(session);
    else session->read_next();
  });
}

void Coordinator::ended(const std::shared_ptr<Session>& session) {
  core_.post([this, session] {
    greeting_.erase(session.get());
    const std::string node = session->identity().name;
    const auto live = nodes_.find(node);
    if (live == nodes_.end() || live->second.session != session) return;
    left(node, /*for_good=*/false);
    nodes_.erase(node);
    spdlog::info("node {} is offline", node);
  });
}

void Coordinator::left(const std::string& node, bool for_good) {
  Live& live = nodes_.at(node);
  for (const std::string& run_id : std::exchange(live.joined, {}))
    if (RunHost* run = find_run(run_id)) run->handle(NodeLeft{node, for_good});
  for (auto& [id, pending] : dry_runs_) pending.waiting.erase(node);
  if (!for_good) return;
  std::lock_guard lock(cargo_mutex_);
  for (auto& [run_id, members] : run_members_) members.erase(node);
}

void Coordinator::message(const std::shared_ptr<Session>& session, v1::FromNode message) {
  const std::string node = session->identity().name;
  if (message.has_hello()) {
    greet(session, std::move(*message.mutable_hello()));
    session->read_next();
    return;
  }
  const auto found = nodes_.find(node);
  if (found == nodes_.end() || found->second.session != session) {
    end(session, {Code::kFailedPrecondition, "the first message of a session must be Hello"});
    return;
  }
  Live& live = found->second;
  live.heard_ms = parts_.clock.monotonic_ms();
  switch (message.message_case()) {
    case v1::FromNode::kHeartbeat: {
      if (message.heartbeat().paused() != live.paused) {
        live.paused = message.heartbeat().paused();
        for (const std::string& run_id : live.joined)
          if (RunHost* run = find_run(run_id)) run->handle(NodePaused{node, live.paused});
      }
      v1::ToNode echo;
      echo.mutable_heartbeat()->set_token(message.heartbeat().token());
      session->send(std::move(echo));
      break;
    }
    case v1::FromNode::kRunAnswer: answered(live, node, std::move(*message.mutable_run_answer())); break;
    case v1::FromNode::kProgress: {
      for (const std::string& run_id : live.joined)
        if (is_of(message.progress().task_id(), run_id))
          if (RunHost* run = find_run(run_id)) run->progressed(node, message.progress());
      break;
    }
    case v1::FromNode::kFailure: {
      const v1::TaskFailure& failure = message.failure();
      const bool known = failure.code() > 0 && failure.code() <= static_cast<int>(Code::kUnauthenticated);
      const Error error{known ? static_cast<Code>(failure.code()) : Code::kUnknown, failure.message(), failure.retryable()};
      parts_.metrics.counter("skerry_task_failures_total", "Tasks given up by daemons", {{"node", node}}).add();
      for (const std::string& run_id : std::set<std::string>(live.joined))
        if (is_of(failure.task_id(), run_id))
          if (RunHost* run = find_run(run_id)) run->failed(node, failure.task_id(), error);
      break;
    }
    case v1::FromNode::kReceiptQuery: queried(node, message.receipt_query()); break;
    case v1::FromNode::kFarewell:
      spdlog::info("node {} says farewell: {}", node, one_line(message.farewell().reason(), kMaxReasonBytes));
      left(node, message.farewell().leaving());
      break;
    default: break;  // a newer daemon may say more than we know
  }
  session->read_next();
}

void Coordinator::greet(const std::shared_ptr<Session>& session, v1::Hello hello) {
  const std::string node = session->identity().name;
  greeting_.erase(session.get());
  if (hello.protocol_version() != kProtocolVersion) {
    end(session, {Code::kFailedPrecondition, "this coordinator speaks fleet protocol " + std::to_string(kProtocolVersion) + ", the daemon (" +
                                                   hello.software() + ") speaks " + std::to_string(hello.protocol_version()) + ": upgrade the older one"});
    return;
  }
  if (!modest(hello)) {
    end(session, invalid_argument("the Hello describes more than " + std::to_string(kMaxDataSets) + " data sets, or one of its texts is longer than 4 KiB"));
    return;
  }
  const auto old = nodes_.find(node);
  if (old != nodes_.end() && old->second.session == session) {  // its data sets changed
    old->second.hello = std::move(hello);
    return;
  }
  const auto known = last_incarnation_.find(node);
  const bool stranger = known != last_incarnation_.end() && hello.previous_incarnation() != known->second;
  if (stranger) {
    spdlog::warn("node {}: the session from {} does not follow the last one: its identity may have been copied", node, session->address());
    parts_.metrics.counter("skerry_identity_conflicts_total", "Sessions that did not follow their node's last one", {{"node", node}}).add();
    commit_.batch().audit({unix_now(), "server", "node.conflict", node, "session from " + session->address() + " does not follow the last one"});
    if (old != nodes_.end()) {
      end(session, {Code::kAborted, "another machine uses the identity of node '" + node + "' (connected from " + old->second.session->address() +
                                          "); if this home was copied, ask the operator for an invitation of its own", true});
      return;
    }
  }
  if (old != nodes_.end()) {
    end(old->second.session, {Code::kAborted, "a newer session of node '" + node + "' took over, from " + session->address(), true});
    left(node, false);
    nodes_.erase(node);
  }
  std::array<std::byte, 8> random;
  parts_.random.fill(random);
  Live live;
  live.session = session;
  live.incarnation = to_hex(random);
  live.paused = hello.paused();
  live.heard_ms = parts_.clock.monotonic_ms();
  live.hello = std::move(hello);
  last_incarnation_[node] = live.incarnation;
  parts_.members.seen(session->identity(), unix_now());

  v1::ToNode message;
  v1::Welcome& welcome = *message.mutable_welcome();
  welcome.set_incarnation(live.incarnation);
  welcome.set_epoch(parts_.store.epoch());
  welcome.set_coordinator(options_.name);
  welcome.set_heartbeat_ms(options_.heartbeat_ms);
  welcome.set_inline_limit(kInlineLimit);
  welcome.set_server_time_ms(parts_.clock.unix_ms());
  session->send(std::move(message));
  spdlog::info("node {} is online from {} ({})", node, session->address(), live.hello.software());
  nodes_[node] = std::move(live);
  for (const auto& [id, run] : runs_)
    if (!run->finished()) announce(*run, *session);
}

void Coordinator::announce(const RunHost& run, Session& session) {
  v1::ToNode message;
  *message.mutable_run() = run.announcement();
  session.send(std::move(message));
}

void Coordinator::answered(Live& live, const std::string& node, v1::RunAnswer answer) {
  if (const auto pending = dry_runs_.find(answer.run_id()); pending != dry_runs_.end()) {
    const std::string id = answer.run_id();
    pending->second.waiting.erase(node);
    pending->second.answers[node] = modest(std::move(answer));
    if (pending->second.waiting.empty()) finish_dry_run(id);
    return;
  }
  RunHost* run = find_run(answer.run_id());
  if (set_aside_.contains(answer.run_id())) return;
  if (!run || run->finished()) {
    v1::ToNode message;
    message.mutable_run_ended()->set_run_id(answer.run_id());
    message.mutable_run_ended()->set_outcome(run ? run->record().status : "stopped");
    message.mutable_run_ended()->set_reason(run ? run->record().status_reason : "this coordinator has no such run");
    live.session->send(std::move(message));
    return;
  }
  answer = modest(std::move(answer));
  const bool accepted = answer.accepted() && answer.spec_hash() == run->plan().spec.hash;
  {
    std::lock_guard lock(cargo_mutex_);
    if (accepted) run_members_[answer.run_id()].insert(node);
    else run_members_[answer.run_id()].erase(node);
  }
  if (!accepted) {
    const std::string reasons = joined(answer.reasons());
    spdlog::info("node {} does not take part in run {}: {}", node, answer.run_id(), reasons);
    run->refused(node, reasons);
    if (live.joined.erase(answer.run_id()) > 0) run->handle(NodeLeft{node, /*for_good=*/true});
    return;
  }
  run->refused(node, "");
  const bool new_session = live.joined.insert(answer.run_id()).second;
  run->handle(NodeJoined{node, answer.data_set(), examples_of(answer, run->plan().spec.data.train_split),
                         examples_of(answer, run->plan().spec.evaluation.split), live.paused, new_session});
}

void Coordinator::queried(const std::string& node, const v1::ReceiptQuery& query) {
  const Live& live = nodes_.at(node);
  for (int i = 0; i < std::min(query.task_ids_size(), kMaxQueriedTasks); ++i) {
    v1::ToNode message;
    v1::Receipt& receipt = *message.mutable_receipt();
    receipt.set_task_id(query.task_ids(i));
    auto decision = parts_.store.task(query.task_ids(i));
    if (decision.ok() && *decision && (*decision)->node == node) {
      receipt.set_state(static_cast<v1::UpdateState>((*decision)->state));
      receipt.set_exchange((*decision)->exchange);
      receipt.set_version((*decision)->version);
      receipt.set_reason((*decision)->reason);
      receipt.set_chain((*decision)->chain);
    }
    live.session->send(std::move(message));
  }
}

void Coordinator::update(const std::string& node, v1::UpdateBody body, v1::SignedUpdate message) {
  if (RunHost* run = find_run(body.run_id())) {
    run->offered(node, std::move(body), std::move(message));
    return;
  }
  if (set_aside_.contains(body.run_id())) return;  // its node keeps it, and offers it again after the restart
  // A run that is over, or one that a restored backup does not know.
  spdlog::info("node {} offered an update for {}, which is no open run", node, one_line(body.run_id(), kMaxNameBytes));
  parts_.metrics.counter("skerry_updates_refused_total", "Updates that failed a check", {{"node", node}, {"code", "NOT_FOUND"}}).add();
  v1::ToNode answer;
  v1::Receipt& receipt = *answer.mutable_receipt();
  receipt.set_task_id(body.task_id());
  receipt.set_state(v1::UPDATE_DISCARDED);
  receipt.set_reason("this coordinator has no open run " + body.run_id().substr(0, 128));
  if (const auto decision = parts_.store.task(body.task_id()); decision.ok() && *decision && (*decision)->node == node &&
                                                               (*decision)->state != UpdateState::kAccepted) {
    receipt.set_state(static_cast<v1::UpdateState>((*decision)->state));
    receipt.set_version((*decision)->version);
    receipt.set_reason((*decision)->reason);
  }
  nodes_.at(node).session->send(std::move(answer));
}

// ---- cargo ----

CargoAccess Coordinator::cargo_access() {
  CargoAccess access;
  access.may_read = [this](const Identity& caller, const std::string& content_id) -> Result<void> {
    std::lock_guard lock(cargo_mutex_);
    const auto runs = cargo_runs_.find(content_id);
    if (caller.role != Role::kNode) return {};  // operators and viewers may see every model
    if (runs == cargo_runs_.end()) return not_found("there is no cargo " + content_id + " of an open run");
    for (const std::string& run_id : runs->second)
      if (const auto members = run_members_.find(run_id); members != run_members_.end() && members->second.contains(caller.name)) return {};
    return permission_denied("node '" + caller.name + "' does not take part in a run that uses cargo " + content_id);
  };
  access.check_upload = [this](const Identity& caller, const std::string& thumbprint, const std::string& ticket,
                               const std::string&, std::uint64_t size) -> Result<std::string> {
    if (caller.role == Role::kOperator) return std::string();
    SKERRY_ASSIGN(Ticket permitted, check_ticket(options_.ticket_key, ticket, {.thumbprint = thumbprint, .bytes = size}, unix_now()));
    // A ticket outlives its task, and what is uploaded for a task that is over nobody would ever fetch.
    auto awaited = std::make_shared<bool>(false);  // shared because the core may come to it after the loop has stopped
    if (!core_.call([this, awaited, task = permitted.task_id] {
          const RunHost* run = run_of_task(task);
          *awaited = run && run->awaits_upload(task);
        }))
      return unavailable("the coordinator is stopping; try again soon");
    if (!*awaited) return failed_precondition("task " + permitted.task_id + " is over: nothing is uploaded for it any more");
    return std::move(permitted.task_id);
  };
  access.sent = [this](const Identity& caller, const std::string& content_id, std::uint64_t bytes) {
    if (caller.role != Role::kNode) return;
    std::lock_guard lock(cargo_mutex_);
    const auto runs = cargo_runs_.find(content_id);
    if (runs != cargo_runs_.end() && !runs->second.empty()) cargo_sent_[{*runs->second.begin(), caller.name}] += bytes;
  };
  return access;
}

void Coordinator::count_sent_cargo() {
  decltype(cargo_sent_) sent;
  {
    std::lock_guard lock(cargo_mutex_);
    sent.swap(cargo_sent_);
  }
  for (const auto& [whose, bytes] : sent)
    if (RunHost* run = find_run(whose.first)) run->carried(whose.second, 0, bytes);
}

void Coordinator::publish_cargo(const RunHost& run) {
  const std::string& run_id = run.record().run_id;
  const std::vector<std::string> ids = run.readable_cargo();
  std::lock_guard lock(cargo_mutex_);
  for (const std::string& id : ids) cargo_runs_[id].insert(run_id);
  // What left the newest versions is dropped once it outnumbers them.
  if (cargo_runs_.size() <= 64 * (runs_.size() + 1)) return;
  std::set<std::string> current;
  for (const auto& [id, host] : runs_)
    for (std::string& content : host->readable_cargo()) current.insert(std::move(content));
  std::erase_if(cargo_runs_, [&](const auto& entry) { return !current.contains(entry.first); });
}

// What lies in the spool for tasks that are over, or of runs that are.
void Coordinator::sweep_spool() {
  for (const std::string& task : parts_.cargo.spool_tasks()) {
    const RunHost* run = run_of_task(task);
    if (!task.empty() && !(run && run->needs_spool(task))) parts_.cargo.end_task(task);
  }
}

void Coordinator::misbehaved(const std::string& node) {
  const auto found = nodes_.find(node);
  if (found == nodes_.end()) return;
  Live& live = found->second;
  const std::uint64_t now = parts_.clock.monotonic_ms();
  if (now - live.refusals_since_ms > kRefusalsMs) {
    live.refusals = 0;
    live.refusals_since_ms = now;
  }
  if (++live.refusals == kMaxRefusals)
    end(live.session, permission_denied("more than " + std::to_string(kMaxRefusals) + " updates of node '" + node + "' were refused within a minute"));
}

void Coordinator::end(const std::shared_ptr<Session>& session, Error reason) {
  session->close(std::move(reason));
  ending_.push_back(session);
}

RunHost* Coordinator::run_of_task(const std::string& task) {
  for (std::size_t dot = task.find('.'); dot != std::string::npos; dot = task.find('.', dot + 1))
    if (RunHost* run = find_run(task.substr(0, dot))) return run;
  return nullptr;
}

RunHost* Coordinator::find_run(const std::string& run_id) {
  const auto found = runs_.find(run_id);
  return found == runs_.end() ? nullptr : found->second.get();
}

}  // namespace skerry::server
