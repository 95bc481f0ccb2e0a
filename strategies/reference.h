// What the catalogue holds, in words: for docs/strategies.md and `skerry strategy`.
#pragma once

#include <string>
#include <vector>

#include "strategies/aggregation/rule.h"
#include "strategies/part.h"

namespace skerry::strategies {

/// The rule of a catalogue entry, with its defaults; a text that a run spec must say (a node's name) stands for itself.
Result<Rule> usual_rule(const PartInfo& info);

/// What a rule asks of a run, a phrase each: "single updates (not with secure sums)", "at least 5 updates (n >= 2f + 3
/// with f = 1)".
std::vector<std::string> needs_of(const Rule& rule);

/// The tables of presets, rules, optimizers and schedules in Markdown, as docs/strategies.md holds them between its
/// markers.
std::string strategy_reference();

}  // namespace skerry::strategies
