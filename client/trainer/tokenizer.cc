#include "client/trainer/tokenizer.h"

#include "client/trainer/data_sources.h"
#include "client/trainer/piece_encoder.h"
#include "common/crypto/content_id.h"
#include "common/model/tokenizer_model.h"
#include "common/os/files.h"

#include <utility>

namespace skerry::trainer {
namespace {

constexpr std::size_t kPieceBytes = 1 << 20;

class ByteTokenizer final : public Tokenizer {
 public:
  ByteTokenizer() {
    id_ = "bytes";
    size_ = 256;
    end_of_text_ = 256;
    text_bytes_.assign(257, 1);
    text_bytes_[256] = 0;
  }

  Result<void> encode(std::string_view text, std::vector<std::int64_t>& tokens) const override {
    tokens.reserve(tokens.size() + text.size());
    for (const char c : text) tokens.push_back(static_cast<unsigned char>(c));
    return {};
  }

  std::string decode(std::span<const std::int64_t> tokens) const override {
    std::string text;
    for (const std::int64_t token : tokens)
      if (token >= 0 && token < 256) text += static_cast<char>(token);
    return text;
  }
};

// Where a text of UTF-8 is cut so that no piece is very long: after a line's end, else between two characters.
std::size_t piece_end(std::string_view text) {
  if (text.size() <= kPieceBytes) return text.size();
  // Looked for no further than the piece may reach: a text without lines must not be read again for each of its pieces.
  if (const std::size_t newline = text.substr(0, 2 * kPieceBytes).find('\n', kPieceBytes); newline != std::string_view::npos)
    return newline + 1;
  if (text.size() <= 2 * kPieceBytes) return text.size();
  std::size_t end = 2 * kPieceBytes;
  while ((static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return end;
}

class PieceTokenizer final : public Tokenizer {
 public:
  PieceTokenizer(TokenizerModel model, std::string_view bytes) : encoder_(std::move(model)) {
    id_ = content_id(bytes);
    size_ = encoder_.model().size();
    end_of_text_ = static_cast<std::int64_t>(encoder_.model().end_of_text);
    for (const TokenizerModel::Token& token : encoder_.model().tokens) text_bytes_.push_back(token.text_bytes);
  }

  Result<void> encode(std::string_view text, std::vector<std::int64_t>& tokens) const override {
    if (const std::size_t at = first_not_utf8(text); at != text.size())
      return invalid_argument("not UTF-8 at byte " + std::to_string(at));
    while (!text.empty()) {
      const std::string_view piece = text.substr(0, piece_end(text));
      encoder_.encode(piece, tokens);
      text.remove_prefix(piece.size());
    }
    return {};
  }

  std::string decode(std::span<const std::int64_t> tokens) const override {
    const TokenizerModel& model = encoder_.model();
    std::string text;
    for (const std::int64_t id : tokens) {
      if (id < 0 || static_cast<std::uint64_t>(id) >= model.size()) continue;
      const TokenizerModel::Token& token = model.tokens[static_cast<std::size_t>(id)];
      if (token.type == TokenizerModel::Type::kByte) text += static_cast<char>(token.byte);
      if (token.text_bytes == 0 || token.type == TokenizerModel::Type::kByte) continue;
      std::string_view rest = token.piece;
      for (auto at = rest.find(kTokenSpace); at != std::string_view::npos; at = rest.find(kTokenSpace)) {
        text.append(rest.substr(0, at)).push_back(' ');
        rest.remove_prefix(at + kTokenSpace.size());
      }
      text += rest;
    }
    if (model.dummy_prefix && text.starts_with(' ')) text.erase(0, 1);
    return text;
  }

 private:
  PieceEncoder encoder_;
};

}  // namespace

std::shared_ptr<const Tokenizer> Tokenizer::bytes() {
  static const std::shared_ptr<const Tokenizer> one = std::make_shared<ByteTokenizer>();
  return one;
}

Result<std::shared_ptr<const Tokenizer>> Tokenizer::open(const std::string& path) {
  if (path.empty()) return bytes();
  SKERRY_ASSIGN(std::string model, read_file(path, kMaxTokenizerBytes));
  return from_model(std::move(model), path);
}

Result<std::shared_ptr<const Tokenizer>> Tokenizer::from_model(std::string model, const std::string& name) {
  auto parsed = parse_tokenizer_model(model);
  if (!parsed.ok()) return with_context(std::move(parsed).error(), name);
  return std::shared_ptr<const Tokenizer>(std::make_shared<PieceTokenizer>(*std::move(parsed), model));
}

}  // namespace skerry::trainer
