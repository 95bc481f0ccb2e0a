// What the operator's command prints: tables for people, JSON for programs, and its exit codes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.h"

namespace google::protobuf {
class Message;
}

namespace skerry::ctl {

/// Documented in docs/operators.md; never changed.
enum ExitCode { kDone = 0, kFailed = 1, kUsage = 2, kRefused = 3, kUnreachable = 4, kNotFoundCode = 5 };

int exit_code(const Error& error);

/// Rows of cells under headings, columns as wide as they need; a column of numbers is aligned to the right.
class Table {
 public:
  explicit Table(std::vector<std::string> headings) : rows_{std::move(headings)} {}
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  std::string text() const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

/// "1.5 MB", "3 d 4 h", "2026-11-21 08:23:11" (UTC), "-" for 0.
std::string human_bytes(std::uint64_t bytes);
std::string human_seconds(double seconds);
std::string human_time(std::uint64_t unix_ms);
/// Up to six significant digits.
std::string human_number(double value);

/// The message as pretty JSON with the field names of proto/skerry/v1.
std::string to_json(const google::protobuf::Message& message);

/// Control characters from the network are shown as '?', so that a name cannot rewrite the terminal.
std::string printable(std::string_view text);

}  // namespace skerry::ctl
