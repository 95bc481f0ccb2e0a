// Learning-rate schedules of the outer optimizers: functions of how often a fragment has been exchanged.
#pragma once

#include <cstdint>
#include <vector>

#include "common/base/result.h"
#include "strategies/part.h"

namespace skerry::strategies {

/// With t = step − 1 the exchanges before this one, f = final_fraction and g = (t − warmup_steps) / (schedule_steps −
/// warmup_steps), at most 1, the learning rate is multiplied by (t + 1) / warmup_steps while t < warmup_steps, then by
///
///   constant       1
///   linear         f + (1 − f)(1 − g)            both as in a trainer's schedule (docs/trainer-protocol.md)
///   cosine         f + (1 − f)(1 + cos πg) / 2
///   inverse_sqrt   √(w / (t + 1)), w = warmup_steps or 1
///   step           step_factor^⌊(t − warmup_steps) / step_every⌋
struct Schedule {
  enum class Kind : std::uint8_t { kConstant, kLinear, kCosine, kInverseSqrt, kStep };
  Kind kind = Kind::kConstant;
  std::uint64_t warmup_steps = 0;
  std::uint64_t schedule_steps = 0;  ///< above warmup_steps for linear and cosine; else not used
  double final_fraction = 0;         ///< in [0, 1]
  std::uint64_t step_every = 10;     ///< at least 1
  double step_factor = 0.1;          ///< in (0, 1]

  bool operator==(const Schedule&) const = default;
};

/// What the learning rate is multiplied by at `step` = 1, 2, …; the same bits on every machine.
double schedule_factor(const Schedule& schedule, std::uint64_t step);

/// The parameters by which a part of a run spec says its schedule, and their values in a part that says only what
/// differs from a constant learning rate.
std::vector<ParameterInfo> schedule_parameters();
void put_schedule(const Schedule& schedule, Part& part);

/// The schedule that a resolved part says. INVALID_ARGUMENT if linear or cosine have no step after the warm-up.
Result<Schedule> schedule_of(const Part& resolved);

}  // namespace skerry::strategies
