// Texts that fit a pattern, in which '*' stands for any characters.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace skerry {

/// Whether `text` fits `pattern`, in which each '*' stands for any characters, also none.
bool fits(std::string_view pattern, std::string_view text);

/// Whether it fits one of them.
bool fits_any(const std::vector<std::string>& patterns, std::string_view text);

}  // namespace skerry
