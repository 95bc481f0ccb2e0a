// What a run spec may name: the presets as fields, and the rules and outer optimizers with their parameters.
#pragma once

#include "common/config/fields.h"
#include "common/config/run_spec.h"
#include "strategies/aggregation/rule_catalogue.h"
#include "strategies/part.h"

namespace skerry::strategies {

/// What parse_run_spec needs to know of this library: presets, aggregation rules and outer optimizers with their
/// parameters.
const SpecCatalogue& spec_catalogue();

/// The same with these aggregation rules.
SpecCatalogue spec_catalogue(const RuleCatalogue& rules);

/// The parts of a run spec, ready for make_rule and make_outer_optimizer.
Part aggregation_part(const RunSpec& spec);
Part outer_part(const RunSpec& spec);

}  // namespace skerry::strategies
