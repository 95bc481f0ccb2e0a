// The state that an exchange starts from: the outer optimizer's vectors, the rule's and the residual of the steps' encoding,
// zeros where there are none yet.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "server/aggregate/engine.h"
#include "server/aggregate/inputs.h"
#include "server/aggregate/outer_state.h"

namespace skerry::server {

/// Vectors are counted as the new state has them: the optimizer's first, then the rule's, then the residual.
class ExchangeState {
 public:
  /// Errors as AggregationEngine::reduce says. `job.outer` may be null: then the rule's vectors are all there is, of a state
  /// of any optimizer.
  static Result<ExchangeState> open(const ReduceJob& job);

  /// What the new state's header says.
  const OuterStateHeader& header() const { return header_; }
  std::size_t vectors() const { return header_.vectors.size(); }
  /// The rule's vectors begin here.
  std::size_t first_of_rule() const { return first_of_rule_; }
  /// Where the job has down_feedback: what earlier steps lost.
  std::optional<std::size_t> residual() const { return residual_; }
  /// "the outer optimizer's velocity"
  std::string vector_name(std::size_t vector) const;

  /// Elements [first, first + count) of a vector: in place, or put into `scratch`.
  const float* values(std::size_t vector, std::uint64_t first, std::size_t count, float* scratch) const;

  /// True where the vector was stored, so that its chunks have checksums.
  bool stored(std::size_t vector) const { return source_ && stored_[vector].has_value(); }
  /// DATA_LOSS unless `sum` is that of the vector's elements in the `index`-th chunk with values.
  Result<void> check_chunk(std::size_t vector, std::uint64_t index, const StateChecksum& sum) const;

  std::uint64_t bytes() const { return source_ ? source_->bytes().size() : 0; }
  Result<void> check() const { return source_ ? source_->check() : Result<void>(); }
  void drop(std::uint64_t first, std::uint64_t count) const;

 private:
  Result<void> take(const OuterStateHeader& old, const ReduceJob& job, const std::string& name);

  OuterStateHeader header_;
  std::size_t first_of_rule_ = 0;
  std::optional<std::size_t> residual_;
  std::optional<Source> source_;                     // empty: there was no state
  OuterStateHeader old_header_;
  std::vector<std::optional<std::size_t>> stored_;   // where source_ has each vector
};

}  // namespace skerry::server
