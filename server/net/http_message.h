// The parts of HTTP/1.1 that are pure text: response heads, ranges, entity tags. Source: RFC 9110.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace skerry::server {

/// "Not Found" for 404.
std::string_view reason_phrase(int status);

/// "Sat, 21 Nov 2026 07:45:47 GMT".
std::string http_date(std::int64_t unix_seconds);

struct ResponseHead {
  int status = 200;
  std::string_view content_type;  ///< empty: none
  std::optional<std::uint64_t> content_length;
  bool close = false;
  std::int64_t unix_seconds = 0;
};

/// The status line and all headers, up to and with the empty line. Adds Date, Server and the security headers, except
/// those that `headers` names itself; a header with a control character in it is left out.
std::string write_head(const ResponseHead& head, const std::vector<std::pair<std::string, std::string>>& headers);

/// Bytes first … last, inclusive.
struct WantedRange {
  std::uint64_t first = 0;
  std::uint64_t last = 0;
};
struct WholeFile {};       ///< no Range header, or one to be ignored: malformed, another unit, several ranges
struct NotSatisfiable {};  ///< 416

/// What "bytes=0-99", "bytes=100-" or "bytes=-100" means for a file of `size` bytes.
std::variant<WholeFile, WantedRange, NotSatisfiable> parse_range(std::string_view header, std::uint64_t size);

/// Whether an If-None-Match header (a list, perhaps of weak tags, or "*") names this quoted tag.
bool names_tag(std::string_view header, std::string_view quoted_tag);

/// Decimal digits and nothing else, at most 2^64 - 1.
std::optional<std::uint64_t> parse_number(std::string_view text);

}  // namespace skerry::server
