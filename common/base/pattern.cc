#include "common/base/pattern.h"

namespace skerry {

bool fits(std::string_view pattern, std::string_view text) {
  // The last star takes as little as possible; where that fails, one character more.
  std::size_t p = 0, t = 0, star = std::string_view::npos, mark = 0;
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      mark = t;
    } else if (p < pattern.size() && pattern[p] == text[t]) {
      ++p;
      ++t;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      t = ++mark;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

bool fits_any(const std::vector<std::string>& patterns, std::string_view text) {
  for (const auto& pattern : patterns)
    if (fits(pattern, text)) return true;
  return false;
}

}  // namespace skerry
