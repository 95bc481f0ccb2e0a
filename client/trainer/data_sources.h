// The files behind a data set: IDX (gzip too), CSV, text. Every error names the file and the place in it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.h"
#include "common/os/files.h"

namespace skerry::trainer {

struct Images {
  std::vector<std::uint64_t> shape;   ///< [channels, height, width]
  std::vector<unsigned char> pixels;  ///< image after image
  std::vector<unsigned char> labels;
};

/// All pairs PREFIX-images-idx3-ubyte[.gz], PREFIX-labels-idx1-ubyte[.gz] of a directory, sorted by prefix, one after
/// another. (idx4 for images with channels.) `shape` is what the schema says, empty: whatever the files have; labels
/// must be below `classes`. INVALID_ARGUMENT for a wrong magic number, sizes that disagree with the file's length, the
/// schema or the labels' file, a label out of range, a damaged gzip stream, no pair at all.
Result<Images> read_images(const std::string& directory, const std::vector<std::uint64_t>& shape, unsigned classes);

/// One IDX file of unsigned bytes as its extents and values. Limit: 2 GiB of values.
struct IdxFile {
  std::vector<std::uint64_t> extents;
  std::vector<unsigned char> values;
};
Result<IdxFile> read_idx(const std::string& path);

struct Table {
  std::vector<float> values;  ///< rows × features
  std::vector<float> labels;  ///< rows
};

/// Columns of a CSV file with a header line (RFC 4180: commas, optional double quotes, LF or CRLF; empty lines are
/// skipped). INVALID_ARGUMENT with the line for a missing or doubled column, too few or many fields, a value that is
/// not a finite number, a label that is not a whole number in [0, classes) (classes 0: any number), quotes that do not
/// close, no rows.
Result<Table> read_table(const std::string& path, const std::vector<std::string>& features, const std::string& label,
                         std::uint64_t classes);
/// The same of a text; `name` stands for the file in messages.
Result<Table> parse_table(std::string_view text, const std::string& name, const std::vector<std::string>& features,
                          const std::string& label, std::uint64_t classes);

/// Row numbers, one a line, each below `count`, none twice.
Result<std::vector<std::uint64_t>> read_indices(const std::string& path, std::uint64_t count);

/// The files below a directory that are not empty, sorted by path; or the one file that `path` is. Names that begin with a
/// dot are left out, symbolic links are not followed. INVALID_ARGUMENT for more than 1,000,000 files or 64 levels.
Result<std::vector<std::string>> files_of(const std::string& path);

/// files_of(path) as one long text. Files of 1 MiB and more are mapped, smaller ones are read.
class Text {
 public:
  /// INVALID_ARGUMENT where there is not a single byte; with `utf8` also "FILE: not UTF-8 at byte N".
  static Result<Text> open(const std::string& path, bool utf8);

  std::uint64_t size() const { return size_; }

  /// Fills `out` from byte `first`; first + out.size() ≤ size().
  void copy(std::uint64_t first, std::span<char> out) const;

  /// DATA_LOSS if a mapped file could not be read since it was opened.
  Result<void> check() const;

 private:
  struct Piece {
    std::uint64_t first = 0;
    std::string_view bytes;
  };
  std::vector<Piece> pieces_;
  std::vector<std::unique_ptr<std::string>> loaded_;
  std::vector<MappedFile> mapped_;
  std::uint64_t size_ = 0;
};

/// The first byte that is not part of well-formed UTF-8, or text.size().
std::size_t first_not_utf8(std::string_view text);

}  // namespace skerry::trainer
