#include "tests/bench/aggregate/rows.h"

#include <algorithm>

#include "common/codec/encoding.h"
#include "strategies/aggregation/rule.h"
#include "strategies/outer/outer_optimizer.h"

namespace skerry::server::bench {
namespace {

using strategies::OuterOptimizer;
using strategies::Part;
using strategies::Rule;

constexpr char kReads[] = "a pass that only reads";

std::string at_least(double target, const char* unit) {
  char text[32];
  std::snprintf(text, sizeof text, "≥ %g%s", target, unit);
  return text;
}

// Aggregates K stored updates, keeps only the norm, and compares that with reading them.
struct Speed {
  double aggregate = 0;  // GB/s of encoded bytes
  double read = 0;
};

Speed speed_of(AggregationEngine& engine, const Settings& settings, const Spool& spool, const Part& part) {
  const Rule rule = must(strategies::make_rule(part));
  ReduceJob job = spool.job();
  job.rule = &rule;
  std::vector<double> aggregates;
  std::vector<double> reads;
  const auto measure = [&](const std::function<void()>& body) {
    return settings.cpu_time ? cpu_seconds_of(body) / engine.threads() : seconds_of(body);
  };
  for (unsigned i = 0; i < settings.repeat + 1; ++i) {
    const double read = measure([&] { read_all(engine, spool); });
    const double aggregate = measure([&] { (void)must(engine.measure(job)); });
    if (i == 0) continue;  // the first round warms up
    reads.push_back(read);
    aggregates.push_back(aggregate);
  }
  return {spool.update_gigabytes() / median(aggregates), spool.update_gigabytes() / median(reads)};
}

Spool::Shape shape_of(const Settings& settings, std::uint64_t elements, std::size_t updates, std::string encoding = "f32") {
  return {settings.elements.value_or(elements), settings.updates.value_or(updates), std::move(encoding), true};
}

void mean(AggregationEngine& engine, const Settings& settings, const std::string& name) {
  const Spool spool(settings, shape_of(settings, 25'000'000, 10));
  const Speed speed = speed_of(engine, settings, spool, {"weighted_mean", {}});
  const double ratio = speed.aggregate / speed.read;
  print({name, speed.aggregate, "GB/s", speed.read, kReads, ratio, at_least(0.95, " × baseline"), ratio >= 0.95});
}

// A rule of one parameter or none on 10 × 5 M.
void rule_speed(AggregationEngine& engine, const Settings& settings, const std::string& name, const Part& part,
                double target) {
  const Spool spool(settings, shape_of(settings, 5'000'000, 10));
  const Speed speed = speed_of(engine, settings, spool, part);
  print({name, speed.aggregate, "GB/s", speed.read, kReads, speed.aggregate / speed.read, at_least(target, " GB/s"),
         speed.aggregate >= target});
}

void coordinate_median(AggregationEngine& engine, const Settings& settings, const std::string& name) {
  rule_speed(engine, settings, name, {"median", {}}, 7);
}
void trimmed(AggregationEngine& engine, const Settings& settings, const std::string& name) {
  rule_speed(engine, settings, name, {"trimmed_mean", {{"trim", 1.0}}}, 7);
}
void krum(AggregationEngine& engine, const Settings& settings, const std::string& name) {
  rule_speed(engine, settings, name, {"krum", {{"byzantine", 1.0}}}, 4);
}
void bulyan(AggregationEngine& engine, const Settings& settings, const std::string& name) {
  rule_speed(engine, settings, name, {"bulyan", {{"byzantine", 1.0}}}, 2);
}

void mean_int8(AggregationEngine& engine, const Settings& settings, const std::string& name) {
  for (const auto& [encoding, target] : {std::pair{"int8", 4.0}, std::pair{"int8_block", 6.0}}) {
    const Spool spool(settings, shape_of(settings, 100'000'000, 10, encoding));
    const Speed speed = speed_of(engine, settings, spool, {"weighted_mean", {}});
    print({name + "." + encoding, speed.aggregate, "GB/s", speed.read, kReads, speed.aggregate / speed.read,
           at_least(target, " GB/s"), speed.aggregate >= target});
  }
}

double write_and_sync(const std::string& path, std::span<const std::byte> bytes) {
  const double seconds = seconds_of([&] { write_file(path, "", bytes); });
  must(remove_file(path));
  return seconds;
}

// A whole reduction with files, DiLoCo's outer step and state, durable, against reading the updates and writing and syncing
// model and state.
void commit(AggregationEngine& engine, const Settings& settings, const std::string& name) {
  const Spool spool(settings, shape_of(settings, 25'000'000, 10));
  const Rule rule = must(strategies::make_rule({"weighted_mean", {}}));
  const OuterOptimizer outer = must(strategies::make_outer_optimizer(strategies::nesterov()));
  ReduceJob job = spool.job();
  job.rule = &rule;
  job.outer = &outer;
  job.output = {spool.path("first"), spool.path("state"), "", true};
  (void)must(engine.reduce(job));
  job.state = Payload::file(spool.path("state"));
  job.output = {spool.path("new"), spool.path("new-state"), "", true};
  const std::vector<float> values = some_values(spool.shape().elements, 99);
  const auto bytes = std::as_bytes(std::span(values));
  std::vector<double> commits;
  std::vector<double> parts;
  for (unsigned i = 0; i < settings.repeat; ++i) {
    const double read = seconds_of([&] { read_all(engine, spool); });
    const double write = write_and_sync(spool.path("a"), bytes) + write_and_sync(spool.path("b"), bytes);
    commits.push_back(seconds_of([&] { (void)must(engine.reduce(job)); }));
    parts.push_back(read + write);
    must(remove_file(spool.path("new")));
    must(remove_file(spool.path("new-state")));
  }
  const double ratio = median(commits) / median(parts);
  print({name, median(commits), "s", median(parts), "reading, then writing and syncing", ratio, "≤ 1.3 × baseline", ratio <= 1.3});
}

// A small exchange in memory: 10 updates of 1,000 values, on the caller's thread alone.
void small(AggregationEngine& engine, const Settings&, const std::string& name) {
  const Rule rule = must(strategies::make_rule({"weighted_mean", {}}));
  const OuterOptimizer outer = must(strategies::make_outer_optimizer(strategies::nesterov()));
  const std::vector<float> values = some_values(1000, 1);
  const std::string_view payload(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
  const std::string base = std::string(256, ' ') + std::string(payload);
  ReduceJob job;
  job.fragment = "all";
  job.elements = values.size();
  job.base = Payload::in_memory(base);
  job.data_offset = 256;
  for (int k = 0; k < 10; ++k) {
    const std::string number = std::to_string(k);
    job.updates.push_back({"node-" + number, "task-" + number, Payload::in_memory(payload), "f32", {100, 0, 1, 1.0}});
  }
  job.rule = &rule;
  job.outer = &outer;
  const std::string state = must(engine.reduce(job)).state.bytes;
  job.state = Payload::in_memory(state);
  constexpr int kTimes = 2000;
  const double seconds = seconds_of([&] {
    for (int i = 0; i < kTimes; ++i) (void)must(engine.reduce(job));
  });
  const double microseconds = seconds / kTimes * 1e6;
  print({name, microseconds, "us", 0, "", 0, "≤ 100 us", microseconds <= 100});
}

// The most memory that this process has had since `forget_peak`, with the pages of files it mapped.
double peak_megabytes() {
  const std::string status = must(read_file("/proc/self/status", 1 << 16));
  return std::strtod(status.c_str() + status.find("VmHWM:") + 6, nullptr) * 1024e-6;
}

void forget_peak() {
  File file = must(File::open("/proc/self/clear_refs", OpenMode::kReadWrite));
  must(file.pwrite(as_bytes_of("5"), 0));
}

// Whole reductions of more than this machine may have memory for, to files. Needs 17 GB of disk.
void beyond_memory(AggregationEngine& engine, const Settings& settings, const std::string& name) {
  Spool::Shape shape = shape_of(settings, 1'000'000'000, 8, "int8");
  shape.base = false;
  const Spool spool(settings, shape);
  const OuterOptimizer outer = must(strategies::make_outer_optimizer(strategies::sgd()));
  for (const Part& part : {Part{"weighted_mean", {}}, Part{"median", {}}, Part{"krum", {{"byzantine", 1.0}}}}) {
    const Rule rule = must(strategies::make_rule(part));
    ReduceJob job = spool.job();
    job.rule = &rule;
    job.outer = &outer;
    job.output = {spool.path("new"), "", "", true};
    forget_peak();
    const double seconds = seconds_of([&] { (void)must(engine.reduce(job)); });
    const double peak = peak_megabytes();
    must(remove_file(spool.path("new")));
    const double whole = 4e-6 * static_cast<double>(shape.elements * shape.updates);
    std::fprintf(stderr, "%s %s: %.1f s\n", name.c_str(), part.name.c_str(), seconds);
    print({name + "." + part.name, peak, "MB", whole, "the updates as f32", peak / whole, "≤ 512 MB", peak <= 512});
  }
}

}  // namespace

std::span<const Benchmark> benchmarks() {
  static const Benchmark kAll[] = {
      {"agg_mean", false, mean},       {"agg_commit", false, commit},
      {"agg_small", false, small},     {"agg_median", false, coordinate_median},
      {"agg_trimmed", false, trimmed}, {"agg_krum", false, krum},
      {"agg_bulyan", false, bulyan},   {"agg_mean_int8", false, mean_int8},
      {"agg_plugin", false, across_the_boundary}, {"agg_beyond_memory", true, beyond_memory},
  };
  return kAll;
}

}  // namespace skerry::server::bench
