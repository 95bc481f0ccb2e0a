#include "tests/bench/figures/benchmarks.h"

namespace skerry::bench {

const char* const kSmallModel = "architecture = \"linear\"\ninputs = 99\noutputs = 10\n";
// 5,000 × 4,990 + 4,990 + 4,990 × 10 + 10
const char* const kLargeModel = "architecture = \"mlp\"\ninputs = 5000\nhidden = [4990]\noutputs = 10\n";

std::string spec_of(const RunShape& shape) {
  std::string features;
  for (int i = 0; i < 99; ++i) features += (i == 0 ? "\"x" : ", \"x") + std::to_string(i) + "\"";
  const std::string nodes = std::to_string(shape.nodes);
  return "name = \"" + shape.name +
         "\"\n"
         "purpose = \"benchmark\"\n"
         "strategy = \"fedavg\"\n"
         "[model]\n" +
         shape.model +
         "[data]\n"
         "kind = \"csv\"\n"
         "schema = { features = [" +
         features +
         "], label = \"y\", classes = 10 }\n"
         "[training]\n"
         "optimizer = \"sgd\"\n"
         "learning_rate = 0.01\n"
         "steps = 1\n"
         "batch = 8\n"
         "[participation]\n"
         "quorum = " +
         nodes + "\nstart_nodes = " + nodes +
         "\n[evaluation]\n"
         "every = 0\n"
         "[stop]\n"
         "rounds = " +
         std::to_string(shape.rounds) + "\n";
}

std::vector<Benchmark> benchmarks() {
  std::vector<Benchmark> all = {
      {"small_rounds", false, small_rounds},
      {"small_rounds_fleet", false, small_rounds_fleet},
      {"wide_round", false, wide_round},
      {"large_round", false, large_round},
      {"large_round_memory", false, large_round_memory},
      {"cargo_tls", false, cargo_tls},
      {"cargo_durable", false, cargo_durable},
      {"utilisation", false, utilisation},
      {"wire_bytes", false, wire_bytes},
      {"codec", false, codec},
      {"idle", false, idle},
      {"clean_build", true, clean_build},
  };
  for (const std::string row : {"agg_mean", "agg_commit", "agg_small", "agg_median", "agg_trimmed", "agg_krum", "agg_bulyan",
                                "agg_mean_int8", "agg_plugin", "agg_beyond_memory"}) {
    all.push_back({row, row == "agg_beyond_memory", [row](BenchmarkContext& context) { return aggregation(context, row); }});
  }
  return all;
}

}  // namespace skerry::bench
