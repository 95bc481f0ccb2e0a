#include "server/aggregate/commit_walk.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <numeric>

#include "common/crypto/content_id.h"
#include "common/tensor/kernels.h"
#include "server/aggregate/outer_state.h"
#include "server/aggregate/output.h"

namespace skerry::server {
namespace {

template <typename T>
std::span<const std::byte> bytes_of(const T* values, std::size_t count) {
  return std::as_bytes(std::span<const T>(values, count));
}

class CommitWalk {
 public:
  CommitWalk(const ReduceJob& job, CohortWalk& cohort, ReductionPool& pool)
      : job_(job),
        cohort_(cohort),
        pool_(pool),
        old_state_(cohort.state()),
        partition_{job.data_offset, job.elements},
        rounding_{job.down_stochastic, job.seed, rounding_stream(job.fragment)} {}

  Result<ReduceOutcome> run();

 private:
  // A thread's memory.
  struct Slot {
    CohortWalk::Slot cohort;
    Scratch delta;
    Scratch change;
    Scratch base;
    Scratch fresh;
    Scratch payload;
    Scratch old_state;
    std::vector<Scratch> state;
    std::vector<float*> state_pointers;
  };

  // What one chunk adds to the whole.
  struct ChunkSums {
    double gradient_squares = 0;
    double change_squares = 0;
    ChunkHash leaf{};
    std::vector<LayerNorms> layers;  // squares of norms
  };

  // A block of one chunk. Elements [first, first + count) are computed; [own_first, own_end) of them belong to the chunk.
  struct Range {
    std::uint64_t first = 0;
    std::size_t count = 0;
    std::uint64_t own_first = 0;
    std::uint64_t own_end = 0;
  };

  Result<void> create_outputs();
  Result<double> outer_gradient(const Range& range, Slot& slot) const;
  Slot make_slot() const;
  Result<void> run_chunk(std::uint64_t chunk, Slot& slot);
  Result<void> write_header(std::uint64_t chunk, ChunkHasher& hasher);
  Result<void> run_block(const Range& range, Slot& slot, ChunkSums& sums, std::vector<StateChecksum>& read,
                         std::vector<StateChecksum>& written, ChunkHasher& hasher);
  void add_layers(const Range& range, const Slot& slot, ChunkSums& sums) const;
  void load_state(const Range& range, Slot& slot, std::vector<StateChecksum>& checksums) const;
  Result<void> write_state(const Range& range, const Slot& slot, std::vector<StateChecksum>& checksums);
  Result<void> take_change(const Range& range, Slot& slot);
  Result<void> check_state_chunk(std::uint64_t chunk, const std::vector<StateChecksum>& checksums) const;
  Error overflow(const Range& range, const float* values, const std::string& what) const;
  std::vector<LayerNorms> layer_norms() const;
  Result<void> finish_state();
  Result<std::string> hash_step();
  Result<void> sync_all();

  std::size_t vectors() const { return old_state_.vectors(); }
  std::uint64_t value_chunk(std::uint64_t chunk) const { return chunk - partition_.first_chunk(); }

  const ReduceJob& job_;
  CohortWalk& cohort_;
  ReductionPool& pool_;
  const ExchangeState& old_state_;
  const ChunkPartition partition_;
  const Encoding* down_ = nullptr;        // nullptr: f32, the change is adopted as it is
  const Rounding rounding_;               // of the step
  std::uint64_t granularity_ = 1;         // of all encodings, up and down
  std::size_t block_elements_ = 0;        // a multiple of it, and of the cohort's blocks or the same
  Output fragment_;
  Output state_;
  Output step_;
  std::vector<ChunkSums> sums_;           // by chunk of the fragment's file
  std::vector<std::uint64_t> checksums_;  // of the new state, by chunk with values, then by vector
};

Result<void> CommitWalk::create_outputs() {
  SKERRY_ASSIGN(const Encoding* down, find_encoding(job_.down));
  SKERRY_ASSIGN(fragment_, Output::create(job_.output.fragment, job_.data_offset + 4 * job_.elements));
  if (vectors() > 0) {
    SKERRY_ASSIGN(state_, Output::create(job_.output.state, outer_state_size(old_state_.header())));
  }
  granularity_ = std::lcm(cohort_.granularity(), down->block_elements());
  block_elements_ = (cohort_.block_elements() + granularity_ - 1) / granularity_ * granularity_;
  if (down->name() == "f32") return {};
  down_ = down;
  SKERRY_ASSIGN(step_, Output::create(job_.output.step, down_->encoded_bytes(job_.elements)));
  return {};
}

CommitWalk::Slot CommitWalk::make_slot() const {
  const std::size_t block = std::min<std::uint64_t>(block_elements_, job_.elements);
  const std::size_t bytes = block * sizeof(float);
  Slot slot;
  slot.cohort = cohort_.make_slot();
  slot.delta = Scratch(bytes);
  slot.change = Scratch(bytes);
  slot.base = Scratch(bytes);
  slot.fresh = Scratch(bytes);
  if (down_ != nullptr) slot.payload = Scratch(down_->encoded_bytes(block));
  if (vectors() > 0) slot.old_state = Scratch(bytes);
  for (std::size_t v = 0; v < vectors(); ++v) {
    slot.state.emplace_back(bytes);
    slot.state_pointers.push_back(slot.state.back().as<float>());
  }
  return slot;
}

Result<ReduceOutcome> CommitWalk::run() {
  assert(job_.outer != nullptr);
  SKERRY_TRY(create_outputs());
  const std::uint64_t chunks = partition_.chunks();
  sums_.resize(chunks);
  checksums_.resize((chunks - partition_.first_chunk()) * vectors());
  std::vector<std::optional<Slot>> slots(pool_.threads());
  FirstError first_error;
  pool_.run(chunks, [&](std::size_t chunk, std::size_t slot) {
    if (first_error.failed()) return;
    const auto done = without_exceptions([&] {
      if (!slots[slot]) slots[slot].emplace(make_slot());
      return run_chunk(chunk, *slots[slot]);
    });
    if (!done.ok()) first_error.report(chunk, done.error());
  });
  SKERRY_TRY(cohort_.check_inputs());  // pages that could not be read were zeros: first things first
  SKERRY_TRY(first_error.result());
  SKERRY_TRY(finish_state());

  ReduceOutcome outcome;
  outcome.outer_step = old_state_.header().steps;
  std::vector<ChunkHash> leaves;
  double gradient_squares = 0;
  double change_squares = 0;
  for (const ChunkSums& sums : sums_) {
    leaves.push_back(sums.leaf);
    gradient_squares += sums.gradient_squares;
    change_squares += sums.change_squares;
  }
  outcome.statistics.layers = layer_norms();
  outcome.statistics.outer_gradient_norm = std::sqrt(gradient_squares);
  outcome.statistics.change_norm = std::sqrt(change_squares);
  SKERRY_ASSIGN(outcome.fragment.content_id, content_id_of_chunks(fragment_.size(), leaves));
  if (down_ != nullptr) {
    SKERRY_ASSIGN(outcome.step.content_id, hash_step());
  }
  if (job_.output.durable) SKERRY_TRY(sync_all());
  outcome.fragment.size = fragment_.size();
  outcome.state.size = state_.size();
  outcome.step.size = step_.size();
  outcome.statistics.bytes_read =
      cohort_.update_bytes() + cohort_.base_bytes().size() + old_state_.bytes();
  outcome.statistics.bytes_written = fragment_.size() + state_.size() + step_.size();
  outcome.fragment.bytes = fragment_.keep();
  outcome.state.bytes = state_.keep();
  outcome.step.bytes = step_.keep();
  return outcome;
}

// The bytes before the values are those of the base.
Result<void> CommitWalk::write_header(std::uint64_t chunk, ChunkHasher& hasher) {
  const std::uint64_t begin = chunk * kChunkBytes;
  const std::uint64_t end = std::min(job_.data_offset, begin + kChunkBytes);
  if (begin >= end) return {};
  const auto header = cohort_.base_bytes().subspan(begin, end - begin);
  hasher.update(header);
  return fragment_.write(header, begin);
}

Result<void> CommitWalk::run_chunk(std::uint64_t chunk, Slot& slot) {
  ChunkHasher hasher;
  ChunkSums& sums = sums_[chunk];
  sums.layers.resize(job_.layers.size());
  SKERRY_TRY(write_header(chunk, hasher));
  const std::uint64_t begin = partition_.begin(chunk);
  const std::uint64_t end = partition_.end(chunk);
  if (begin < end) {
    // Encodings may need whole blocks of theirs; neighbours then compute the same few elements at the border twice.
    const std::uint64_t whole = granularity_;
    const std::uint64_t first = begin / whole * whole;
    const std::uint64_t last = std::min(job_.elements, (end + whole - 1) / whole * whole);
    std::vector<StateChecksum> read(vectors());
    std::vector<StateChecksum> written(vectors());
    for (std::uint64_t at = first; at < last; at += block_elements_) {
      const std::uint64_t stop = std::min<std::uint64_t>(last, at + block_elements_);
      const Range range{at, stop - at, std::max(at, begin), std::min(stop, end)};
      SKERRY_TRY(run_block(range, slot, sums, read, written, hasher));
    }
    SKERRY_TRY(check_state_chunk(chunk, read));
    for (std::size_t v = 0; v < vectors(); ++v) checksums_[value_chunk(chunk) * vectors() + v] = written[v].value();
    cohort_.drop(first, last - first);
    for (std::size_t v = 0; v < vectors(); ++v) {
      state_.start_writeback(outer_state_vector_offset(old_state_.header(), v) + 4 * begin, 4 * (end - begin));
    }
  }
  sums.leaf = hasher.finish();
  fragment_.start_writeback(chunk * kChunkBytes, kChunkBytes);
  return {};
}

// In blocks of the cohort's size: those that hold whole blocks of the step's encoding may be larger.
Result<double> CommitWalk::outer_gradient(const Range& range, Slot& slot) const {
  const auto rule_end = static_cast<std::ptrdiff_t>(old_state_.residual().value_or(vectors()));
  std::vector<float*> rule_state(slot.state_pointers.begin() + static_cast<std::ptrdiff_t>(old_state_.first_of_rule()),
                                 slot.state_pointers.begin() + rule_end);
  double squares = 0;
  for (std::size_t done = 0; done < range.count;) {
    const std::uint64_t first = range.first + done;
    const std::size_t count = std::min(range.count - done, cohort_.block_elements());
    const std::uint64_t own_first = std::clamp(range.own_first, first, first + count);
    const std::uint64_t own_end = std::clamp(range.own_end, first, first + count);
    SKERRY_ASSIGN(const double part, cohort_.outer_gradient(first, count, own_first, own_end, slot.cohort,
                                                            slot.delta.as<float>() + done, rule_state));
    squares += part;
    done += count;
    for (float*& vector : rule_state) vector += count;
  }
  return squares;
}

Result<void> CommitWalk::run_block(const Range& range, Slot& slot, ChunkSums& sums, std::vector<StateChecksum>& read,
                                   std::vector<StateChecksum>& written, ChunkHasher& hasher) {
  float* delta = slot.delta.as<float>();
  float* change = slot.change.as<float>();
  float* fresh = slot.fresh.as<float>();
  SKERRY_ASSIGN(const double squares, outer_gradient(range, slot));
  sums.gradient_squares += squares;
  load_state(range, slot, read);
  const float* base = cohort_.base_values(range.first, range.count, slot.base.as<float>());
  strategies::OuterBlock block;
  block.step = old_state_.header().steps;
  block.count = range.count;
  block.delta = delta;
  block.base = base;
  block.state = std::span<float* const>(slot.state_pointers).first(old_state_.first_of_rule());
  block.change = change;
  job_.outer->step(block);
  SKERRY_TRY(take_change(range, slot));

  add(base, change, range.count, fresh);
  const std::size_t shift = range.own_first - range.first;
  const std::size_t own = range.own_end - range.own_first;
  sums.change_squares += sum_of_squares(change + shift, own);
  add_layers(range, slot, sums);
  if (!std::isfinite(sum_of_squares(fresh + shift, own))) return overflow(range, fresh, "the new model");
  const auto bytes = bytes_of(fresh + shift, own);
  hasher.update(bytes);
  SKERRY_TRY(fragment_.write(bytes, job_.data_offset + 4 * range.own_first));
  return write_state(range, slot, written);
}

// The range's part of each layer that it touches.
void CommitWalk::add_layers(const Range& range, const Slot& slot, ChunkSums& sums) const {
  const auto& layers = job_.layers;
  auto layer = std::partition_point(layers.begin(), layers.end(),
                                    [&](const auto& one) { return one.first + one.count <= range.own_first; });
  for (; layer != layers.end() && layer->first < range.own_end; ++layer) {
    const std::uint64_t first = std::max(layer->first, range.own_first);
    const std::size_t count = std::min(layer->first + layer->count, range.own_end) - first;
    const std::size_t at = first - range.first;
    LayerNorms& squares = sums.layers[static_cast<std::size_t>(layer - layers.begin())];
    squares.outer_gradient += sum_of_squares(slot.delta.as<float>() + at, count);
    if (old_state_.first_of_rule() > 0) squares.momentum += sum_of_squares(slot.state_pointers[0] + at, count);
    squares.model += sum_of_squares(slot.fresh.as<float>() + at, count);
  }
}

std::vector<LayerNorms> CommitWalk::layer_norms() const {
  std::vector<LayerNorms> norms;
  for (std::size_t i = 0; i < job_.layers.size(); ++i) {
    LayerNorms squares;
    for (const ChunkSums& sums : sums_) {
      squares.outer_gradient += sums.layers[i].outer_gradient;
      squares.momentum += sums.layers[i].momentum;
      squares.model += sums.layers[i].model;
    }
    norms.push_back({job_.layers[i].name, std::sqrt(squares.outer_gradient), std::sqrt(squares.momentum),
                     std::sqrt(squares.model)});
  }
  return norms;
}

// Encodes the change, and what earlier steps lost with it; writes the encoding's blocks that begin in the chunk, and puts what
// they decode to in its place.
Result<void> CommitWalk::take_change(const Range& range, Slot& slot) {
  float* change = slot.change.as<float>();
  float* residual = old_state_.residual() ? slot.state_pointers[*old_state_.residual()] : nullptr;
  if (residual != nullptr) add_scaled(residual, job_.down_feedback, range.count, change);
  if (!std::isfinite(sum_of_squares(change, range.count))) return overflow(range, change, "the outer step");
  if (down_ == nullptr) return {};
  const std::span<std::byte> payload(slot.payload.as<std::byte>(), down_->encoded_bytes(range.count));
  down_->encode({change, range.count}, range.first, rounding_, payload);
  if (residual != nullptr) std::copy(change, change + range.count, residual);
  down_->decode(payload, {change, range.count});
  if (residual != nullptr) subtract(change, range.count, residual);
  const std::uint64_t whole = down_->block_elements();
  const auto first_block_at = [&](std::uint64_t element) {
    return std::min(job_.elements, (element + whole - 1) / whole * whole);
  };
  const std::uint64_t begin = first_block_at(range.own_first);
  const std::uint64_t end = first_block_at(range.own_end);
  if (begin >= end) return {};
  const std::uint64_t skipped = down_->encoded_bytes(begin - range.first);
  const std::uint64_t offset = down_->encoded_bytes(begin);
  return step_.write(payload.subspan(skipped, down_->encoded_bytes(end) - offset), offset);
}

// The optimizer's vectors and the residual, to be updated in place; the rule has written its new ones. What was stored is
// summed up.
void CommitWalk::load_state(const Range& range, Slot& slot, std::vector<StateChecksum>& checksums) const {
  for (std::size_t v = 0; v < vectors(); ++v) {
    const float* values = old_state_.values(v, range.first, range.count, slot.old_state.as<float>());
    const bool of_rule = v >= old_state_.first_of_rule() && v != old_state_.residual();
    if (!of_rule) std::copy(values, values + range.count, slot.state_pointers[v]);
    if (!old_state_.stored(v)) continue;
    checksums[v].update(bytes_of(values + (range.own_first - range.first), range.own_end - range.own_first));
  }
}

Result<void> CommitWalk::write_state(const Range& range, const Slot& slot, std::vector<StateChecksum>& checksums) {
  for (std::size_t v = 0; v < vectors(); ++v) {
    const float* values = slot.state_pointers[v] + (range.own_first - range.first);
    const std::size_t own = range.own_end - range.own_first;
    if (!std::isfinite(sum_of_squares(values, own))) {
      return overflow(range, slot.state_pointers[v], old_state_.vector_name(v));
    }
    const auto bytes = bytes_of(values, own);
    checksums[v].update(bytes);
    SKERRY_TRY(state_.write(bytes, outer_state_vector_offset(old_state_.header(), v) + 4 * range.own_first));
  }
  return {};
}

Result<void> CommitWalk::check_state_chunk(std::uint64_t chunk, const std::vector<StateChecksum>& checksums) const {
  for (std::size_t v = 0; v < vectors(); ++v) {
    if (old_state_.stored(v)) SKERRY_TRY(old_state_.check_chunk(v, value_chunk(chunk), checksums[v]));
  }
  return {};
}

// Values of a block are not finite although the outer gradient is.
Error CommitWalk::overflow(const Range& range, const float* values, const std::string& what) const {
  const std::uint64_t bad = std::min<std::uint64_t>(first_non_finite({values, range.count}), range.count - 1);
  return invalid_argument(what + " of fragment " + job_.fragment + ": " +
                          element_text(range.first + bad, job_.tensors) + " would be " + non_finite_text(values[bad]) +
                          " after step " + std::to_string(old_state_.header().steps) + " of " + job_.outer->name +
                          "; lower outer.learning_rate or clip the updates");
}

Result<void> CommitWalk::finish_state() {
  if (vectors() == 0) return {};
  SKERRY_ASSIGN(const std::string header, encode_outer_state_header(old_state_.header(), checksums_));
  SKERRY_TRY(state_.write(as_bytes_of(header), 0));
  return state_.write(bytes_of(checksums_.data(), checksums_.size()), outer_state_checksums_offset(old_state_.header()));
}

// The step's chunks are not those of the fragment, so it is hashed once more, from the page cache and on all threads.
Result<std::string> CommitWalk::hash_step() {
  const Payload payload{step_.path(), step_.memory()};
  SKERRY_ASSIGN(const Source source, Source::open(payload, "step of fragment " + job_.fragment));
  const auto bytes = source.bytes();
  std::vector<ChunkHash> leaves(chunk_count(bytes.size()));
  pool_.run(leaves.size(), [&](std::size_t chunk, std::size_t) {
    leaves[chunk] = hash_chunk(bytes.subspan(chunk * kChunkBytes, chunk_size(bytes.size(), chunk)));
    source.drop(chunk * kChunkBytes, kChunkBytes);
  });
  SKERRY_TRY(source.check());
  return content_id_of_chunks(bytes.size(), leaves);
}

Result<void> CommitWalk::sync_all() {
  Output* const outputs[] = {&fragment_, &state_, &step_};
  FirstError first_error;
  const bool files = !fragment_.path().empty() || !state_.path().empty() || !step_.path().empty();
  pool_.run(files ? 3 : 0, [&](std::size_t index, std::size_t) {
    const auto done = outputs[index]->sync();
    if (!done.ok()) first_error.report(index, done.error());
  });
  return first_error.result();
}

}  // namespace

Result<ReduceOutcome> commit_walk(const ReduceJob& job, CohortWalk& cohort, ReductionPool& pool) {
  return CommitWalk(job, cohort, pool).run();
}

}  // namespace skerry::server
