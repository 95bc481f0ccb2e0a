#include "server/metrics/metrics.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <charconv>
#include <cmath>
#include <variant>

namespace skerry::server {
namespace {

enum Kind { kCounterKind, kGaugeKind, kHistogramKind };

std::string number(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "+Inf" : "-Inf";
  std::array<char, 32> text{};
  const auto end = std::to_chars(text.data(), text.data() + text.size(), value).ptr;
  return std::string(text.data(), end);
}

void append_escaped(std::string& out, std::string_view text, bool quotes) {
  for (const char c : text) {
    if (c == '\\')
      out += "\\\\";
    else if (c == '\n')
      out += "\\n";
    else if (c == '"' && quotes)
      out += "\\\"";
    else
      out += c;
  }
}

// a="1",b="2", sorted by name: a series' key and its rendering.
std::string render(Labels labels) {
  std::sort(labels.begin(), labels.end());
  std::string out;
  for (const auto& [name, value] : labels) {
    if (!out.empty()) out += ',';
    out += name;
    out += "=\"";
    append_escaped(out, value, true);
    out += '"';
  }
  return out;
}

void append_sample(std::string& out, std::string_view name, std::string_view labels, double value) {
  out += name;
  if (!labels.empty()) {
    out += '{';
    out += labels;
    out += '}';
  }
  out += ' ';
  out += number(value);
  out += '\n';
}

}  // namespace

Histogram::Histogram(std::vector<double> bounds)
    : bounds_(std::move(bounds)), counts_(std::make_unique<std::atomic<std::uint64_t>[]>(bounds_.size() + 1)) {
  assert(std::is_sorted(bounds_.begin(), bounds_.end()));
}

void Histogram::observe(double value) {
  const auto place = std::lower_bound(bounds_.begin(), bounds_.end(), value) - bounds_.begin();
  counts_[static_cast<std::size_t>(place)].fetch_add(1, std::memory_order_relaxed);
  sum_.fetch_add(value, std::memory_order_relaxed);
}

std::uint64_t Histogram::count() const {
  std::uint64_t total = 0;
  for (std::size_t i = 0; i <= bounds_.size(); ++i) total += bucket(i);
  return total;
}

std::vector<double> duration_bounds() {
  return {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60};
}

struct Metrics::Family {
  std::string help;
  int kind = kCounterKind;
  std::map<std::string, std::unique_ptr<Counter>> counters;
  std::map<std::string, std::unique_ptr<Gauge>> gauges;
  std::map<std::string, std::unique_ptr<Histogram>> histograms;
  std::function<double()> read;

  template <typename T, typename Make>
  T& series(std::map<std::string, std::unique_ptr<T>>& all, const Labels& labels, Make make) {
    std::string key = render(labels);
    auto found = all.find(key);
    if (found == all.end() && all.size() >= kMaxSeries) {
      Labels other = labels;
      for (auto& label : other) label.second = "other";
      key = render(std::move(other));
      found = all.find(key);
    }
    if (found == all.end()) found = all.emplace(std::move(key), make()).first;
    return *found->second;
  }
};

Metrics::Metrics() = default;
Metrics::~Metrics() = default;

Metrics::Family& Metrics::family(std::string_view name, std::string_view help, int kind) {
  auto found = families_.find(name);
  if (found == families_.end()) {
    found = families_.emplace(std::string(name), std::make_unique<Family>()).first;
    found->second->help = help;
    found->second->kind = kind;
  }
  assert(found->second->kind == kind);
  return *found->second;
}

Counter& Metrics::counter(std::string_view name, std::string_view help, const Labels& labels) {
  const std::lock_guard lock(mutex_);
  Family& of = family(name, help, kCounterKind);
  return of.series(of.counters, labels, [] { return std::make_unique<Counter>(); });
}

Gauge& Metrics::gauge(std::string_view name, std::string_view help, const Labels& labels) {
  const std::lock_guard lock(mutex_);
  Family& of = family(name, help, kGaugeKind);
  return of.series(of.gauges, labels, [] { return std::make_unique<Gauge>(); });
}

Histogram& Metrics::histogram(std::string_view name, std::string_view help, const std::vector<double>& bounds,
                              const Labels& labels) {
  const std::lock_guard lock(mutex_);
  Family& of = family(name, help, kHistogramKind);
  const std::vector<double>& first = of.histograms.empty() ? bounds : of.histograms.begin()->second->bounds();
  return of.series(of.histograms, labels, [&] { return std::make_unique<Histogram>(first); });
}

void Metrics::gauge_from(std::string_view name, std::string_view help, std::function<double()> read) {
  const std::lock_guard lock(mutex_);
  family(name, help, kGaugeKind).read = std::move(read);
}

std::string Metrics::prometheus_text() const {
  static constexpr std::array kKinds{"counter", "gauge", "histogram"};
  const std::lock_guard lock(mutex_);
  std::string out;
  for (const auto& [name, family] : families_) {
    out += "# HELP " + name + ' ';
    append_escaped(out, family->help, false);
    out += "\n# TYPE " + name + ' ' + kKinds[static_cast<std::size_t>(family->kind)] + '\n';
    for (const auto& [labels, counter] : family->counters) append_sample(out, name, labels, counter->value());
    if (family->read) append_sample(out, name, "", family->read());
    for (const auto& [labels, gauge] : family->gauges) append_sample(out, name, labels, gauge->value());
    for (const auto& [labels, histogram] : family->histograms) {
      const std::string before = labels.empty() ? "" : labels + ',';
      double below = 0;
      for (std::size_t i = 0; i <= histogram->bounds().size(); ++i) {
        below += static_cast<double>(histogram->bucket(i));
        const std::string bound = i < histogram->bounds().size() ? number(histogram->bounds()[i]) : "+Inf";
        append_sample(out, name + "_bucket", before + "le=\"" + bound + '"', below);
      }
      append_sample(out, name + "_sum", labels, histogram->sum());
      append_sample(out, name + "_count", labels, below);
    }
  }
  return out;
}

}  // namespace skerry::server
