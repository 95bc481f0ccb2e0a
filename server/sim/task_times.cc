#include "server/sim/task_times.h"

#include <algorithm>
#include <cmath>

namespace skerry::sim {
namespace {

constexpr double kEvaluationShare = 1.0 / 3;  // of a training step's time: no backward pass

}  // namespace

std::int64_t in_ms(double seconds) { return static_cast<std::int64_t>(std::ceil(seconds * 1000)); }

double step_seconds(const Scenario& scenario, const ClientPlan& client) {
  return scenario.step_seconds / client.pace.speed;
}

double compute_seconds(const Scenario& scenario, const ClientPlan& client, const v1::Task& task, std::uint64_t batch) {
  const double rows = static_cast<double>(std::max<std::uint64_t>(1, batch));
  double steps = static_cast<double>(task.steps());
  if (task.kind() != v1::TASK_TRAIN)
    steps = std::ceil(static_cast<double>(client.holdout_examples) / rows) * kEvaluationShare;
  else if (task.steps() == 0)
    steps = std::ceil(std::max(1.0, std::round(task.epochs() * static_cast<double>(client.examples))) / rows);
  return steps * step_seconds(scenario, client);
}

std::int64_t carry_ms(const Pace& pace, std::uint64_t bytes, double mbps) {
  return in_ms(pace.latency_ms / 1000 + (mbps > 0 ? static_cast<double>(bytes) * 8 / (mbps * 1e6) : 0.0));
}

Download download_of(const ModelFile* have, const v1::FragmentVersion& wanted) {
  if (have != nullptr && have->version == wanted.version()) return {};
  const bool by_step = wanted.step().size() > 0 && have != nullptr && have->version + 1 == wanted.version();
  const v1::Blob& blob = by_step ? wanted.step() : wanted.whole();
  return {blob.size(), blob.inline_data().empty() ? blob.size() : 0};
}

}  // namespace skerry::sim
