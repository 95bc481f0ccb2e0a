// Cargo through the port against raw OpenSSL, and made durable against the sum of its parts.
#include "common/identity/profile.h"
#include "tests/bench/figures/benchmarks.h"
#include "tests/bench/parts/rates.h"
#include "tests/bench/parts/raw_tls.h"

namespace skerry::bench {
namespace {

constexpr std::uint64_t kBytes = 1'000'000'000;
constexpr std::uint64_t kFileBytes = 400'000'000;

/// Stops the coordinator at the end of a measurement, however that ends.
struct Running {
  World& world;
  ~Running() { world.stop_coordinator(); }
};

Figure share(const char* name, const std::vector<double>& values, const std::vector<double>& baselines, const char* baseline_name,
             const char* target, double least) {
  // Each value is compared with the baseline measured right beside it: what else the machine does then hits both alike.
  std::vector<double> ratios;
  for (std::size_t i = 0; i < values.size(); ++i) ratios.push_back(values[i] / baselines[i]);
  Figure figure{name, median(values), "MB/s", 0, baseline_name, target, median(ratios) >= least};
  figure.baseline = figure.value / median(ratios);
  figure.detail = {{"values", values}, {"baselines", baselines}, {"ratios", ratios}};
  return figure;
}

}  // namespace

Figures cargo_tls(BenchmarkContext& context) {
  World& world = context.world;
  SKERRY_TRY(world.start_coordinator());
  const Running running{world};
  SKERRY_ASSIGN(const Profile profile, load_profile(world.operator_profile()));
  std::vector<double> up, down, raw_up, raw_down;
  for (unsigned i = 0; i < context.repeat; ++i) {
    SKERRY_ASSIGN(double rate, raw_tls_rate(kBytes));
    raw_up.push_back(rate / 1e6);
    SKERRY_ASSIGN(rate, sink_rate(profile, kBytes));
    up.push_back(rate / 1e6);
    SKERRY_ASSIGN(rate, raw_tls_rate(kBytes));
    raw_down.push_back(rate / 1e6);
    SKERRY_ASSIGN(rate, source_rate(profile, kBytes));
    down.push_back(rate / 1e6);
  }
  return std::vector<Figure>{share("cargo_tls.up", up, raw_up, "raw OpenSSL over loopback", "≥ 0.9 × baseline", 0.9),
                             share("cargo_tls.down", down, raw_down, "raw OpenSSL over loopback", "≥ 0.9 × baseline", 0.9)};
}

Figures cargo_durable(BenchmarkContext& context) {
  World& world = context.world;
  SKERRY_TRY(world.start_coordinator());
  const Running running{world};
  SKERRY_ASSIGN(const Profile profile, load_profile(world.operator_profile()));
  std::vector<double> values, bounds, tls, hash, write;
  for (unsigned i = 0; i < context.repeat; ++i) {
    SKERRY_ASSIGN(const double tls_rate, raw_tls_rate(kBytes));
    const double hashing = hash_rate(kFileBytes, 1);
    SKERRY_ASSIGN(const double writing, write_rate(world.options().directory, kFileBytes));
    SKERRY_ASSIGN(const double rate, cargo_upload_rate(profile, world.options().directory, kFileBytes));
    values.push_back(rate / 1e6);
    tls.push_back(tls_rate / 1e6);
    hash.push_back(hashing / 1e6);
    write.push_back(writing / 1e6);
    bounds.push_back(1.0 / (1.0 / tls.back() + 1.0 / hash.back() + 1.0 / write.back()));
  }
  Figure figure = share("cargo_durable", values, bounds, "1/(1/TLS + 1/hash + 1/write)", "≥ 0.8 × baseline", 0.8);
  figure.detail["tls_mb_s"] = median(tls);
  figure.detail["hash_mb_s"] = median(hash);
  figure.detail["write_mb_s"] = median(write);
  return std::vector<Figure>{figure};
}

}  // namespace skerry::bench
