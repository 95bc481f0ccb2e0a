// A SentencePiece model at work: text to tokens by byte-pair merges or the likeliest segmentation.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "common/model/tokenizer_model.h"

namespace skerry::trainer {

/// Gives the tokens that the SentencePiece library gives (bpe_model.cc and unigram_model.cc of 0.1.97; Sennrich et al.,
/// arXiv 1508.07909, and Kudo, arXiv 1804.10959). The library itself cannot be in a process with LibTorch: both bring
/// their own Protocol Buffers. Any number of threads may use one.
class PieceEncoder {
 public:
  explicit PieceEncoder(TokenizerModel model);

  const TokenizerModel& model() const { return model_; }

  /// Appends the tokens of well-formed UTF-8.
  void encode(std::string_view text, std::vector<std::int64_t>& tokens) const;

 private:
  using Ids = std::vector<std::int32_t>;

  void encode_word(std::string_view word, Ids& ids) const;
  Ids merge_pairs(std::string_view word) const;
  Ids likeliest(std::string_view word) const;
  void put(std::string_view piece, Ids& ids) const;
  /// The longest user-defined token at the front, else one character: its bytes.
  std::size_t first_symbol(std::string_view text, bool& user_defined) const;

  TokenizerModel model_;
  std::unordered_map<std::string_view, std::int32_t> ids_;         // of normal and user-defined tokens
  std::vector<std::pair<std::string_view, std::int32_t>> sorted_;  // the same, for common prefixes
  std::int32_t bytes_[256] = {};
  float lowest_ = 0;  // score of a normal token
  float highest_ = 0;
  std::vector<std::string_view> user_defined_;  // longest first
  bool words_ = true;  // no token goes on after a word's end, so words can be looked at one by one

  mutable std::mutex mutex_;
  mutable std::unordered_map<std::string, Ids> known_;  // words
};

}  // namespace skerry::trainer
