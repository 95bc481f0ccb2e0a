#include "server/aggregate/cohort_walk.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <exception>
#include <numeric>
#include <set>
#include <tuple>

#include "common/codec/int8.h"
#include "common/tensor/kernels.h"

namespace skerry::server {
namespace {

using strategies::Block;
using strategies::LinearOutput;
using strategies::Pass;
using strategies::StatisticsPass;
using strategies::Table;
using strategies::ValueOutput;

// Decoded floats of all updates together in one block of a rule that sees them side by side: 1 MiB.
constexpr std::size_t kFloatsSideBySide = std::size_t{1} << 18;
constexpr std::size_t kSmallestBlock = 64;

// Statistics are summed in lanes, each a run of consecutive pieces of this many elements. The number of lanes depends on the
// table's size alone, so that neither threads nor timing change a bit.
constexpr std::uint64_t kPieceElements = std::uint64_t{1} << 18;
constexpr std::size_t kLaneBytes = std::size_t{16} << 20;
constexpr std::size_t kFewestLanes = 4;
constexpr std::size_t kMostLanes = 256;

constexpr std::size_t kMostPasses = 1000;

// A file of the fragment, of the size that the job says.
Result<Source> open_whole(const ReduceJob& job, const Payload& payload, const std::string& name) {
  SKERRY_ASSIGN(Source source, Source::open(payload, name));
  const std::uint64_t expected = job.data_offset + 4 * job.elements;
  if (source.bytes().size() == expected) return source;
  return data_loss(name + " has " + std::to_string(source.bytes().size()) + " bytes, must have " + std::to_string(expected) +
                   "; it was cut or replaced, restore it from a backup");
}

std::uint64_t round_up(std::uint64_t value, std::uint64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

}  // namespace

void FirstError::report(std::size_t index, Error error) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!error_ || index < index_) {
    index_ = index;
    error_ = std::move(error);
  }
  failed_.store(true, std::memory_order_relaxed);
}

Result<void> FirstError::result() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (error_) return *error_;
  return {};
}

Result<void> without_exceptions(const std::function<Result<void>()>& body) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return resource_exhausted("the aggregation ran out of memory; free some, or use fewer threads");
  } catch (const std::exception& error) {
    return internal_error(std::string("the aggregation rule failed: ") + error.what());
  }
}

Result<CohortWalk> CohortWalk::open(const ReduceJob& job, ReductionPool& pool) {
  CohortWalk walk(job, pool);
  SKERRY_TRY(walk.check_job());
  SKERRY_ASSIGN(Source base, open_whole(job, job.base, "fragment " + job.fragment));
  walk.base_.emplace(std::move(base));
  SKERRY_ASSIGN(ExchangeState state, ExchangeState::open(job));
  walk.state_.emplace(std::move(state));
  SKERRY_TRY(walk.open_updates());
  SKERRY_TRY(strategies::check_cohort(*job.rule, walk.cohort()));
  return walk;
}

strategies::Cohort CohortWalk::cohort() const {
  return {contributions_, job_->tensors, job_->seed, state_->header().steps};
}

Result<void> CohortWalk::check_job() const {
  assert(job_->rule != nullptr);
  const std::string name = "fragment " + job_->fragment;
  if (job_->elements == 0) return invalid_argument(name + " has no elements, so there is nothing to aggregate");
  if (job_->data_offset % 64 != 0) {
    return invalid_argument(name + ": its values begin at byte " + std::to_string(job_->data_offset) +
                            ", must be a multiple of 64");
  }
  if (job_->updates.empty()) return invalid_argument(name + ": there is no update to aggregate");
  std::uint64_t next = 0;
  for (const strategies::TensorRange& tensor : job_->tensors) {
    if (tensor.first != next) break;
    next += tensor.count;
  }
  if (!job_->tensors.empty() && next != job_->elements) {
    return invalid_argument(name + ": its tensors cover " + std::to_string(next) + " elements without gaps, must cover " +
                            std::to_string(job_->elements));
  }
  return {};
}

Result<void> CohortWalk::open_updates() {
  const std::vector<UpdateInput>& inputs = job_->updates;
  order_.resize(inputs.size());
  std::iota(order_.begin(), order_.end(), std::size_t{0});
  std::sort(order_.begin(), order_.end(), [&](std::size_t a, std::size_t b) {
    return std::tie(inputs[a].node, inputs[a].task_id) < std::tie(inputs[b].node, inputs[b].task_id);
  });
  std::set<std::string_view> tasks;
  std::size_t files = 0;
  for (const std::size_t index : order_) {
    const UpdateInput& input = inputs[index];
    if (!tasks.insert(input.task_id).second) {
      return invalid_argument("the update of task " + input.task_id + " is there twice; each counts once");
    }
    const bool mapped = input.payload.path.empty() || files++ < kMaxMappedUpdates;
    SKERRY_ASSIGN(UpdateReader reader, UpdateReader::open(input, job_->elements, mapped));
    if (job_->rule->needs.rebased) {
      SKERRY_ASSIGN(const Source* then, older_base(input));
      if (then != nullptr) reader.rebase(*base_, *then, job_->data_offset);
    }
    granularity_ = std::lcm(granularity_, reader.encoding().part_elements());
    update_bytes_ += reader.encoding().encoded_bytes(job_->elements);
    updates_.push_back(std::move(reader));
    contributions_.push_back(input.contribution);
  }
  assert(granularity_ <= kBlockElements);
  return {};
}

// The older version that an update was measured against; null where it was the base itself.
Result<const Source*> CohortWalk::older_base(const UpdateInput& update) {
  const Payload& measured = update.measured_base;
  if (measured.path.empty() && measured.bytes.empty()) return nullptr;
  for (const OlderBase& known : older_bases_) {
    const bool same = known.payload.path == measured.path && known.payload.bytes.data() == measured.bytes.data();
    if (same) return known.source.get();
  }
  SKERRY_ASSIGN(Source source,
                open_whole(*job_, measured, "the older version of fragment " + job_->fragment + " of task " + update.task_id));
  older_bases_.push_back({measured, std::make_unique<Source>(std::move(source))});
  return older_bases_.back().source.get();
}

std::string CohortWalk::column_name(std::size_t column) const {
  if (column < updates_.size()) return "task " + updates_[column].task_id();
  return "its state vector " + job_->rule->state_vectors[column - updates_.size()];
}

RowKind CohortWalk::row_kind(std::size_t column) const {
  return column < updates_.size() && !decodes_row(column) ? updates_[column].row_kind() : RowKind::kF32;
}

// Tensors begin anywhere, also within the blocks of an encoding.
bool CohortWalk::decodes_row(std::size_t column) const {
  const RowKind kind = updates_[column].row_kind();
  return updates_[column].row_decodes() || (per_tensor_ && (kind == RowKind::kInt8 || kind == RowKind::kInt8Block));
}

// The values of a column as add_rows takes them; `place` is one of the slot's rows that no other column uses now.
Result<Row> CohortWalk::row(std::size_t column, std::uint64_t first, std::size_t count, Slot& slot,
                            std::size_t place) const {
  if (column >= updates_.size()) {
    const std::size_t vector = column - updates_.size();
    float* scratch = slot.state.as<float>() + vector * count;
    return Row{state_->values(state_->first_of_rule() + vector, first, count, scratch)};
  }
  if (!decodes_row(column)) return updates_[column].row(first, count, {});
  const RowScratch scratch{slot.encoded.as<std::byte>(), slot.rows.as<float>() + place * count};
  SKERRY_ASSIGN(const float* values, updates_[column].floats(first, count, scratch));
  return Row{values};
}

// How many elements a block has when `rows_in_cache` decoded rows lie side by side.
std::size_t CohortWalk::elements_in_block(std::size_t rows_in_cache) const {
  const std::size_t fit = rows_in_cache == 0 ? kBlockElements : kFloatsSideBySide / rows_in_cache;
  const std::size_t wanted = std::clamp(fit / kSmallestBlock * kSmallestBlock, kSmallestBlock, kBlockElements);
  return round_up(wanted, granularity_);
}

Result<void> CohortWalk::run_statistics() {
  const strategies::Cohort cohort = this->cohort();
  std::vector<Table> tables;
  while (tables.size() < kMostPasses) {
    std::optional<Pass> pass;
    SKERRY_TRY(without_exceptions([&]() -> Result<void> {
      SKERRY_ASSIGN(pass, job_->rule->next(cohort, tables));
      return {};
    }));
    const auto* statistics = std::get_if<StatisticsPass>(&*pass);
    if (statistics == nullptr) return accept_output(std::move(*pass));
    block_elements_ = elements_in_block(columns());
    const AddBlock add = [&](std::uint64_t first, std::size_t count, Slot& slot, Table& sum) {
      return for_each_block_of_rule(first, count, slot, [&](const Block& block, std::size_t) { statistics->add(block, sum); });
    };
    SKERRY_ASSIGN(Table table, sum_over_blocks(statistics->rows, statistics->columns, add));
    tables.push_back(std::move(table));
  }
  return internal_error("aggregation rule " + job_->rule->name + " asked for more than " + std::to_string(kMostPasses) +
                        " passes");
}

Result<void> CohortWalk::accept_output(Pass pass) {
  const auto* linear = std::get_if<LinearOutput>(&pass);
  if (linear != nullptr) {
    const std::size_t rows = job_->rule->needs.tensors ? job_->tensors.size() : 1;
    const std::size_t given = linear->coefficients.size();
    if (given != columns() && given != columns() * rows) {
      return internal_error("aggregation rule " + job_->rule->name + " gave " + std::to_string(given) +
                            " coefficients for " + std::to_string(updates_.size()) + " updates and " +
                            std::to_string(rule_vectors()) + " state vectors");
    }
    per_tensor_ = given != columns();
    active_.clear();
    for (std::size_t k = 0; k < columns(); ++k) {
      bool used = false;
      for (std::size_t at = k; at < given; at += columns()) {
        if (!std::isfinite(linear->coefficients[at])) {
          return internal_error("aggregation rule " + job_->rule->name + " gave a coefficient that is not finite to " +
                                column_name(k));
        }
        used = used || linear->coefficients[at] != 0;
      }
      if (used) active_.push_back(k);
    }
    one_group_ = active_.size() <= kRowsAtOnce && std::all_of(active_.begin(), active_.end(), [&](std::size_t k) {
                   return row_kind(k) == row_kind(active_.front());
                 });
  }
  block_elements_ = elements_in_block(linear != nullptr ? 0 : columns());
  output_.emplace(std::move(pass));
  return {};
}

CohortWalk::Slot CohortWalk::make_slot() const {
  const std::size_t block = std::min<std::uint64_t>(block_elements_, job_->elements);
  const bool side_by_side = !output_ || std::holds_alternative<ValueOutput>(*output_);
  Slot slot;
  std::size_t encoded = 0;
  std::size_t rows = 0;
  for (std::size_t k = 0; k < updates_.size(); ++k) {
    if (!updates_[k].floats_decode()) continue;
    const Encoding& encoding = updates_[k].encoding();
    encoded = std::max(encoded, encoding.prefix_bytes() + encoding.encoded_bytes(block));
    if (side_by_side) {
      rows = updates_.size();
    } else {
      rows = std::max<std::size_t>(rows, decodes_row(k) ? std::min(updates_.size(), kRowsAtOnce) : 1);
    }
  }
  slot.encoded = Scratch(encoded);
  slot.rows = Scratch(rows * block * sizeof(float));
  if (!side_by_side && !one_group_) slot.sums = Scratch(block * sizeof(double));
  slot.base = Scratch(side_by_side ? block * sizeof(float) : 0);
  slot.state = Scratch(rule_vectors() * block * sizeof(float));
  slot.updates.resize(side_by_side ? updates_.size() : 0);
  slot.state_rows.resize(side_by_side ? rule_vectors() : 0);
  return slot;
}

// The pieces of a block that lie in one tensor each; the whole block where the rule does not care.
std::vector<CohortWalk::Segment> CohortWalk::segments(std::uint64_t first, std::size_t count) const {
  if (!job_->rule->needs.tensors) return {{0, first, count}};
  const auto& tensors = job_->tensors;
  auto tensor = std::upper_bound(tensors.begin(), tensors.end(), first,
                                 [](std::uint64_t at, const strategies::TensorRange& range) { return at < range.first; });
  std::vector<Segment> found;
  const std::uint64_t end = first + count;
  for (--tensor; tensor != tensors.end() && tensor->first < end; ++tensor) {
    const std::uint64_t begin = std::max(first, tensor->first);
    const std::uint64_t stop = std::min(end, tensor->first + tensor->count);
    if (begin < stop) found.push_back({static_cast<std::size_t>(tensor - tensors.begin()), begin, stop - begin});
  }
  return found;
}

Result<void> CohortWalk::load_rows(std::uint64_t first, std::size_t count, Slot& slot) const {
  for (std::size_t k = 0; k < updates_.size(); ++k) {
    const RowScratch scratch{slot.encoded.as<std::byte>(), slot.rows.as<float>() + k * count};
    SKERRY_ASSIGN(slot.updates[k], updates_[k].floats(first, count, scratch));
  }
  for (std::size_t v = 0; v < rule_vectors(); ++v) {
    slot.state_rows[v] = state_->values(state_->first_of_rule() + v, first, count, slot.state.as<float>() + v * count);
  }
  return {};
}

Result<void> CohortWalk::for_each_block_of_rule(std::uint64_t first, std::size_t count, Slot& slot,
                                                const std::function<void(const Block&, std::size_t)>& use) const {
  SKERRY_TRY(load_rows(first, count, slot));
  const float* base = base_values(first, count, slot.base.as<float>());
  std::size_t at = 0;  // where the pointers point
  for (const Segment& segment : segments(first, count)) {
    const std::size_t shift = segment.first - first;
    for (const float*& row : slot.updates) row += shift - at;
    for (const float*& row : slot.state_rows) row += shift - at;
    at = shift;
    Block block;
    block.fragment = job_->fragment;
    block.first = segment.first;
    block.count = segment.count;
    block.tensor = segment.tensor;
    block.updates = slot.updates;
    block.base = base + shift;
    block.state = slot.state_rows;
    use(block, shift);
  }
  return {};
}

Result<void> CohortWalk::add_linear(const LinearOutput& output, std::uint64_t first, std::size_t count, Slot& slot,
                                    float* out) const {
  if (active_.empty()) std::fill(out, out + count, 0.0f);
  const std::vector<Segment> pieces = per_tensor_ ? segments(first, count) : std::vector<Segment>{{0, first, count}};
  std::size_t next = 0;
  while (next < active_.size()) {
    // As many rows of one kind as one call takes.
    Row rows[kRowsAtOnce];
    std::size_t row_count = 0;
    const std::size_t group_begin = next;
    const RowKind kind = row_kind(active_[next]);
    while (next < active_.size() && row_count < kRowsAtOnce && row_kind(active_[next]) == kind) {
      SKERRY_ASSIGN(rows[row_count], row(active_[next], first, count, slot, row_count));
      ++row_count;
      ++next;
    }
    const std::size_t value_bytes = kind == RowKind::kF32 ? sizeof(float) : sizeof(std::uint16_t);
    for (const Segment& piece : pieces) {
      const std::size_t shift = piece.first - first;
      Row shifted[kRowsAtOnce];
      double coefficients[kRowsAtOnce];
      for (std::size_t r = 0; r < row_count; ++r) {
        shifted[r] = {static_cast<const std::byte*>(rows[r].values) + shift * value_bytes, rows[r].codebook};
        coefficients[r] = output.coefficients[(per_tensor_ ? piece.tensor * columns() : 0) + active_[group_begin + r]];
      }
      double* sums = slot.sums.as<double>() == nullptr ? nullptr : slot.sums.as<double>() + shift;
      add_rows(kind, {shifted, row_count}, coefficients, piece.count, group_begin == 0, sums,
               next == active_.size() ? out + shift : nullptr);
    }
  }
  return {};
}

Result<double> CohortWalk::outer_gradient(std::uint64_t first, std::size_t count, std::uint64_t own_first,
                                          std::uint64_t own_end, Slot& slot, float* out,
                                          std::span<float* const> rule_state) const {
  if (const auto* linear = std::get_if<LinearOutput>(&*output_)) {
    // Piece by piece, so that none crosses the blocks that have a codebook each.
    for (std::size_t done = 0; done < count;) {
      const std::size_t here = std::min<std::size_t>(count - done, Int8::kBlock - (first + done) % Int8::kBlock);
      SKERRY_TRY(add_linear(*linear, first + done, here, slot, out + done));
      done += here;
    }
    for (float* vector : rule_state) std::copy(out, out + count, vector);
  } else {
    const auto& values = std::get<ValueOutput>(*output_);
    std::vector<float*> state(rule_state.size());
    SKERRY_TRY(for_each_block_of_rule(first, count, slot, [&](const Block& block, std::size_t shift) {
      std::transform(rule_state.begin(), rule_state.end(), state.begin(), [&](float* vector) { return vector + shift; });
      values.reduce(block, {out + shift, block.count}, state);
    }));
  }
  const double squares = sum_of_squares(out + (own_first - first), own_end - own_first);
  if (std::isfinite(squares)) return squares;
  const std::uint64_t bad = first_non_finite({out, count});
  return blame(first + bad, out[bad]);
}

// Whose value made this element of the outer gradient not finite.
Error CohortWalk::blame(std::uint64_t element, float value) const {
  const std::string where = element_text(element, job_->tensors);
  const std::uint64_t first = element / granularity_ * granularity_;
  const std::size_t count = std::min<std::uint64_t>(granularity_, job_->elements - first);
  std::vector<float> decoded(count);
  for (const UpdateReader& update : updates_) {
    std::vector<std::byte> encoded(update.encoding().prefix_bytes() + update.encoding().encoded_bytes(count));
    const auto values = update.floats(first, count, {encoded.data(), decoded.data()});
    if (!values.ok()) return values.error();
    const float own = (*values)[element - first];
    if (std::isfinite(own)) continue;
    return invalid_argument("update of task " + update.task_id() + ": " + where + " is " + non_finite_text(own) +
                            ", must be finite; discard it");
  }
  return invalid_argument("the outer gradient of fragment " + job_->fragment + ": " + where + " is " +
                          non_finite_text(value) + " although every update is finite; clip the updates");
}

Result<Table> CohortWalk::sum_over_blocks(std::size_t rows, std::size_t columns, const AddBlock& add) {
  const std::size_t cells = std::max<std::size_t>(rows * columns, 1);
  const std::uint64_t piece = round_up(kPieceElements, block_elements_);
  const std::uint64_t pieces = (job_->elements + piece - 1) / piece;
  const std::size_t lanes = std::min<std::uint64_t>(
      pieces, std::clamp(kLaneBytes / (cells * sizeof(double)), kFewestLanes, kMostLanes));
  std::vector<Table> sums(lanes);
  std::vector<std::optional<Slot>> slots(pool_->threads());
  FirstError first_error;
  const auto run_lane = [&](std::size_t lane, std::size_t slot) -> Result<void> {
    if (!slots[slot]) slots[slot].emplace(make_slot());
    Table& sum = sums[lane];
    sum = {rows, columns, std::vector<double>(rows * columns)};
    const std::uint64_t begin = pieces * lane / lanes * piece;
    const std::uint64_t end = std::min(job_->elements, pieces * (lane + 1) / lanes * piece);
    for (std::uint64_t at = begin; at < end; at += piece) {
      const std::uint64_t stop = std::min(end, at + piece);
      for (std::uint64_t first = at; first < stop; first += block_elements_) {
        SKERRY_TRY(add(first, std::min<std::uint64_t>(block_elements_, stop - first), *slots[slot], sum));
      }
      drop(at, stop - at);
    }
    return {};
  };
  pool_->run(lanes, [&](std::size_t lane, std::size_t slot) {
    if (first_error.failed()) return;
    const auto done = without_exceptions([&] { return run_lane(lane, slot); });
    if (!done.ok()) first_error.report(lane, done.error());
  });
  bytes_read_ += update_bytes_;
  SKERRY_TRY(check_inputs());
  SKERRY_TRY(first_error.result());
  for (std::size_t stride = 1; stride < lanes; stride *= 2) {
    for (std::size_t lane = 0; lane + stride < lanes; lane += 2 * stride) {
      for (std::size_t i = 0; i < rows * columns; ++i) sums[lane].values[i] += sums[lane + stride].values[i];
    }
  }
  return std::move(sums.front());
}

Result<ReduceStatistics> CohortWalk::measure(bool updates_too) {
  // Row k: Σ Δ_k² and Σ Δ_k Δ; the last row: Σ Δ².
  const std::size_t updates = updates_.size();
  const std::size_t measured = updates_too ? updates : 0;
  const AddBlock add = [&](std::uint64_t first, std::size_t count, Slot& slot, Table& sum) -> Result<void> {
    if (slot.gradient.bytes().empty()) {
      slot.gradient = Scratch(block_elements_ * sizeof(float));
      slot.unused = Scratch(rule_vectors() * block_elements_ * sizeof(float));
    }
    float* gradient = slot.gradient.as<float>();
    std::vector<float*> unused;
    for (std::size_t v = 0; v < rule_vectors(); ++v) unused.push_back(slot.unused.as<float>() + v * count);
    SKERRY_ASSIGN(const double squares, outer_gradient(first, count, first, first + count, slot, gradient, unused));
    sum.at(measured, 0) += squares;
    for (std::size_t k = 0; k < measured; ++k) {
      SKERRY_ASSIGN(const float* values,
                    updates_[k].floats(first, count, {slot.encoded.as<std::byte>(), slot.rows.as<float>()}));
      sum.at(k, 0) += sum_of_squares(values, count);
      sum.at(k, 1) += dot(values, gradient, count);
    }
    return {};
  };
  SKERRY_ASSIGN(const Table sums, sum_over_blocks(measured + 1, 2, add));
  ReduceStatistics statistics;
  statistics.outer_gradient_norm = std::sqrt(sums.at(measured, 0));
  if (updates_too) {
    statistics.update_norms.resize(updates);
    statistics.cosines.resize(updates);
  }
  for (std::size_t k = 0; k < measured; ++k) {
    const double norm = std::sqrt(sums.at(k, 0));
    const double both = norm * statistics.outer_gradient_norm;
    statistics.update_norms[order_[k]] = norm;
    statistics.cosines[order_[k]] = both > 0 ? sums.at(k, 1) / both : 0;
  }
  return statistics;
}

const float* CohortWalk::base_values(std::uint64_t first, std::size_t count, float* scratch) const {
  return base_->floats(job_->data_offset + 4 * first, count, scratch);
}

void CohortWalk::drop(std::uint64_t first, std::uint64_t count) const {
  if (!drops()) return;
  for (const UpdateReader& update : updates_) update.drop(first, count);
  base_->drop(job_->data_offset + 4 * first, 4 * count);
  for (const OlderBase& older : older_bases_) older.source->drop(job_->data_offset + 4 * first, 4 * count);
  state_->drop(first, count);
}

Result<void> CohortWalk::check_inputs() const {
  for (const UpdateReader& update : updates_) SKERRY_TRY(update.check());
  for (const OlderBase& older : older_bases_) SKERRY_TRY(older.source->check());
  SKERRY_TRY(state_->check());
  return base_->check();
}

}  // namespace skerry::server
