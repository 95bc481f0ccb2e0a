#include "server/net/http_message.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <ctime>

namespace skerry::server {
namespace {

bool equal_ignoring_case(std::string_view a, std::string_view b) {
  const auto lower = [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; };
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [&](char x, char y) { return lower(x) == lower(y); });
}

bool printable(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return (static_cast<unsigned char>(c) >= 32 && c != 127) || c == '\t'; });
}

void append_header(std::string& out, std::string_view name, std::string_view value) {
  if (!printable(name) || !printable(value)) return;
  out += name;
  out += ": ";
  out += value;
  out += "\r\n";
}

std::string_view trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

constexpr std::array<std::pair<std::string_view, std::string_view>, 5> kAlways{{
    {"X-Content-Type-Options", "nosniff"},
    {"X-Frame-Options", "DENY"},
    {"Referrer-Policy", "no-referrer"},
    {"Content-Security-Policy", "default-src 'self'; frame-ancestors 'none'; base-uri 'none'"},
    {"Cache-Control", "no-store"},
}};

}  // namespace

std::string_view reason_phrase(int status) {
  switch (status) {
    case 100:
      return "Continue";
    case 200:
      return "OK";
    case 201:
      return "Created";
    case 202:
      return "Accepted";
    case 204:
      return "No Content";
    case 206:
      return "Partial Content";
    case 301:
      return "Moved Permanently";
    case 302:
      return "Found";
    case 304:
      return "Not Modified";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 409:
      return "Conflict";
    case 411:
      return "Length Required";
    case 413:
      return "Content Too Large";
    case 416:
      return "Range Not Satisfiable";
    case 417:
      return "Expectation Failed";
    case 422:
      return "Unprocessable Content";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 500:
      return "Internal Server Error";
    case 501:
      return "Not Implemented";
    case 503:
      return "Service Unavailable";
    case 504:
      return "Gateway Timeout";
    case 505:
      return "HTTP Version Not Supported";
    default:
      return status < 400 ? "OK" : "Error";
  }
}

std::string http_date(std::int64_t unix_seconds) {
  const std::time_t time = unix_seconds;
  std::tm parts{};
  gmtime_r(&time, &parts);
  std::array<char, 40> text{};
  const std::size_t length = std::strftime(text.data(), text.size(), "%a, %d %b %Y %H:%M:%S GMT", &parts);
  return std::string(text.data(), length);
}

std::string write_head(const ResponseHead& head, const std::vector<std::pair<std::string, std::string>>& headers) {
  std::string out = "HTTP/1.1 " + std::to_string(head.status) + ' ';
  out += reason_phrase(head.status);
  out += "\r\n";
  append_header(out, "Date", http_date(head.unix_seconds));
  append_header(out, "Server", "skerry");
  if (!head.content_type.empty()) append_header(out, "Content-Type", head.content_type);
  if (head.content_length) append_header(out, "Content-Length", std::to_string(*head.content_length));
  append_header(out, "Connection", head.close ? "close" : "keep-alive");
  for (const auto& [name, value] : headers) append_header(out, name, value);
  for (const auto& [name, value] : kAlways) {
    const bool given = std::any_of(headers.begin(), headers.end(),
                                   [n = name](const auto& own) { return equal_ignoring_case(own.first, n); });
    if (!given) append_header(out, name, value);
  }
  out += "\r\n";
  return out;
}

std::variant<WholeFile, WantedRange, NotSatisfiable> parse_range(std::string_view header, std::uint64_t size) {
  header = trim(header);
  constexpr std::string_view unit = "bytes=";
  if (header.size() < unit.size() || !equal_ignoring_case(header.substr(0, unit.size()), unit)) return WholeFile{};
  const std::string_view range = trim(header.substr(unit.size()));
  const std::size_t dash = range.find('-');
  if (dash == std::string_view::npos || range.find(',') != std::string_view::npos) return WholeFile{};
  const std::string_view from = range.substr(0, dash);
  const std::string_view to = range.substr(dash + 1);
  if (from.empty()) {  // the last n bytes
    const auto count = parse_number(to);
    if (!count) return WholeFile{};
    if (*count == 0 || size == 0) return NotSatisfiable{};
    return WantedRange{size - std::min(*count, size), size - 1};
  }
  const auto first = parse_number(from);
  const auto last = to.empty() ? std::optional<std::uint64_t>(UINT64_MAX) : parse_number(to);
  if (!first || !last || *last < *first) return WholeFile{};
  if (*first >= size) return NotSatisfiable{};
  return WantedRange{*first, std::min(*last, size - 1)};
}

bool names_tag(std::string_view header, std::string_view quoted_tag) {
  header = trim(header);
  if (header == "*") return true;
  while (!header.empty()) {
    const std::size_t comma = header.find(',');
    std::string_view tag = trim(header.substr(0, comma));
    if (tag.substr(0, 2) == "W/") tag.remove_prefix(2);
    if (tag == quoted_tag) return true;
    if (comma == std::string_view::npos) return false;
    header.remove_prefix(comma + 1);
  }
  return false;
}

std::optional<std::uint64_t> parse_number(std::string_view text) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

}  // namespace skerry::server
