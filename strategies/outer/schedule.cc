#include "strategies/outer/schedule.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <cmath>

namespace skerry::strategies {
namespace {

constexpr std::array<const char*, 5> kNames = {"constant", "linear", "cosine", "inverse_sqrt", "step"};  // as Kind
constexpr double kMostSteps = 1e9;

// The first terms of Taylor's series of cos (of sin, divided by z) at |z| ≤ π/4, where the twelfth is below 1e-19.
double series(double z, double first_factor) {
  double sum = 1;
  double term = 1;
  for (double n = first_factor; n < 24; n += 2) {
    term *= -(z * z) / (n * (n + 1));
    sum += term;
  }
  return sum;
}

// cos πx for x in [0, 1] in plain operations: std::cos may differ between C libraries, and bytes must not.
double cos_pi(double x) {
  constexpr double kPi = 3.14159265358979323846;
  if (x > 0.5) return -cos_pi(1 - x);
  if (x <= 0.25) return series(kPi * x, 1);
  const double z = kPi * (0.5 - x);
  return z * series(z, 2);
}

double power(double base, std::uint64_t exponent) {
  double out = 1;
  for (; exponent != 0; exponent /= 2, base *= base)
    if (exponent % 2 != 0) out *= base;
  return out;
}

ParameterInfo whole_number(std::string name, double fallback, double minimum, std::string meaning) {
  ParameterInfo info;
  info.name = std::move(name);
  info.meaning = std::move(meaning);
  info.fallback = fallback;
  info.minimum = minimum;
  info.maximum = kMostSteps;
  info.whole = true;
  return info;
}

ParameterInfo fraction(std::string name, double fallback, bool above_zero, std::string meaning) {
  ParameterInfo info;
  info.name = std::move(name);
  info.meaning = std::move(meaning);
  info.fallback = fallback;
  info.maximum = 1;
  info.above_minimum = above_zero;
  return info;
}

bool ends(Schedule::Kind kind) { return kind == Schedule::Kind::kLinear || kind == Schedule::Kind::kCosine; }

}  // namespace

double schedule_factor(const Schedule& schedule, std::uint64_t step) {
  const std::uint64_t before = step - 1;
  const std::uint64_t warmup = schedule.warmup_steps;
  if (before < warmup) return static_cast<double>(step) / static_cast<double>(warmup);
  double left = 1;  // of the way from 1 to final_fraction
  if (ends(schedule.kind)) {
    const double length = static_cast<double>(schedule.schedule_steps - warmup);
    const double gone = std::min(1.0, static_cast<double>(before - warmup) / length);
    left = schedule.kind == Schedule::Kind::kLinear ? 1 - gone : (1 + cos_pi(gone)) / 2;
  }
  switch (schedule.kind) {
    case Schedule::Kind::kConstant:
      return 1;
    case Schedule::Kind::kLinear:
    case Schedule::Kind::kCosine:
      return schedule.final_fraction + (1 - schedule.final_fraction) * left;
    case Schedule::Kind::kInverseSqrt:
      return std::sqrt(static_cast<double>(std::max<std::uint64_t>(warmup, 1)) / static_cast<double>(step));
    case Schedule::Kind::kStep:
      return power(schedule.step_factor, (before - warmup) / schedule.step_every);
  }
  return 1;
}

std::vector<ParameterInfo> schedule_parameters() {
  const Schedule fallback;
  ParameterInfo kind;
  kind.name = "schedule";
  kind.meaning = "of the learning rate, over the fragment's exchanges";
  kind.fallback = std::string(kNames[0]);
  kind.choices.assign(kNames.begin(), kNames.end());
  return {kind,
          whole_number("warmup_steps", 0, 0, "exchanges of linear warm-up before the schedule"),
          whole_number("schedule_steps", 0, 0, "linear, cosine: exchanges until the end; 0: the run's `stop.rounds`"),
          fraction("final_fraction", fallback.final_fraction, false,
                   "linear, cosine: of the learning rate, at the schedule's end"),
          whole_number("step_every", static_cast<double>(fallback.step_every), 1, "step: exchanges between two falls"),
          fraction("step_factor", fallback.step_factor, true, "step: what each fall multiplies the learning rate by")};
}

void put_schedule(const Schedule& schedule, Part& part) {
  const Schedule fallback;
  const auto put = [&part](const char* name, const auto& value, const auto& silent) {
    if (value != silent) part.parameters[name] = static_cast<double>(value);
  };
  if (schedule.kind != fallback.kind)
    part.parameters["schedule"] = std::string(kNames[static_cast<std::size_t>(schedule.kind)]);
  put("warmup_steps", schedule.warmup_steps, fallback.warmup_steps);
  put("schedule_steps", schedule.schedule_steps, fallback.schedule_steps);
  put("final_fraction", schedule.final_fraction, fallback.final_fraction);
  put("step_every", schedule.step_every, fallback.step_every);
  put("step_factor", schedule.step_factor, fallback.step_factor);
}

Result<Schedule> schedule_of(const Part& resolved) {
  const auto whole = [&](const char* name) { return static_cast<std::uint64_t>(number(resolved, name)); };
  const std::string& name = text(resolved, "schedule");
  const auto* const found = std::find(kNames.begin(), kNames.end(), name);
  assert(found != kNames.end() && "a resolved part names one of the choices");
  const Schedule schedule{static_cast<Schedule::Kind>(found - kNames.begin()),
                          whole("warmup_steps"),
                          whole("schedule_steps"),
                          number(resolved, "final_fraction"),
                          whole("step_every"),
                          number(resolved, "step_factor")};
  if (ends(schedule.kind) && schedule.schedule_steps <= schedule.warmup_steps) {
    return invalid_argument("outer.schedule_steps is " + std::to_string(schedule.schedule_steps) +
                            ", must be above outer.warmup_steps (" + std::to_string(schedule.warmup_steps) +
                            ") for schedule " + name);
  }
  return schedule;
}

}  // namespace skerry::strategies
