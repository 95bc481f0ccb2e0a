// RunHost: what people see of a run.
#include "server/coordinator/run_host.h"

namespace skerry::server {

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
  for (const ExchangeView& exchange : view.exchanges) {
    v1::OpenExchange& open = *detail.add_exchanges();
    open.set_exchange(exchange.exchange);
    for (const std::string& fragment : exchange.fragments) open.add_fragments(fragment);
    open.set_state(exchange.state);
    open.set_accepted(exchange.accepted);
    open.set_outstanding(exchange.outstanding);
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
