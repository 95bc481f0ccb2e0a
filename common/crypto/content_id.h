// Content ids: the name of cargo is a root over the hashes of its 4 MiB chunks. docs/cargo.md is the specification.
//
//   leaf = first 32 bytes of BLAKE2b-512(chunk)
//   root = first 32 bytes of BLAKE2b-512("skerry-cargo-v1\0" ‖ u64 little-endian total size ‖ leaves in order)
//   id   = "b2-" and the root in 64 lower-case hexadecimal digits
//
// Nothing has no chunk: the id of zero bytes is the root over the prefix and size 0 alone.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.h"

namespace skerry {

/// Every chunk but the last has this many bytes.
inline constexpr std::uint64_t kChunkBytes = 4u << 20;

/// The hash of one chunk (a leaf).
using ChunkHash = std::array<std::byte, 32>;

/// How many chunks `size` bytes have: size / 4 MiB, rounded up; 0 for 0.
constexpr std::uint64_t chunk_count(std::uint64_t size) { return size / kChunkBytes + (size % kChunkBytes != 0); }

/// How many bytes chunk `index` of `size` bytes has; 0 past the end.
constexpr std::uint64_t chunk_size(std::uint64_t size, std::uint64_t index) {
  const std::uint64_t first = index * kChunkBytes;
  return first >= size ? 0 : (size - first < kChunkBytes ? size - first : kChunkBytes);
}

/// The leaf of one chunk of 1 byte to 4 MiB. Chunks may be hashed in any order and on any threads.
ChunkHash hash_chunk(std::span<const std::byte> chunk);

/// The leaves of all chunks of `data`, in order, hashed on up to `threads` threads (0: one a core).
std::vector<ChunkHash> hash_chunks(std::span<const std::byte> data, unsigned threads = 1);

/// The id of `size` bytes whose chunks have these leaves, in order. INVALID_ARGUMENT unless there are chunk_count(size).
Result<std::string> content_id_of_chunks(std::uint64_t size, std::span<const ChunkHash> leaves);

/// The id of bytes that lie in memory (or in a mapping), hashed on up to `threads` threads (0: one a core).
std::string content_id(std::span<const std::byte> data, unsigned threads = 1);
std::string content_id(std::string_view data);

/// INVALID_ARGUMENT, with the offending text shortened, unless `id` is "b2-" and 64 lower-case hexadecimal digits. An id
/// that passes holds no '/' and no '.', so it is safe as a file name.
Result<void> check_content_id(std::string_view id);

/// Computes the hash of one chunk from pieces that arrive in order.
class ChunkHasher {
 public:
  ChunkHasher();
  ~ChunkHasher();
  ChunkHasher(ChunkHasher&&) noexcept;
  ChunkHasher& operator=(ChunkHasher&&) noexcept;

  void update(std::span<const std::byte> piece);
  /// The leaf of what was given since the start or the last finish(); the hasher starts anew.
  ChunkHash finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Computes an id from pieces of any size that arrive in order.
class ContentHasher {
 public:
  void update(std::span<const std::byte> piece);
  void update(std::string_view piece);
  /// The id of everything given since the start or the last finish(); the hasher starts anew.
  std::string finish();
  /// Bytes given since the start or the last finish().
  std::uint64_t size() const { return size_; }

 private:
  ChunkHasher chunk_;
  std::uint64_t size_ = 0;
  std::vector<ChunkHash> leaves_;
};

}  // namespace skerry
