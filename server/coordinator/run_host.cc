#include "server/coordinator/run_host.h"

#include <nlohmann/json.hpp>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "common/base/encoding_text.h"
#include "common/codec/encoding.h"
#include "server/aggregate/validate.h"
#include "server/identity/ticket.h"

namespace skerry::server {
namespace {

constexpr std::int64_t kTicketLifeMs = std::int64_t{7} * 24 * 3600 * 1000;
constexpr std::uint64_t kVersionsRemembered = 4;   // of each fragment, in memory
constexpr std::uint64_t kVersionsStored = 2;       // the newest of each fragment; older ones go unless kept or needed
constexpr std::size_t kMaxReasonBytes = 1024;     // of what a node says
constexpr std::uint64_t kTrafficStoreMs = 10'000;  // how often byte counts become durable
constexpr double kRoundTimeSmoothing = 0.2;        // of the moving average

std::map<std::string, double> as_map(const std::vector<MetricValue>& metrics) {
  std::map<std::string, double> values;
  for (const MetricValue& metric : metrics) values[metric.name] = metric.value;
  return values;
}

std::vector<MetricValue> as_values(const std::map<std::string, double>& metrics) {
  std::vector<MetricValue> values;
  for (const auto& [name, value] : metrics) values.push_back({name, value});
  return values;
}

v1::Blob blob_message(const StoredBlob& blob, bool with_bytes) {
  v1::Blob message;
  message.set_content_id(blob.content_id);
  message.set_size(blob.size);
  if (with_bytes) message.set_inline_data(blob.bytes);
  return message;
}

}  // namespace

RunHost::RunHost(RunServices& services, RunRecord record, RunPlan plan, RunMachine machine)
    : services_(services), record_(std::move(record)), plan_(std::move(plan)), machine_(std::move(machine)) {
  versions_.resize(plan_.shapes.size());
  traffic_stored_ms_ = services_.clock.monotonic_ms();
}

static RunSetup setup_of(const RunRecord& record, const RunPlan& plan, const std::string& epoch) {
  // After a restored backup serial numbers may have gone back, so each epoch names its tasks anew.
  RunSetup setup{.run_id = record.run_id, .task_prefix = record.run_id + "." + epoch, .spec = plan.spec, .fragments = {}};
  for (const FragmentShape& shape : plan.shapes) {
    setup.fragments.push_back(shape.name);
    setup.roles.push_back(shape.role);
  }
  setup.needs = plan.rule.needs;
  return setup;
}

std::unique_ptr<RunHost> RunHost::create(RunServices& services, RunRecord record, RunPlan plan,
                                         std::vector<VersionRecord> initial) {
  RunMachine machine(setup_of(record, plan, services.store.epoch()));
  std::unique_ptr<RunHost> host(new RunHost(services, std::move(record), std::move(plan), std::move(machine)));
  Batch& batch = services.commit.batch();
  host->record_.status = host->machine_.view().status;
  batch.put_run(host->record_);
  for (VersionRecord& version : initial) {
    version.run_id = host->record_.run_id;
    version.time_ms = host->record_.created_ms;
    batch.release(version);
    host->remember(std::move(version));
  }
  return host;
}

Result<std::unique_ptr<RunHost>> RunHost::restore(RunServices& services, RunRecord record) {
  SKERRY_ASSIGN(RunSpec spec, parse_resolved_spec(record.spec_json));
  SKERRY_ASSIGN(RunPlan plan, RunPlan::from_spec(std::move(spec)));
  SKERRY_ASSIGN(const MachineRows rows, services.store.machine_rows(record.run_id));
  SKERRY_ASSIGN(RunMachine machine, RunMachine::restore(setup_of(record, plan, services.store.epoch()), rows,
                                                        static_cast<Instant>(services.clock.monotonic_ms())));
  std::unique_ptr<RunHost> host(new RunHost(services, std::move(record), std::move(plan), std::move(machine)));
  const std::string& run_id = host->record_.run_id;
  SKERRY_ASSIGN(std::vector<VersionRecord> versions, services.store.versions(run_id, /*with_bytes=*/true));
  SKERRY_TRY(host->restore_best(versions));
  for (VersionRecord& version : versions) host->remember(std::move(version));
  SKERRY_ASSIGN(const std::vector<UpdateRecord> updates, services.store.accepted_updates(run_id));
  for (const UpdateRecord& update : updates) {
    v1::UpdateBody body;
    if (!body.ParseFromString(update.body)) return data_loss("run " + run_id + ": the stored update of task " + update.task_id + " is damaged");
    SKERRY_ASSIGN(auto payloads, check_payloads(body, host->plan_.spec, host->plan_.shapes));
    host->accepted_[update.task_id] = std::make_shared<AcceptedUpdate>(AcceptedUpdate{std::move(payloads)});
  }
  for (const char* kind : {"exchange", "evaluation"}) {
    SKERRY_ASSIGN(const auto row, services.store.latest_metric(run_id, kind));
    if (row) host->latest_metrics_.merge(as_map(row->metrics));
  }
  SKERRY_ASSIGN(host->discarded_, services.store.discarded_by_reason(run_id));
  return host;
}

// The best version so far and what it measured, from the rows that say so.
Result<void> RunHost::restore_best(const std::vector<VersionRecord>& versions) {
  for (const VersionRecord& version : versions)
    for (std::uint32_t fragment = 0; version.kept && fragment < plan_.shapes.size(); ++fragment)
      if (plan_.shapes[fragment].name == version.fragment) kept_[fragment] = version.version;
  if (kept_.empty()) return {};
  SKERRY_ASSIGN(const auto rows, services_.store.metrics(record_.run_id));
  for (const MetricRecord& row : rows) {
    if (row.kind != "evaluation" || !row.node.empty() || row.version != kept_.begin()->second) continue;
    for (const MetricValue& metric : row.metrics)
      if (metric.name == judged_metric()) best_ = metric.value;
  }
  return {};
}

const std::string& RunHost::judged_metric() const {
  static const std::string kLoss = "loss";
  return plan_.spec.stop.metric.empty() ? kLoss : plan_.spec.stop.metric;
}

v1::RunAnnouncement RunHost::announcement() const {
  v1::RunAnnouncement message;
  message.set_run_id(record_.run_id);
  message.set_name(record_.name);
  message.set_spec_hash(plan_.spec.hash);
  message.set_spec_json(plan_.spec.canonical_json);
  return message;
}

void RunHost::handle(Event event) {
  events_.push_back(std::move(event));
  if (handling_) return;
  handling_ = true;
  while (!events_.empty()) {
    const Event next = std::move(events_.front());
    events_.pop_front();
    for (const Command& command : machine_.handle(next, now())) std::visit([this](const auto& known) { carry_out(known); }, command);
  }
  handling_ = false;
  services_.commit.before("run " + record_.run_id, [this](Batch& batch) { flush(batch); }, /*urgent=*/false);
  services_.changed(record_.run_id);
}

void RunHost::flush(Batch& batch) {
  batch.machine_rows(record_.run_id, machine_.take_changes(now()));
  const RunStatus view = machine_.status();
  if (view.status != record_.status || view.status_reason != record_.status_reason) {
    record_.status = view.status;
    record_.status_reason = view.status_reason;
    if (machine_.finished() && record_.ended_ms == 0) record_.ended_ms = unix_now();
    batch.set_run_status(record_.run_id, record_.status, record_.status_reason, record_.ended_ms);
    services_.changed(record_.run_id);  // those who watch for the end must see it
  }
  if (!to_prune_.empty()) {
    // Only now: an evaluation that closed with the same event may have asked to keep its version.
    const auto needed = machine_.needed_versions();
    for (const std::uint32_t fragment : std::exchange(to_prune_, {}))
      batch.prune_versions(record_.run_id, plan_.shapes[fragment].name, kVersionsStored, needed[fragment]);
  }
  const std::uint64_t monotonic = services_.clock.monotonic_ms();
  if (monotonic - traffic_stored_ms_ >= kTrafficStoreMs || machine_.finished()) {
    traffic_stored_ms_ = monotonic;
    for (const auto& [node, bytes] : std::exchange(traffic_, {}))
      batch.add_traffic(record_.run_id, node, bytes.first, bytes.second);
  }
}

// ---- updates on their way in ----

void RunHost::offered(const std::string& node, v1::UpdateBody body, v1::SignedUpdate message) {
  carried(node, message.ByteSizeLong(), 0);
  if (body.kind() == v1::TASK_EVALUATE) return reported(node, body, message);
  const std::string task = body.task_id();
  if (const auto before = offers_.find(task); before != offers_.end()) {
    // The one before is still being checked; its receipt will answer both.
    if (before->second.event.node != node) carry_out(Refuse{task, node, "the task belongs to another node"});
    return;
  }
  if (accepted_.contains(task)) return handle(UpdateStored{.task = task, .node = node});  // its bytes were checked before
  auto payloads = check_payloads(body, plan_.spec, plan_.shapes);
  if (!payloads.ok()) return invalid(task, node, payloads.error());

  Offer offer;
  offer.update = std::make_shared<AcceptedUpdate>(AcceptedUpdate{std::move(payloads).value()});
  offer.event = {.task = task,
                 .node = node,
                 .base_versions = {},
                 .examples = body.examples(),
                 .tokens = body.tokens(),
                 .steps = body.steps(),
                 .norm = 0,
                 .metrics = allowed_metrics(body, plan_.spec.limits)};
  UpdateRecord& record = offer.record;
  record = {.task_id = task, .run_id = record_.run_id, .node = node, .kind = body.kind(), .examples = body.examples()};
  record.metrics_json = nlohmann::json(offer.event.metrics).dump();
  record.body = std::move(*message.mutable_body());
  record.signature = std::move(*message.mutable_signature());
  bool all_inline = true;
  for (const UpdatePayload& payload : offer.update->payloads) {
    offer.event.base_versions[payload.fragment] = payload.base_version;
    if (!payload.inline_data.empty()) continue;
    all_inline = false;
    record.spooled.push_back({plan_.shapes[payload.fragment].name, payload.content_id, payload.size});
  }
  if (!all_inline) return check_cargo(std::move(offer));

  double squares = 0;
  for (const UpdatePayload& payload : offer.update->payloads) {
    const FragmentShape& shape = plan_.shapes[payload.fragment];
    auto checked = validate_update(plan_.spec.exchange.up, Payload::in_memory(payload.inline_data), shape.elements, 0, shape.tensors);
    if (!checked.ok()) return invalid(task, node, checked.error());
    squares += checked->norm * checked->norm;
  }
  offer.event.norm = std::sqrt(squares);
  admit(std::move(offer));
}

void RunHost::reported(const std::string& node, const v1::UpdateBody& body, const v1::SignedUpdate& message) {
  const std::string& task = body.task_id();
  const auto known = services_.store.task(task);
  if (known.ok() && !*known && !deciding_.contains(task)) {
    UpdateRecord record{.task_id = task, .run_id = record_.run_id, .node = node, .kind = body.kind(), .examples = body.examples()};
    record.body = message.body();
    record.signature = message.signature();
    reports_.emplace(task, std::move(record));
  }
  handle(EvaluationReported{task, node, body.examples(), allowed_metrics(body, plan_.spec.limits)});
  reports_.erase(task);
}

void RunHost::check_cargo(Offer offer) {
  struct Part {
    Payload payload;
    FragmentShape shape;
  };
  std::vector<Part> parts;
  for (const UpdatePayload& payload : offer.update->payloads) {
    if (!payload.inline_data.empty()) {
      parts.push_back({Payload::in_memory(payload.inline_data), plan_.shapes[payload.fragment]});
      continue;
    }
    auto path = services_.cargo.spool_file(offer.event.task, payload.content_id);
    if (!path.ok()) {
      if (!machine_.awaits(offer.event.task)) return handle(std::move(offer.event));  // it is too late to upload anything
      // Not an answer about the task: the daemon uploads what is missing and offers it again.
      send_receipt(offer.event.node, {.task_id = offer.event.task, .run_id = record_.run_id, .reason = "its cargo " + payload.content_id + " is not here yet: upload it, then offer the update again"});
      return;
    }
    carried(offer.event.node, payload.size, 0);
    parts.push_back({Payload::file(std::move(path).value()), plan_.shapes[payload.fragment]});
  }
  const std::string task = offer.event.task;
  const std::string node = offer.event.node;
  offers_.emplace(task, std::move(offer));
  services_.bulk.post([this, task, node, parts = std::move(parts), up = plan_.spec.exchange.up] {
    double squares = 0;
    std::optional<Error> failed;
    for (const Part& part : parts) {
      auto checked = validate_update(up, part.payload, part.shape.elements, 0, part.shape.tensors);
      if (!checked.ok()) {
        failed = checked.error();
        break;
      }
      squares += checked->norm * checked->norm;
    }
    services_.core.post([this, task, node, squares, failed] {
      auto found = offers_.extract(task);
      if (found.empty()) return;
      if (failed) return invalid(task, node, *failed);
      found.mapped().event.norm = std::sqrt(squares);
      admit(std::move(found.mapped()));
    });
  });
}

void RunHost::admit(Offer offer) {
  const double limit = plan_.spec.limits.maximum_update_norm;
  if (!std::isfinite(offer.event.norm) || (limit > 0 && offer.event.norm > limit))
    return invalid(offer.event.task, offer.event.node,
                   invalid_argument("its norm is " + std::to_string(offer.event.norm) + ", the run allows " + std::to_string(limit)));
  UpdateStored event = offer.event;
  const std::string task = event.task;
  offers_.insert_or_assign(task, std::move(offer));
  handle(std::move(event));
  offers_.erase(task);
}

void RunHost::invalid(const std::string& task, const std::string& node, const Error& why) {
  const std::string reason = one_line(why.message, kMaxReasonBytes);
  spdlog::warn("run {}: the update of task {} by node {} is refused: {}", record_.run_id, one_line(task, 128), node, reason);
  services_.misbehaved(node);
  services_.metrics.counter("skerry_updates_refused_total", "Updates that failed a check", {{"node", node}, {"code", std::string(code_name(why.code))}}).add();
  handle(UpdateInvalid{task, node, reason});
}

void RunHost::failed(const std::string& node, const std::string& task, Error error) {
  error.message = one_line(error.message, kMaxReasonBytes);
  if (machine_.awaits(task)) spdlog::warn("node {} gave up task {}: {}", node, task, to_string(error));
  handle(TaskFailed{task, node, std::move(error)});
}

void RunHost::progressed(const std::string& node, const v1::Progress& progress) {
  progress_[node] = {progress.step(), progress.of(), progress.loss()};
  services_.changed(record_.run_id);
}

void RunHost::refused(const std::string& node, const std::string& reason) {
  if (reason.empty()) refusals_.erase(node);
  else refusals_[node] = reason;
  services_.changed(record_.run_id);
}

// ---- commands ----

void RunHost::carry_out(const Accept& command) {
  const auto offer = offers_.find(command.task);
  const auto tell = [this, command](const std::string& chain) {
    send_receipt(command.node, {.task_id = command.task, .run_id = record_.run_id, .state = UpdateState::kAccepted, .exchange = command.exchange, .chain = chain});
  };
  if (accepted_.contains(command.task)) {  // offered again: durable already, or about to be
    services_.commit.after([tell] { tell(""); });
    return;
  }
  if (offer == offers_.end()) return;
  UpdateRecord record = std::move(offer->second.record);
  record.exchange = command.exchange;
  accepted_[command.task] = std::move(offer->second.update);
  progress_.erase(command.node);
  services_.commit.accept(std::move(record), unix_now(), tell);
  services_.metrics.counter("skerry_updates_accepted_total", "Updates accepted into an exchange", {{"run", record_.run_id}}).add();
}

void RunHost::carry_out(const CountReport& command) {
  progress_.erase(command.node);
  TaskRecord decision{.task_id = command.task, .run_id = record_.run_id, .state = UpdateState::kCounted};
  if (!command.versions.empty()) decision.version = command.versions.begin()->second;
  auto report = reports_.extract(command.task);
  if (report.empty()) {  // answered before
    services_.commit.after([this, node = command.node, decision] { send_receipt(node, decision); });
    return;
  }
  deciding_.insert(command.task);
  services_.commit.accept(std::move(report.mapped()), unix_now(), [](const std::string&) {});
  services_.commit.count(command.task, record_.run_id, command.node, 0, decision.version, unix_now(), [this, node = command.node, decision](const std::string& chain) mutable {
    deciding_.erase(decision.task_id);
    decision.chain = chain;
    send_receipt(node, decision);
  });
}

void RunHost::carry_out(const Discard& command) {
  progress_.erase(command.node);
  TaskRecord decision{.task_id = command.task, .run_id = record_.run_id, .node = command.node, .state = UpdateState::kDiscarded, .reason = command.reason};
  if (deciding_.contains(command.task)) return tell_decision(command.node, decision);
  const auto known = services_.store.task(command.task);
  if (!known.ok()) return spdlog::error("run {}: task {} cannot be looked up: {}", record_.run_id, command.task, known.error().message);
  if (*known && (*known)->state != UpdateState::kAccepted) return tell_decision(command.node, **known);  // offered again

  spdlog::info("run {}: the update of task {} by node {} is discarded: {}", record_.run_id, command.task, command.node, command.reason);
  ++discarded_[kind_of_reason(command.reason)];
  services_.metrics.counter("skerry_updates_discarded_total", "Updates discarded", {{"run", record_.run_id}}).add();
  deciding_.insert(command.task);
  services_.commit.discard(command.task, record_.run_id, command.node, 0, command.reason, unix_now(), [this, command](const std::string& chain) {
    deciding_.erase(command.task);
    accepted_.erase(command.task);
    send_receipt(command.node, {.task_id = command.task, .run_id = record_.run_id, .state = UpdateState::kDiscarded, .reason = command.reason, .chain = chain});
  });
}

void RunHost::carry_out(const Refuse& command) {
  spdlog::warn("run {}: node {} offered an update for task {}: {}", record_.run_id, command.node, one_line(command.task, 128), command.reason);
  services_.misbehaved(command.node);
  services_.metrics.counter("skerry_updates_refused_total", "Updates that failed a check", {{"node", command.node}, {"code", "PERMISSION_DENIED"}}).add();
  services_.commit.after([this, command] {
    send_receipt(command.node, {.task_id = command.task, .run_id = record_.run_id, .state = UpdateState::kDiscarded, .reason = command.reason});
  });
}

void RunHost::carry_out(const AskStore& command) {
  const auto decision = services_.store.task(command.task);
  if (!decision.ok()) return spdlog::error("run {}: task {} cannot be looked up: {}", record_.run_id, one_line(command.task, 128), decision.error().message);
  if (*decision && ((*decision)->node != command.node || (*decision)->run_id != record_.run_id))
    return carry_out(Refuse{command.task, command.node, "the task is another node's or another run's"});
  if (*decision && (*decision)->state != UpdateState::kAccepted) return tell_decision(command.node, **decision);
  if (command.record) return carry_out(Discard{command.task, command.node, command.otherwise});
  carry_out(Refuse{command.task, command.node, command.otherwise});
}

void RunHost::tell_decision(const std::string& node, const TaskRecord& decision) {
  services_.commit.after([this, node, decision] { send_receipt(node, decision); });
}

void RunHost::carry_out(const AssignTask& command) {
  services_.commit.after([this, command] {
    const auto session = services_.session_of(command.node);
    if (!session) return;  // assigned again when the node is back
    v1::ToNode message;
    *message.mutable_task() = task_message(command, *session);
    carried(command.node, 0, message.ByteSizeLong());
    services_.send(command.node, std::move(message));
  });
}

v1::Task RunHost::task_message(const AssignTask& command, const NodeSession& session) {
  v1::Task task;
  task.set_task_id(command.task);
  task.set_run_id(record_.run_id);
  task.set_spec_hash(plan_.spec.hash);
  task.set_incarnation(session.incarnation);
  task.set_kind(command.kind == TaskKind::kTrain ? v1::TASK_TRAIN : v1::TASK_EVALUATE);
  task.set_exchange(command.exchange);
  task.set_round(command.round);
  for (const ReadFragment& read : command.read) *task.add_read() = fragment_version(read);
  task.set_steps(command.steps);
  task.set_epochs(command.epochs);
  task.set_seed(command.seed);
  task.set_first_step(command.first_step);
  task.set_deadline_ms(static_cast<std::uint64_t>(std::max<std::int64_t>(command.deadline_ms, 0)));
  task.set_split(command.split);
  const auto encoding = find_encoding(plan_.spec.exchange.up);
  std::uint64_t most = 0;
  for (FragmentIndex index : command.write) {
    task.add_write(plan_.shapes[index].name);
    most += (*encoding)->encoded_bytes(plan_.shapes[index].elements);
  }
  task.set_max_update_bytes(most);
  if (most > 0)
    task.set_ticket(make_ticket(services_.ticket_key, {command.task, session.thumbprint, most, unix_now() + kTicketLifeMs}));
  return task;
}

v1::FragmentVersion RunHost::fragment_version(const ReadFragment& read) {
  v1::FragmentVersion message;
  message.set_fragment(plan_.shapes[read.fragment].name);
  message.set_version(read.version);
  const VersionRecord* record = version(read.fragment, read.version);
  if (!record) return message;
  const bool has_base = read.previous && *read.previous + 1 == read.version;
  const bool has_step = record->step.size > 0;
  *message.mutable_whole() = blob_message(record->whole, /*with_bytes=*/!(has_base && has_step));
  if (has_step) {
    *message.mutable_step() = blob_message(record->step, /*with_bytes=*/true);
    message.set_step_encoding(record->step_encoding);
  }
  return message;
}

void RunHost::carry_out(const CancelTask& command) {
  services_.commit.after([this, command] {
    v1::ToNode message;
    message.mutable_cancel()->set_task_id(command.task);
    message.mutable_cancel()->set_reason(command.reason);
    services_.send(command.node, std::move(message));
    services_.cargo.end_task(command.task);
  });
}

void RunHost::carry_out(const Reduce& command) {
  auto work = plan_reduction(command, plan_, record_.run_id, accepted_,
                             [this](std::uint32_t fragment, std::uint64_t number) { return version(fragment, number); },
                             services_.cargo, services_.engine);
  if (!work.ok()) return reduced(command.exchange, work.error());
  if (work->small) return reduced(command.exchange, work->run());
  // Only what is durable is reduced: the result of a reduction must survive together with its inputs.
  (void)services_.commit.batch();
  services_.commit.after([this, exchange = command.exchange, run = std::move(work->run)] {
    services_.bulk.post([this, exchange, run] {
      auto outcome = std::make_shared<Result<std::vector<Reduction>>>(run());
      services_.core.post([this, exchange, outcome] { reduced(exchange, std::move(*outcome)); });
    });
  });
}

void RunHost::reduced(std::uint64_t exchange, Result<std::vector<Reduction>> outcome) {
  if (!outcome.ok()) {
    spdlog::error("run {}: exchange {} could not be reduced: {}", record_.run_id, exchange, outcome.error().message);
    return handle(Reduced{exchange, outcome.error()});
  }
  reductions_[exchange] = std::move(outcome).value();
  handle(Reduced{exchange, std::nullopt});
}

void RunHost::carry_out(const Count& command) {
  auto reductions = reductions_.extract(command.exchange);
  if (reductions.empty()) return;
  const std::int64_t time = unix_now();
  const std::uint64_t new_version = command.fragments.empty() ? 0 : command.fragments.front().new_version;
  for (std::size_t i = 0; i < command.tasks.size(); ++i) {
    services_.commit.count(command.tasks[i], record_.run_id, command.nodes[i], command.exchange, new_version, time,
                           [this, task = command.tasks[i], node = command.nodes[i], exchange = command.exchange, new_version](const std::string& chain) {
                             accepted_.erase(task);
                             send_receipt(node, {.task_id = task, .run_id = record_.run_id, .state = UpdateState::kCounted, .exchange = exchange, .version = new_version, .chain = chain});
                           });
  }
  Batch& batch = services_.commit.batch();
  latest_metrics_.insert_or_assign("updates", static_cast<double>(command.tasks.size()));
  for (const auto& [name, value] : command.metrics) latest_metrics_[name] = value;
  for (std::size_t i = 0; i < reductions.mapped().size(); ++i) {
    Reduction& reduction = reductions.mapped()[i];
    reduction.version.time_ms = time;
    reduction.version.counted = command.tasks;
    const std::string& fragment = reduction.version.fragment;
    std::map<std::string, double> metrics = command.metrics;
    metrics["outer_gradient_norm"] = reduction.statistics.outer_gradient_norm;
    metrics["change_norm"] = reduction.statistics.change_norm;
    metrics["reduce_seconds"] = reduction.statistics.seconds;
    batch.release(reduction.version);
    batch.add_metric({record_.run_id, "exchange", fragment, command.exchange, reduction.version.version, time,
                      static_cast<std::uint32_t>(command.tasks.size()), as_values(metrics), ""});
    to_prune_.insert(command.fragments[i].fragment);

    services_.metrics.histogram("skerry_reduce_seconds", "Time of one fragment's reduction", duration_bounds(), {{"run", record_.run_id}}).observe(reduction.statistics.seconds);
    remember(std::move(reduction.version));
  }
  services_.released(*this);
  services_.metrics.counter("skerry_exchanges_total", "Exchanges committed", {{"run", record_.run_id}}).add();
  services_.metrics.counter("skerry_updates_counted_total", "Updates counted", {{"run", record_.run_id}}).add(static_cast<double>(command.tasks.size()));
  const std::uint64_t monotonic = services_.clock.monotonic_ms();
  if (released_ms_ > 0) {
    const double seconds = static_cast<double>(monotonic - released_ms_) / 1000.0;
    seconds_per_round_ = seconds_per_round_ > 0 ? seconds_per_round_ + kRoundTimeSmoothing * (seconds - seconds_per_round_) : seconds;
  }
  released_ms_ = monotonic;
}

void RunHost::carry_out(const Void& command) {
  spdlog::warn("run {}: {}", record_.run_id, command.reason);
  services_.commit.batch().audit({unix_now(), "server", "exchange.void", record_.run_id, command.reason});
  services_.metrics.counter("skerry_exchanges_void_total", "Exchanges closed with the model unchanged", {{"run", record_.run_id}}).add();
}

void RunHost::carry_out(const EvaluationDone& command) {
  const std::int64_t time = unix_now();
  Batch& batch = services_.commit.batch();
  const std::uint64_t measured = command.versions.empty() ? 0 : command.versions.begin()->second;
  for (const NodeMetrics& report : command.reports)
    batch.add_metric({record_.run_id, "evaluation", "", command.exchange, measured, time, 1, as_values(report.metrics), report.node});
  batch.add_metric({record_.run_id, "evaluation", "", command.exchange, measured, time,
                    static_cast<std::uint32_t>(command.reports.size()), as_values(command.metrics), ""});
  for (const auto& [name, value] : command.metrics) latest_metrics_[name] = value;

  // The best version stays: by the stop rule's metric, else by the loss.
  const bool higher = !plan_.spec.stop.metric.empty() && plan_.spec.stop.comparison == StopSpec::Comparison::kAtLeast;
  const auto metric = command.metrics.find(judged_metric());
  if (metric == command.metrics.end()) return;
  if (best_ && (higher ? metric->second <= *best_ : metric->second >= *best_)) return;
  for (const auto& [fragment, number] : command.versions)  // one that was pruned before it was measured cannot be kept
    if (const auto stored = services_.store.version(record_.run_id, plan_.shapes[fragment].name, number); !stored.ok() || !*stored) return;
  best_ = metric->second;
  for (const auto& [fragment, number] : command.versions) {
    const std::string& name = plan_.shapes[fragment].name;
    if (const auto before = kept_.find(fragment); before != kept_.end() && before->second != number)
      batch.keep_version(record_.run_id, name, before->second, false);
    kept_[fragment] = number;
    batch.keep_version(record_.run_id, name, number, true);
  }
}

void RunHost::carry_out(const Finish& command) {
  spdlog::info("run {} ({}) is {}: {}", record_.run_id, record_.name, command.outcome, command.reason);
  services_.commit.batch().audit({unix_now(), "server", "run." + command.outcome, record_.run_id, command.reason});
  services_.commit.after([this, command] {
    v1::ToNode message;
    v1::RunEnded& ended = *message.mutable_run_ended();
    ended.set_run_id(record_.run_id);
    ended.set_outcome(command.outcome);
    ended.set_reason(command.reason);
    for (const NodeView& node : machine_.view().nodes) services_.send(node.node, message);
  });
}

void RunHost::carry_out(const WakeAt& command) {
  wake_at_ = command.at;
  wake();
}

// Sees to it that the core looks no later than at wake_at_. A look that is already planned before then is enough: deadlines
// move with every exchange, and a timer for each would pile up.
void RunHost::wake() {
  if (!wakes_.empty() && *wakes_.begin() <= *wake_at_) return;
  const Instant at = std::max<Instant>(*wake_at_, 0);
  wakes_.insert(at);
  services_.core.at(static_cast<std::uint64_t>(at), [this, at] {
    wakes_.erase(at);
    if (!wake_at_) return;
    if (*wake_at_ > now()) return wake();
    wake_at_.reset();
    handle(Tick{});
  });
}

// ---- helpers ----

void RunHost::send_receipt(const std::string& node, const TaskRecord& decision) {
  v1::ToNode message;
  v1::Receipt& receipt = *message.mutable_receipt();
  receipt.set_task_id(decision.task_id);
  receipt.set_state(static_cast<v1::UpdateState>(decision.state));
  receipt.set_exchange(decision.exchange);
  receipt.set_version(decision.version);
  receipt.set_reason(decision.reason);
  receipt.set_chain(decision.chain);
  services_.send(node, std::move(message));
}

const VersionRecord* RunHost::version(std::uint32_t fragment, std::uint64_t number) {
  auto& known = versions_[fragment];
  if (const auto found = known.find(number); found != known.end()) return &found->second;
  auto stored = services_.store.version(record_.run_id, plan_.shapes[fragment].name, number);
  if (!stored.ok() || !*stored) return nullptr;
  const VersionRecord* loaded = &(known[number] = std::move(**stored));
  services_.released(*this);
  return loaded;
}

void RunHost::remember(VersionRecord record) {
  const auto shape = std::find_if(plan_.shapes.begin(), plan_.shapes.end(), [&](const FragmentShape& s) { return s.name == record.fragment; });
  if (shape == plan_.shapes.end()) return;
  auto& known = versions_[static_cast<std::size_t>(shape - plan_.shapes.begin())];
  known[record.version] = std::move(record);
  while (known.size() > kVersionsRemembered) known.erase(known.begin());
}

void RunHost::carried(const std::string& node, std::uint64_t bytes_up, std::uint64_t bytes_down) {
  record_.bytes_up += bytes_up;
  record_.bytes_down += bytes_down;
  auto& [up, down] = traffic_[node];
  up += bytes_up;
  down += bytes_down;
}

std::vector<std::string> RunHost::readable_cargo() const {
  std::vector<std::string> ids;
  for (const auto& fragment : versions_)
    for (const auto& [number, record] : fragment) {
      if (!record.whole.content_id.empty()) ids.push_back(record.whole.content_id);
      if (!record.step.content_id.empty()) ids.push_back(record.step.content_id);
    }
  return ids;
}

v1::RunSummary summary_of(const RunRecord& record) {
  v1::RunSummary summary;
  summary.set_run_id(record.run_id);
  summary.set_name(record.name);
  summary.set_strategy(record.strategy);
  summary.set_status(record.status);
  summary.set_status_reason(record.status_reason);
  summary.set_created_ms(static_cast<std::uint64_t>(record.created_ms));
  summary.set_ended_ms(static_cast<std::uint64_t>(record.ended_ms));
  return summary;
}

v1::RunSummary RunHost::summary() const { return summary_from(machine_.view()); }

v1::RunSummary RunHost::summary_from(const RunView& view) const {
  v1::RunSummary summary = summary_of(record_);
  // The machine is ahead of the record until the next commit.
  summary.set_status(view.status);
  summary.set_status_reason(view.status_reason);
  summary.set_round(view.round);
  summary.set_rounds(view.rounds);
  return summary;
}

v1::RunDetail RunHost::detail() const {
  const RunView view = machine_.view();
  v1::RunDetail detail;
  *detail.mutable_summary() = summary_from(view);  // a view costs time in every node
  detail.set_spec_hash(plan_.spec.hash);
  detail.set_spec_json(plan_.spec.canonical_json);
  for (const FragmentView& fragment : view.fragments) {
    v1::FragmentState& state = *detail.add_fragments();
    state.set_fragment(fragment.fragment);
    state.set_version(fragment.version);
    state.set_exchange(fragment.exchange);
    state.set_accepted(fragment.accepted);
    state.set_quorum(fragment.quorum);
    state.set_outstanding(fragment.outstanding);
  }
  for (const NodeView& node : view.nodes) {
    v1::Participant& participant = *detail.add_participants();
    participant.set_node(node.node);
    participant.set_state(node.state);
    participant.set_detail(node.detail);
    participant.set_examples(node.examples);
    participant.set_counted(node.counted);
    participant.set_discarded(node.discarded);
    if (const auto progress = progress_.find(node.node); progress != progress_.end() && (node.state == "training" || node.state == "evaluating")) {
      participant.set_step(progress->second.step);
      participant.set_of(progress->second.of);
      participant.set_loss(progress->second.loss);
    }
  }
  for (const auto& [node, reason] : refusals_) {
    v1::Participant& participant = *detail.add_participants();
    participant.set_node(node);
    participant.set_state("refused");
    participant.set_detail(reason);
  }
  for (const auto& [name, value] : latest_metrics_) {
    v1::Metric& metric = *detail.add_latest();
    metric.set_name(name);
    metric.set_value(value);
  }
  detail.set_bytes_up(record_.bytes_up);
  detail.set_bytes_down(record_.bytes_down);
  detail.set_seconds_per_round(seconds_per_round_);
  if (!machine_.finished() && view.rounds > view.round)
    detail.set_seconds_left(seconds_per_round_ * static_cast<double>(view.rounds - view.round));
  for (const auto& [reason, number] : discarded_) (*detail.mutable_discarded())[reason] = number;
  return detail;
}

}  // namespace skerry::server
