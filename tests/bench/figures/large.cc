// Exchanges of a model of 25 million parameters: how long one takes, against the sum of its parts, and the coordinator's memory.
#include "tests/bench/figures/benchmarks.h"
#include "tests/bench/parts/rates.h"
#include "tests/bench/parts/raw_tls.h"

namespace skerry::bench {
namespace {

constexpr unsigned kNodes = 4;
constexpr double kModelBytes = 25'004'900 * 4.0;  // (5,000 + 1) × 4,990 + 4,991 × 10 parameters
constexpr std::uint64_t kRateBytes = 400'000'000;

struct Round {
  double seconds = 0;
  double reduce_seconds = 0;
  double peak_anonymous_mb = 0;
  double anonymous_mb_before = 0;
  double peak_resident_mb = 0;
};

Result<Round> one_round(World& world, unsigned nodes) {
  SKERRY_TRY(world.start_coordinator());
  auto report = world.fleet(nodes, spec_of({"large-round", kLargeModel, nodes, 1}), 300);
  Round round;
  if (report.ok()) {
    const auto& run = (*report)["runs"].begin();
    round.seconds = run.value()["median_round_seconds"].get<double>();
    const auto& watched = (*report)["watched"];
    round.peak_anonymous_mb = watched["peak_anonymous_bytes"].get<double>() / 1e6;
    round.anonymous_mb_before = watched["anonymous_bytes_before"].get<double>() / 1e6;
    round.peak_resident_mb = watched["peak_resident_bytes"].get<double>() / 1e6;
    SKERRY_ASSIGN(Operator watcher, world.open_operator());
    SKERRY_ASSIGN(const auto rows, watcher.exchanges(run.key()));
    if (!rows.empty()) round.reduce_seconds = rows.back().reduce_seconds;
  }
  world.stop_coordinator();
  if (!report.ok()) return report.error();
  return round;
}

}  // namespace

Figures large_round(BenchmarkContext& context) {
  World& world = context.world;
  std::vector<double> seconds, sums, tls, hashing, writing, reducing;
  for (unsigned i = 0; i < context.repeat; ++i) {
    SKERRY_ASSIGN(const double tls_rate, raw_tls_rate(2 * kRateBytes));
    const double hash = hash_rate(2 * kRateBytes, 2);
    SKERRY_ASSIGN(const double durable_rate, write_rate(world.options().directory, kRateBytes));
    SKERRY_ASSIGN(const double page_rate, cached_write_rate(world.options().directory, kRateBytes));
    SKERRY_ASSIGN(const Round round, one_round(world, kNodes));
    seconds.push_back(round.seconds);
    // Down and up once for every client. Each side hashes what it sends or gets, on both cores. The coordinator makes the
    // updates durable; the clients write what they got and what they send to files, too.
    tls.push_back(2 * kNodes * kModelBytes / tls_rate);
    hashing.push_back(3 * kNodes * kModelBytes / hash);
    writing.push_back(kNodes * kModelBytes / durable_rate + 2 * kNodes * kModelBytes / page_rate);
    reducing.push_back(round.reduce_seconds);  // with hashing and writing the new version
    sums.push_back(tls.back() + hashing.back() + writing.back() + reducing.back());
  }
  const double value = median(seconds);
  const double sum = median(sums);
  Figure round{"large_round", value, "s", sum, "TLS + hashing + writing + reducing, one after another", "≤ 3.0", value <= 3.0};
  round.detail = {{"values", seconds},
                  {"nodes", kNodes},
                  {"tls_seconds", median(tls)},
                  {"hashing_seconds", median(hashing)},
                  {"writing_seconds", median(writing)},
                  {"reducing_seconds", median(reducing)}};
  Figure parts{"large_round.parts", value / sum, "× parts", 0, "", "≤ 1.3", value <= 1.3 * sum};
  return std::vector<Figure>{round, parts};
}

Figures large_round_memory(BenchmarkContext& context) {
  std::vector<Figure> figures;
  double with_four = 0;
  for (const unsigned nodes : {kNodes, 2 * kNodes}) {
    std::vector<double> peaks, before, resident;
    for (unsigned i = 0; i < context.repeat; ++i) {
      SKERRY_ASSIGN(const Round round, one_round(context.world, nodes));
      peaks.push_back(round.peak_anonymous_mb);
      before.push_back(round.anonymous_mb_before);
      resident.push_back(round.peak_resident_mb);
    }
    const double peak = median(peaks);
    Figure figure{"large_round_memory." + std::to_string(nodes), peak, "MB", median(before), "anonymous memory before the round", "≤ 64", peak <= 64.0};
    if (nodes == kNodes) {
      with_four = peak;
    } else {
      // The same: within what another four connections and their buffers may cost.
      constexpr double kSame = 8.0;
      figure.target = "≤ 64, as with 4";
      figure.met = peak <= 64.0 && peak - with_four <= kSame;
    }
    figure.detail = {{"values", peaks}, {"peak_resident_mb_with_mapped_files", median(resident)}};
    figures.push_back(std::move(figure));
  }
  return figures;
}

}  // namespace skerry::bench
