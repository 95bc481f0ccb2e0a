// Every SIMD target in turn, for tests of bytes that must not depend on it.
#pragma once

#include <cstdint>

#include <hwy/targets.h>

namespace skerry {

/// Runs `check` once for every SIMD target that was compiled and that this machine has.
template <typename Check>
void on_every_target(const Check& check) {
  for (auto left = static_cast<std::int64_t>(hwy::SupportedTargets()); left != 0; left &= left - 1) {
    hwy::SetSupportedTargetsForTest(left & -left);
    check();
  }
  hwy::SetSupportedTargetsForTest(0);
}

}  // namespace skerry
