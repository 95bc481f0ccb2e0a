#include "server/aggregate/outer_state.h"

#include <algorithm>
#include <cstring>

#include "common/crypto/content_id.h"

namespace skerry::server {
namespace {

// The header, 256 bytes, numbers little-endian:
//   0 magic "SKOUTER1" | 8 header bytes u32 = 256 | 12 vectors u32 | 16 elements u64 | 24 steps u64 | 32 data_offset u64
//   40 optimizer, 32 bytes, zero-padded | 72 seven names of vectors, 24 bytes each, zero-padded
//   240 checksum of the chunk checksums u64 | 248 checksum of bytes 0 … 247 u64
constexpr char kMagic[] = "SKOUTER1";
constexpr std::size_t kHeaderBytes = 256;
constexpr std::size_t kOptimizerBytes = 32;
constexpr std::size_t kNameBytes = 24;
constexpr std::size_t kMaxVectors = 7;
constexpr std::size_t kNamesAt = 72;
constexpr std::size_t kTableSumAt = 240;
constexpr std::size_t kHeaderSumAt = 248;

template <typename T>
void put(std::string& bytes, std::size_t at, T value) {
  for (std::size_t i = 0; i < sizeof value; ++i) bytes[at + i] = static_cast<char>(value >> (8 * i) & 0xff);
}

template <typename T>
T get(std::span<const std::byte> bytes, std::size_t at) {
  T value = 0;
  for (std::size_t i = 0; i < sizeof value; ++i) value |= static_cast<T>(static_cast<T>(bytes[at + i]) << (8 * i));
  return value;
}

std::string get_name(std::span<const std::byte> bytes, std::size_t at, std::size_t length) {
  const char* begin = reinterpret_cast<const char*>(bytes.data() + at);
  return {begin, std::find(begin, begin + length, '\0')};
}

std::uint64_t padded_vector_bytes(std::uint64_t elements) { return (elements * 4 + 63) / 64 * 64; }

std::uint64_t checksum_count(const OuterStateHeader& header) {
  const ChunkPartition partition{header.data_offset, header.elements};
  return (partition.chunks() - partition.first_chunk()) * header.vectors.size();
}

}  // namespace

std::uint64_t ChunkPartition::first_chunk() const { return data_offset / kChunkBytes; }

std::uint64_t ChunkPartition::chunks() const { return chunk_count(data_offset + elements * 4); }

std::uint64_t ChunkPartition::begin(std::uint64_t chunk) const {
  const std::uint64_t byte = chunk * kChunkBytes;
  return byte <= data_offset ? 0 : std::min(elements, (byte - data_offset) / 4);
}

std::uint64_t outer_state_vector_offset(const OuterStateHeader& header, std::size_t vector) {
  return kHeaderBytes + vector * padded_vector_bytes(header.elements);
}

std::uint64_t outer_state_checksums_offset(const OuterStateHeader& header) {
  return outer_state_vector_offset(header, header.vectors.size());
}

std::uint64_t outer_state_size(const OuterStateHeader& header) {
  return outer_state_checksums_offset(header) + 8 * checksum_count(header);
}

void StateChecksum::update(std::span<const std::byte> bytes) {
  // Each word is xored into one of eight lanes and multiplied by an odd number: both can be undone, so a single changed word
  // always changes its lane. The lanes are independent, so that a core works on all at once.
  constexpr std::uint64_t kOdd = 0x9e3779b97f4a7c15u;
  const std::byte* at = bytes.data();
  std::size_t left = bytes.size() / 4;
  const auto take = [&] {
    std::uint32_t word = 0;
    std::memcpy(&word, at, 4);
    at += 4;
    --left;
    std::uint64_t& lane = lanes_[words_++ % 8];
    lane = ((lane ^ word) * kOdd);
    lane ^= lane >> 32;
  };
  while (left > 0 && words_ % 8 != 0) take();
  while (left >= 8) {
    std::uint32_t words[8];
    std::memcpy(words, at, sizeof words);
    for (int i = 0; i < 8; ++i) {
      const std::uint64_t mixed = (lanes_[i] ^ words[i]) * kOdd;
      lanes_[i] = mixed ^ mixed >> 32;
    }
    at += sizeof words;
    left -= 8;
    words_ += 8;
  }
  while (left > 0) take();
}

std::uint64_t StateChecksum::value() const {
  constexpr std::uint64_t kOdd = 0xd6e8feb86659fd93u;
  std::uint64_t sum = words_;
  for (const std::uint64_t lane : lanes_) {
    sum = (sum ^ lane) * kOdd;
    sum ^= sum >> 29;
  }
  return sum;
}

std::uint64_t state_checksum(std::span<const std::byte> bytes) {
  StateChecksum checksum;
  checksum.update(bytes);
  return checksum.value();
}

Result<std::string> encode_outer_state_header(const OuterStateHeader& header,
                                              std::span<const std::uint64_t> checksums) {
  if (header.optimizer.size() >= kOptimizerBytes || header.vectors.size() > kMaxVectors) {
    return invalid_argument("outer optimizer \"" + header.optimizer + "\" has " +
                            std::to_string(header.vectors.size()) +
                            " state vectors with the rule's; names have at most 31 bytes and there are at most 7 vectors");
  }
  std::string bytes(kHeaderBytes, '\0');
  bytes.replace(0, 8, kMagic);
  put<std::uint32_t>(bytes, 8, kHeaderBytes);
  put<std::uint32_t>(bytes, 12, static_cast<std::uint32_t>(header.vectors.size()));
  put<std::uint64_t>(bytes, 16, header.elements);
  put<std::uint64_t>(bytes, 24, header.steps);
  put<std::uint64_t>(bytes, 32, header.data_offset);
  bytes.replace(40, header.optimizer.size(), header.optimizer);
  for (std::size_t v = 0; v < header.vectors.size(); ++v) {
    const std::string& name = header.vectors[v];
    if (name.size() >= kNameBytes) {
      return invalid_argument("state vector \"" + name + "\" of outer optimizer \"" + header.optimizer +
                              "\" has a name of more than 23 bytes");
    }
    bytes.replace(kNamesAt + v * kNameBytes, name.size(), name);
  }
  put<std::uint64_t>(bytes, kTableSumAt, state_checksum(std::as_bytes(checksums)));
  put<std::uint64_t>(bytes, kHeaderSumAt, state_checksum(std::as_bytes(std::span(bytes).first(kHeaderSumAt))));
  return bytes;
}

Result<OuterStateHeader> decode_outer_state_header(std::span<const std::byte> state, const std::string& name) {
  const std::string start = "outer optimizer's state " + name + ": ";
  const std::string advice = "; restore it from a backup, or resume the run without it";
  if (state.size() < kHeaderBytes || std::memcmp(state.data(), kMagic, 8) != 0 ||
      get<std::uint32_t>(state, 8) != kHeaderBytes) {
    return data_loss(start + "this is not such a state, or one of another format" + advice);
  }
  if (get<std::uint64_t>(state, kHeaderSumAt) != state_checksum(state.first(kHeaderSumAt))) {
    return data_loss(start + "its header is damaged" + advice);
  }
  OuterStateHeader header;
  header.optimizer = get_name(state, 40, kOptimizerBytes);
  header.elements = get<std::uint64_t>(state, 16);
  header.steps = get<std::uint64_t>(state, 24);
  header.data_offset = get<std::uint64_t>(state, 32);
  const std::uint32_t vectors = std::min<std::uint32_t>(get<std::uint32_t>(state, 12), kMaxVectors);
  for (std::uint32_t v = 0; v < vectors; ++v) {
    header.vectors.push_back(get_name(state, kNamesAt + v * kNameBytes, kNameBytes));
  }
  // Far larger than any file, small enough that no product below overflows.
  if (header.elements > (std::uint64_t{1} << 48) || header.data_offset > (std::uint64_t{1} << 48) ||
      state.size() != outer_state_size(header)) {
    return data_loss(start + "it has " + std::to_string(state.size()) +
                     " bytes, which is not what its header says: it was cut" + advice);
  }
  const std::uint64_t table = outer_state_checksums_offset(header);
  if (get<std::uint64_t>(state, kTableSumAt) != state_checksum(state.subspan(table))) {
    return data_loss(start + "its table of checksums is damaged" + advice);
  }
  return header;
}

}  // namespace skerry::server
