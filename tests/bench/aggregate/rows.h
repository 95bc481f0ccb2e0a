// The rows of the aggregation benchmark: each measures one thing and what it is compared to.
#pragma once

#include <span>
#include <string>

#include "tests/bench/aggregate/spool.h"

namespace skerry::server::bench {

struct Benchmark {
  std::string name;
  bool by_request = false;  ///< runs only where it is named
  void (*run)(AggregationEngine& engine, const Settings& settings, const std::string& name);
};

/// agg_plugin (plugin_rows.cc).
void across_the_boundary(AggregationEngine& engine, const Settings& settings, const std::string& name);

/// In the order in which they run; docs/benchmarks.md says what each measures.
std::span<const Benchmark> benchmarks();

}  // namespace skerry::server::bench
