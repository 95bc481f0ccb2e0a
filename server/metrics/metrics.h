// The coordinator's figures, kept in memory and shown to Prometheus.
//
// Thread-safe. Counters, gauges and histograms are found by name and labels; the references stay valid as long as the
// registry, so keep them where a figure changes often. Adding is one atomic operation (a histogram: three).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace skerry::server {

/// Label names and values, for example {{"route", "/api/v1/runs"}, {"status", "200"}}. Order does not matter. Names are
/// [a-zA-Z_][a-zA-Z0-9_]*; values are any text (escaped when rendered).
using Labels = std::vector<std::pair<std::string, std::string>>;

/// Only rises. Name it `skerry_…_total`.
class Counter {
 public:
  void add(double amount = 1) { value_.fetch_add(amount, std::memory_order_relaxed); }
  double value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<double> value_{0};
};

/// Rises and falls.
class Gauge {
 public:
  void set(double value) { value_.store(value, std::memory_order_relaxed); }
  void add(double amount) { value_.fetch_add(amount, std::memory_order_relaxed); }
  double value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<double> value_{0};
};

/// Counts observations in buckets with the given upper bounds (ascending; +Inf is implied).
class Histogram {
 public:
  explicit Histogram(std::vector<double> bounds);
  void observe(double value);
  double sum() const { return sum_.load(std::memory_order_relaxed); }
  std::uint64_t count() const;
  const std::vector<double>& bounds() const { return bounds_; }
  /// Observations that fell into bucket `index` alone; the last index is +Inf.
  std::uint64_t bucket(std::size_t index) const { return counts_[index].load(std::memory_order_relaxed); }

 private:
  std::vector<double> bounds_;
  std::unique_ptr<std::atomic<std::uint64_t>[]> counts_;
  std::atomic<double> sum_{0};
};

/// 1 ms … 60 s, for durations in seconds.
std::vector<double> duration_bounds();

/// All figures of one program.
///
/// The first call for a name fixes its kind, help text and (histogram) bounds; a later call of another kind is our own
/// mistake and is asserted. A name holds at most `kMaxSeries` label sets: further ones share a series whose label
/// values all read "other", so that strangers cannot make memory grow.
class Metrics {
 public:
  static constexpr std::size_t kMaxSeries = 5000;

  Metrics();
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  Counter& counter(std::string_view name, std::string_view help, const Labels& labels = {});
  Gauge& gauge(std::string_view name, std::string_view help, const Labels& labels = {});
  Histogram& histogram(std::string_view name, std::string_view help, const std::vector<double>& bounds,
                       const Labels& labels = {});

  /// A gauge whose value is asked for when the figures are shown; `read` may be called from any thread and must not
  /// call the registry. Replaces an earlier one of the same name.
  void gauge_from(std::string_view name, std::string_view help, std::function<double()> read);

  /// Prometheus' text format, version 0.0.4, sorted by name.
  std::string prometheus_text() const;

 private:
  struct Family;
  Family& family(std::string_view name, std::string_view help, int kind);

  mutable std::mutex mutex_;
  std::map<std::string, std::unique_ptr<Family>, std::less<>> families_;
};

/// Content-Type of `prometheus_text()`.
inline constexpr std::string_view kPrometheusContentType = "text/plain; version=0.0.4; charset=utf-8";

}  // namespace skerry::server
