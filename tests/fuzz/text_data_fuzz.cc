// Any bytes as a SentencePiece model, as a token file and as JSON lines: an error that says what is wrong, or tokens
// within the vocabulary that lose nothing of a text.
#include "client/trainer/documents.h"
#include "client/trainer/tokenizer.h"
#include "common/model/token_file.h"

#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

namespace {

using namespace skerry;
using namespace skerry::trainer;

void use_tokenizer(const std::string& model) {
  const auto tokenizer = Tokenizer::from_model(model, "model");
  if (!tokenizer.ok()) {
    if (tokenizer.error().message.empty()) std::abort();
    return;
  }
  for (const std::string_view text :
       {"", " ", "the quick  brown\n\tfox", "\xE2\x82\xAC\xF0\x9F\x98\x80", "<s></s><0x0A>"}) {
    std::vector<std::int64_t> tokens;
    if (!(*tokenizer)->encode(text, tokens).ok()) std::abort();
    for (const std::int64_t token : tokens)
      if (token < 0 || static_cast<std::uint64_t>(token) >= (*tokenizer)->size()) std::abort();
    if ((*tokenizer)->decode(tokens) != text) std::abort();
  }
}

void read_lines(std::string_view lines) {
  const auto read =
      each_json_line(lines, "lines", "text", [](std::string_view text, const std::string&) -> Result<void> {
        if (text.empty()) std::abort();
        return {};
      });
  if (!read.ok() && !read.error().message.starts_with("lines line ")) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  use_tokenizer(bytes);
  read_lines(bytes);
  if (const auto header = parse_token_file_header(bytes, size); header.ok())
    if (write_token_file_header(*header).value() != bytes.substr(0, TokenFileHeader::kBytes)) std::abort();
  return 0;
}
