// What the rows of the aggregation benchmark share: their settings, files as the coordinator has them, and how a figure is told.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/os/files.h"
#include "server/aggregate/engine.h"

namespace skerry::server::bench {

struct Settings {
  std::vector<std::string> names;
  std::optional<std::uint64_t> elements;  ///< empty: each row's own number
  std::optional<std::size_t> updates;
  unsigned threads = 0;
  unsigned repeat = 5;
  bool cpu_time = false;  ///< rates are told by CPU time on `threads` cores instead of by the clock
  std::string directory;
};

/// The result's value; ends the program with the error's message where there is none.
template <typename T>
T must(Result<T> result) {
  if (result.ok()) return std::move(result).value();
  std::fprintf(stderr, "%s\n", to_string(result.error()).c_str());
  std::exit(1);
}
void must(const Result<void>& result);

double seconds_of(const std::function<void()>& body);
/// The CPU time of all threads: what can be measured while others use the machine.
double cpu_seconds_of(const std::function<void()>& body);
double median(std::vector<double> values);

/// One figure: a value, what it is compared to in this run, and what it must reach.
struct Row {
  std::string name;
  double value = 0;
  std::string unit;
  double baseline = 0;
  std::string baseline_name;
  double ratio = 0;    ///< of value and baseline, the better the higher or the lower as `target` says
  std::string target;
  bool met = false;
};

/// Prints it as one line of JSON.
void print(const Row& row);

/// `count` values in [−1, 1), the same for the same seed.
std::vector<float> some_values(std::uint64_t count, std::uint32_t seed);

void write_file(const std::string& path, std::string_view header, std::span<const std::byte> bytes);

/// Files as the coordinator has them when an exchange is complete: the base and K updates in the spool.
class Spool {
 public:
  struct Shape {
    std::uint64_t elements = 0;
    std::size_t updates = 0;
    std::string encoding = "f32";
    bool base = true;  ///< false: zeros, that take no space
  };
  /// The updates of encodings other than f32 repeat themselves every 4 Mi elements.
  Spool(const Settings& settings, Shape shape);
  Spool(const Spool&) = delete;
  Spool& operator=(const Spool&) = delete;
  ~Spool();

  std::string path(std::string_view name) const;
  std::string update_path(std::size_t k) const { return path("update-" + std::to_string(k)); }
  const Shape& shape() const { return shape_; }
  double update_gigabytes() const;

  /// Without rule and outer optimizer.
  ReduceJob job() const;

 private:
  Shape shape_;
  std::string directory_;
};

/// Reads all updates once through fresh maps, every cache line, on all threads of the engine.
void read_all(AggregationEngine& engine, const Spool& spool);

}  // namespace skerry::server::bench
