// RunHost: tasks on their way out, reductions, releases, evaluations, and the run's end.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "common/codec/encoding.h"
#include "server/coordinator/run_host.h"
#include "server/identity/ticket.h"

namespace skerry::server {
namespace {

constexpr std::int64_t kTicketLifeMs = std::int64_t{7} * 24 * 3600 * 1000;
constexpr double kRoundTimeSmoothing = 0.2;        // of the moving average

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

void RunHost::carry_out(const Deliver& command) {
  services_.commit.after([this, command] {
    if (!services_.session_of(command.node)) return;  // delivered again when the node is back
    for (const ReadFragment& read : command.versions) {
      v1::ToNode message;
      v1::Delivery& delivery = *message.mutable_delivery();
      delivery.set_run_id(record_.run_id);
      delivery.set_exchange(command.exchange);
      *delivery.mutable_version() = fragment_version(read);
      carried(command.node, 0, message.ByteSizeLong());
      services_.send(command.node, std::move(message));
    }
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
  for (const MergeFragment& merge : command.merge) {
    v1::MergePlan& plan = *task.add_merge();
    plan.set_fragment(plan_.shapes[merge.fragment].name);
    plan.set_exchange(merge.exchange);
    plan.set_at_step(merge.at_step);
    plan.set_rule(merge.rule);
    plan.set_alpha(merge.alpha);
    plan.set_block(merge.block);
  }
  task.set_after(command.after);
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
  spread_of(command);
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
                             norms_.erase(task);
                             send_receipt(node, {.task_id = task, .run_id = record_.run_id, .state = UpdateState::kCounted, .exchange = exchange, .version = new_version, .chain = chain});
                           });
  }
  Batch& batch = services_.commit.batch();
  latest_metrics_.insert_or_assign("updates", static_cast<double>(command.tasks.size()));
  std::map<std::string, double> figures = command.metrics;
  add_noise(command, reductions.mapped(), figures);
  for (const auto& [name, value] : figures) latest_metrics_[name] = value;
  for (std::size_t i = 0; i < reductions.mapped().size(); ++i) {
    Reduction& reduction = reductions.mapped()[i];
    reduction.version.time_ms = time;
    reduction.version.counted = command.tasks;
    const std::string& fragment = reduction.version.fragment;
    reduction.version.kept = stays(reduction.version);
    std::map<std::string, double> metrics = figures;
    metrics["outer_gradient_norm"] = reduction.statistics.outer_gradient_norm;
    metrics["change_norm"] = reduction.statistics.change_norm;
    metrics["reduce_seconds"] = reduction.statistics.seconds;
    add_norms(reduction.statistics, metrics);
    batch.release(reduction.version);
    batch.add_metric({record_.run_id, "exchange", fragment, command.exchange, reduction.version.version, time,
                      static_cast<std::uint32_t>(command.tasks.size()), as_values(metrics), ""});
    to_prune_.insert(command.fragments[i].fragment);

    figures_.reduce_seconds.observe(reduction.statistics.seconds);
    remember(std::move(reduction.version));
  }
  services_.released(*this);
  figures_.exchanges.add();
  figures_.counted.add(static_cast<double>(command.tasks.size()));
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
  figures_.voids.add();
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
  const auto metric = command.metrics.find(judged_metric());
  if (metric == command.metrics.end() || !better(metric->second)) return;
  for (const auto& [fragment, number] : command.versions)  // one that was pruned before it was measured cannot be kept
    if (const auto stored = services_.store.version(record_.run_id, plan_.shapes[fragment].name, number); !stored.ok() || !*stored) return;
  best_ = metric->second;
  for (const auto& [fragment, number] : command.versions) {
    const std::string& name = plan_.shapes[fragment].name;
    if (const auto before = kept_.find(fragment); before != kept_.end() && before->second != number) {
      batch.keep_version(record_.run_id, name, before->second, false);
      kept_.erase(before);
    }
    const VersionRecord* measured_version = version(fragment, number);
    if (measured_version == nullptr || stays(*measured_version)) continue;
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

}  // namespace skerry::server
