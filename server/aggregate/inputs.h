// What a reduction reads: payloads in memory, in maps of files, or in files that are opened for each piece.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.h"
#include "common/codec/encoding.h"
#include "common/os/files.h"
#include "server/aggregate/engine.h"
#include "server/aggregate/kernels.h"

namespace skerry::server {

/// At most this many updates of a job are mapped; the others are opened, read and closed piece by piece, so that neither
/// maps nor descriptors grow with the cohort.
inline constexpr std::size_t kMaxMappedUpdates = 1024;

/// Memory that is not cleared: `bytes`, aligned for every vector.
class Scratch {
 public:
  Scratch() = default;
  explicit Scratch(std::size_t bytes);

  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(begin_);
  }
  std::span<std::byte> bytes() const { return {begin_, size_}; }

 private:
  std::unique_ptr<std::byte[]> memory_;
  std::byte* begin_ = nullptr;
  std::size_t size_ = 0;
};

/// A payload that is there as a whole: in memory or mapped.
class Source {
 public:
  static Result<Source> open(const Payload& payload, std::string name);

  std::span<const std::byte> bytes() const { return bytes_; }
  const std::string& name() const { return name_; }

  /// `count` floats that start at byte `offset`: in place, or copied to `scratch` where they are not aligned.
  const float* floats(std::uint64_t offset, std::size_t count, float* scratch) const;

  /// DATA_LOSS if part of the file could not be read. Ask before trusting what was read.
  Result<void> check() const { return file_ ? file_->check() : Result<void>(); }

  /// These bytes are done with, and those shortly before them: a fault maps pages around it, also such as were dropped.
  void drop(std::uint64_t offset, std::uint64_t length) const;

 private:
  std::string name_;
  std::optional<MappedFile> file_;
  std::span<const std::byte> bytes_;
};

/// Room for one decoded piece of an update, for readers that cannot serve it in place.
struct RowScratch {
  std::byte* encoded = nullptr;  ///< prefix_bytes() + encoded_bytes(count) bytes
  float* decoded = nullptr;      ///< count values
};

/// One update of a job. Pieces are [first, first + count) with `first` a multiple of the encoding's part_elements() and the end
/// one too or the vector's end.
class UpdateReader {
 public:
  /// Finds the encoding and checks the size; `mapped` false keeps no descriptor and no map.
  static Result<UpdateReader> open(const UpdateInput& update, std::uint64_t elements, bool mapped);

  /// Serves (current − then) + Δ from now on. Both are files of the fragment whose values begin at `data_offset`, and
  /// outlive the reader.
  void rebase(const Source& current, const Source& then, std::uint64_t data_offset);

  const std::string& task_id() const { return task_id_; }
  const Encoding& encoding() const { return *encoding_; }

  /// What row() serves; f32 where it decodes.
  RowKind row_kind() const { return kind_.value_or(RowKind::kF32); }
  /// True where row() needs scratch.
  bool row_decodes() const { return !kind_; }
  /// True where floats() needs scratch.
  bool floats_decode() const { return kind_ != RowKind::kF32; }

  /// The values as add_rows takes them, for a piece within one block of int8.
  Result<Row> row(std::uint64_t first, std::size_t count, const RowScratch& scratch) const;

  /// The values as f32, in place where they lie so.
  Result<const float*> floats(std::uint64_t first, std::size_t count, const RowScratch& scratch) const;

  Result<void> check() const { return source_ ? source_->check() : Result<void>(); }
  void drop(std::uint64_t first, std::uint64_t count) const;

 private:
  Result<void> decode(std::uint64_t first, std::span<float> out, std::byte* scratch) const;

  std::string task_id_;
  const Encoding* encoding_ = nullptr;
  std::optional<Source> source_;  // empty: read `path_` piece by piece
  std::string path_;
  std::span<const std::byte> current_;  // the values that the update is rebased to; empty: it is not
  std::span<const std::byte> then_;
  std::optional<RowKind> kind_;  // of the encoded bytes in memory; empty: they must be decoded first
};

/// "element 17 (tensor layer0.weight, its element 5)", or without the tensor where none is known.
std::string element_text(std::uint64_t element, std::span<const strategies::TensorRange> tensors);

/// "NaN", "+infinity" or "-infinity".
std::string non_finite_text(float value);

}  // namespace skerry::server
