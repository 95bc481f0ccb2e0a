// The open inputs of one job and the walks over them: tables of statistics, and the outer gradient of a block.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "common/base/result.h"
#include "server/aggregate/exchange_state.h"
#include "server/aggregate/inputs.h"
#include "server/aggregate/pool.h"

namespace skerry::server {

/// Values of a block at most: with its rows and the outer step's spans it stays in a core's second-level cache.
inline constexpr std::size_t kBlockElements = 8192;

/// Up to this many bytes of inputs stay mapped until the end: that costs less than to drop them on the way. They are pages of
/// files, which the kernel takes back when it needs memory.
inline constexpr std::uint64_t kKeepMappedBytes = std::uint64_t{2} << 30;

/// Keeps the first error of a parallel loop: that of the lowest index that was run.
class FirstError {
 public:
  /// True once something failed: the rest need not run.
  bool failed() const { return failed_.load(std::memory_order_relaxed); }
  void report(std::size_t index, Error error);
  Result<void> result();

 private:
  std::atomic<bool> failed_{false};
  std::mutex mutex_;
  std::size_t index_ = 0;
  std::optional<Error> error_;
};

/// Runs `body` with an exception from a rule, or from a lack of memory, turned into an error.
Result<void> without_exceptions(const std::function<Result<void>()>& body);

class CohortWalk {
 public:
  /// Checks the job and opens its inputs. Errors as AggregationEngine::reduce says.
  static Result<CohortWalk> open(const ReduceJob& job, ReductionPool& pool);

  /// Runs the rule's statistics passes and keeps its output pass.
  Result<void> run_statistics();

  /// A thread's memory for outer_gradient.
  struct Slot {
    Scratch encoded;   // one piece of one update as it came
    Scratch rows;      // decoded rows
    Scratch sums;      // float64, where one call of add_rows cannot take all rows
    Scratch base;      // the base's values, where they are not aligned
    Scratch state;     // the rule's vectors, where they are not in place
    Scratch gradient;  // measure: the outer gradient
    Scratch unused;    // measure: the rule's new vectors
    std::vector<const float*> updates;
    std::vector<const float*> state_rows;
  };
  Slot make_slot() const;

  /// The outer gradient's elements [first, first + count), count at most block_elements(), `first` a multiple of
  /// granularity() and the end one too or the fragment's end, and of the rule's vectors after this exchange into `rule_state`.
  /// INVALID_ARGUMENT naming a value of the gradient that is not finite.
  /// Returns the sum of squares of the elements [own_first, own_end).
  Result<double> outer_gradient(std::uint64_t first, std::size_t count, std::uint64_t own_first, std::uint64_t own_end,
                                Slot& slot, float* out, std::span<float* const> rule_state) const;

  /// Norms and cosines by one more walk over the updates, after run_statistics.
  Result<ReduceStatistics> measure(bool updates_too);

  /// The base's values in place, or copied to `scratch`.
  const float* base_values(std::uint64_t first, std::size_t count, float* scratch) const;
  std::span<const std::byte> base_bytes() const { return base_->bytes(); }
  const ExchangeState& state() const { return *state_; }

  /// What the encodings of the updates can be decoded by.
  std::uint64_t granularity() const { return granularity_; }
  std::size_t block_elements() const { return block_elements_; }
  std::uint64_t update_bytes() const { return update_bytes_; }
  /// By the walks of this object.
  std::uint64_t bytes_read() const { return bytes_read_; }

  /// Pages behind the walk are done with. Kept until the end where the job is small (kKeepMappedBytes).
  void drop(std::uint64_t first, std::uint64_t count) const;
  bool drops() const { return update_bytes_ > kKeepMappedBytes; }

  /// DATA_LOSS if an input could not be read.
  Result<void> check_inputs() const;

 private:
  CohortWalk(const ReduceJob& job, ReductionPool& pool) : job_(&job), pool_(&pool) {}

  struct Segment {
    std::size_t tensor = 0;
    std::uint64_t first = 0;
    std::size_t count = 0;
  };
  struct OlderBase {
    Payload payload;
    std::unique_ptr<Source> source;
  };
  using AddBlock = std::function<Result<void>(std::uint64_t first, std::size_t count, Slot& slot, strategies::Table& sum)>;

  Result<void> check_job() const;
  Result<void> open_base();
  Result<void> open_updates();
  Result<const Source*> older_base(const UpdateInput& update);
  strategies::Cohort cohort() const;
  std::size_t rule_vectors() const { return job_->rule->state_vectors.size(); }
  std::size_t columns() const { return updates_.size() + rule_vectors(); }
  std::string column_name(std::size_t column) const;
  RowKind row_kind(std::size_t column) const;
  bool decodes_row(std::size_t column) const;
  Result<Row> row(std::size_t column, std::uint64_t first, std::size_t count, Slot& slot, std::size_t place) const;
  Result<void> accept_output(strategies::Pass pass);
  std::size_t elements_in_block(std::size_t rows_in_cache) const;
  std::vector<Segment> segments(std::uint64_t first, std::size_t count) const;
  Result<void> load_rows(std::uint64_t first, std::size_t count, Slot& slot) const;
  Result<void> for_each_block_of_rule(
      std::uint64_t first, std::size_t count, Slot& slot,
      const std::function<void(const strategies::Block& block, std::size_t shift)>& use) const;
  Result<void> add_linear(const strategies::LinearOutput& output, std::uint64_t first, std::size_t count, Slot& slot,
                          float* out) const;
  Error blame(std::uint64_t element, float value) const;
  Result<strategies::Table> sum_over_blocks(std::size_t rows, std::size_t columns, const AddBlock& add);

  const ReduceJob* job_;
  ReductionPool* pool_;
  std::vector<std::size_t> order_;       // the k-th update is job.updates[order_[k]]
  std::vector<UpdateReader> updates_;    // in that order, as are the next
  std::vector<strategies::Contribution> contributions_;
  std::optional<Source> base_;
  std::vector<OlderBase> older_bases_;   // each once
  std::optional<ExchangeState> state_;
  std::optional<strategies::Pass> output_;
  std::vector<std::size_t> active_;      // columns with a coefficient other than 0 (linear outputs)
  bool one_group_ = false;               // they are few enough and alike, for one call of add_rows
  bool per_tensor_ = false;              // a linear output has coefficients for each tensor
  std::size_t block_elements_ = kBlockElements;
  std::uint64_t granularity_ = 1;
  std::uint64_t update_bytes_ = 0;
  std::uint64_t bytes_read_ = 0;
};

}  // namespace skerry::server
