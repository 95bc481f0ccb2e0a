#pragma once

#include "strategies/aggregation/rule.h"

/// The mean of the updates, each shortened to at most `multiple` times the median length of the exchange.
skerry::Result<skerry::strategies::Rule> clipped_mean(const skerry::strategies::Part& part);
