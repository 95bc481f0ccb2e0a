// The benchmarks by name; docs/benchmarks.md says what each one measures and how.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "tests/bench/figures/figure.h"
#include "tests/bench/figures/world.h"

namespace skerry::bench {

struct BenchmarkContext {
  World& world;
  unsigned repeat = 3;  ///< a figure is the median of so many values
  std::string source;   ///< the repository, for clean_build
};

struct Benchmark {
  std::string name;
  bool by_request = false;  ///< runs only where it is asked for
  std::function<Result<std::vector<Figure>>(BenchmarkContext&)> run;
};

/// All of them, in the order of the table.
std::vector<Benchmark> benchmarks();

using Figures = Result<std::vector<Figure>>;

// rounds.cc
Figures small_rounds(BenchmarkContext& context);
Figures small_rounds_fleet(BenchmarkContext& context);
Figures wide_round(BenchmarkContext& context);
// large.cc
Figures large_round(BenchmarkContext& context);
Figures large_round_memory(BenchmarkContext& context);
// bytes.cc
Figures cargo_tls(BenchmarkContext& context);
Figures cargo_durable(BenchmarkContext& context);
// machine.cc
Figures idle(BenchmarkContext& context);
Figures clean_build(BenchmarkContext& context);
// links.cc
Figures utilisation(BenchmarkContext& context);
Figures wire_bytes(BenchmarkContext& context);
// codec.cc
Figures codec(BenchmarkContext& context);
// aggregate.cc
Figures aggregation(BenchmarkContext& context, const std::string& row);

/// A run spec for the fleet: `fedavg`, so many nodes in every round, no evaluation.
struct RunShape {
  std::string name;
  std::string model;  ///< lines of the model section
  unsigned nodes = 0;
  unsigned rounds = 0;
};
std::string spec_of(const RunShape& shape);

/// 1,000 parameters: 99 inputs, 10 outputs, with bias.
extern const char* const kSmallModel;
/// 25,000,000 parameters and a few.
extern const char* const kLargeModel;

}  // namespace skerry::bench
