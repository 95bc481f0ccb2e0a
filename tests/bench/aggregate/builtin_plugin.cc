// Built-in rules as a plug-in: the same code on the other side of the process boundary.
#include "strategies/sdk/plugin.hpp"

using namespace skerry;
using namespace skerry::strategies;

namespace {

Result<Rule> mean(const Part&) { return make_rule({"weighted_mean", {}}); }
Result<Rule> coordinate_median(const Part&) { return make_rule({"median", {}}); }
Result<Rule> krum(const Part&) { return make_rule({"krum", {{"byzantine", 1.0}}}); }

}  // namespace

SKERRY_PLUGIN("builtin", "1.0.0",
              {{{"weighted_mean_outside", "weighted_mean", {}}, mean},
               {{"median_outside", "median", {}}, coordinate_median},
               {{"krum_outside", "krum", {}}, krum}})
