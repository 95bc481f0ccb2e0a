// A fragment as a file: safetensors, f32, the tensors in layout order without gaps, the data starting at a multiple of
// 64 bytes. The same fragment and values give the same bytes, so its content id names the values.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.h"
#include "common/model/layout.h"
#include "common/tensor/safetensors.h"

namespace skerry {

/// The fragment's tensors as a SafetensorsWriter wants them, in layout order. NOT_FOUND where there is no such
/// fragment.
Result<std::vector<TensorSpec>> fragment_tensors(const ModelLayout& layout, std::string_view fragment);

/// The bytes of the file before its first value (length word, JSON, padding); their number is a multiple of 64. The
/// file is these bytes and then 4 · elements bytes of little-endian f32 in layout order. NOT_FOUND where the layout has
/// no such fragment.
Result<std::string> fragment_header(const ModelLayout& layout, std::string_view fragment);

/// Writes a whole fragment file from the fragment's vector; it appears under its name complete. INVALID_ARGUMENT where
/// its length is not the fragment's.
Result<void> write_fragment_file(const std::string& path, const ModelLayout& layout, std::string_view fragment,
                                 std::span<const float> values, Durability durability = Durability::kDurable);

/// A fragment read from a file that somebody else may have written: the tensors may stand in any order in it.
class FragmentFile {
 public:
  /// Opens and checks: the file must hold exactly the fragment's tensors, each f32 and of the layout's shape.
  /// Errors name the tensor and the value: INVALID_ARGUMENT (missing, surplus, wrong dtype or shape, malformed file),
  /// NOT_FOUND (no such fragment or file).
  static Result<FragmentFile> open(const std::string& path, const ModelLayout& layout, std::string_view fragment);

  std::uint64_t elements() const { return elements_; }

  /// Elements first … first + out.size() − 1 of the fragment's vector. OUT_OF_RANGE outside of it.
  Result<void> read(std::uint64_t first, std::span<float> out) const;

  /// The whole vector in place, without a copy, where the file's order is the layout's (a file of ours always is) and
  /// its data is aligned; otherwise nothing: use read().
  std::optional<std::span<const float>> values() const;

  /// INVALID_ARGUMENT naming the tensor, the index inside it and the value of the first NaN or infinity.
  Result<void> check_finite() const { return file_.check_finite(); }

  /// The file underneath: after reading values() in place, `file().mapped().check()`.
  const SafetensorsFile& file() const { return file_; }

 private:
  struct Part {
    std::uint64_t first = 0;  ///< element of the fragment's vector
    std::span<const std::byte> bytes;
  };
  explicit FragmentFile(SafetensorsFile file) : file_(std::move(file)) {}

  SafetensorsFile file_;
  std::vector<Part> parts_;  // by `first`
  std::uint64_t elements_ = 0;
};

}  // namespace skerry
