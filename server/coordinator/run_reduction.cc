#include "server/coordinator/run_reduction.h"

#include <algorithm>
#include <deque>
#include <memory>
#include <optional>
#include <utility>

#include "common/codec/compression.h"
#include "common/crypto/content_id.h"
#include "common/os/files.h"
#include "server/coordinator/inflated.h"
#include "strategies/aggregation/weighted_mean.h"
#include "strategies/outer/outer_optimizer.h"
#include "strategies/participation.h"

namespace skerry::server {
namespace {

using FindVersion = std::function<const VersionRecord*(std::uint32_t fragment, std::uint64_t number)>;

// One fragment's job and what it points into. Never moved.
struct FragmentJob {
  FragmentShape shape;
  VersionRecord base;
  std::uint64_t version = 0;  // to be made
  std::map<std::uint64_t, VersionRecord> older;  // that updates were measured against, by number
  std::vector<std::shared_ptr<const AcceptedUpdate>> updates;
  std::optional<strategies::Rule> rule;  // instead of the plan's
  std::optional<strategies::OuterOptimizer> outer;
  std::map<std::size_t, std::uint64_t> compressed;  // of the job's updates: what they come to
  bool zstd = false;                                // the step may be compressed
  ReduceJob job;
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

// Compresses the step where the run says so and it pays; whether it did.
Result<bool> compress_step(FragmentJob& fragment, Artefact& step, CargoStore& cargo) {
  std::string& path = fragment.job.output.step;
  if (!fragment.zstd || step.size == 0) return false;
  if (path.empty()) {
    auto frame = compressed(as_bytes_of(step.bytes));
    if (!frame) return false;
    step = {frame->size(), std::move(*frame), ""};
    step.content_id = content_id(step.bytes);
    return true;
  }
  const std::string packed = cargo.scratch_path();
  SKERRY_ASSIGN(const MappedFile bytes, MappedFile::open(path));
  SKERRY_ASSIGN(const auto size, compress_to_file(bytes.bytes(), packed));
  SKERRY_TRY(bytes.check());
  if (!size) return false;
  SKERRY_TRY(remove_file(path));
  path = packed;
  SKERRY_ASSIGN(File file, File::open(packed, OpenMode::kReadWrite));
  SKERRY_TRY(file.fsync());
  SKERRY_ASSIGN(const MappedFile frame, MappedFile::open(packed));
  step.size = *size;
  step.content_id = content_id(frame.bytes());
  SKERRY_TRY(frame.check());
  return true;
}

// Makes an outcome durable.
Result<Reduction> keep_all(FragmentJob& fragment, ReduceOutcome outcome, const std::string& run_id, std::uint64_t exchange,
                           CargoStore& cargo) {
  const OutputPaths& output = fragment.job.output;
  Reduction reduction;
  reduction.statistics = std::move(outcome.statistics);
  VersionRecord& version = reduction.version;
  version.run_id = run_id;
  version.fragment = fragment.shape.name;
  version.version = fragment.version;
  version.exchange = exchange;
  SKERRY_ASSIGN(version.whole, keep(outcome.fragment, output.fragment, cargo));
  SKERRY_ASSIGN(const bool packed, compress_step(fragment, outcome.step, cargo));
  SKERRY_ASSIGN(version.step, keep(outcome.step, output.step, cargo));
  if (version.step.size > 0) version.step_encoding = wire_name(fragment.job.down, packed);
  version.state_size = outcome.state.size;
  if (outcome.state.size > 0 && !output.state.empty()) {
    version.state_name = run_id + "." + fragment.shape.name + "." + std::to_string(fragment.version);
    SKERRY_TRY(cargo.adopt_state(output.state, version.state_name, /*synced=*/true));
  } else {
    version.state_bytes = std::move(outcome.state.bytes);
  }
  return reduction;
}

// Files that an earlier process wrote are compared with their ids before a version is made of them.
Result<void> verify_files(const ReduceJob& job, const CargoStore& cargo) {
  SKERRY_TRY(cargo.verify_once(job.base.path));
  for (const UpdateInput& update : job.updates) {
    SKERRY_TRY(cargo.verify_once(update.payload.path));
    SKERRY_TRY(cargo.verify_once(update.measured_base.path));
  }
  return {};
}

Result<Reduction> reduce_fragment(FragmentJob& fragment, const std::string& run_id, std::uint64_t exchange,
                                  CargoStore& cargo, AggregationEngine& engine) {
  if (fragment.job.updates.empty()) {
    Reduction unchanged{fragment.base, {}};
    unchanged.version.version = fragment.version;
    unchanged.version.exchange = exchange;
    unchanged.version.step = {};
    unchanged.version.step_encoding.clear();
    unchanged.version.kept = false;
    return unchanged;
  }
  SKERRY_TRY(verify_files(fragment.job, cargo));
  OutputPaths& output = fragment.job.output;
  if (fragment.shape.file_bytes > kInlineLimit)
    output = {cargo.scratch_path(), cargo.scratch_path(), cargo.scratch_path(), true};
  ReduceJob job = fragment.job;
  std::vector<Inflated> inflated;  // until the reduction is over
  for (const auto& [index, size] : fragment.compressed) {
    Payload& payload = job.updates[index].payload;
    SKERRY_ASSIGN(Inflated bytes, Inflated::open(payload.path, size, cargo));
    payload.path = bytes.path();
    inflated.push_back(std::move(bytes));
  }
  SKERRY_ASSIGN(ReduceOutcome outcome, engine.reduce(job));
  Result<Reduction> kept = keep_all(fragment, std::move(outcome), run_id, exchange, cargo);
  if (!kept.ok())  // the exchange is reduced anew later: what is left must not fill the disk
    for (const std::string& path : {output.fragment, output.step, output.state})
      if (!path.empty()) (void)remove_file(path).ok();
  return kept;
}

Result<VersionRecord> needed(const FindVersion& version, const std::string& run_id, const FragmentShape& shape,
                             std::uint32_t fragment, std::uint64_t number) {
  if (const VersionRecord* found = version(fragment, number)) return *found;
  return data_loss("run " + run_id + ": version " + std::to_string(number) + " of fragment '" + shape.name +
                   "' is missing from the store");
}

// A control fragment is the sum of its changes over all nodes, whatever the exchanged fragments' rule is.
Result<void> use_control_rule(FragmentJob& fragment, std::uint64_t nodes) {
  const double updates = static_cast<double>(fragment.job.updates.size());
  fragment.rule = strategies::weighted_mean_rule(strategies::Weights::kUniform);
  const double learning_rate = updates / static_cast<double>(std::max<std::uint64_t>(nodes, fragment.job.updates.size()));
  SKERRY_ASSIGN(fragment.outer, strategies::make_outer_optimizer(strategies::sgd({.learning_rate = learning_rate})));
  fragment.job.rule = &*fragment.rule;
  fragment.job.outer = &*fragment.outer;
  for (UpdateInput& update : fragment.job.updates) update.contribution.factor = 1;
  return {};
}

Result<void> add_update(FragmentJob& fragment, const FragmentStep& step, const ReduceInput& input,
                        const std::shared_ptr<const AcceptedUpdate>& accepted, const RunPlan& plan,
                        const std::string& run_id, const FindVersion& version, CargoStore& cargo) {
  const auto payload = std::find_if(accepted->payloads.begin(), accepted->payloads.end(),
                                    [&](const UpdatePayload& of) { return of.fragment == step.fragment; });
  if (payload == accepted->payloads.end()) return {};
  UpdateInput update;
  update.task_id = input.task;
  update.node = input.node;
  update.encoding = plan.spec.exchange.up;
  update.contribution = {.examples = input.examples,
                         .tokens = input.tokens,
                         .steps = input.steps,
                         .factor = input.factor,
                         .node = input.node,
                         .metrics = input.metrics};
  if (payload->inline_data.empty()) {
    SKERRY_ASSIGN(std::string path, cargo.spool_file(input.task, payload->content_id));
    update.payload = Payload::file(std::move(path));
    if (payload->zstd) fragment.compressed[fragment.job.updates.size()] = payload->encoded;
  } else {
    update.payload = Payload::in_memory(payload->inline_data);
    fragment.updates.push_back(accepted);
  }
  if (plan.rule.needs.rebased && payload->base_version < step.base_version) {
    auto known = fragment.older.find(payload->base_version);
    if (known == fragment.older.end()) {
      SKERRY_ASSIGN(VersionRecord record, needed(version, run_id, fragment.shape, step.fragment, payload->base_version));
      known = fragment.older.emplace(payload->base_version, std::move(record)).first;
    }
    update.measured_base = fragment_payload(known->second, cargo);
  }
  fragment.job.updates.push_back(std::move(update));
  return {};
}

}  // namespace

Result<ReductionWork> plan_reduction(const Reduce& command, const RunPlan& plan, const std::string& run_id,
                                     const AcceptedUpdates& accepted, const FindVersion& version, CargoStore& cargo,
                                     AggregationEngine& engine) {
  auto jobs = std::make_shared<std::deque<FragmentJob>>();
  ReductionWork work;
  work.small = !plan.rule.waits;
  for (const FragmentStep& step : command.fragments) {
    FragmentJob& fragment = jobs->emplace_back();
    fragment.shape = plan.shapes[step.fragment];
    work.small = work.small && fragment.shape.file_bytes <= kInlineLimit;
    SKERRY_ASSIGN(fragment.base, needed(version, run_id, fragment.shape, step.fragment, step.base_version));
    ReduceJob& job = fragment.job;
    job.fragment = fragment.shape.name;
    job.elements = fragment.shape.elements;
    job.tensors = fragment.shape.tensors;
    job.data_offset = fragment.shape.data_offset;
    job.base = fragment_payload(fragment.base, cargo);
    job.state = state_payload(fragment.base, cargo);
    fragment.version = step.new_version;
    // Where exchanges may pass a fragment by, its optimizer's state counts those that moved it.
    const bool counted_by_state = plan.rule.needs.partial_updates && !plan.outer.state_vectors.empty();
    job.step = counted_by_state ? 0 : step.new_version;
    if (plan.spec.evaluation.layer_norms && fragment.shape.role == FragmentRole::kExchanged)
      job.layers = layers_of(fragment.shape.tensors);
    job.rule = &plan.rule;
    job.outer = &plan.outer;
    job.down = plan.spec.exchange.down;
    fragment.zstd = plan.spec.exchange.zstd;
    job.down_stochastic = plan.spec.exchange.down_stochastic;
    job.down_feedback = plan.spec.exchange.down_feedback;
    job.seed = strategies::task_seed(plan.spec.seed, fragment.shape.name, command.exchange);
    for (const ReduceInput& input : command.inputs) {
      const auto update = accepted.find(input.task);
      if (update == accepted.end())
        return data_loss("run " + run_id + ": the accepted update of task " + input.task + " is missing");
      SKERRY_TRY(add_update(fragment, step, input, update->second, plan, run_id, version, cargo));
    }
    if (fragment.shape.role == FragmentRole::kControl) SKERRY_TRY(use_control_rule(fragment, command.nodes));
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
