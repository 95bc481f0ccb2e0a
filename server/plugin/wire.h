// What the coordinator and skerry-plugin-host say to each other: fixed messages over one socket a slot, and the slot's share of
// a memory file for everything of any size. Both come from one build, so structs travel as they are.
//
// A slot serves one call at a time. Its memory has three parts: text (JSON both ways), floats (the block's rows, then what
// reduce writes) and sums (tables of float64, and a linear pass's coefficients).
#pragma once

#include <cstddef>
#include <cstdint>

namespace skerry::server::plugin_wire {

inline constexpr std::uint64_t kTextBytes = std::uint64_t{8} << 20;
inline constexpr std::uint64_t kFloatBytes = std::uint64_t{16} << 20;
inline constexpr std::uint64_t kSumBytes = std::uint64_t{32} << 20;
inline constexpr std::uint64_t kFloatsAt = kTextBytes;
inline constexpr std::uint64_t kSumsAt = kFloatsAt + kFloatBytes;
inline constexpr std::uint64_t kSlotBytes = kSumsAt + kSumBytes;

/// Descriptors of the helper beside its standard ones; the slots' sockets follow.
inline constexpr int kObjectFd = 3;
inline constexpr int kMemoryFd = 4;
inline constexpr int kFirstSlotFd = 5;

enum class Call : std::uint32_t { kLoad = 1, kDescribe, kMake, kNext, kAdd, kReduce, kFree };

struct Request {
  Call call{};
  std::uint32_t tables = 0;        ///< kNext: how many lie in the sums, one behind the other; their sizes end the text
  std::uint64_t pass = 0;          ///< kAdd, kReduce, kFree
  std::uint64_t part_bytes = 0;    ///< kMake, kNext: the text begins with the part
  std::uint64_t text_bytes = 0;    ///< kNext: then the cohort; kAdd, kReduce: the fragment's name
  std::uint64_t first = 0;         ///< the block
  std::uint64_t count = 0;
  std::uint64_t tensor = 0;
  std::uint64_t updates = 0;
  std::uint64_t states = 0;
  std::uint64_t cells = 0;         ///< kAdd: of the table
};

/// As skerry_plugin's functions answer (strategies/sdk/plugin.h).
enum class Outcome : std::uint32_t { kDone = 0, kRefused = 1, kFailed = 2 };

struct Reply {
  Outcome outcome{};
  std::uint32_t reserved = 0;
  std::uint64_t pass = 0;        ///< kNext
  std::uint64_t text_bytes = 0;
  std::uint64_t numbers = 0;     ///< coefficients in the sums
};

/// Rows begin at multiples of 64 bytes: `count` values take so many floats.
constexpr std::uint64_t row_floats(std::uint64_t count) { return (count + 15) / 16 * 16; }

/// Rows of floats in a block: the updates, the base, the state before; then the result and the state after.
constexpr std::uint64_t rows_of(std::uint64_t updates, std::uint64_t states) { return updates + 2 + 2 * states; }

}  // namespace skerry::server::plugin_wire
