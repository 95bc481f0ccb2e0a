// The outer optimizer's state and the aggregation rule's as bytes: a file (or a small string) per fragment and version.
//
//   offset 0    header, 256 bytes, little-endian (outer_state.cc has the table)
//   then        each state vector: 4 · elements bytes of f32, each starting at a multiple of 64
//   then        a checksum (u64) for every chunk of every vector, chunk by chunk
//
// A chunk's elements are those that share a 4 MiB chunk of the fragment's file, so one task of the engine reads, checks,
// writes and sums it alone. The header carries a checksum of the chunk checksums and one of itself. Checksums find
// damage, not forgery: a change of any single word is always found.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.h"

namespace skerry::server {

/// What the header says.
struct OuterStateHeader {
  std::string optimizer;                 ///< at most 31 bytes
  std::vector<std::string> vectors;      ///< names of at most 23 bytes, at most 7; the rule's are "rule.…"
  std::uint64_t elements = 0;
  std::uint64_t steps = 0;               ///< of the fragment so far, ≥ 1
  std::uint64_t data_offset = 0;         ///< of the fragment's file; fixes the chunks
};

/// The number of 4 MiB chunks of a fragment file that hold values, from `data_offset` on, and the elements of each.
struct ChunkPartition {
  std::uint64_t data_offset = 0;
  std::uint64_t elements = 0;

  std::uint64_t first_chunk() const;  ///< index of the chunk that holds element 0
  std::uint64_t chunks() const;       ///< chunks of the file, those of the header among them
  std::uint64_t begin(std::uint64_t chunk) const;  ///< first element of a chunk of the file (0 in the header's)
  std::uint64_t end(std::uint64_t chunk) const { return begin(chunk + 1); }
};

/// The layout of the bytes that a header implies.
std::uint64_t outer_state_size(const OuterStateHeader& header);
std::uint64_t outer_state_vector_offset(const OuterStateHeader& header, std::size_t vector);
std::uint64_t outer_state_checksums_offset(const OuterStateHeader& header);

/// 64 bits over 32-bit words given in pieces, for example one chunk of a vector. How they were cut makes no difference.
class StateChecksum {
 public:
  /// The next words; a multiple of 4 bytes.
  void update(std::span<const std::byte> bytes);
  std::uint64_t value() const;

 private:
  std::array<std::uint64_t, 8> lanes_ = {1, 2, 3, 4, 5, 6, 7, 8};
  std::uint64_t words_ = 0;
};

/// The checksum of one piece alone.
std::uint64_t state_checksum(std::span<const std::byte> bytes);

/// The header's 256 bytes. `checksums` are those of all chunks of all vectors, in their order in the file.
/// INVALID_ARGUMENT where a name is too long or there are too many vectors.
Result<std::string> encode_outer_state_header(const OuterStateHeader& header, std::span<const std::uint64_t> checksums);

/// Reads the header and checks size, its own checksum and that of the chunk checksums; the vectors themselves are checked
/// chunk by chunk by who reads them. `name` (a path) begins each message.
/// DATA_LOSS: not such a file, another format version, cut, damaged.
Result<OuterStateHeader> decode_outer_state_header(std::span<const std::byte> state, const std::string& name);

}  // namespace skerry::server
