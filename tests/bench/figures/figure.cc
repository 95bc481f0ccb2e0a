#include "tests/bench/figures/figure.h"

#include <algorithm>
#include <cstdio>

namespace skerry::bench {

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const std::size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

double spread(const std::vector<double>& values) {
  if (values.empty()) return 0;
  const auto [least, most] = std::minmax_element(values.begin(), values.end());
  const double middle = median(values);
  return middle > 0 ? (*most - *least) / middle : 0;
}

namespace {

std::string row(const char* name, const std::string& value, const char* unit, const std::string& baseline, const std::string& ratio,
                const char* target, const char* verdict, const std::string& baseline_name) {
  char line[512];
  std::snprintf(line, sizeof line, "%-28s %10s %-9s %10s %7s  %-20s %-5s %s\n", name, value.c_str(), unit, baseline.c_str(), ratio.c_str(),
                target, verdict, baseline_name.c_str());
  return line;
}

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, value >= 1000 ? "%.0f" : value >= 10 ? "%.1f" : "%.3f", value);
  return text;
}

}  // namespace

std::string table_head() { return row("name", "value", "unit", "baseline", "ratio", "target", "", "the baseline is"); }

std::string table_row(const Figure& figure) {
  const bool compared = figure.baseline > 0;
  return row(figure.name.c_str(), number(figure.value), figure.unit.c_str(), compared ? number(figure.baseline) : "-",
             compared ? number(figure.ratio()) : "-", figure.target.c_str(), figure.target.empty() ? "" : figure.met ? "met" : "MISS",
             figure.baseline_name);
}

nlohmann::json to_json(const Figure& figure) {
  nlohmann::json json = {{"name", figure.name}, {"value", figure.value},   {"unit", figure.unit},
                         {"target", figure.target}, {"met", figure.met}, {"detail", figure.detail}};
  if (figure.baseline > 0) {
    json["baseline"] = figure.baseline;
    json["baseline_name"] = figure.baseline_name;
    json["ratio"] = figure.ratio();
  }
  return json;
}

}  // namespace skerry::bench
