#include "server/coordinator/run_reduction.h"

#include <memory>
#include <utility>

#include "common/os/files.h"
#include "strategies/presets.h"

namespace skerry::server {
namespace {

// One fragment's job with the bytes it points into.
struct FragmentJob {
  FragmentShape shape;
  VersionRecord base;
  std::vector<std::pair<std::string, std::string>> inline_updates;  // keeps the bytes alive: task, bytes
  ReduceJob job;
  std::uint64_t new_version = 0;
};

Payload fragment_payload(const VersionRecord& version, const CargoStore& cargo) {
  return version.whole.bytes.empty() ? Payload::file(cargo.cargo_path(version.whole.content_id))
                                     : Payload::in_memory(version.whole.bytes);
}

Payload state_payload(const VersionRecord& version, const CargoStore& cargo) {
  return version.state_name.empty() ? Payload::in_memory(version.state_bytes)
                                    : Payload::file(cargo.state_path(version.state_name));
}

Result<StoredBlob> keep(Artefact& artefact, const std::string& path, CargoStore& cargo) {
  StoredBlob blob{artefact.content_id, artefact.size, std::move(artefact.bytes)};
  if (artefact.size > 0 && !path.empty()) SKERRY_TRY(cargo.adopt_file(path, artefact.content_id, /*synced=*/true));
  return blob;
}

// Makes an outcome durable.
Result<Reduction> keep_all(const FragmentJob& fragment, ReduceOutcome outcome, const std::string& run_id, std::uint64_t exchange,
                           CargoStore& cargo) {
  const OutputPaths& output = fragment.job.output;
  Reduction reduction;
  reduction.statistics = std::move(outcome.statistics);
  VersionRecord& version = reduction.version;
  version.run_id = run_id;
  version.fragment = fragment.shape.name;
  version.version = fragment.new_version;
  version.exchange = exchange;
  SKERRY_ASSIGN(version.whole, keep(outcome.fragment, output.fragment, cargo));
  SKERRY_ASSIGN(version.step, keep(outcome.step, output.step, cargo));
  if (version.step.size > 0) version.step_encoding = fragment.job.down;
  version.state_size = outcome.state.size;
  if (outcome.state.size > 0 && !output.state.empty()) {
    version.state_name = run_id + "." + fragment.shape.name + "." + std::to_string(fragment.new_version);
    SKERRY_TRY(cargo.adopt_state(output.state, version.state_name, /*synced=*/true));
  } else {
    version.state_bytes = std::move(outcome.state.bytes);
  }
  return reduction;
}

Result<Reduction> reduce_fragment(FragmentJob& fragment, const std::string& run_id, std::uint64_t exchange,
                                  CargoStore& cargo, AggregationEngine& engine) {
  OutputPaths& output = fragment.job.output;
  if (fragment.shape.file_bytes > kInlineLimit)
    output = {cargo.scratch_path(), cargo.scratch_path(), cargo.scratch_path(), true};
  SKERRY_ASSIGN(ReduceOutcome outcome, engine.reduce(fragment.job));
  Result<Reduction> kept = keep_all(fragment, std::move(outcome), run_id, exchange, cargo);
  if (!kept.ok())  // the exchange is reduced anew later: what is left must not fill the disk
    for (const std::string& path : {output.fragment, output.step, output.state})
      if (!path.empty()) (void)remove_file(path).ok();
  return kept;
}

}  // namespace

Result<ReductionWork> plan_reduction(
    const Reduce& command, const RunPlan& plan, const std::string& run_id,
    const std::map<std::string, AcceptedUpdate>& accepted,
    const std::function<const VersionRecord*(std::uint32_t fragment, std::uint64_t version)>& base, CargoStore& cargo,
    AggregationEngine& engine) {
  auto jobs = std::make_shared<std::vector<FragmentJob>>();
  ReductionWork work;
  work.small = true;
  for (const FragmentStep& step : command.fragments) {
    FragmentJob fragment;
    fragment.shape = plan.shapes[step.fragment];
    fragment.new_version = step.new_version;
    work.small = work.small && fragment.shape.file_bytes <= kInlineLimit;
    const VersionRecord* from = base(step.fragment, step.base_version);
    if (!from)
      return data_loss("run " + run_id + ": version " + std::to_string(step.base_version) + " of fragment '" +
                       fragment.shape.name + "' is missing from the store");
    fragment.base = *from;
    for (const ReduceInput& input : command.inputs) {
      const auto update = accepted.find(input.task);
      if (update == accepted.end()) return data_loss("run " + run_id + ": the accepted update of task " + input.task + " is missing");
      for (const UpdatePayload& payload : update->second.payloads) {
        if (payload.fragment != step.fragment) continue;
        UpdateInput next;
        next.task_id = input.task;
        next.node = input.node;
        next.encoding = plan.spec.exchange.up;
        next.contribution = update->second.contribution;
        next.contribution.factor = strategies::staleness_factor(plan.spec.participation, input.staleness).value_or(0);
        if (payload.inline_data.empty()) {
          SKERRY_ASSIGN(std::string path, cargo.spool_file(input.task, payload.content_id));
          next.payload = Payload::file(std::move(path));
        } else {
          fragment.inline_updates.emplace_back(input.task, payload.inline_data);
        }
        fragment.job.updates.push_back(std::move(next));
      }
    }
    jobs->push_back(std::move(fragment));
  }
  // Views are taken only now that nothing moves any more.
  for (std::size_t i = 0; i < jobs->size(); ++i) {
    FragmentJob& fragment = (*jobs)[i];
    ReduceJob& job = fragment.job;
    std::map<std::string_view, std::string_view> bytes;
    for (const auto& [task, data] : fragment.inline_updates) bytes[task] = data;
    for (UpdateInput& update : job.updates)
      if (const auto found = bytes.find(update.task_id); found != bytes.end()) update.payload = Payload::in_memory(found->second);
    job.fragment = fragment.shape.name;
    job.elements = fragment.shape.elements;
    job.tensors = fragment.shape.tensors;
    job.data_offset = fragment.shape.data_offset;
    job.base = fragment_payload(fragment.base, cargo);
    job.state = state_payload(fragment.base, cargo);
    job.rule = &plan.rule;
    job.outer = &plan.outer;
    job.down = plan.spec.exchange.down;
    job.seed = strategies::task_seed(plan.spec.seed, fragment.shape.name, command.exchange);
  }
  work.run = [jobs, run_id, exchange = command.exchange, &cargo, &engine]() -> Result<std::vector<Reduction>> {
    std::vector<Reduction> reductions;
    for (FragmentJob& job : *jobs) {
      SKERRY_ASSIGN(Reduction reduction, reduce_fragment(job, run_id, exchange, cargo, engine));
      reductions.push_back(std::move(reduction));
    }
    return reductions;
  };
  return work;
}

}  // namespace skerry::server
