#include "client/daemon/policy/hours.h"

#include <cstring>
#include <optional>

namespace skerry::client {
namespace {

constexpr int kDay = 24 * 60;

std::optional<int> weekday_of(std::string_view text) {
  static constexpr const char* kNames[] = {"sun", "mon", "tue", "wed", "thu", "fri", "sat"};
  if (text.size() != 3) return std::nullopt;
  for (int day = 0; day < 7; ++day) {
    bool same = true;
    for (std::size_t i = 0; i < 3; ++i) same = same && (text[i] | 0x20) == kNames[day][i];
    if (same) return day;
  }
  return std::nullopt;
}

std::optional<int> minute_of(std::string_view text) {
  const auto digit = [](char c) { return c >= '0' && c <= '9'; };
  if (text.size() != 5 || !digit(text[0]) || !digit(text[1]) || text[2] != ':' || !digit(text[3]) || !digit(text[4]))
    return std::nullopt;
  const int hour = (text[0] - '0') * 10 + text[1] - '0';
  const int minute = (text[3] - '0') * 10 + text[4] - '0';
  if (minute > 59 || hour > 24 || (hour == 24 && minute > 0)) return std::nullopt;
  return hour * 60 + minute;
}

bool parse_days(std::string_view text, bool (&days)[7]) {
  while (!text.empty()) {
    const auto comma = text.find(',');
    const auto item = text.substr(0, comma);
    text = comma == std::string_view::npos ? std::string_view() : text.substr(comma + 1);
    const auto dash = item.find('-');
    const auto first = weekday_of(item.substr(0, dash));
    const auto last = dash == std::string_view::npos ? first : weekday_of(item.substr(dash + 1));
    if (!first || !last) return false;
    for (int day = *first;; day = (day + 1) % 7) {
      days[day] = true;
      if (day == *last) break;
    }
  }
  return true;
}

}  // namespace

Result<Hours> Hours::parse(const std::vector<std::string>& texts) {
  Hours hours;
  hours.texts_ = texts;
  for (const auto& whole : texts) {
    const Error wrong = invalid_argument("hours \"" + whole +
                                         "\" is not understood; write \"always\", \"Sat,Sun\", \"22:00-06:00\" or \"Mon-Fri 18:00-08:00\"");
    Span span;
    if (whole == "always") {
      for (bool& day : span.days) day = true;
      span.to = kDay;
      hours.spans_.push_back(span);
      continue;
    }
    std::string_view text = whole;
    const auto space = text.find(' ');
    std::string_view days = text.substr(0, space);
    std::string_view times = space == std::string_view::npos ? std::string_view() : text.substr(space + 1);
    if (space == std::string_view::npos && days.find(':') != std::string_view::npos) std::swap(days, times);
    if (days.empty() && times.empty()) return wrong;
    if (days.empty()) {
      for (bool& day : span.days) day = true;
    } else if (!parse_days(days, span.days)) {
      return wrong;
    }
    span.to = kDay;
    if (!times.empty()) {
      const auto dash = times.find('-');
      if (dash == std::string_view::npos) return wrong;
      const auto from = minute_of(times.substr(0, dash));
      const auto to = minute_of(times.substr(dash + 1));
      if (!from || !to || *from == kDay) return wrong;
      span.from = *from;
      span.to = *to > *from ? *to : *to + kDay;
    }
    hours.spans_.push_back(span);
  }
  return hours;
}

bool Hours::open_at(int weekday, int minute) const {
  if (spans_.empty()) return true;
  for (const auto& span : spans_) {
    if (span.days[weekday] && minute >= span.from && minute < span.to) return true;
    if (span.days[(weekday + 6) % 7] && minute + kDay < span.to) return true;
  }
  return false;
}

}  // namespace skerry::client
