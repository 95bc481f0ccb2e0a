// How tensor names and shapes appear in messages. Names may come from a hostile file.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace skerry {

/// The name in quotes, control characters and what is beyond 200 bytes replaced.
inline std::string quoted_name(std::string_view name) {
  constexpr std::size_t kLongest = 200;
  std::string text = "\"";
  for (const char c : name.substr(0, kLongest)) text += static_cast<unsigned char>(c) < 0x20 || c == 0x7F ? '?' : c;
  if (name.size() > kLongest) text += "...";
  return text + "\"";
}

/// "[2, 3]".
inline std::string shape_text(std::span<const std::uint64_t> shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

}  // namespace skerry
