// Spool, then reduce: K stored updates of one fragment → its next version, in walks over the fragment block by block.
//
// Each walk decodes a block of all K updates into cache and runs one pass of the aggregation rule on it; the last walk also
// takes the outer step, encodes it for the way down, adopts what decodes from that, writes the new fragment, the optimizer's
// new state and the encoded step, and hashes what it writes. Memory is O(block) a thread, whatever the model, and whatever
// the number of updates for linear rules; O(block × K) for the others, with blocks that shrink as K grows.
//
// The same job gives the same bytes whatever the order of its updates, the number of threads and the SIMD target: updates
// are taken in the order of (node, task id), the partition into blocks is fixed, sums are formed in float64 in a fixed tree.
// docs/aggregation.md explains it to people who write rules.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.h"
#include "server/aggregate/layer_norms.h"
#include "strategies/aggregation/rule.h"
#include "strategies/outer/outer_optimizer.h"

namespace skerry::server {

/// Bytes to read: a sealed file that we wrote ourselves where `path` is not empty, otherwise `bytes` (not copied; they
/// must outlive the call).
struct Payload {
  std::string path;
  std::string_view bytes;

  static Payload file(std::string path) { return {std::move(path), {}}; }
  static Payload in_memory(std::string_view bytes) { return {{}, bytes}; }
};

/// One accepted update of the fragment.
struct UpdateInput {
  std::string node;                  ///< who sent it; updates are summed in the order of (node, task_id)
  std::string task_id;               ///< unique in the job
  Payload payload;                   ///< the bare encoded vector of Δ = base − trained, all elements in layout order
  std::string encoding;              ///< "f32", "bf16", … (common/codec/encoding.h)
  strategies::Contribution contribution;
  /// The fragment's file that Δ was measured against, where that is an older version than the job's base: same header size,
  /// same elements. Used by rules that say Needs::rebased, which then see (current − then) + Δ, formed in float64 and rounded
  /// once to f32; both parts empty: measured against the base.
  Payload measured_base = {};
};

/// Where results go: files at these paths (made anew, replaced if there) or, where a path is empty, bytes in the outcome.
/// Give paths for anything but small models. The caller renames them to their final names and syncs the directory.
struct OutputPaths {
  std::string fragment;
  std::string state;  ///< written only if the outer optimizer or the rule has state, or with down_feedback
  std::string step;   ///< written only if `down` is not "f32"
  bool durable = true;  ///< fsync each file once
};

/// One reduction. Everything pointed at must outlive the call.
struct ReduceJob {
  std::string fragment;                             ///< its name, for messages and rules
  std::uint64_t elements = 0;                       ///< ≥ 1
  std::vector<strategies::TensorRange> tensors;     ///< in layout order; may be empty, then errors name elements only
  Payload base;                                     ///< the fragment's file: header, then 4 · elements bytes of f32
  std::uint64_t data_offset = 0;                    ///< where its values begin, a multiple of 64; what stands before is copied
  Payload state;                                    ///< the optimizer's and the rule's after the last step; both parts empty: none yet
  std::uint64_t step = 0;                           ///< which exchange of this fragment this is, from 1 (Cohort::step,
                                                    ///< OuterBlock::step); 0: one more than the state tells, 1 without state
  std::vector<UpdateInput> updates;                 ///< in any order
  const strategies::Rule* rule = nullptr;
  const strategies::OuterOptimizer* outer = nullptr;
  std::string down = "f32";                         ///< encoding of the step
  bool down_stochastic = false;                     ///< it rounds at random, from `seed` and the fragment's name
  double down_feedback = 0;                         ///< β: so much of what earlier steps lost goes into this one; 0: nothing
  std::uint64_t seed = 0;                           ///< of this exchange: for the rule and encodings that round at random
  bool measure_updates = false;                     ///< also fill update_norms and cosines (one more walk; see measure)
  std::vector<strategies::TensorRange> layers;      ///< whose norms are told, from layers_of(); empty: none
  OutputPaths output;
};

/// One result: where it is and what it is.
struct Artefact {
  std::uint64_t size = 0;   ///< 0: it was not made (no state, or no step because `down` is "f32")
  std::string bytes;        ///< where the job gave no path
  std::string content_id;   ///< of the fragment and the step (cargo); empty for the state
};

struct ReduceStatistics {
  double outer_gradient_norm = 0;      ///< L2 norm of the aggregated Δ
  double change_norm = 0;              ///< L2 norm of new − old, as adopted
  std::vector<double> update_norms;    ///< measure_updates: L2 norm of each decoded update, in the order of job.updates
  std::vector<double> cosines;         ///< measure_updates: of each update with the aggregated Δ; 0 where one is zero
  std::vector<LayerNorms> layers;      ///< of job.layers
  std::uint64_t bytes_read = 0;        ///< updates, base and state, every walk counted
  std::uint64_t bytes_written = 0;
  double seconds = 0;
};

struct ReduceOutcome {
  Artefact fragment;
  Artefact state;
  Artefact step;
  std::uint64_t outer_step = 1;  ///< which step this was, as ReduceJob::step says
  ReduceStatistics statistics;
};

class ReductionPool;

struct EngineOptions {
  unsigned threads = 0;  ///< that compute, the caller's among them; 0: one a core
};

/// Runs reductions. Its threads start with the first job that needs them; small jobs run on the caller's thread alone.
/// `reduce` may be called from several threads at once; they share the threads.
class AggregationEngine {
 public:
  explicit AggregationEngine(EngineOptions options = {});
  ~AggregationEngine();
  AggregationEngine(const AggregationEngine&) = delete;
  AggregationEngine& operator=(const AggregationEngine&) = delete;

  /// Runs one job. Nothing is left at the output paths where it fails.
  ///
  /// INVALID_ARGUMENT: no updates; two with one task id; an unknown encoding; a payload whose size does not fit the number
  /// of elements; a value that is not finite, in an update, the outer gradient, a state or the new model, named by task,
  /// element and tensor; whatever the rule refuses.
  /// FAILED_PRECONDITION: the state is of another optimizer or another fragment. State of the rule that the file lacks is
  /// zero, and what it has of another rule is left out.
  /// DATA_LOSS naming the file: the base or the state is damaged, a file was cut while it was read, the disk failed.
  /// NOT_FOUND, PERMISSION_DENIED, RESOURCE_EXHAUSTED: opening, mapping, writing.
  Result<ReduceOutcome> reduce(const ReduceJob& job);

  /// The same aggregation without an outer step and without outputs: only the statistics. `outer`, `down` and `output`
  /// are ignored; `state` may be of any optimizer.
  Result<ReduceStatistics> measure(const ReduceJob& job);

  /// Runs body(0) … body(count − 1), each once, on the engine's threads and the caller's, and waits for all. `body` must
  /// not throw and must not call into the engine.
  void parallel_for(std::size_t count, const std::function<void(std::size_t index)>& body);

  unsigned threads() const;

 private:
  std::unique_ptr<ReductionPool> pool_;
};

}  // namespace skerry::server
