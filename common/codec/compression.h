// zstd on top of an encoding, where it pays.
//
// A payload that was compressed is one zstd frame, and its encoding's name ends in "+zstd" wherever the payload is spoken of.
// Who receives one knows the exact size of what it must come to, and never writes more than that.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "common/base/result.h"
#include "common/codec/encoding.h"

namespace skerry {

/// "int8" or "int8+zstd".
struct WireEncoding {
  const Encoding* encoding = nullptr;
  bool zstd = false;
};

/// INVALID_ARGUMENT as find_encoding.
Result<WireEncoding> find_wire_encoding(std::string_view name);
std::string wire_name(std::string_view encoding, bool zstd);

/// What `bytes` compress to; nothing where that is not at least 3 % smaller. It is for small payloads: all is in memory.
std::optional<std::string> compressed(std::span<const std::byte> bytes);

/// The same into a new file at `path`, which is not synced; its size, or nothing, and then there is no file.
Result<std::optional<std::uint64_t>> compress_to_file(std::span<const std::byte> bytes, const std::string& path);

/// Exactly `size` bytes out of one frame. INVALID_ARGUMENT: not a frame, damaged, needs more than 8 MiB of memory, comes to
/// fewer or more bytes (found before the first one too many is kept), something after it.
Result<std::string> decompressed(std::span<const std::byte> frame, std::uint64_t size);

/// The same into a new file at `path`; where it fails there is no file.
Result<void> decompress_to_file(std::span<const std::byte> frame, std::uint64_t size, const std::string& path);

}  // namespace skerry
