#include "client/trainer/tokenizer.h"

#include <algorithm>
#include <exception>
#include <unordered_map>
#include <utility>

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include "client/trainer/data_sources.h"
#include "common/crypto/content_id.h"
#include "common/model/tokenizer_model.h"
#include "common/os/files.h"

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

Error library_error(const std::string& doing, const std::string& why) {
  return invalid_argument(doing + ": SentencePiece says: " + why);
}

// Where a text of UTF-8 is cut so that no piece is very long: after a line's end, else between two characters.
std::size_t piece_end(std::string_view text) {
  if (text.size() <= kPieceBytes) return text.size();
  if (const std::size_t newline = text.find('\n', kPieceBytes); newline < 2 * kPieceBytes) return newline + 1;
  if (text.size() <= 2 * kPieceBytes) return text.size();
  std::size_t end = 2 * kPieceBytes;
  while ((static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return end;
}

class PieceTokenizer final : public Tokenizer {
 public:
  /// `model` is what parse_tokenizer_model made of `bytes`.
  PieceTokenizer(TokenizerModel model, std::string_view bytes) {
    id_ = content_id(bytes);
    size_ = model.size();
    end_of_text_ = static_cast<std::int64_t>(model.end_of_text);
    text_bytes_ = std::move(model.text_bytes);
  }

  Result<void> load(const std::string& bytes) {
    const auto status = processor_.LoadFromSerializedProto(bytes);
    if (!status.ok()) return library_error("tokenizer", status.ToString());
    if (processor_.GetPieceSize() < 0 || static_cast<std::uint64_t>(processor_.GetPieceSize()) != size_)
      return library_error("tokenizer", "another number of tokens");
    return {};
  }

  Result<void> encode(std::string_view text, std::vector<std::int64_t>& tokens) const override {
    if (const std::size_t at = first_not_utf8(text); at != text.size())
      return invalid_argument("not UTF-8 at byte " + std::to_string(at));
    std::vector<int> ids;
    while (!text.empty()) {
      const std::string_view piece = text.substr(0, piece_end(text));
      text.remove_prefix(piece.size());
      try {
        const auto status = processor_.Encode({piece.data(), piece.size()}, &ids);
        if (!status.ok()) return library_error("encoding", status.ToString());
      } catch (const std::exception& error) {
        return library_error("encoding", error.what());
      }
      tokens.insert(tokens.end(), ids.begin(), ids.end());
    }
    return {};
  }

  std::string decode(std::span<const std::int64_t> tokens) const override {
    std::vector<int> ids;
    for (const std::int64_t token : tokens)
      if (token >= 0 && static_cast<std::uint64_t>(token) < size_) ids.push_back(static_cast<int>(token));
    std::string text;
    try {
      if (!processor_.Decode(ids, &text).ok()) return "";
    } catch (const std::exception&) {
      return "";
    }
    return text;
  }

 private:
  sentencepiece::SentencePieceProcessor processor_;
};

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
  try {
    auto made = std::make_shared<PieceTokenizer>(*std::move(parsed), model);
    if (auto loaded = made->load(model); !loaded.ok()) return with_context(std::move(loaded).error(), name);
    return std::shared_ptr<const Tokenizer>(std::move(made));
  } catch (const std::exception& error) {
    return library_error(name, error.what());
  }
}

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

}  // namespace skerry::trainer
