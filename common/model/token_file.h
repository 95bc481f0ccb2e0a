// A token file: text that was cut into tokens beforehand, to be mapped into memory. docs/formats.md specifies the
// bytes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "common/base/result.h"

namespace skerry {

/// The 64 bytes before the tokens, all numbers little-endian:
///   "skerrytk", u32 version (1), u32 bytes a token (2 or 4), u64 tokens, u32 vocabulary, u32 end-of-text token,
///   32 bytes: the root hash in the tokenizer's content id (zeros: bytes).
struct TokenFileHeader {
  static constexpr std::size_t kBytes = 64;

  std::uint32_t token_bytes = 2;
  std::uint64_t count = 0;
  std::uint32_t vocabulary = 0;   ///< every token of the file is below it
  std::uint32_t end_of_text = 0;  ///< stands before the first document, between two, and after the last
  std::string tokenizer;          ///< "bytes" or a content id

  bool operator==(const TokenFileHeader&) const = default;
};

/// INVALID_ARGUMENT unless `bytes` begins with a header, and a file of `file_size` bytes has exactly what it promises.
Result<TokenFileHeader> parse_token_file_header(std::string_view bytes, std::uint64_t file_size);

/// The 64 bytes. INVALID_ARGUMENT for a tokenizer that is neither "bytes" nor a content id.
Result<std::string> write_token_file_header(const TokenFileHeader& header);

}  // namespace skerry
