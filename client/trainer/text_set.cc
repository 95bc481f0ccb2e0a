#include "client/trainer/text_set.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "client/trainer/token_source.h"
#include "client/trainer/tokenizer.h"

namespace skerry::trainer {
namespace {

/// What all parts of a text share.
struct Tokens {
  std::shared_ptr<const TokenSource> source;
  std::shared_ptr<const Tokenizer> tokenizer;
  std::uint64_t context;
};

ExampleShape shape_of(const Tokens& tokens) {
  const std::uint64_t classes =
      tokens.source->has_documents() ? tokens.tokenizer->text_bytes().size() : tokens.tokenizer->size();
  return {ExampleShape::Kind::kText, {tokens.context}, tokens.context, classes};
}

// How many bytes of text some tokens stand for.
std::uint64_t text_bytes(const Tokens& tokens, std::span<const std::int64_t> some) {
  if (!tokens.source->has_documents()) return some.size();  // bytes
  const auto table = tokens.tokenizer->text_bytes();
  std::uint64_t bytes = 0;
  for (const std::int64_t token : some) bytes += table[static_cast<std::size_t>(token)];
  return bytes;
}

Result<void> check_part(const DataPart& part, std::uint64_t size) {
  if (part.first <= size && part.count <= size - part.first) return {};
  return invalid_argument("tokens " + std::to_string(part.first) + " + " + std::to_string(part.count) +
                          " of a text with " + std::to_string(size));
}

/// Windows over everything, at multiples of the context.
class StreamSet final : public DataSet {
 public:
  explicit StreamSet(Tokens tokens) : tokens_(std::move(tokens)) { shape_ = shape_of(tokens_); }

  std::uint64_t shifts() const override { return tokens_.context; }

  Result<void> fill(const std::string& split, std::span<const std::uint64_t> numbers, std::uint64_t shift,
                    Batch& batch) const override {
    const Range range = splits_.at(split);
    const std::uint64_t context = tokens_.context;
    const std::uint64_t last =
        range.tokens - context - 1;  // the last window's start; fill is asked only where one fits
    batch.rows = numbers.size();
    batch.tokens.resize(numbers.size() * (context + 1));
    batch.labels.clear();
    batch.counted = numbers.size() * context;
    batch.text_bytes = 0;
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      const std::span<std::int64_t> row(batch.tokens.data() + i * (context + 1), context + 1);
      tokens_.source->copy(range.first + std::min(numbers[i] * context + shift, last), row);
      batch.text_bytes += text_bytes(tokens_, row.subspan(1));
    }
    return tokens_.source->check();
  }

  Result<std::unique_ptr<DataSet>> part(const DataPart& part) const override {
    SKERRY_TRY(check_part(part, tokens_.source->size()));
    auto set = std::make_unique<StreamSet>(tokens_);
    set->divide(part.splits, part.first, part.count);
    return std::unique_ptr<DataSet>(std::move(set));
  }

  void divide(const std::map<std::string, SplitFractions>& splits, std::uint64_t first, std::uint64_t count) {
    cut(splits, first, count, tokens_.context);
  }

 private:
  Tokens tokens_;
};

/// A window of a document: `count` tokens from `first`, the first of which is not predicted.
struct Window {
  std::uint64_t first;
  std::uint64_t count;
  std::uint64_t document;  ///< where its document begins
};

/// At most one document a window; a longer one has several.
class DocumentSet final : public DataSet {
 public:
  DocumentSet(Tokens tokens, std::shared_ptr<const std::vector<Window>> windows)
      : tokens_(std::move(tokens)), windows_(std::move(windows)) {
    shape_ = shape_of(tokens_);
  }

  static Result<std::shared_ptr<const std::vector<Window>>> find_windows(const Tokens& tokens) {
    auto windows = std::make_shared<std::vector<Window>>();
    const std::uint64_t size = tokens.source->size();
    std::vector<std::int64_t> block;
    std::uint64_t begin = 0;
    for (std::uint64_t at = 0; at < size; at += block.size()) {
      block.resize(static_cast<std::size_t>(std::min<std::uint64_t>(1 << 16, size - at)));
      tokens.source->copy(at, block);
      for (std::size_t i = 0; i < block.size(); ++i) {
        const std::uint64_t here = at + i;
        if (block[i] != tokens.tokenizer->end_of_text() && here + 1 != size) continue;
        // A document is predicted from the end of the one before it, to its own end.
        for (std::uint64_t first = begin; first < here; first += tokens.context)
          windows->push_back({first, std::min(tokens.context, here - first) + 1, begin});
        begin = here;
      }
    }
    SKERRY_TRY(tokens.source->check());
    return std::shared_ptr<const std::vector<Window>>(std::move(windows));
  }

  Result<void> fill(const std::string& split, std::span<const std::uint64_t> numbers, std::uint64_t,
                    Batch& batch) const override {
    const Range range = splits_.at(split);
    const auto context = static_cast<std::size_t>(tokens_.context);
    batch.rows = numbers.size();
    batch.tokens.assign(numbers.size() * (context + 1), tokens_.tokenizer->end_of_text());
    batch.labels.assign(numbers.size() * context, kIgnored);
    batch.counted = 0;
    batch.text_bytes = 0;
    for (std::size_t row = 0; row < numbers.size(); ++row) {
      const Window& window = (*windows_)[range.first + numbers[row]];
      const std::span<std::int64_t> tokens(batch.tokens.data() + row * (context + 1),
                                           static_cast<std::size_t>(window.count));
      tokens_.source->copy(window.first, tokens);
      const auto predicted = tokens.subspan(1);
      std::copy(predicted.begin(), predicted.end(), batch.labels.begin() + static_cast<std::ptrdiff_t>(row * context));
      batch.counted += predicted.size();
      batch.text_bytes += text_bytes(tokens_, predicted);
    }
    return tokens_.source->check();
  }

  Result<std::unique_ptr<DataSet>> part(const DataPart& part) const override {
    SKERRY_TRY(check_part(part, tokens_.source->size()));
    auto set = std::make_unique<DocumentSet>(tokens_, windows_);
    set->divide(part.splits, part.first, part.count);
    return std::unique_ptr<DataSet>(std::move(set));
  }

  /// A document belongs to where it begins.
  void divide(const std::map<std::string, SplitFractions>& splits, std::uint64_t first, std::uint64_t count) {
    cut(splits, first, count);
    const auto window_at = [&](std::uint64_t token) {
      const auto found = std::lower_bound(windows_->begin(), windows_->end(), token,
                                          [](const Window& window, std::uint64_t at) { return window.document < at; });
      return static_cast<std::uint64_t>(found - windows_->begin());
    };
    for (auto& [name, range] : splits_) {
      const std::uint64_t begin = window_at(range.first);
      range = {begin, window_at(range.first + range.count) - begin, 0};
    }
  }

 private:
  Tokens tokens_;
  std::shared_ptr<const std::vector<Window>> windows_;
};

Result<std::shared_ptr<const TokenSource>> open_source(const TextOptions& options, const Tokenizer& tokenizer) {
  if (options.kind == "tokens") return open_token_files(options.path, tokenizer);
  const bool bytes = tokenizer.id() == "bytes";
  if (options.kind == "text" && bytes && !options.documents)
    return open_bytes(options.path, options.encoding == "utf-8");
  return cut_documents({options.kind, options.path, options.field}, tokenizer);
}

}  // namespace

Result<std::unique_ptr<DataSet>> open_text(const TextOptions& options,
                                           const std::map<std::string, SplitFractions>& splits) {
  Tokens tokens;
  tokens.context = options.context;
  SKERRY_ASSIGN(tokens.tokenizer, Tokenizer::open(options.tokenizer));
  SKERRY_ASSIGN(tokens.source, open_source(options, *tokens.tokenizer));
  const std::uint64_t size = tokens.source->size();
  if (!options.documents) {
    auto set = std::make_unique<StreamSet>(std::move(tokens));
    set->divide(splits, 0, size);
    return std::unique_ptr<DataSet>(std::move(set));
  }
  SKERRY_ASSIGN(auto windows, DocumentSet::find_windows(tokens));
  auto set = std::make_unique<DocumentSet>(std::move(tokens), std::move(windows));
  set->divide(splits, 0, size);
  return std::unique_ptr<DataSet>(std::move(set));
}

}  // namespace skerry::trainer
