// Safetensors files: read through a map of the file, written as a stream, sharded with an index when they are large.
//
// docs/formats.md states which files are accepted. Every malformed file is INVALID_ARGUMENT with a message that names
// the file, the tensor and the wrong value; no input makes the reader allocate more than a small multiple of the
// header.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.h"
#include "common/os/files.h"
#include "common/tensor/dtype.h"

namespace skerry {

/// The largest JSON header accepted, in bytes (the limit of the reference implementation).
inline constexpr std::uint64_t kMaxSafetensorsHeader = 100'000'000;

/// Where data starts in the files we write: at a multiple of this many bytes.
inline constexpr std::uint64_t kSafetensorsAlignment = 64;

/// Models of at least this many bytes of data are written as shards of at most this size, with an index file.
inline constexpr std::uint64_t kDefaultShardBytes = 5'000'000'000;

/// Whether a written file survives a power cut (fsync of file and directory) or is scratch for another process to read.
enum class Durability : std::uint8_t { kDurable, kScratch };

/// Free text beside the tensors; ordered, so that the same map gives the same bytes.
using SafetensorsMetadata = std::map<std::string, std::string>;

/// What a writer is told of a tensor.
struct TensorSpec {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<std::uint64_t> shape;
};

/// What a reader learns of a tensor.
struct TensorEntry {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<std::uint64_t> shape;
  std::uint64_t elements = 0;  ///< product of `shape`, 1 for a scalar
  std::uint64_t offset = 0;    ///< of its first byte inside the data area
  std::uint64_t bytes = 0;     ///< elements · dtype_bytes(dtype)
};

struct SafetensorsHeader {
  std::vector<TensorEntry> tensors;  ///< by offset; of equal offsets (empty tensors) by name
  SafetensorsMetadata metadata;
  std::uint64_t data_begin = 0;  ///< of the data area, in bytes from the file's start
  std::uint64_t data_bytes = 0;  ///< of the data area: all tensors without gaps
};

/// Product of a shape times the dtype's size. INVALID_ARGUMENT where it does not fit into 63 bits.
Result<std::uint64_t> tensor_bytes(DType dtype, std::span<const std::uint64_t> shape);

/// Reads a header. `front` holds the file's first bytes, at least the whole header; `file_bytes` is the file's length.
/// INVALID_ARGUMENT: shorter than its header says; header larger than kMaxSafetensorsHeader, not a JSON object, or with
/// a duplicate name; a tensor with unknown dtype, wrong member types, a shape whose size overflows, offsets out of
/// range, disagreeing with its shape, overlapping another's or leaving a gap; metadata that is not text.
Result<SafetensorsHeader> parse_safetensors_header(std::span<const std::byte> front, std::uint64_t file_bytes);

/// The bytes before the data area (length word, JSON, padding with spaces) for tensors stored in this order; their
/// number is a multiple of kSafetensorsAlignment. The same arguments give the same bytes. INVALID_ARGUMENT for a
/// duplicate or reserved name ("__metadata__"), text that is not UTF-8, or a size that overflows.
Result<std::string> make_safetensors_header(std::span<const TensorSpec> tensors,
                                            const SafetensorsMetadata& metadata = {});

/// One file, mapped and checked. Its tensors' bytes are views of the map, valid as long as this object lives.
class SafetensorsFile {
 public:
  /// Errors: those of MappedFile::open and of parse_safetensors_header, with the path before them.
  static Result<SafetensorsFile> open(const std::string& path);

  const std::vector<TensorEntry>& tensors() const { return header_.tensors; }
  const SafetensorsMetadata& metadata() const { return header_.metadata; }
  const SafetensorsHeader& header() const { return header_; }

  const std::string& path() const { return file_.path(); }
  /// The map underneath: check() it after reading bytes in place, drop() what was read.
  const MappedFile& mapped() const { return file_; }

  /// nullptr where there is none of that name.
  const TensorEntry* find(std::string_view name) const;

  /// Little-endian, row-major. Aligned for its dtype in files we wrote; in others perhaps not.
  std::span<const std::byte> bytes(const TensorEntry& tensor) const;
  /// All tensors' bytes in file order.
  std::span<const std::byte> data() const;

  /// The tensor's values as f32, whatever its floating dtype (f64 is rounded). INVALID_ARGUMENT for integer tensors;
  /// OUT_OF_RANGE where first + out.size() exceeds its elements.
  Result<void> read_f32(const TensorEntry& tensor, std::uint64_t first, std::span<float> out) const;

  /// INVALID_ARGUMENT naming the tensor, the index inside it and the value of the first NaN or infinity in a floating
  /// tensor.
  Result<void> check_finite() const;

 private:
  SafetensorsFile(MappedFile file, SafetensorsHeader header);

  MappedFile file_;
  SafetensorsHeader header_;
  std::vector<std::size_t> by_name_;  // indices into header_.tensors
};

/// Writes one file in order without holding it in memory: declare the tensors, append their bytes, finish.
/// Until finish() succeeds the file stands as `path`.part; a writer destroyed before removes it.
class SafetensorsWriter {
 public:
  /// Errors: those of make_safetensors_header and of creating a file.
  static Result<SafetensorsWriter> create(const std::string& path, std::span<const TensorSpec> tensors,
                                          const SafetensorsMetadata& metadata = {},
                                          Durability durability = Durability::kDurable);
  /// After a move only destruction and assignment are allowed.
  SafetensorsWriter(SafetensorsWriter&&) noexcept;
  SafetensorsWriter& operator=(SafetensorsWriter&&) noexcept;
  ~SafetensorsWriter();

  /// The next bytes of the data area, in pieces of any length. OUT_OF_RANGE where they exceed what was declared.
  Result<void> append(std::span<const std::byte> bytes);

  /// Puts the file, durable if so wanted, under its name. FAILED_PRECONDITION where bytes are missing.
  Result<void> finish();

 private:
  struct State;
  explicit SafetensorsWriter(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// Writes a model as Hugging Face lays it out: `directory`/model.safetensors, or where the data has more than
/// `shard_bytes` bytes model-00001-of-0000N.safetensors … and model.safetensors.index.json. A shard exceeds
/// `shard_bytes` only where one tensor alone does. Use it like SafetensorsWriter: append every tensor's bytes in order,
/// then finish.
class ShardedWriter {
 public:
  static Result<ShardedWriter> create(const std::string& directory, std::vector<TensorSpec> tensors,
                                      SafetensorsMetadata metadata = {},
                                      std::uint64_t shard_bytes = kDefaultShardBytes);

  /// As SafetensorsWriter; a piece may span shards.
  Result<void> append(std::span<const std::byte> bytes);
  Result<void> finish();

  /// The files' names inside the directory, the index last where there is one.
  const std::vector<std::string>& files() const { return names_; }

 private:
  ShardedWriter() = default;
  Result<void> open_shard();

  struct Shard {
    std::size_t first_tensor = 0;
    std::size_t end_tensor = 0;
    std::uint64_t bytes = 0;
  };
  std::string directory_;
  std::vector<TensorSpec> tensors_;
  SafetensorsMetadata metadata_;
  std::vector<Shard> shards_;
  std::vector<std::string> names_;
  std::size_t current_ = 0;
  std::uint64_t left_ = 0;  // bytes of the open shard still to come
  std::unique_ptr<SafetensorsWriter> writer_;
};

/// A model in one file or in shards.
class ShardedModel {
 public:
  struct Tensor {
    const SafetensorsFile* file = nullptr;
    const TensorEntry* entry = nullptr;
  };

  /// `path` is a .safetensors file, an index (….index.json), or a directory that holds model.safetensors or its index.
  /// INVALID_ARGUMENT for an index that is malformed, names a file outside its directory, or disagrees with its shards
  /// (a tensor missing, not listed, or in two shards); NOT_FOUND for a missing file.
  static Result<ShardedModel> open(const std::string& path);

  /// In file order, shard after shard.
  const std::vector<Tensor>& tensors() const { return tensors_; }
  const std::vector<std::unique_ptr<SafetensorsFile>>& files() const { return files_; }

  /// `entry` is nullptr where there is none of that name.
  Tensor find(std::string_view name) const;

 private:
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::vector<Tensor> tensors_;
};

}  // namespace skerry
