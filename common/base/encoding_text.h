// Bytes as text: hexadecimal and base64url (RFC 4648 §5, without padding); text as one line.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "common/base/result.h"

namespace skerry {

/// The characters of `text` as bytes, without a copy.
inline std::span<const std::byte> bytes_of(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

/// Lower-case hexadecimal, two digits a byte.
std::string to_hex(std::span<const std::byte> bytes);
std::string to_hex(std::string_view bytes);

/// The bytes that `text` spells; both cases of the digits are understood.
/// INVALID_ARGUMENT: odd length, or a character that is no hexadecimal digit (with its position, never the text itself).
Result<std::string> from_hex(std::string_view text);

/// Base64 with '-' and '_', without padding: safe in URLs, headers and shell words.
std::string to_base64url(std::span<const std::byte> bytes);
std::string to_base64url(std::string_view bytes);

/// INVALID_ARGUMENT: an impossible length, a foreign character (with its position, never the text itself), padding, or
/// unused bits that are not zero (so that each byte string has exactly one spelling).
Result<std::string> from_base64url(std::string_view text);

/// Text from outside as one line for people: at most `most` bytes, cut between UTF-8 characters and then ended by "...",
/// with '?' for control characters, so that it can neither begin a log line of its own nor steer a terminal.
std::string one_line(std::string_view text, std::size_t most);

}  // namespace skerry
