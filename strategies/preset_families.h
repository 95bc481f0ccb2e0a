// The presets that are defined apart from presets.cc. Internal to strategies/.
#pragma once

#include <vector>

#include "strategies/presets.h"

namespace skerry::strategies {

/// Those for language models on islands of compute (language_presets.cc).
std::vector<Preset> language_presets();

/// Those named after an aggregation rule (rule_presets.cc).
std::vector<Preset> rule_presets();

}  // namespace skerry::strategies
