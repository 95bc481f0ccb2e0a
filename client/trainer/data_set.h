// Private data as numbered examples: image files (IDX), tables (CSV), text. No LibTorch here.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.h"

namespace skerry::trainer {

/// Some examples, as a model takes them. Rows of `inputs` and one target each, or windows of text.
struct Batch {
  std::size_t rows = 0;
  std::vector<float> inputs;         ///< rows × input_size (images: values in [0, 1])
  std::vector<std::int64_t> labels;  ///< rows; classification. Text: empty, or rows × context tokens to predict, of which
                                     ///< kIgnored ones do not count; empty: each window's next tokens, all of which count
  std::vector<float> targets;        ///< rows; regression
  std::vector<std::int64_t> tokens;  ///< rows × (context + 1); text: each window's tokens and the token after
  std::uint64_t counted = 0;         ///< text: predicted tokens that count
  std::uint64_t text_bytes = 0;      ///< text: how many bytes of text these stand for
};

/// In Batch::labels: no token stands here, the window reaches beyond its document.
inline constexpr std::int64_t kIgnored = -100;

/// What the examples look like, to be compared with the model.
struct ExampleShape {
  enum class Kind { kText, kImages, kTable };
  Kind kind = Kind::kTable;
  std::vector<std::uint64_t> shape;  ///< images: [channels, height, width]; tables: [features]; text: [context]
  std::uint64_t input_size = 0;      ///< product of `shape`
  std::uint64_t classes = 0;         ///< 0: regression (tables); text: tokens that may occur (bytes: 256, or 257 with
                                     ///< the end-of-text token)
};

/// A split as fractions of a set, in [0, 1].
struct SplitFractions {
  double from = 0;
  double to = 1;
};

/// What one of many holders has of a data set that they share in memory.
struct DataPart {
  std::vector<std::uint64_t> rows;  ///< images, tables: numbers of the whole set's rows, in the part's order
  std::uint64_t first = 0;          ///< text: the token where the part begins
  std::uint64_t count = 0;          ///< text: how many tokens it has
  std::map<std::string, SplitFractions> splits;  ///< of the part
};

class DataSet {
 public:
  /// Opens the data set of an `open` line's data section {"kind","path","schema","splits","indices","tokenizer",
  /// "packing"}; `context` is the length of a text window (other kinds ignore it).
  ///
  /// Pixels are divided by 255. The files are read once, here: later changes to them are not seen, except in text files
  /// of 1 MiB and more, which stay mapped. Errors: NOT_FOUND (path), PERMISSION_DENIED, INVALID_ARGUMENT naming the
  /// file, the line or byte, the wrong value and what is allowed.
  static Result<std::unique_ptr<DataSet>> open(std::string_view section, std::uint64_t context);

  virtual ~DataSet() = default;

  /// A set of its own over the same memory, for as long as either lives. INVALID_ARGUMENT where the part reaches beyond
  /// the whole; UNIMPLEMENTED by sets that have no parts.
  virtual Result<std::unique_ptr<DataSet>> part(const DataPart& part) const;

  const ExampleShape& shape() const { return shape_; }

  /// Rows of all splits and what lies between them; of a text its tokens.
  std::uint64_t size() const { return size_; }

  /// Examples of every split.
  std::map<std::string, std::uint64_t> examples() const;

  /// Examples of one split. NOT_FOUND naming the splits there are.
  Result<std::uint64_t> examples(const std::string& split) const;

  /// How many shifts a pass may have, for fill(); 1: none.
  virtual std::uint64_t shifts() const { return 1; }

  /// The examples `numbers` (each below examples(split)) of a split. `shift` moves every window of a running text by
  /// that many tokens, so that passes over it cut it differently; a window that would leave its split is moved back to
  /// the split's end. DATA_LOSS where a mapped text can no longer be read.
  virtual Result<void> fill(const std::string& split, std::span<const std::uint64_t> numbers, std::uint64_t shift,
                            Batch& batch) const = 0;

 protected:
  struct Range {
    std::uint64_t first = 0;   ///< example (text: token)
    std::uint64_t count = 0;   ///< examples (text: windows)
    std::uint64_t tokens = 0;  ///< text only
  };

  /// Makes splits_ from fractions of `count` examples, or of `count` tokens in windows of `window`, from `first` on.
  void cut(const std::map<std::string, SplitFractions>& splits, std::uint64_t first, std::uint64_t count,
           std::uint64_t window = 0);

  ExampleShape shape_;
  std::uint64_t size_ = 0;
  std::map<std::string, Range> splits_;
};

}  // namespace skerry::trainer
