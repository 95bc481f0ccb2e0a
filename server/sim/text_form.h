// "name:1,2.5": how choices with numbers are written, in flags and scenario files alike.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.h"

namespace skerry::sim {

struct TextForm {
  std::string name;
  std::vector<double> numbers;
};

/// INVALID_ARGUMENT where something after the colon is not a finite number.
Result<TextForm> parse_text_form(std::string_view text);

/// One finite number, and nothing else.
Result<double> parse_number(std::string_view text);

/// A CSV file of plain fields (commas, no quotes) with a header line, for traces.
struct CsvTable {
  std::string path;
  std::vector<std::string> columns;
  std::vector<std::vector<std::string>> rows;
  std::vector<std::size_t> lines;  ///< of `rows`, from 1

  /// The column's place. INVALID_ARGUMENT naming the file.
  Result<std::size_t> column(std::string_view name) const;
  bool has(std::string_view name) const;
  /// A finite number in [low, high]. INVALID_ARGUMENT naming file, line, column and value.
  Result<double> number(std::size_t row, std::size_t column, double low, double high) const;
};
Result<CsvTable> read_csv(const std::string& path);

}  // namespace skerry::sim
