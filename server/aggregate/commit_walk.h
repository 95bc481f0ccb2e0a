// The last walk of a reduction: outer gradient → outer step → what is adopted, written, hashed and sent.
#pragma once

#include "server/aggregate/cohort_walk.h"

namespace skerry::server {

/// Runs it on a cohort whose statistics are done, and writes the results. Errors as AggregationEngine::reduce says; nothing
/// is left at the output paths where it fails.
Result<ReduceOutcome> commit_walk(const ReduceJob& job, CohortWalk& cohort, ReductionPool& pool);

}  // namespace skerry::server
