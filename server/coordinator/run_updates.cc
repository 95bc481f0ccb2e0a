// RunHost: updates on their way in, and what their senders are answered.
#include <nlohmann/json.hpp>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "common/base/encoding_text.h"
#include "server/aggregate/validate.h"
#include "server/coordinator/inflated.h"
#include "server/coordinator/run_host.h"

namespace skerry::server {
namespace {

constexpr std::size_t kMaxReasonBytes = 1024;     // of what a node says

}  // namespace

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
  auto payloads = check_payloads(body, plan_.spec, plan_.shapes, services_.own_updates);
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
    std::uint64_t inflates_to = 0;  ///< 0: it is not compressed
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
    parts.push_back({Payload::file(std::move(path).value()), plan_.shapes[payload.fragment], payload.zstd ? payload.encoded : 0});
  }
  const std::string task = offer.event.task;
  const std::string node = offer.event.node;
  offers_.emplace(task, std::move(offer));
  services_.bulk.post([this, task, node, parts = std::move(parts), up = plan_.spec.exchange.up] {
    double squares = 0;
    std::optional<Error> failed;
    const auto check = [&](const Part& part) -> Result<UpdateStatistics> {
      if (part.inflates_to == 0) return validate_update(up, part.payload, part.shape.elements, 0, part.shape.tensors);
      SKERRY_ASSIGN(const Inflated inflated, Inflated::open(part.payload.path, part.inflates_to, services_.cargo));
      return validate_update(up, Payload::file(inflated.path()), part.shape.elements, 0, part.shape.tensors);
    };
    for (const Part& part : parts) {
      auto checked = check(part);
      if (!checked.ok()) {
        failed = checked.error();
        break;
      }
      squares += checked->norm * checked->norm;
    }
    services_.core.post([this, task, node, squares, failed] {
      auto found = offers_.extract(task);
      if (found.empty()) return;
      if (failed && failed->code != Code::kInvalidArgument) return unchecked(std::move(found.mapped().event), *failed);
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

// Nothing is known against its sender: the daemon offers it again after a while.
void RunHost::unchecked(UpdateStored event, const Error& why) {
  spdlog::error("run {}: the update of task {} by node {} could not be checked: {}", record_.run_id, event.task, event.node, to_string(why));
  if (!machine_.awaits(event.task)) return handle(std::move(event));
  send_receipt(event.node, {.task_id = event.task, .run_id = record_.run_id, .reason = "the coordinator could not check it: offer the update again"});
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

// ---- answers to them ----

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
  norms_[command.task] = offer->second.event.norm;
  progress_.erase(command.node);
  services_.commit.accept(std::move(record), unix_now(), tell);
  figures_.accepted.add();
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
  figures_.discarded.add();
  deciding_.insert(command.task);
  services_.commit.discard(command.task, record_.run_id, command.node, 0, command.reason, unix_now(), [this, command](const std::string& chain) {
    deciding_.erase(command.task);
    accepted_.erase(command.task);
    norms_.erase(command.task);
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

}  // namespace skerry::server
