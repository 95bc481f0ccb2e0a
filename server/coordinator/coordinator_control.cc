// What operators ask of the coordinator: runs, members, metrics.
#include <nlohmann/json.hpp>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "server/coordinator/coordinator.h"
#include "strategies/catalogue.h"
#include "strategies/combination.h"

#ifndef SKERRY_VERSION
#define SKERRY_VERSION "0.1.0"
#endif

namespace skerry::server {
namespace {

void put_metrics(const std::vector<MetricValue>& metrics, google::protobuf::RepeatedPtrField<v1::Metric>& out) {
  for (const MetricValue& value : metrics) {
    v1::Metric& metric = *out.Add();
    metric.set_name(value.name);
    metric.set_value(value.value);
  }
}

v1::RunSummary ended_summary(const RunRecord& record) {
  v1::RunSummary summary = summary_of(record);
  if (const auto spec = parse_resolved_spec(record.spec_json); spec.ok()) summary.set_rounds(spec->stop.rounds);
  return summary;
}

// A run that waits for a restart looks like one that an operator paused.
void show_set_aside(const std::map<std::string, std::string>& set_aside, v1::RunSummary& summary) {
  const auto found = set_aside.find(summary.run_id());
  if (found == set_aside.end()) return;
  summary.set_status("paused");
  summary.set_status_reason(found->second);
}

v1::FragmentVersion version_message(const VersionRecord& record) {
  v1::FragmentVersion message;
  message.set_fragment(record.fragment);
  message.set_version(record.version);
  message.mutable_whole()->set_content_id(record.whole.content_id);
  message.mutable_whole()->set_size(record.whole.size);
  message.mutable_whole()->set_inline_data(record.whole.bytes);
  return message;
}

std::string state_name(MemberRecord::State state, const std::map<std::string, bool>& paused_by_connected, const MemberRecord& member) {
  if (state == MemberRecord::State::kInvited) return "invited";
  if (state == MemberRecord::State::kRevoked) return "revoked";
  if (member.role != Role::kNode) return "active";
  const auto connected = paused_by_connected.find(member.name);
  return connected == paused_by_connected.end() ? "offline" : connected->second ? "paused" : "connected";
}

}  // namespace

void Coordinator::status(Done<v1::CoordinatorStatus> done) {
  core_.post([this, done = std::move(done)] {
    v1::CoordinatorStatus status;
    status.set_name(options_.name);
    status.set_version(SKERRY_VERSION);
    status.set_epoch(parts_.store.epoch());
    status.set_uptime_seconds((parts_.clock.monotonic_ms() - started_ms_) / 1000);
    status.set_nodes_connected(static_cast<std::uint32_t>(nodes_.size()));
    std::uint32_t active = 0;
    for (const auto& [id, run] : runs_) active += run->finished() ? 0u : 1u;
    status.set_runs_active(active);
    if (const auto bytes = parts_.cargo.free_bytes(); bytes.ok()) status.set_disk_free_bytes(*bytes);
    status.set_server_time_ms(parts_.clock.unix_ms());
    if (options_.certificate_expires_ms)
      status.set_certificate_seconds_left(static_cast<std::uint64_t>(std::max<std::int64_t>(0, options_.certificate_expires_ms() - unix_now()) / 1000));
    if (port_) {
      const Port::Traffic traffic = port_->traffic();
      status.set_bytes_up(traffic.bytes_up);
      status.set_bytes_down(traffic.bytes_down);
    }
    done(std::move(status));
  });
}

// ---- runs ----

void Coordinator::submit(v1::SubmitRunRequest request, std::string who, Done<v1::SubmitRunReply> done) {
  // On the caller's thread: making a plug-in's rule asks its helper, and the core waits for nobody.
  auto made = std::make_shared<Result<RunPlan>>([&]() -> Result<RunPlan> {
    SKERRY_ASSIGN(RunSpec spec, parse_run_spec(request.spec_toml(), strategies::spec_catalogue(options_.rules)));
    SKERRY_TRY(check_tokenizer(spec, parts_.cargo));
    return RunPlan::from_spec(std::move(spec), options_.rules);
  }());
  core_.post([this, request = std::move(request), who = std::move(who), done = std::move(done), made = std::move(made)]() mutable {
    if (!made->ok()) return done(made->error());
    RunPlan* plan = &made->value();
    v1::SubmitRunReply reply;
    reply.set_spec_hash(plan->spec.hash);
    reply.set_spec_json(plan->spec.canonical_json);
    reply.set_parameters(plan->layout.parameters);
    if (nodes_.size() < plan->spec.participation.start_nodes)
      reply.add_warnings(std::to_string(nodes_.size()) + " nodes are connected, the run waits for " +
                         std::to_string(plan->spec.participation.start_nodes) + " before its first exchange");
    for (const std::string& note : strategies::combination_notes(plan->spec)) reply.add_warnings(note);
    for (const auto& [id, run] : runs_)
      if (!run->finished() && run->plan().spec.hash == plan->spec.hash) reply.add_warnings("run " + id + " with the same spec is under way");
    std::optional<std::vector<VersionRecord>> continued;
    if (!plan->spec.start.run.empty()) {
      auto versions = continued_versions(*plan, parts_.store);
      if (!versions.ok()) return done(versions.error());
      continued = std::move(versions).value();
    }
    if (request.dry_run()) return dry_run(*plan, std::move(reply), std::move(done));
    if (continued) return add_run(std::move(*plan), std::move(*continued), std::move(who), std::move(reply), std::move(done));

    auto shared = std::make_shared<RunPlan>(std::move(*plan));
    bulk_.post([this, shared, who, reply = std::move(reply), done = std::move(done)]() mutable {
      auto initial = std::make_shared<Result<std::vector<VersionRecord>>>(make_initial_versions(*shared, parts_.cargo));
      core_.post([this, shared, initial, who, reply = std::move(reply), done = std::move(done)]() mutable {
        if (!initial->ok()) return done(initial->error());
        add_run(std::move(*shared), std::move(*initial).value(), std::move(who), std::move(reply), std::move(done));
      });
    });
  });
}

void Coordinator::add_run(RunPlan plan, std::vector<VersionRecord> initial, std::string who, v1::SubmitRunReply reply,
                          Done<v1::SubmitRunReply> done) {
  auto records = parts_.store.runs();
  if (!records.ok()) return done(records.error());
  const std::string stem = "r-" + plan.spec.hash.substr(0, 16) + "-";
  std::size_t serial = 1;
  for (const RunRecord& record : *records) serial += record.run_id.starts_with(stem) ? 1 : 0;
  while (runs_.contains(stem + std::to_string(serial))) ++serial;
  RunRecord record;
  record.run_id = stem + std::to_string(serial);
  record.name = plan.spec.name;
  record.strategy = plan.spec.strategy;
  record.spec_hash = plan.spec.hash;
  record.spec_json = plan.spec.canonical_json;
  record.created_ms = unix_now();
  const std::string run_id = record.run_id;
  runs_[run_id] = RunHost::create(services_, std::move(record), std::move(plan), std::move(initial));
  RunHost& run = *runs_[run_id];
  commit_.batch().audit({unix_now(), who, "run.submit", run_id, run.record().name});
  publish_cargo(run);
  reply.set_run_id(run_id);
  commit_.after([this, run_id, reply = std::move(reply), done = std::move(done)]() mutable {
    spdlog::info("run {} ({}) is submitted: {} parameters", run_id, runs_[run_id]->record().name, reply.parameters());
    for (auto& [name, live] : nodes_) announce(*runs_[run_id], *live.session);
    done(std::move(reply));
  });
  run.start();
}

void Coordinator::dry_run(const RunPlan& plan, v1::SubmitRunReply reply, Done<v1::SubmitRunReply> done) {
  const std::string id = "dry-run-" + plan.spec.hash;
  if (dry_runs_.contains(id)) return done(Error{Code::kAborted, "the same spec is being tried by another dry run; wait a moment", true});
  DryRun& pending = dry_runs_[id];
  pending.reply = std::move(reply);
  pending.done = std::move(done);
  v1::ToNode message;
  v1::RunAnnouncement& run = *message.mutable_run();
  run.set_run_id(id);
  run.set_name(plan.spec.name);
  run.set_spec_hash(plan.spec.hash);
  run.set_spec_json(plan.spec.canonical_json);
  for (auto& [name, live] : nodes_) {
    pending.waiting.insert(name);
    live.session->send(message);
  }
  if (pending.waiting.empty()) return finish_dry_run(id);
  core_.at(parts_.clock.monotonic_ms() + options_.dry_run_ms, [this, id] { finish_dry_run(id); });
}

void Coordinator::finish_dry_run(const std::string& id) {
  auto found = dry_runs_.extract(id);
  if (found.empty()) return;
  DryRun& pending = found.mapped();
  v1::ToNode over;
  over.mutable_run_ended()->set_run_id(id);
  over.mutable_run_ended()->set_outcome("completed");
  over.mutable_run_ended()->set_reason("it was a dry run");
  for (auto& [name, live] : nodes_) {
    v1::NodeVerdict& verdict = *pending.reply.add_nodes();
    verdict.set_node(name);
    const auto answer = pending.answers.find(name);
    if (answer == pending.answers.end()) {
      verdict.set_reason("it did not answer within " + std::to_string(options_.dry_run_ms) + " ms");
      continue;
    }
    live.session->send(over);
    verdict.set_takes_part(answer->second.accepted());
    std::string reasons;
    for (const std::string& reason : answer->second.reasons()) reasons += (reasons.empty() ? "" : "; ") + reason;
    verdict.set_reason(answer->second.accepted() ? "data set '" + answer->second.data_set() + "'"
                       : reasons.empty()         ? "its holder gave no reason"
                                                 : reasons);
  }
  if (const auto members = parts_.members.list(); members.ok())
    for (const MemberRecord& member : *members)
      if (member.role == Role::kNode && member.state == MemberRecord::State::kActive && !nodes_.contains(member.name)) {
        v1::NodeVerdict& verdict = *pending.reply.add_nodes();
        verdict.set_node(member.name);
        verdict.set_reason("it is offline");
      }
  pending.done(std::move(pending.reply));
}

Result<RunRecord> Coordinator::resolve_run(const std::string& reference) {
  if (reference.empty()) return invalid_argument("name a run: its id, the beginning of its id, or its name");
  SKERRY_ASSIGN(const std::vector<RunRecord> records, parts_.store.runs());
  std::vector<const RunRecord*> matches;
  for (const RunRecord& record : records) {
    if (record.run_id == reference) return record;
    if (record.name == reference || record.run_id.starts_with(reference)) matches.push_back(&record);
  }
  if (matches.empty()) return not_found("there is no run '" + reference + "'; `skerry run list` shows them");
  if (matches.size() > 1)
    return invalid_argument("'" + reference + "' could be " + matches[0]->run_id + " or " + matches[1]->run_id + ": give more of the id");
  return *matches[0];
}

Result<v1::RunDetail> Coordinator::detail_of(const std::string& reference) {
  SKERRY_ASSIGN(const RunRecord record, resolve_run(reference));
  if (const RunHost* run = find_run(record.run_id)) return run->detail();
  v1::RunDetail detail;
  *detail.mutable_summary() = ended_summary(record);
  show_set_aside(set_aside_, *detail.mutable_summary());
  detail.set_spec_hash(record.spec_hash);
  detail.set_spec_json(record.spec_json);
  detail.set_bytes_up(record.bytes_up);
  detail.set_bytes_down(record.bytes_down);
  SKERRY_ASSIGN(const auto versions, parts_.store.versions(record.run_id));
  std::map<std::string, std::uint64_t> newest;
  for (const VersionRecord& version : versions) newest[version.fragment] = std::max(newest[version.fragment], version.version);
  for (const auto& [fragment, version] : newest) {
    v1::FragmentState& state = *detail.add_fragments();
    state.set_fragment(fragment);
    state.set_version(version);
    detail.mutable_summary()->set_round(version);
  }
  for (const char* kind : {"exchange", "evaluation"}) {
    SKERRY_ASSIGN(const auto row, parts_.store.latest_metric(record.run_id, kind));
    if (row) put_metrics(row->metrics, *detail.mutable_latest());
  }
  SKERRY_ASSIGN(const auto discarded, parts_.store.discarded_by_reason(record.run_id));
  for (const auto& [reason, number] : discarded) (*detail.mutable_discarded())[reason] = number;
  SKERRY_ASSIGN(const auto counted, parts_.store.counted_by_node(record.run_id));
  for (const auto& [node, number] : counted) {
    v1::Participant& participant = *detail.add_participants();
    participant.set_node(node);
    participant.set_state(nodes_.contains(node) ? "connected" : "offline");
    participant.set_counted(number);
  }
  return detail;
}

void Coordinator::list_runs(Done<v1::ListRunsReply> done) {
  core_.post([this, done = std::move(done)] {
    auto records = parts_.store.runs();
    if (!records.ok()) return done(records.error());
    v1::ListRunsReply reply;
    for (const RunRecord& record : *records) {
      const RunHost* run = find_run(record.run_id);
      v1::RunSummary& summary = *reply.add_runs();
      summary = run ? run->summary() : ended_summary(record);
      show_set_aside(set_aside_, summary);
    }
    done(std::move(reply));
  });
}

void Coordinator::get_run(std::string run, Done<v1::RunDetail> done) {
  core_.post([this, run = std::move(run), done = std::move(done)] { done(detail_of(run)); });
}

void Coordinator::change_run(v1::ChangeRunRequest request, std::string who, Done<v1::RunDetail> done) {
  core_.post([this, request = std::move(request), who = std::move(who), done = std::move(done)] {
    auto record = resolve_run(request.run_id());
    if (!record.ok()) return done(record.error());
    const std::string run_id = record->run_id;
    RunHost* run = find_run(run_id);
    if (const auto aside = set_aside_.find(run_id); aside != set_aside_.end()) {
      if (request.action() != v1::ChangeRunRequest::STOP) return done(failed_precondition("run " + run_id + " cannot go on: " + aside->second));
      const std::string reason = request.reason().empty() ? "by " + who : request.reason();
      commit_.batch().audit({unix_now(), who, "run.stop", run_id, reason});
      commit_.batch().set_run_status(run_id, "stopped", reason, unix_now());
      set_aside_.erase(aside);
      return commit_.after([this, run_id, done] { done(detail_of(run_id)); });
    }
    if (!run || run->finished())
      return done(failed_precondition("run " + run_id + " is over (" + record->status + "); a run that ended cannot be changed"));
    std::string action;
    const std::string reason = request.reason().empty() ? "by " + who : request.reason();
    switch (request.action()) {
      case v1::ChangeRunRequest::PAUSE: action = "run.pause"; break;
      case v1::ChangeRunRequest::RESUME: action = "run.resume"; break;
      case v1::ChangeRunRequest::STOP: action = "run.stop"; break;
      default: return done(invalid_argument("the action must be PAUSE, RESUME or STOP"));
    }
    commit_.batch().audit({unix_now(), who, action, run_id, reason});
    if (request.action() == v1::ChangeRunRequest::PAUSE) run->handle(OperatorPause{reason});
    else if (request.action() == v1::ChangeRunRequest::RESUME) run->handle(OperatorResume{});
    else run->handle(OperatorStop{reason});
    commit_.after([this, run_id, done] { done(detail_of(run_id)); });
  });
}

void Coordinator::run_metrics(std::string run, Done<v1::RunMetrics> done) {
  core_.post([this, run = std::move(run), done = std::move(done)] {
    auto record = resolve_run(run);
    if (!record.ok()) return done(record.error());
    auto rows = parts_.store.metrics(record->run_id);
    if (!rows.ok()) return done(rows.error());
    v1::RunMetrics reply;
    for (const MetricRecord& row : *rows) {
      v1::MetricRow& message = *reply.add_rows();
      message.set_kind(row.kind);
      message.set_fragment(row.fragment);
      message.set_exchange(row.exchange);
      message.set_version(row.version);
      message.set_time_ms(static_cast<std::uint64_t>(row.time_ms));
      message.set_updates(row.updates);
      message.set_node(row.node);
      put_metrics(row.metrics, *message.mutable_metrics());
    }
    done(std::move(reply));
  });
}

void Coordinator::list_versions(std::string run, Done<v1::ListVersionsReply> done) {
  core_.post([this, run = std::move(run), done = std::move(done)] {
    auto record = resolve_run(run);
    if (!record.ok()) return done(record.error());
    auto versions = parts_.store.versions(record->run_id);
    if (!versions.ok()) return done(versions.error());
    v1::ListVersionsReply reply;
    reply.set_run_id(record->run_id);
    if (const auto spec = parse_resolved_spec(record->spec_json); spec.ok()) {
      reply.set_model_json(spec->model_json);
      if (auto tokenizer = tokenizer_blob(*spec, parts_.cargo)) *reply.mutable_tokenizer() = *std::move(tokenizer);
    }
    std::map<std::string, std::uint64_t> newest;
    for (const VersionRecord& version : *versions) {
      *reply.add_kept() = version_message(version);
      newest[version.fragment] = std::max(newest[version.fragment], version.version);
    }
    for (const auto& [fragment, number] : newest) {
      auto version = parts_.store.version(record->run_id, fragment, number);
      if (!version.ok()) return done(version.error());
      if (*version) *reply.add_latest() = version_message(**version);
    }
    done(std::move(reply));
  });
}

void Coordinator::watch(std::string run, std::function<bool(const v1::RunDetail&)> update, std::function<void(Error)> failed) {
  core_.post([this, run = std::move(run), update = std::move(update), failed = std::move(failed)] {
    const auto detail = detail_of(run);
    if (!detail.ok()) return failed(detail.error());
    const bool over = detail->summary().ended_ms() != 0;  // nothing will change any more
    if (update(*detail) && !over) watchers_.push_back({detail->summary().run_id(), update});
  });
}

void Coordinator::notify_watchers() {
  const std::set<std::string> changed = std::exchange(changed_, {});
  std::erase_if(watchers_, [&](const Watcher& watcher) {
    if (!changed.contains(watcher.run_id)) return false;
    const auto detail = detail_of(watcher.run_id);
    return !detail.ok() || !watcher.update(*detail);
  });
}

// ---- members ----

void Coordinator::invite(v1::InviteMemberRequest request, std::string who, Done<v1::InviteMemberReply> done) {
  core_.post([this, request = std::move(request), who = std::move(who), done = std::move(done)] {
    auto role = parse_role(request.role());
    if (!role.ok()) return done(role.error());
    auto invitation = parts_.members.invite(*role, request.name(), static_cast<std::int64_t>(request.valid_seconds()) * 1000, unix_now());
    if (!invitation.ok()) return done(invitation.error());
    commit_.batch().audit({unix_now(), who, request.role() + ".invite", request.name(), ""});
    v1::InviteMemberReply reply;
    reply.set_token(invitation->token);
    reply.set_expires_ms(static_cast<std::uint64_t>(invitation->expires_ms));
    commit_.after([done, reply = std::move(reply)] { done(reply); });
  });
}

void Coordinator::revoke(v1::RevokeMemberRequest request, std::string who, Done<v1::RevokeMemberReply> done) {
  core_.post([this, request = std::move(request), who = std::move(who), done = std::move(done)] {
    auto role = parse_role(request.role());
    if (!role.ok()) return done(role.error());
    auto revocation = parts_.members.revoke(*role, request.name(), request.reason(), unix_now());
    if (!revocation.ok()) return done(revocation.error());
    parts_.authenticator.revoke(member_key(*role, request.name()), request.reason());
    commit_.batch().audit({unix_now(), who, request.role() + ".revoke", request.name(), request.reason()});
    std::size_t sessions = 0;
    if (const auto live = nodes_.find(request.name()); *role == Role::kNode && live != nodes_.end()) {
      left(request.name(), /*for_good=*/true);
      live->second.session->close(unauthenticated("the certificate of node '" + request.name() + "' was revoked: " + request.reason()));
      nodes_.erase(live);
      ++sessions;
    }
    for (const std::string& thumbprint : revocation->thumbprints)
      if (port_) sessions += port_->end_connections(thumbprint);
    v1::RevokeMemberReply reply;
    reply.set_certificates(static_cast<std::uint32_t>(revocation->thumbprints.size()));
    reply.set_sessions(static_cast<std::uint32_t>(sessions));
    commit_.after([done, reply] { done(reply); });
  });
}

void Coordinator::replaced(const std::string& thumbprint) {
  parts_.authenticator.revoke(thumbprint, "replaced by a new enrolment");
  if (port_) port_->end_connections(thumbprint);
}

void Coordinator::list_members(std::string role, Done<v1::ListMembersReply> done) {
  core_.post([this, role = std::move(role), done = std::move(done)] {
    if (!role.empty())
      if (auto known = parse_role(role); !known.ok()) return done(known.error());
    auto members = parts_.members.list();
    if (!members.ok()) return done(members.error());
    std::map<std::string, bool> connected;
    for (const auto& [name, live] : nodes_) connected[name] = live.paused;
    v1::ListMembersReply reply;
    for (const MemberRecord& record : *members) {
      if (!role.empty() && role_name(record.role) != role) continue;
      v1::Member& member = *reply.add_members();
      member.set_role(std::string(role_name(record.role)));
      member.set_name(record.name);
      member.set_state(state_name(record.state, connected, record));
      member.set_last_seen_ms(static_cast<std::uint64_t>(record.last_seen_ms));
      member.set_certificate_expires_ms(static_cast<std::uint64_t>(record.certificate_expires_ms));
      member.set_thumbprint(record.thumbprint);
      if (const auto live = nodes_.find(record.name); record.role == Role::kNode && live != nodes_.end()) {
        member.set_last_seen_ms(parts_.clock.unix_ms());
        member.set_software(live->second.hello.software());
        member.set_address(live->second.session->address());
        *member.mutable_data_sets() = live->second.hello.data_sets();
      }
    }
    done(std::move(reply));
  });
}

}  // namespace skerry::server
