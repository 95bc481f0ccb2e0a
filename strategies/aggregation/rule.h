// The interface of every aggregation rule: K updates of one fragment → one outer gradient.
//
// A rule is a list of passes over the fragment. A *statistics pass* sees the K updates block by block and adds up a small
// float64 table (K × K distances, K × tensors norms, …). An *output pass*, always the last, says how the K updates become
// one outer gradient: as a linear combination (weighted mean; but also Krum, the geometric median and centered clipping,
// whose coefficients come out of statistics) or value by value (coordinate median, trimmed mean). The engine
// (server/aggregate) decodes, walks, sums tables over blocks in a fixed tree and runs blocks on all cores; a rule is a pure
// function: no I/O, no clock, no state of its own, randomness only from `Cohort::seed`.
//
//   weighted mean      linear(w_k / Σw)
//   Krum               statistics K × K distances, then linear(1 for the chosen, 0 for the others)
//   geometric median   statistics K distances to the last mean, once for each of Weiszfeld's iterations, then linear
//   coordinate median  per_value(median)
//   radial-directional statistics K × tensors norms, then of the mean direction, then linear with a coefficient per tensor
//   centered clipping  statistics K distances to the vector it keeps, then linear over the updates and that vector
//
// A rule may keep f32 vectors of the fragment's length from exchange to exchange (`state_vectors`); the engine stores them
// with the version, so that a restart or a rollback finds the ones that belong to it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "common/base/result.h"
#include "strategies/part.h"

namespace skerry::strategies {

/// What is known of an update besides its values.
struct Contribution {
  std::uint64_t examples = 0;  ///< seen in training, with repetitions
  std::uint64_t tokens = 0;
  std::uint64_t steps = 0;     ///< inner steps
  double factor = 1.0;         ///< multiplies the weight, for example a discount for staleness; finite, ≥ 0
  std::string node;            ///< who sent it
  std::vector<double> metrics = {};  ///< what the node reported of each of Needs::metrics, in that order; finite
};

/// A tensor's place in its fragment, in elements. Tensors follow each other without gaps in layout order.
struct TensorRange {
  std::string name;
  std::uint64_t first = 0;
  std::uint64_t count = 0;
};

/// Everything a rule may look at besides the values. Update k is `contributions[k]`; the order is fixed (by node and task id).
struct Cohort {
  std::span<const Contribution> contributions;
  std::span<const TensorRange> tensors;  ///< may be empty unless the rule needs tensors
  std::uint64_t seed = 0;                ///< of this exchange; the only source of randomness
  std::uint64_t step = 1;                ///< which exchange of this fragment this is: 1, 2, …

  std::size_t size() const { return contributions.size(); }
};

/// A piece of the fragment, decoded and in cache: elements [first, first + count) of `fragment`.
struct Block {
  std::string_view fragment;
  std::uint64_t first = 0;
  std::size_t count = 0;
  std::size_t tensor = 0;                ///< index into Cohort::tensors (rules that need tensors; else 0)
  std::span<const float* const> updates; ///< K pointers to `count` values each: the outer gradients Δ_k = old − new
  const float* base = nullptr;           ///< the fragment's current values, `count` of them
  std::span<const float* const> state;   ///< S pointers to `count` values each: the rule's state vectors, before
};

/// A row-major float64 table.
struct Table {
  std::size_t rows = 0;
  std::size_t columns = 0;
  std::vector<double> values;

  double at(std::size_t row, std::size_t column) const { return values[row * columns + column]; }
  double& at(std::size_t row, std::size_t column) { return values[row * columns + column]; }
};

/// Adds up a rows × columns table over all blocks. `add` gets a table of zeros or of sums of other blocks and adds this
/// block's share; it may run on several threads at once, on different tables.
struct StatisticsPass {
  std::size_t rows = 0;
  std::size_t columns = 0;
  std::function<void(const Block& block, Table& sum)> add;
};

/// Outer gradient = Σ_k coefficients[t · (K + S) + k] · v_k for the values of tensor t, where v is the K updates and then the
/// S state vectors, summed in float64 in that order and rounded once. One row (K + S coefficients) serves all tensors; more
/// rows need `Needs::tensors`. Every state vector becomes the outer gradient.
struct LinearOutput {
  std::vector<double> coefficients;
};

/// Outer gradient = whatever `reduce` writes into `out` (block.count values); `state` are the S state vectors after this
/// exchange, to be written too. May run on several threads at once.
struct ValueOutput {
  std::function<void(const Block& block, std::span<float> out, std::span<float* const> state)> reduce;
};

using Pass = std::variant<StatisticsPass, LinearOutput, ValueOutput>;

/// What a rule asks of its surroundings; an impossible combination is refused when a run is submitted.
struct Needs {
  bool individual_updates = false;  ///< must see single updates: cannot go with secure sums
  bool linear = false;              ///< a linear combination whose coefficients do not depend on values: can go with them
  bool all_clients = false;         ///< every invited client must deliver
  bool tensors = false;             ///< blocks must not cross tensors, and tables or coefficients may be per tensor
  bool rebased = false;  ///< an update measured against an older version is given against the current one: (current − then) + Δ
  bool partial_updates = false;  ///< an update may carry only some of its task's fragments: means per module
  std::vector<std::string> nodes;    ///< every exchange must have an update of each of these (FLTrust's own data)
  std::vector<std::string> metrics;  ///< every update must report these, for example {"start_loss"}; others are discarded
  std::size_t minimum_updates = 1;
  std::string because = {};          ///< why so many, for example "n >= 2f + 3 with f = 1"; may be empty
  std::size_t maximum_updates = std::numeric_limits<std::size_t>::max();
};

/// An aggregation rule, ready to use.
struct Rule {
  std::string name;
  Needs needs;
  std::vector<std::string> state_vectors;  ///< for example {"center"}; zero before a fragment's first exchange
  bool waits = false;  ///< its functions may wait for another process: not for a thread that others depend on

  /// The next pass, given the tables of the statistics passes so far (none at first), in order. Called until it returns an
  /// output. Pure: the same cohort and tables give the same pass.
  /// INVALID_ARGUMENT where the cohort cannot be aggregated, for example a total weight of zero.
  std::function<Result<Pass>(const Cohort& cohort, std::span<const Table> tables)> next;
};

/// Refuses a cohort outside the rule's bounds, with a non-finite or negative factor, or without tensors for a rule that
/// needs them. INVALID_ARGUMENT naming the rule and the number.
Result<void> check_cohort(const Rule& rule, const Cohort& cohort);

/// The rules there are, with their parameters; for `resolve`, documentation and `skerry strategy`.
std::span<const PartInfo> aggregation_catalogue();

/// The rule that a part names. INVALID_ARGUMENT as `resolve` says.
Result<Rule> make_rule(const Part& part);

}  // namespace skerry::strategies
