// `skerry-trainer tokenizer` and `skerry-trainer tokens`: what a run's text needs before the run.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.h"

namespace skerry::trainer {

struct TokenizerTraining {
  std::uint64_t vocabulary = 0;  ///< tokens, with the 256 bytes and 3 control tokens: 260 … 2^20
  bool bpe = true;               ///< otherwise unigram
};

/// Makes a model file's bytes from documents; see tokenizer_training.h.
using TrainTokenizer =
    std::function<Result<std::string>(std::span<const std::string_view> documents, const TokenizerTraining& options)>;

/// Trains a tokenizer on local text and writes its model file, for the arguments after `tokenizer`. What it says at the
/// end. OUT_OF_RANGE: the arguments are wrong; otherwise errors of reading, training and writing.
Result<std::string> tokenizer_command(const std::vector<std::string_view>& arguments, const TrainTokenizer& train);

/// Cuts local text into token files, for the arguments after `tokens`. As above.
Result<std::string> tokens_command(const std::vector<std::string_view>& arguments);

}  // namespace skerry::trainer
