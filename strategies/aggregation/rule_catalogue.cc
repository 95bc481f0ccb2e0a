#include "strategies/aggregation/rule_catalogue.h"

#include <algorithm>
#include <utility>

namespace skerry::strategies {

RuleCatalogue::RuleCatalogue() : infos_(aggregation_catalogue().begin(), aggregation_catalogue().end()) {}

Result<void> RuleCatalogue::add(RuleEntry entry) {
  const auto same = [&](const PartInfo& known) { return known.name == entry.info.name; };
  if (std::any_of(infos_.begin(), infos_.end(), same))
    return already_exists("there is an aggregation rule " + entry.info.name + " already; a rule from elsewhere needs a name of its own");
  infos_.push_back(entry.info);
  added_.push_back(std::move(entry));
  return {};
}

Result<Rule> RuleCatalogue::make(const Part& part) const {
  SKERRY_ASSIGN(const Part resolved, resolve(part, "aggregation", infos_));
  for (const RuleEntry& entry : added_)
    if (entry.info.name == resolved.name) return entry.make(resolved);
  return make_rule(resolved);
}

}  // namespace skerry::strategies
