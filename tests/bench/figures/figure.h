// One measured figure, with what it is compared to.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace skerry::bench {

struct Figure {
  std::string name;           ///< "cargo_tls.up"
  double value = 0;           ///< the median where it was measured several times
  std::string unit;
  double baseline = 0;        ///< measured in the same run, same unit; 0: there is none
  std::string baseline_name;  ///< what the baseline is
  std::string target;         ///< for people: "≥ 100", "≤ 1.3 × baseline"
  bool met = false;
  nlohmann::json detail = nlohmann::json::object();

  /// value ÷ baseline; 0 without a baseline.
  double ratio() const { return baseline > 0 ? value / baseline : 0; }
};

double median(std::vector<double> values);

/// Largest minus smallest, as a share of the median: how far repeated values lie apart.
double spread(const std::vector<double>& values);

/// One line of the table, ends with a line break.
std::string table_head();
std::string table_row(const Figure& figure);

nlohmann::json to_json(const Figure& figure);

}  // namespace skerry::bench
