// Text as tokens and back: bytes, or a SentencePiece model that a run ships.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.h"

namespace skerry::trainer {

/// A tokenizer loses nothing: decode(encode(text)) is the text. Any number of threads may use one.
class Tokenizer {
 public:
  /// Tokens 0 … 255 are bytes; token 256 is the end of a text.
  static std::shared_ptr<const Tokenizer> bytes();

  /// The SentencePiece model in a file; an empty path: bytes(). NOT_FOUND, or INVALID_ARGUMENT naming the file and why
  /// its content is not accepted (parse_tokenizer_model).
  static Result<std::shared_ptr<const Tokenizer>> open(const std::string& path);

  /// The same of a model in memory; `name` stands for the file in messages.
  static Result<std::shared_ptr<const Tokenizer>> from_model(std::string model, const std::string& name);

  virtual ~Tokenizer() = default;

  /// "bytes", or the content id of the model's file.
  const std::string& id() const { return id_; }

  /// Tokens of text: 256 of bytes. The end-of-text token of bytes comes on top, see end_of_text().
  std::uint64_t size() const { return size_; }

  /// The token between documents: 256 of bytes, "</s>" of a SentencePiece model.
  std::int64_t end_of_text() const { return end_of_text_; }

  /// How many bytes of text each token stands for; 0 for control tokens. One entry for every token, end_of_text() too.
  std::span<const std::uint16_t> text_bytes() const { return text_bytes_; }

  /// Appends the tokens of a text. INVALID_ARGUMENT "not UTF-8 at byte N" from SentencePiece models, which take UTF-8
  /// only. Long texts are cut into pieces of about 1 MiB after line ends, each encoded by itself.
  virtual Result<void> encode(std::string_view text, std::vector<std::int64_t>& tokens) const = 0;

  /// The text of some tokens (control tokens have none, tokens out of range neither). Bytes that the tokens give are
  /// not checked: the end of a generated text may be the middle of a character.
  virtual std::string decode(std::span<const std::int64_t> tokens) const = 0;

 protected:
  std::string id_;
  std::uint64_t size_ = 0;
  std::int64_t end_of_text_ = 0;
  std::vector<std::uint16_t> text_bytes_;
};

}  // namespace skerry::trainer
