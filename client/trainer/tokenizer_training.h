// Makes tokenizers with the SentencePiece library, which is in no other program: in one process with LibTorch the two
// would use each other's Protocol Buffers.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "client/trainer/text_commands.h"
#include "common/base/result.h"

namespace skerry::trainer {

/// Trains a SentencePiece model on documents: byte fallback, nothing normalised, "<unk>" 0, "<s>" 1, "</s>" 2; it is
/// one that Tokenizer::from_model() takes. The same documents and options give the same bytes (one thread). Lines are
/// what it learns from. INVALID_ARGUMENT where the text is too small for the vocabulary.
Result<std::string> train_tokenizer(std::span<const std::string_view> documents, const TokenizerTraining& options);

/// The tokens that the library itself gives, to compare with.
Result<std::vector<std::int64_t>> library_tokens(const std::string& model, std::string_view text);

}  // namespace skerry::trainer
