#include "tests/bench/aggregate/spool.h"

#include <hwy/highway.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>

#include "common/codec/encoding.h"

namespace skerry::server::bench {
namespace {

constexpr std::uint64_t kHeaderBytes = 4096;
constexpr std::uint64_t kPieceBytes = 1u << 20;
constexpr std::uint64_t kPeriod = 4u << 20;  // elements

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

void write_update(const std::string& path, const Spool::Shape& shape, std::uint32_t seed) {
  const Encoding& encoding = **find_encoding(shape.encoding);
  const std::uint64_t period = shape.encoding == "f32" ? shape.elements : std::min(shape.elements, kPeriod);
  const std::vector<float> values = some_values(period, seed);
  std::vector<std::byte> payload(encoding.encoded_bytes(period));
  encoding.encode(values, 0, {}, payload);
  File file = must(File::open(path, OpenMode::kCreateOrEmpty));
  for (std::uint64_t at = 0; at < shape.elements; at += period) {
    const std::uint64_t count = std::min(period, shape.elements - at);
    must(file.pwrite(std::span(payload).first(encoding.encoded_bytes(count)), encoding.encoded_bytes(at)));
  }
  must(file.fsync());
}

}  // namespace

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

double cpu_seconds_of(const std::function<void()>& body) {
  const auto used = [] {
    rusage usage{};
    ::getrusage(RUSAGE_SELF, &usage);
    const auto seconds = [](const timeval& time) {
      return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
    };
    return seconds(usage.ru_utime) + seconds(usage.ru_stime);
  };
  const double before = used();
  body();
  return used() - before;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

void print(const Row& row) {
  std::printf(
      "{\"name\":\"%s\",\"value\":%.6g,\"unit\":\"%s\",\"baseline\":%.6g,\"baseline_name\":\"%s\",\"ratio\":%.4f,"
      "\"target\":\"%s\",\"met\":%s}\n",
      row.name.c_str(), row.value, row.unit.c_str(), row.baseline, row.baseline_name.c_str(), row.ratio,
      row.target.c_str(), row.met ? "true" : "false");
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

void write_file(const std::string& path, std::string_view header, std::span<const std::byte> bytes) {
  File file = must(File::open(path, OpenMode::kCreateOrEmpty));
  must(file.pwrite(as_bytes_of(header), 0));
  must(file.pwrite(bytes, header.size()));
  must(file.fsync());
}

Spool::Spool(const Settings& settings, Shape shape) : shape_(std::move(shape)) {
  std::string pattern = join_path(settings.directory, "skerry-bench-XXXXXX");
  if (::mkdtemp(pattern.data()) == nullptr) {
    std::perror(pattern.c_str());
    std::exit(1);
  }
  directory_ = pattern;
  if (shape_.base) {
    const std::vector<float> values = some_values(shape_.elements, 1);
    write_file(path("base"), std::string(kHeaderBytes, ' '), std::as_bytes(std::span(values)));
  } else {
    File file = must(File::open(path("base"), OpenMode::kCreateOrEmpty));
    must(file.resize(kHeaderBytes + 4 * shape_.elements));
  }
  for (std::size_t k = 0; k < shape_.updates; ++k) {
    write_update(update_path(k), shape_, static_cast<std::uint32_t>(k + 2));
  }
}

Spool::~Spool() { (void)remove_tree(directory_); }

std::string Spool::path(std::string_view name) const { return join_path(directory_, name); }

double Spool::update_gigabytes() const {
  const Encoding& encoding = **find_encoding(shape_.encoding);
  return 1e-9 * static_cast<double>(encoding.encoded_bytes(shape_.elements) * shape_.updates);
}

ReduceJob Spool::job() const {
  ReduceJob job;
  job.fragment = "all";
  job.elements = shape_.elements;
  job.base = Payload::file(path("base"));
  job.data_offset = kHeaderBytes;
  for (std::size_t k = 0; k < shape_.updates; ++k) {
    const std::string name = std::to_string(k);
    UpdateInput update;
    update.node = "node-" + name;
    update.task_id = "task-" + name;
    update.payload = Payload::file(update_path(k));
    update.encoding = shape_.encoding;
    update.contribution.examples = 100 + k;
    update.contribution.steps = 1;
    job.updates.push_back(std::move(update));
  }
  return job;
}

void read_all(AggregationEngine& engine, const Spool& spool) {
  std::vector<MappedFile> files;
  for (std::size_t k = 0; k < spool.shape().updates; ++k) files.push_back(must(MappedFile::open(spool.update_path(k))));
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

}  // namespace skerry::server::bench
