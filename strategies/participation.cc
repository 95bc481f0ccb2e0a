#include "strategies/participation.h"

#include <algorithm>
#include <cmath>
#include <set>

namespace skerry::strategies {
namespace {

/// SplitMix64's finaliser (Steele, Lea, Flood 2014).
std::uint64_t mix(std::uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

std::uint64_t hashed(std::uint64_t seed, std::uint64_t position, std::string_view name) {
  std::uint64_t state = mix(mix(seed) ^ position);
  for (const char c : name) state = mix(state ^ static_cast<unsigned char>(c));
  return state;
}

/// What products like 0.29 × 100 = 28.999… may be off by: far more than their rounding, far less than what is meant.
constexpr double kRounding = 1e-9;
constexpr double kWaitMargin = 1.25;

std::size_t rounded_up(double factor, std::size_t count) {
  return static_cast<std::size_t>(std::max(0.0, std::ceil(factor * static_cast<double>(count) - kRounding)));
}

}  // namespace

Participation everyone() { return {}; }

Participation at_least(std::uint64_t quorum) { return {.quorum = quorum}; }

Participation buffered(std::uint64_t buffer, std::uint64_t maximum_staleness) {
  return {.mode = ParticipationSpec::Mode::kAsynchronous, .buffer = buffer, .maximum_staleness = maximum_staleness};
}

std::vector<std::string> required_nodes(const ParticipationSpec& spec, const Needs& needs) {
  std::set<std::string> names(spec.required_nodes.begin(), spec.required_nodes.end());
  names.insert(needs.nodes.begin(), needs.nodes.end());
  return {names.begin(), names.end()};
}

Result<void> check_participation(const RunSpec& spec, const Needs& needs) {
  const auto& participation = spec.participation;
  const auto& allowed = spec.limits.metrics;
  for (const auto& metric : needs.metrics)
    if (std::find(allowed.begin(), allowed.end(), metric) == allowed.end())
      return invalid_argument("aggregation.rule " + spec.aggregation.name + " needs every node to report " + metric +
                              ", but limits.metrics does not name it: add it there");
  const auto required = required_nodes(participation, needs);
  if (!required.empty() && participation.minimum_separation > 1)
    return invalid_argument("participation.minimum_separation is " + std::to_string(participation.minimum_separation) +
                            ", but node " + required.front() + " must take part in every exchange: set it to 1");
  if (participation.cohort_size > 0 && required.size() > participation.cohort_size)
    return invalid_argument("participation.cohort_size is " + std::to_string(participation.cohort_size) + ", but " +
                            std::to_string(required.size()) + " nodes must take part in every exchange");
  return {};
}

std::size_t cohort_target(const ParticipationSpec& spec, std::size_t ready) {
  const std::size_t wanted =
      spec.cohort_size > 0 ? static_cast<std::size_t>(spec.cohort_size) : rounded_up(spec.cohort_fraction, ready);
  return std::min(ready, std::max(wanted, static_cast<std::size_t>(spec.quorum)));
}

std::size_t invited_for(const ParticipationSpec& spec, std::size_t goal) {
  return rounded_up(spec.over_selection, goal);
}

std::size_t needed_for(const ParticipationSpec& spec, std::size_t invited) {
  return std::max(static_cast<std::size_t>(spec.quorum), rounded_up(spec.minimum_completion, invited));
}

std::int64_t adaptive_grace_ms(const ParticipationSpec& spec, std::int64_t slack_ms,
                               std::span<const std::optional<std::int64_t>> remaining_ms) {
  double bound = spec.grace_safety * static_cast<double>(slack_ms);
  if (spec.grace_s >= 0) bound = std::min(bound, 1000 * spec.grace_s);
  double window = 0;
  for (const auto& remaining : remaining_ms) {
    const double wait = remaining ? kWaitMargin * std::max(0.0, static_cast<double>(*remaining)) : bound;
    if (wait <= bound) window = std::max(window, wait);
  }
  return static_cast<std::int64_t>(window);
}

std::uint64_t dylu_steps(const ParticipationSpec& spec, std::uint64_t most, double step_ms, double fastest_ms) {
  const double steps = std::floor(fastest_ms / step_ms * static_cast<double>(most) + kRounding);
  return std::clamp(static_cast<std::uint64_t>(steps), std::min(spec.minimum_steps, most), most);
}

Placement fedcompass_steps(const ParticipationSpec& spec, std::uint64_t most, double step_ms, std::int64_t now,
                           std::span<const ArrivalGroup> groups) {
  const double least = static_cast<double>(std::min(spec.minimum_steps, most));
  const auto steps_until = [&](double instant) {
    return std::floor((instant - static_cast<double>(now)) / step_ms + kRounding);
  };
  Placement joined;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    const double steps = steps_until(static_cast<double>(groups[i].expected));
    if (steps < least || steps > static_cast<double>(most) || steps <= static_cast<double>(joined.steps)) continue;
    joined = {i, static_cast<std::uint64_t>(steps)};
  }
  if (joined.group) return joined;
  if (groups.empty()) return {std::nullopt, most};

  double turn = 0;
  for (const auto& group : groups)
    turn = std::max(turn, static_cast<double>(group.expected) + static_cast<double>(most) * group.fastest_ms);
  const double steps = std::clamp(steps_until(turn), least, static_cast<double>(most));
  return {std::nullopt, static_cast<std::uint64_t>(steps)};
}

std::uint64_t draw_order(std::uint64_t seed, std::uint64_t exchange, std::string_view node) {
  return hashed(seed ^ 0x636F686F7274u, exchange, node);  // "cohort"
}

std::optional<double> staleness_factor(const ParticipationSpec& spec, std::uint64_t staleness) {
  if (staleness > spec.maximum_staleness) return std::nullopt;
  if (staleness == 0 || spec.staleness_exponent == 0) return 1.0;
  // sqrt is exact to the last bit everywhere, pow is not.
  const double age = 1.0 + static_cast<double>(staleness);
  return spec.staleness_exponent == 0.5 ? 1.0 / std::sqrt(age) : std::pow(age, -spec.staleness_exponent);
}

std::uint64_t task_seed(std::uint64_t seed, std::string_view node, std::uint64_t position) {
  return hashed(seed ^ 0x7461736Bu, position, node) >> 11;  // "task"
}

}  // namespace skerry::strategies
