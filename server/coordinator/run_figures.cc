// RunHost: what an exchange tells besides its model: the gradient-noise scale, and norms by layer.
#include <cmath>
#include <optional>

#include "server/coordinator/run_host.h"

namespace skerry::server {
namespace {

// Smoothed, so that a restart goes on with them.
constexpr const char* kSignal = "noise_scale_signal";
constexpr const char* kNoise = "noise_scale_noise";

bool says(const SpecPart& part, const char* parameter, const char* value) {
  const auto found = part.parameters.find(parameter);
  return found != part.parameters.end() && found->second == std::variant<double, bool, std::string>(std::string(value));
}

}  // namespace

// Only a weighted mean is what the estimate is about, and only where every update's norm is known: those that were accepted
// before a restart are not.
void RunHost::spread_of(const Reduce& command) {
  strategies::UpdateSpread spread;
  for (const ReduceInput& input : command.inputs) {
    const auto norm = norms_.find(input.task);
    const bool shortened = input.factor != 1 && says(plan_.spec.aggregation, "discount", "kept");
    if (plan_.spec.aggregation.name != "weighted_mean" || norm == norms_.end() || shortened) return;
    if (input.weight > 0) spread.add(input.weight, norm->second);
  }
  spreads_[command.exchange] = spread;
}

void RunHost::add_noise(const Count& command, const std::vector<Reduction>& reductions,
                        std::map<std::string, double>& metrics) {
  const auto spread = spreads_.extract(command.exchange);
  if (spread.empty() || reductions.empty()) return;
  double squares = 0;
  for (const Reduction& reduction : reductions) squares += std::pow(reduction.statistics.outer_gradient_norm, 2);
  if (says(plan_.spec.aggregation, "scale", "sqrt_updates")) squares /= static_cast<double>(spread.mapped().updates);
  const auto estimate = strategies::estimate_noise(spread.mapped(), std::sqrt(squares));
  if (!estimate) return;
  const std::string& fragment = reductions.front().version.fragment;
  const auto before = noise_.find(fragment);
  const auto smoothed = strategies::smooth(before == noise_.end() ? std::nullopt : std::optional(before->second), *estimate);
  noise_[fragment] = smoothed;
  metrics[kSignal] = smoothed.signal;
  metrics[kNoise] = smoothed.noise;
  const auto scale = strategies::noise_scale(smoothed);
  if (!scale) return;
  metrics["noise_scale"] = *scale;
  services_.metrics.gauge("skerry_noise_scale", "Updates whose mean has as much signal as noise", {{"run", record_.run_id}})
      .set(*scale);
}

void RunHost::restore_noise(const std::string& fragment, const std::map<std::string, double>& metrics) {
  const auto signal = metrics.find(kSignal);
  const auto noise = metrics.find(kNoise);
  if (signal != metrics.end() && noise != metrics.end()) noise_[fragment] = {signal->second, noise->second};
}

void RunHost::add_norms(const ReduceStatistics& statistics, std::map<std::string, double>& metrics) {
  for (const LayerNorms& norms : statistics.layers) {
    metrics["outer_gradient_norm/" + norms.layer] = norms.outer_gradient;
    metrics["model_norm/" + norms.layer] = norms.model;
    if (!plan_.outer.state_vectors.empty()) metrics["momentum_norm/" + norms.layer] = norms.momentum;
  }
}

}  // namespace skerry::server
