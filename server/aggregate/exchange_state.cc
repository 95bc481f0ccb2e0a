#include "server/aggregate/exchange_state.h"

#include <algorithm>
#include <cstring>

namespace skerry::server {
namespace {

constexpr char kOfRule[] = "rule.";
constexpr char kResidual[] = "down.residual";

}  // namespace

Result<ExchangeState> ExchangeState::open(const ReduceJob& job) {
  ExchangeState state;
  OuterStateHeader& header = state.header_;
  header.elements = job.elements;
  header.data_offset = job.data_offset;
  header.steps = std::max<std::uint64_t>(job.step, 1);
  if (job.outer != nullptr) {
    header.optimizer = job.outer->name;
    header.vectors = job.outer->state_vectors;
  }
  state.first_of_rule_ = header.vectors.size();
  for (const std::string& vector : job.rule->state_vectors) header.vectors.push_back(kOfRule + vector);
  if (job.outer != nullptr && job.down_feedback > 0 && job.down != "f32") {
    state.residual_ = header.vectors.size();
    header.vectors.emplace_back(kResidual);
  }
  state.stored_.resize(header.vectors.size());
  if (header.vectors.empty() || (job.state.path.empty() && job.state.bytes.empty())) return state;

  const std::string name = job.state.path.empty() ? "of fragment " + job.fragment : job.state.path;
  SKERRY_ASSIGN(Source source, Source::open(job.state, name));
  auto old = decode_outer_state_header(source.bytes(), name);
  SKERRY_TRY(source.check());
  if (!old.ok()) return std::move(old).error();
  SKERRY_TRY(state.take(*old, job, name));
  state.old_header_ = std::move(old).value();
  state.source_.emplace(std::move(source));
  return state;
}

Result<void> ExchangeState::take(const OuterStateHeader& old, const ReduceJob& job, const std::string& name) {
  std::vector<std::string> of_optimizer = old.vectors;
  std::erase_if(of_optimizer, [](const std::string& vector) { return vector.rfind(kOfRule, 0) == 0 || vector == kResidual; });
  if (job.outer != nullptr && (old.optimizer != job.outer->name || of_optimizer != job.outer->state_vectors)) {
    return {Error{Code::kFailedPrecondition,
                  "outer optimizer's state " + name + " is of " + old.optimizer + ", this run uses " + job.outer->name +
                      "; an amendment that changes the optimizer starts without state"}};
  }
  if (old.elements != job.elements || old.data_offset != job.data_offset) {
    return {Error{Code::kFailedPrecondition,
                  "outer optimizer's state " + name + " is for " + std::to_string(old.elements) +
                      " elements, fragment " + job.fragment + " has " + std::to_string(job.elements) +
                      "; it is the state of another fragment"}};
  }
  for (std::size_t v = 0; v < vectors(); ++v) {
    const auto at = std::find(old.vectors.begin(), old.vectors.end(), header_.vectors[v]);
    if (at != old.vectors.end()) stored_[v] = static_cast<std::size_t>(at - old.vectors.begin());
  }
  if (job.step == 0) header_.steps = old.steps + 1;
  return {};
}

std::string ExchangeState::vector_name(std::size_t vector) const {
  const std::string& name = header_.vectors[vector];
  if (vector == residual_) return "what the steps' encoding lost";
  return vector < first_of_rule_ ? "the outer optimizer's " + name
                                 : "the aggregation rule's " + name.substr(sizeof kOfRule - 1);
}

const float* ExchangeState::values(std::size_t vector, std::uint64_t first, std::size_t count, float* scratch) const {
  if (!stored(vector)) {
    std::fill(scratch, scratch + count, 0.0f);
    return scratch;
  }
  return source_->floats(outer_state_vector_offset(old_header_, *stored_[vector]) + 4 * first, count, scratch);
}

Result<void> ExchangeState::check_chunk(std::size_t vector, std::uint64_t index, const StateChecksum& sum) const {
  const std::uint64_t at = index * old_header_.vectors.size() + *stored_[vector];
  std::uint64_t expected = 0;
  std::memcpy(&expected, source_->bytes().data() + outer_state_checksums_offset(old_header_) + 8 * at, 8);
  if (sum.value() == expected) return {};
  const ChunkPartition partition{header_.data_offset, header_.elements};
  const std::uint64_t chunk = partition.first_chunk() + index;
  return data_loss("state " + source_->name() + ": " + vector_name(vector) + " is damaged between elements " +
                   std::to_string(partition.begin(chunk)) + " and " + std::to_string(partition.end(chunk)) +
                   "; restore it from a backup, or resume the run without it");
}

void ExchangeState::drop(std::uint64_t first, std::uint64_t count) const {
  for (std::size_t v = 0; v < vectors(); ++v) {
    if (stored(v)) source_->drop(outer_state_vector_offset(old_header_, *stored_[v]) + 4 * first, 4 * count);
  }
}

}  // namespace skerry::server
