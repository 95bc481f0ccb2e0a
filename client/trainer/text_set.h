// Text as numbered examples: windows of tokens.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include <nlohmann/json_fwd.hpp>

#include "client/trainer/data_set.h"
#include "common/base/result.h"

namespace skerry::trainer {

/// What decides how a text becomes windows.
struct TextOptions {
  std::string kind;           ///< "text", "jsonl", "tokens"
  std::string path;           ///< of the data
  std::string encoding;       ///< text: "bytes" or "utf-8"
  std::string field;          ///< jsonl
  std::string tokenizer;      ///< a SentencePiece model's file; empty: bytes
  bool documents = false;     ///< at most one document a window, padded; else windows over everything
  std::uint64_t context = 0;  ///< tokens a window predicts
};

/// A data set over the tokens of some text, see docs/trainer-protocol.md. Errors name the file and the place.
Result<std::unique_ptr<DataSet>> open_text(const TextOptions& options,
                                           const std::map<std::string, SplitFractions>& splits);

}  // namespace skerry::trainer
