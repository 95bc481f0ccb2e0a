#include "client/trainer/tokenizer_training.h"

#include "common/model/tokenizer_model.h"

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <algorithm>
#include <exception>
#include <unordered_map>

namespace skerry::trainer {
namespace {

Error library_error(const std::string& doing, const std::string& why) {
  return invalid_argument(doing + ": SentencePiece says: " + why);
}

/// Hands the lines of some documents to the library.
class Lines final : public sentencepiece::SentenceIterator {
 public:
  // The first line is a space, because every tokenizer needs a token for it, and the library demands that it occurs.
  explicit Lines(std::span<const std::string_view> documents) : documents_(documents), line_(" ") {}

  bool done() const override { return done_; }
  void Next() override {
    for (;;) {
      while (rest_.empty()) {
        if (documents_.empty()) {
          done_ = true;
          return;
        }
        rest_ = documents_.front();
        documents_ = documents_.subspan(1);
      }
      const std::size_t end = std::min(rest_.find('\n'), rest_.size());
      // The library takes no longer lines, nor zero bytes.
      line_.assign(rest_.substr(0, std::min(end, kMaxLine)));
      rest_.remove_prefix(std::min(end + 1, rest_.size()));
      std::replace(line_.begin(), line_.end(), '\0', ' ');
      if (!line_.empty()) return;
    }
  }
  const std::string& value() const override { return line_; }
  sentencepiece::util::Status status() const override { return {}; }

  static constexpr std::size_t kMaxLine = 1 << 20;

 private:
  std::span<const std::string_view> documents_;
  std::string_view rest_;
  std::string line_;
  bool done_ = false;
};

}  // namespace

Result<std::string> train_tokenizer(std::span<const std::string_view> documents, const TokenizerTraining& options) {
  const std::unordered_map<std::string, std::string> settings{
      {"vocab_size", std::to_string(options.vocabulary)},
      {"model_type", options.bpe ? "bpe" : "unigram"},
      // Nothing of a text may be lost.
      {"byte_fallback", "true"},
      {"normalization_rule_name", "identity"},
      {"remove_extra_whitespaces", "false"},
      {"add_dummy_prefix", "false"},
      {"allow_whitespace_only_pieces", "true"},
      {"required_chars", "\xE2\x96\x81"},
      {"split_digits", "true"},
      {"character_coverage", "0.9999"},
      {"max_sentence_length", std::to_string(Lines::kMaxLine)},
      {"num_threads", "1"},  // sums of several threads would differ from run to run
      {"minloglevel", "2"},
  };
  if (std::all_of(documents.begin(), documents.end(), [](std::string_view text) { return text.empty(); }))
    return invalid_argument("there is no text to learn tokens from");
  Lines lines(documents);
  std::string model;
  try {
    const auto status = sentencepiece::SentencePieceTrainer::Train(settings, &lines, &model);
    if (!status.ok()) return library_error("training a tokenizer", status.ToString());
  } catch (const std::exception& error) {
    return library_error("training a tokenizer", error.what());
  }
  SKERRY_TRY(parse_tokenizer_model(model));
  return model;
}

Result<std::vector<std::int64_t>> library_tokens(const std::string& model, std::string_view text) {
  sentencepiece::SentencePieceProcessor processor;
  if (const auto loaded = processor.LoadFromSerializedProto(model); !loaded.ok())
    return library_error("loading", loaded.ToString());
  std::vector<int> ids;
  if (const auto encoded = processor.Encode({text.data(), text.size()}, &ids); !encoded.ok())
    return library_error("encoding", encoded.ToString());
  return std::vector<std::int64_t>(ids.begin(), ids.end());
}

}  // namespace skerry::trainer
