#include "common/config/canonical_json.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

namespace skerry {
namespace {

constexpr int kMaxDepth = 64;

/// The text as UTF-16 code units, by which members are sorted; nothing where it is not UTF-8.
bool to_utf16(std::string_view text, std::u16string& out) {
  out.clear();
  for (std::size_t i = 0; i < text.size();) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const int more = byte < 0x80 ? 0 : byte >> 5 == 6 ? 1 : byte >> 4 == 14 ? 2 : byte >> 3 == 30 ? 3 : -1;
    if (more < 0 || i + static_cast<std::size_t>(more) >= text.size()) return false;
    std::uint32_t point = more == 0 ? byte : byte & (0x3Fu >> more);
    for (int k = 1; k <= more; ++k) {
      const auto next = static_cast<unsigned char>(text[i + static_cast<std::size_t>(k)]);
      if (next >> 6 != 2) return false;
      point = point << 6 | (next & 0x3Fu);
    }
    constexpr std::uint32_t kLeast[] = {0, 0x80, 0x800, 0x10000};
    if (point < kLeast[more] || point > 0x10FFFF || (point >= 0xD800 && point < 0xE000)) return false;
    if (point >= 0x10000) {
      out.push_back(static_cast<char16_t>(0xD800 + ((point - 0x10000) >> 10)));
      out.push_back(static_cast<char16_t>(0xDC00 + ((point - 0x10000) & 0x3FF)));
    } else {
      out.push_back(static_cast<char16_t>(point));
    }
    i += static_cast<std::size_t>(more) + 1;
  }
  return true;
}

void write_text(std::string_view text, std::string& out) {
  constexpr char kHex[] = "0123456789abcdef";
  out.push_back('"');
  for (const char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\f':
        out += "\\f";
        break;
      case '\r':
        out += "\\r";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          out += "\\u00";
          out.push_back(kHex[c >> 4]);
          out.push_back(kHex[c & 15]);
        } else {
          out.push_back(c);
        }
    }
  }
  out.push_back('"');
}

Result<void> write(const nlohmann::json& value, int depth, std::string& out) {
  if (depth > kMaxDepth) return invalid_argument("canonical JSON: nested deeper than 64 levels");
  switch (value.type()) {
    case nlohmann::json::value_t::null:
      out += "null";
      return {};
    case nlohmann::json::value_t::boolean:
      out += value.get<bool>() ? "true" : "false";
      return {};
    case nlohmann::json::value_t::number_integer:
    case nlohmann::json::value_t::number_unsigned: {
      const auto number = value.get<double>();
      // Beyond 2^53 only what a double holds exactly: another reader would round anything else.
      const bool exact = value.is_number_unsigned()
                             ? number < 0x1p64 && static_cast<std::uint64_t>(number) == value.get<std::uint64_t>()
                             : number < 0x1p63 && static_cast<std::int64_t>(number) == value.get<std::int64_t>();
      if (!exact)
        return invalid_argument("canonical JSON: the integer " + value.dump() +
                                " has no exact double; write it as text");
      out += canonical_number(number);
      return {};
    }
    case nlohmann::json::value_t::number_float: {
      const auto number = value.get<double>();
      if (!std::isfinite(number)) return invalid_argument("canonical JSON: a number is not finite");
      out += canonical_number(number);
      return {};
    }
    case nlohmann::json::value_t::string: {
      const auto& text = value.get_ref<const std::string&>();
      std::u16string units;
      if (!to_utf16(text, units)) return invalid_argument("canonical JSON: a text is not UTF-8");
      write_text(text, out);
      return {};
    }
    case nlohmann::json::value_t::array: {
      out.push_back('[');
      const char* separator = "";
      for (const auto& item : value) {
        out += std::exchange(separator, ",");
        SKERRY_TRY(write(item, depth + 1, out));
      }
      out.push_back(']');
      return {};
    }
    case nlohmann::json::value_t::object: {
      std::vector<std::pair<std::u16string, nlohmann::json::const_iterator>> members;
      for (auto it = value.begin(); it != value.end(); ++it) {
        members.emplace_back(std::u16string(), it);
        if (!to_utf16(it.key(), members.back().first))
          return invalid_argument("canonical JSON: a member's name is not UTF-8");
      }
      std::sort(members.begin(), members.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
      out.push_back('{');
      const char* separator = "";
      for (const auto& member : members) {
        out += std::exchange(separator, ",");
        write_text(member.second.key(), out);
        out.push_back(':');
        SKERRY_TRY(write(member.second.value(), depth + 1, out));
      }
      out.push_back('}');
      return {};
    }
    default:
      return invalid_argument("canonical JSON: binary values have no form");
  }
}

}  // namespace

// ECMA-262, Number::toString: with the shortest digits d₁…d_k and value 0.d₁…d_k · 10^n.
std::string canonical_number(double value) {
  if (value == 0) return "0";
  char buffer[32];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, std::fabs(value), std::chars_format::scientific);
  const std::string_view text(buffer, static_cast<std::size_t>(end.ptr - buffer));
  const std::size_t mark = text.find('e');
  std::string digits(text.substr(0, 1));
  if (mark > 2) digits += text.substr(2, mark - 2);
  int exponent = 0;
  const std::size_t first = text[mark + 1] == '+' ? mark + 2 : mark + 1;
  std::from_chars(text.data() + first, text.data() + text.size(), exponent);

  const int k = static_cast<int>(digits.size());
  const int n = exponent + 1;
  std::string out = value < 0 ? "-" : "";
  if (k <= n && n <= 21) return out + digits + std::string(static_cast<std::size_t>(n - k), '0');
  if (0 < n && n <= 21) return out + digits.insert(static_cast<std::size_t>(n), ".");
  if (-6 < n && n <= 0) return out + "0." + std::string(static_cast<std::size_t>(-n), '0') + digits;
  if (k > 1) digits.insert(1, ".");
  return out + digits + (n - 1 < 0 ? "e-" : "e+") + std::to_string(std::abs(n - 1));
}

Result<std::string> canonical_json(const nlohmann::json& document) {
  std::string out;
  SKERRY_TRY(write(document, 0, out));
  return out;
}

}  // namespace skerry
