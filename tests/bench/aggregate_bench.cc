// How fast the coordinator aggregates, against what the machine can do, measured in the same run.
//
//   skerry_aggregate_bench [agg_mean] [agg_commit] [agg_small] [--elements N] [--updates K] [--threads T] [--repeat R] [--dir DIR]
//
// Prints one JSON object a line: name, value, unit, baseline, ratio.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "common/crypto/content_id.h"
#include "common/os/files.h"
#include "server/aggregate/engine.h"
#include "strategies/aggregation/weighted_mean.h"

#include <hwy/highway.h>

namespace skerry::server {
namespace {

struct Settings {
  std::vector<std::string> names;
  std::uint64_t elements = 25'000'000;
  std::size_t updates = 10;
  unsigned threads = 0;
  unsigned repeat = 5;
  std::string directory;
};

constexpr std::uint64_t kHeaderBytes = 4096;
constexpr std::uint64_t kPieceBytes = 1u << 20;

template <typename T>
T must(Result<T> result) {
  if (result.ok()) return std::move(result).value();
  std::fprintf(stderr, "%s\n", to_string(result.error()).c_str());
  std::exit(1);
}

void must(const Result<void>& result) {
  if (result.ok()) return;
  std::fprintf(stderr, "%s\n", to_string(result.error()).c_str());
  std::exit(1);
}

double seconds_of(const std::function<void()>& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

void print(const char* name, double value, const char* unit, double baseline, double ratio) {
  std::printf("{\"name\":\"%s\",\"value\":%.6g,\"unit\":\"%s\",\"baseline\":%.6g,\"ratio\":%.4f}\n", name, value, unit,
              baseline, ratio);
  std::fflush(stdout);
}

std::vector<float> some_values(std::uint64_t count, std::uint32_t seed) {
  std::vector<float> values(count);
  std::uint32_t state = seed * 2654435761u + 1;
  for (float& value : values) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<float>(state >> 8) / 8388608.0f - 1.0f;
  }
  return values;
}

void write_file(const std::string& path, std::string_view header, const std::vector<float>& values) {
  File file = must(File::open(path, OpenMode::kCreateOrEmpty));
  must(file.pwrite(as_bytes_of(header), 0));
  must(file.pwrite(std::as_bytes(std::span(values)), header.size()));
  must(file.fsync());
}

// Files as the coordinator has them when an exchange is complete: the base, a state, and K updates in the spool.
class Spool {
 public:
  explicit Spool(const Settings& settings)
      : settings_(settings),
        rule_(strategies::weighted_mean_rule(strategies::Weights::kExamples)),
        outer_(must(strategies::make_outer_optimizer(strategies::nesterov()))) {
    std::string pattern = join_path(settings.directory, "skerry-bench-XXXXXX");
    if (::mkdtemp(pattern.data()) == nullptr) {
      std::perror(pattern.c_str());
      std::exit(1);
    }
    directory_ = pattern;
    write_file(path("base"), std::string(kHeaderBytes, ' '), some_values(settings.elements, 1));
    for (std::size_t k = 0; k < settings.updates; ++k) {
      write_file(update_path(k), "", some_values(settings.elements, static_cast<std::uint32_t>(k + 2)));
    }
  }
  Spool(const Spool&) = delete;
  Spool& operator=(const Spool&) = delete;
  ~Spool() { (void)remove_tree(directory_); }

  std::string path(std::string_view name) const { return join_path(directory_, name); }
  std::string update_path(std::size_t k) const { return path("update-" + std::to_string(k)); }

  ReduceJob job() const {
    ReduceJob job;
    job.fragment = "all";
    job.elements = settings_.elements;
    job.base = Payload::file(path("base"));
    job.data_offset = kHeaderBytes;
    for (std::size_t k = 0; k < settings_.updates; ++k) {
      const std::string name = std::to_string(k);
      job.updates.push_back({"node-" + name, "task-" + name, Payload::file(update_path(k)), "f32", {100 + k, 0, 1, 1.0}});
    }
    job.rule = &rule_;
    job.outer = &outer_;
    return job;
  }

 private:
  const Settings& settings_;
  const strategies::Rule rule_;
  const strategies::OuterOptimizer outer_;
  std::string directory_;
};

// Reads a span, a vector at a time, four in flight.
std::uint64_t read_words(std::span<const std::byte> bytes) {
  namespace hn = hwy::HWY_NAMESPACE;
  const hn::ScalableTag<std::uint64_t> d;
  const std::size_t lanes = hn::Lanes(d);
  const auto* words = reinterpret_cast<const std::uint64_t*>(bytes.data());
  auto s0 = hn::Zero(d);
  auto s1 = hn::Zero(d);
  auto s2 = hn::Zero(d);
  auto s3 = hn::Zero(d);
  for (std::size_t i = 0; i + 4 * lanes <= bytes.size() / sizeof(std::uint64_t); i += 4 * lanes) {
    s0 = hn::Add(s0, hn::LoadU(d, words + i));
    s1 = hn::Add(s1, hn::LoadU(d, words + i + lanes));
    s2 = hn::Add(s2, hn::LoadU(d, words + i + 2 * lanes));
    s3 = hn::Add(s3, hn::LoadU(d, words + i + 3 * lanes));
  }
  return hn::GetLane(hn::Add(hn::Add(s0, s1), hn::Add(s2, s3)));
}

// Reads all updates once through fresh maps, on all threads.
void read_all(AggregationEngine& engine, const Spool& spool, std::size_t updates) {
  std::vector<MappedFile> files;
  for (std::size_t k = 0; k < updates; ++k) files.push_back(must(MappedFile::open(spool.update_path(k))));
  const std::uint64_t pieces = (files[0].size() + kPieceBytes - 1) / kPieceBytes;
  std::vector<std::uint64_t> sums(pieces);
  engine.parallel_for(pieces, [&](std::size_t piece) {
    for (const MappedFile& file : files) {
      const std::uint64_t begin = piece * kPieceBytes;
      sums[piece] += read_words(file.bytes().subspan(begin, std::min(kPieceBytes, file.size() - begin)));
    }
  });
  volatile std::uint64_t sink = 0;
  for (const std::uint64_t sum : sums) sink = sink + sum;
}

// The weighted mean of K f32 updates, its norm taken and nothing kept, against a pass that only reads them.
void bench_mean(AggregationEngine& engine, const Settings& settings, const Spool& spool) {
  std::vector<double> means;
  std::vector<double> reads;
  const ReduceJob job = spool.job();
  for (unsigned i = 0; i < settings.repeat + 1; ++i) {
    const double read = seconds_of([&] { read_all(engine, spool, settings.updates); });
    const double mean = seconds_of([&] { (void)must(engine.measure(job)); });
    if (i == 0) continue;  // the first round warms up
    reads.push_back(read);
    means.push_back(mean);
  }
  const double gigabytes = 4e-9 * static_cast<double>(settings.elements * settings.updates);
  print("agg_mean", gigabytes / median(means), "GB/s", gigabytes / median(reads), median(reads) / median(means));
}

double write_and_sync(const std::string& path, const std::vector<float>& values) {
  const double seconds = seconds_of([&] { write_file(path, "", values); });
  must(remove_file(path));
  return seconds;
}

// A whole reduction with files, DiLoCo's outer step and state, durable, against the sum of its parts: reading everything,
// hashing the new model, writing and syncing model and state.
void bench_commit(AggregationEngine& engine, const Settings& settings, const Spool& spool) {
  ReduceJob job = spool.job();
  job.output = {spool.path("first"), spool.path("state"), "", true};
  (void)must(engine.reduce(job));
  job.state = Payload::file(spool.path("state"));
  job.output = {spool.path("new"), spool.path("new-state"), "", true};
  const std::vector<float> values = some_values(settings.elements, 99);
  const auto bytes = std::as_bytes(std::span(values));
  std::vector<double> commits;
  std::vector<double> parts;
  for (unsigned i = 0; i < settings.repeat; ++i) {
    const double read = seconds_of([&] { read_all(engine, spool, settings.updates); });
    const double hash = seconds_of([&] { (void)content_id(bytes, engine.threads()); });
    const double write = write_and_sync(spool.path("a"), values) + write_and_sync(spool.path("b"), values);
    commits.push_back(seconds_of([&] { (void)must(engine.reduce(job)); }));
    parts.push_back(read + hash + write);
    must(remove_file(spool.path("new")));
    must(remove_file(spool.path("new-state")));
  }
  print("agg_commit", median(commits), "s", median(parts), median(commits) / median(parts));
}

// A small exchange in memory: 10 updates of 1,000 values, on the caller's thread alone.
void bench_small(AggregationEngine& engine) {
  const strategies::Rule rule = strategies::weighted_mean_rule(strategies::Weights::kExamples);
  const auto outer = must(strategies::make_outer_optimizer(strategies::nesterov()));
  const std::vector<float> values = some_values(1000, 1);
  const std::string_view payload(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
  const std::string base = std::string(256, ' ') + std::string(payload);
  ReduceJob job;
  job.fragment = "all";
  job.elements = values.size();
  job.base = Payload::in_memory(base);
  job.data_offset = 256;
  for (int k = 0; k < 10; ++k) {
    const std::string name = std::to_string(k);
    job.updates.push_back({"node-" + name, "task-" + name, Payload::in_memory(payload), "f32", {100, 0, 1, 1.0}});
  }
  job.rule = &rule;
  job.outer = &outer;
  const std::string state = must(engine.reduce(job)).state.bytes;
  job.state = Payload::in_memory(state);
  constexpr int kTimes = 2000;
  const double seconds = seconds_of([&] {
    for (int i = 0; i < kTimes; ++i) (void)must(engine.reduce(job));
  });
  const double limit = 100;
  print("agg_small", seconds / kTimes * 1e6, "us", limit, seconds / kTimes * 1e6 / limit);
}

Settings settings_of(int argc, char** argv) {
  Settings settings;
  const char* base = std::getenv("TMPDIR");
  settings.directory = base != nullptr ? base : "/tmp";
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument.rfind("--", 0) != 0) {
      settings.names.push_back(argument);
      continue;
    }
    const std::string value = i + 1 < argc ? argv[++i] : "";
    const auto number = std::strtoull(value.c_str(), nullptr, 10);
    if (argument == "--dir" && !value.empty()) {
      settings.directory = value;
    } else if (argument == "--elements" && number > 0) {
      settings.elements = number;
    } else if (argument == "--updates" && number > 0) {
      settings.updates = number;
    } else if (argument == "--threads") {
      settings.threads = static_cast<unsigned>(number);
    } else if (argument == "--repeat" && number > 0) {
      settings.repeat = static_cast<unsigned>(number);
    } else {
      std::fprintf(stderr, "cannot use %s \"%s\"; the options are at the head of aggregate_bench.cc\n",
                   argument.c_str(), value.c_str());
      std::exit(2);
    }
  }
  if (settings.names.empty()) settings.names = {"agg_mean", "agg_commit", "agg_small"};
  return settings;
}

void run(const Settings& settings) {
  AggregationEngine engine({settings.threads});
  const auto wanted = [&](const char* name) {
    return std::find(settings.names.begin(), settings.names.end(), name) != settings.names.end();
  };
  if (wanted("agg_mean") || wanted("agg_commit")) {
    const Spool spool(settings);
    if (wanted("agg_mean")) bench_mean(engine, settings, spool);
    if (wanted("agg_commit")) bench_commit(engine, settings, spool);
  }
  if (wanted("agg_small")) bench_small(engine);
}

}  // namespace
}  // namespace skerry::server

int main(int argc, char** argv) { skerry::server::run(skerry::server::settings_of(argc, argv)); }
