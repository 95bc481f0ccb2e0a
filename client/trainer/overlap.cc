#include "client/trainer/overlap.h"

#include <algorithm>
#include <utility>

namespace skerry::trainer {
namespace {

// Besides the latest: a node has at most two updates of a fragment on their way; one more for those that never count.
constexpr std::size_t kMaxEarlier = 2;

}  // namespace

void remember_read(FragmentMemory& memory, std::uint64_t version, std::span<const float> values) {
  memory = {version, 0, {values.begin(), values.end()}, std::nullopt, {}};
}

void remember_emitted(FragmentMemory& memory, std::uint64_t exchange, std::span<const float> values) {
  if (memory.in_flight) memory.earlier[*memory.in_flight] = std::move(memory.base);
  while (memory.earlier.size() > kMaxEarlier) memory.earlier.erase(memory.earlier.begin());
  memory.base.assign(values.begin(), values.end());
  memory.in_flight = exchange;
}

bool is_merged(const FragmentMemory& memory, const MergePlan& plan) {
  return plan.exchange != 0 && plan.exchange <= memory.merged;
}

Result<void> merge(FragmentMemory& memory, const MergePlan& plan, std::uint64_t version, std::span<const float> fresh,
                   std::span<float> own) {
  if (memory.base.empty() && plan.rule != MergeRule::kReplace) {
    return Error(failed_precondition("merge of fragment \"" + plan.fragment + "\", which this trainer never read"));
  }
  memory.base.resize(own.size());
  std::vector<float> emitted;  // only where M needs it: a copy, since it is moved itself
  if (plan.rule == MergeRule::kEager) {
    const auto earlier = memory.earlier.find(plan.exchange);
    if (memory.in_flight == plan.exchange) {
      emitted = memory.base;
    } else if (earlier != memory.earlier.end()) {
      emitted = std::move(earlier->second);
    } else {
      return Error(failed_precondition("eager merge of fragment \"" + plan.fragment + "\" for exchange " +
                                       std::to_string(plan.exchange) + ", for which this trainer emitted nothing"));
    }
  }
  memory.earlier.erase(memory.earlier.begin(), memory.earlier.upper_bound(plan.exchange));
  if (memory.in_flight && *memory.in_flight <= plan.exchange) memory.in_flight.reset();
  memory.version = version;
  memory.merged = std::max(memory.merged, plan.exchange);

  const auto alpha = static_cast<float>(plan.alpha);
  const auto rest = static_cast<float>(1.0 - plan.alpha);
  const auto move = [&](std::span<float> values) {
    if (plan.rule == MergeRule::kReplace) {
      std::copy(fresh.begin(), fresh.end(), values.begin());
    } else if (plan.rule == MergeRule::kLerp) {
      for (std::size_t i = 0; i < values.size(); ++i) values[i] = alpha * values[i] + rest * fresh[i];
    } else {
      for (std::size_t i = 0; i < values.size(); ++i) values[i] = fresh[i] + alpha * (values[i] - emitted[i]);
    }
  };
  move(own);
  move(memory.base);
  for (auto& [exchange, values] : memory.earlier) move(values);
  return {};
}

}  // namespace skerry::trainer
