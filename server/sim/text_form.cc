#include "server/sim/text_form.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "common/os/files.h"

namespace skerry::sim {
namespace {

constexpr std::uint64_t kMaxCsvBytes = 64 << 20;

std::vector<std::string> split(std::string_view text, char separator) {
  std::vector<std::string> parts;
  for (;;) {
    const std::size_t end = std::min(text.find(separator), text.size());
    std::string_view part = text.substr(0, end);
    while (!part.empty() && (part.front() == ' ' || part.front() == '\t')) part.remove_prefix(1);
    while (!part.empty() && (part.back() == ' ' || part.back() == '\t' || part.back() == '\r')) part.remove_suffix(1);
    parts.emplace_back(part);
    if (end == text.size()) return parts;
    text.remove_prefix(end + 1);
  }
}

}  // namespace

Result<double> parse_number(std::string_view text) {
  double value = 0;
  const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (failure != std::errc() || end != text.data() + text.size() || !std::isfinite(value)) {
    return invalid_argument("\"" + std::string(text) + "\" is not a finite number");
  }
  return value;
}

Result<TextForm> parse_text_form(std::string_view text) {
  const std::size_t colon = text.find(':');
  TextForm form{std::string(text.substr(0, colon)), {}};
  if (colon == std::string_view::npos) return form;
  for (const std::string& part : split(text.substr(colon + 1), ',')) {
    SKERRY_ASSIGN(const double number, parse_number(part));
    form.numbers.push_back(number);
  }
  return form;
}

Result<std::size_t> CsvTable::column(std::string_view name) const {
  const auto found = std::find(columns.begin(), columns.end(), name);
  if (found == columns.end()) return invalid_argument(path + ": has no column \"" + std::string(name) + "\"");
  return static_cast<std::size_t>(found - columns.begin());
}

bool CsvTable::has(std::string_view name) const { return std::find(columns.begin(), columns.end(), name) != columns.end(); }

Result<double> CsvTable::number(std::size_t row, std::size_t column, double low, double high) const {
  const std::string& text = rows[row][column];
  const auto value = parse_number(text);
  if (value.ok() && *value >= low && *value <= high) return *value;
  char range[80];
  std::snprintf(range, sizeof range, "%g to %g", low, high);
  return invalid_argument(path + " line " + std::to_string(lines[row]) + ": " + columns[column] + " is \"" + text +
                          "\", must be a number from " + range);
}

Result<CsvTable> read_csv(const std::string& path) {
  SKERRY_ASSIGN(const std::string text, read_file(path, kMaxCsvBytes));
  CsvTable table{path, {}, {}, {}};
  std::size_t line = 0;
  for (const std::string& row : split(text, '\n')) {
    ++line;
    if (row.empty()) continue;
    std::vector<std::string> fields = split(row, ',');
    if (table.columns.empty()) {
      table.columns = std::move(fields);
      continue;
    }
    if (fields.size() != table.columns.size()) {
      return invalid_argument(path + " line " + std::to_string(line) + ": has " + std::to_string(fields.size()) +
                              " fields, the header has " + std::to_string(table.columns.size()));
    }
    table.rows.push_back(std::move(fields));
    table.lines.push_back(line);
  }
  if (table.rows.empty()) return invalid_argument(path + ": has no rows");
  return table;
}

}  // namespace skerry::sim
