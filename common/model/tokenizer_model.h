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

/// The tokens of a lossless SentencePiece model.
struct TokenizerModel {
  enum class Kind : std::uint8_t { kUnigram = 1, kBpe = 2 };

  Kind kind = Kind::kUnigram;
  std::vector<std::uint16_t> text_bytes;  ///< of each token: how many bytes of text it stands for; 0 for control tokens
  std::uint64_t unknown = 0;
  std::uint64_t end_of_text = 0;  ///< the control token "</s>"
  bool has_begin = false;         ///< whether there is a control token "<s>"

  std::uint64_t size() const { return text_bytes.size(); }
};

/// Reads the bytes of a .model file (a serialised sentencepiece.ModelProto). Only what cannot harm the library that is
/// to use it, and loses nothing of a text, is accepted: unigram or bpe, at most 2^20 tokens of at most 512 bytes of
/// UTF-8, no two the same, finite scores, byte fallback with all of its 256 byte tokens, one unknown token, the control
/// token "</s>", identity normalisation (no compiled character map, spaces kept), no more than kMaxTokenizerBytes, no
/// self-test. INVALID_ARGUMENT naming what is wrong, and what to train instead.
Result<TokenizerModel> parse_tokenizer_model(std::string_view bytes);

}  // namespace skerry
