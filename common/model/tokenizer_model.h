// What a SentencePiece model says of its tokens, read without SentencePiece: a .model file comes from somebody else.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.h"

namespace skerry {

/// A tokenizer is small: larger files are no tokenizers.
inline constexpr std::uint64_t kMaxTokenizerBytes = std::uint64_t{16} << 20;
inline constexpr std::uint64_t kMaxVocabulary = 1 << 20;

/// How a model writes a space: U+2581.
inline constexpr std::string_view kTokenSpace = "\xE2\x96\x81";

/// A lossless SentencePiece model.
struct TokenizerModel {
  enum class Kind : std::uint8_t { kUnigram = 1, kBpe = 2 };
  enum class Type : std::uint8_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kByte = 6 };

  struct Token {
    std::string piece;  ///< with kTokenSpace for spaces
    float score = 0;
    Type type = Type::kNormal;
    std::uint8_t byte = 0;         ///< of a byte token
    std::uint16_t text_bytes = 0;  ///< how many bytes of text it stands for; 0 for control tokens
  };

  Kind kind = Kind::kUnigram;
  std::vector<Token> tokens;
  std::uint64_t unknown = 0;
  std::uint64_t end_of_text = 0;  ///< the control token "</s>"
  bool has_begin = false;         ///< whether there is a control token "<s>"
  bool dummy_prefix = false;      ///< a space is put before every text

  std::uint64_t size() const { return tokens.size(); }
};

/// Reads the bytes of a .model file (a serialised sentencepiece.ModelProto). Only what loses nothing of a text, and is
/// within bounds, is accepted: unigram or bpe, at most 2^20 tokens of at most 512 bytes, no two the same, finite
/// scores, byte fallback with all of its 256 byte tokens, a token for a space, one unknown token, the control token
/// "</s>", identity normalisation (no compiled character map, spaces kept), at most kMaxTokenizerBytes, no unused
/// tokens. INVALID_ARGUMENT naming what is wrong, and what to train instead.
Result<TokenizerModel> parse_tokenizer_model(std::string_view bytes);

}  // namespace skerry
