#include "common/model/token_file.h"

#include "common/model/tokenizer_model.h"

namespace skerry {
namespace {

constexpr std::string_view kMagic = "skerrytk";
constexpr std::string_view kDigits = "0123456789abcdef";
constexpr std::size_t kHashAt = 32;
constexpr std::size_t kHashBytes = 32;
constexpr std::string_view kIdPrefix = "b2-";

std::uint64_t number_at(std::string_view bytes, std::size_t at, std::size_t size) {
  std::uint64_t value = 0;
  for (std::size_t i = size; i-- > 0;) value = value << 8 | static_cast<unsigned char>(bytes[at + i]);
  return value;
}

void put_number(std::string& bytes, std::uint64_t value, std::size_t size) {
  for (std::size_t i = 0; i < size; ++i, value >>= 8) bytes += static_cast<char>(value & 0xFF);
}

}  // namespace

Result<TokenFileHeader> parse_token_file_header(std::string_view bytes, std::uint64_t file_size) {
  if (bytes.size() < TokenFileHeader::kBytes || !bytes.starts_with(kMagic))
    return invalid_argument(
        "not a token file (it does not begin with \"skerrytk\"); `skerry-trainer tokens` makes one");
  if (const auto version = number_at(bytes, 8, 4); version != 1)
    return invalid_argument("a token file of version " + std::to_string(version) + ", this program reads version 1");
  TokenFileHeader header;
  header.token_bytes = static_cast<std::uint32_t>(number_at(bytes, 12, 4));
  header.count = number_at(bytes, 16, 8);
  header.vocabulary = static_cast<std::uint32_t>(number_at(bytes, 24, 4));
  header.end_of_text = static_cast<std::uint32_t>(number_at(bytes, 28, 4));
  if (header.token_bytes != 2 && header.token_bytes != 4)
    return invalid_argument("its header says " + std::to_string(header.token_bytes) + " bytes a token, must be 2 or 4");
  if (header.vocabulary == 0 || header.vocabulary > kMaxVocabulary + 1 || header.end_of_text >= header.vocabulary)
    return invalid_argument("its header says a vocabulary of " + std::to_string(header.vocabulary) +
                            " and end-of-text token " + std::to_string(header.end_of_text));
  const std::uint64_t present = (file_size - TokenFileHeader::kBytes) / header.token_bytes;
  if (header.count != present || (file_size - TokenFileHeader::kBytes) % header.token_bytes != 0)
    return invalid_argument("its header promises " + std::to_string(header.count) + " tokens, the file has " +
                            std::to_string(present));
  const std::string_view hash = bytes.substr(kHashAt, kHashBytes);
  if (hash.find_first_not_of('\0') == std::string_view::npos) {
    header.tokenizer = "bytes";
    return header;
  }
  header.tokenizer = kIdPrefix;
  for (const char c : hash) {
    header.tokenizer += kDigits[static_cast<unsigned char>(c) >> 4];
    header.tokenizer += kDigits[static_cast<unsigned char>(c) & 15];
  }
  return header;
}

Result<std::string> write_token_file_header(const TokenFileHeader& header) {
  std::string bytes(kMagic);
  put_number(bytes, 1, 4);
  put_number(bytes, header.token_bytes, 4);
  put_number(bytes, header.count, 8);
  put_number(bytes, header.vocabulary, 4);
  put_number(bytes, header.end_of_text, 4);
  if (header.tokenizer == "bytes") return bytes + std::string(kHashBytes, '\0');
  const std::string_view id = header.tokenizer;
  if (!id.starts_with(kIdPrefix) || id.size() != kIdPrefix.size() + 2 * kHashBytes ||
      id.find_first_not_of(kDigits, kIdPrefix.size()) != std::string_view::npos)
    return invalid_argument("tokenizer \"" + header.tokenizer.substr(0, 80) + "\" is neither bytes nor a content id");
  for (std::size_t i = kIdPrefix.size(); i < id.size(); i += 2)
    bytes += static_cast<char>(kDigits.find(id[i]) << 4 | kDigits.find(id[i + 1]));
  return bytes;
}

}  // namespace skerry
