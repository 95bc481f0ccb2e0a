// The aggregation rules a program offers: the built-in ones and those that came from elsewhere. Passed explicitly to whatever
// reads a run spec, so that two coordinators in one process could offer different ones.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "strategies/aggregation/rule.h"

namespace skerry::strategies {

/// A rule from elsewhere: how run specs name it, and how to make it from a part with every parameter given and checked.
struct RuleEntry {
  PartInfo info;
  std::function<Result<Rule>(const Part& resolved)> make;
};

class RuleCatalogue {
 public:
  /// The built-in rules.
  RuleCatalogue();

  /// ALREADY_EXISTS where a rule of this name is known.
  Result<void> add(RuleEntry entry);

  /// All rules, the built-in ones first.
  std::span<const PartInfo> infos() const { return infos_; }

  /// The rule that a part names. INVALID_ARGUMENT as `resolve` says, or whatever the rule refuses.
  Result<Rule> make(const Part& part) const;

 private:
  std::vector<PartInfo> infos_;
  std::vector<RuleEntry> added_;
};

}  // namespace skerry::strategies
