// Tokens in a row, wherever they are: bytes of files, cut text in memory, mapped token files.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "client/trainer/documents.h"
#include "client/trainer/tokenizer.h"
#include "common/base/result.h"

namespace skerry::trainer {

class TokenSource {
 public:
  virtual ~TokenSource() = default;

  std::uint64_t size() const { return size_; }

  /// Whether end-of-text tokens stand before, between and after the documents.
  bool has_documents() const { return has_documents_; }

  /// Fills `out` from token `first` on; first + out.size() ≤ size().
  virtual void copy(std::uint64_t first, std::span<std::int64_t> out) const = 0;

  /// DATA_LOSS if a mapped file could not be read since it was opened.
  virtual Result<void> check() const = 0;

 protected:
  std::uint64_t size_ = 0;
  bool has_documents_ = true;
};

/// All bytes of a directory's files or of one, one after another, without anything between them; see Text.
Result<std::shared_ptr<const TokenSource>> open_bytes(const std::string& path, bool utf8);

/// The documents' tokens, held in memory with 2 bytes each (4 where the vocabulary is larger). Errors of each_document
/// and of the tokenizer, with the document's place.
Result<std::shared_ptr<const TokenSource>> cut_documents(const DocumentSource& source, const Tokenizer& tokenizer);

/// One token file, or a directory's *.tokens in the order of their names; they stay mapped. INVALID_ARGUMENT naming the
/// file: no token file, of another tokenizer, a token beyond the vocabulary.
Result<std::shared_ptr<const TokenSource>> open_token_files(const std::string& path, const Tokenizer& tokenizer);

}  // namespace skerry::trainer
