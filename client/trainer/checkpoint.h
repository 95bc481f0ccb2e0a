// What a trainer must not forget, in one safetensors file: named vectors and a note of JSON text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "common/base/result.h"

namespace skerry::trainer {

struct Checkpoint {
  std::string note;
  std::map<std::string, std::vector<float>> vectors;
};

/// Replaces `path` (temporary file, rename): a killed process leaves the old file or the new one. There is no fsync;
/// after a power cut a torn file is recognised by its checksum.
Result<void> write_checkpoint(const std::string& path, const std::string& note,
                              const std::map<std::string, std::span<const float>>& vectors);

/// NOT_FOUND where there is none; DATA_LOSS where its checksum is wrong; INVALID_ARGUMENT where it is no checkpoint.
Result<Checkpoint> read_checkpoint(const std::string& path);

/// CRC-32 of these bytes.
std::uint32_t checksum(std::span<const std::byte> bytes);

/// Writes the pieces to a temporary file beside `path`, then renames. No fsync.
Result<void> write_scratch_file(const std::string& path, std::span<const std::span<const std::byte>> pieces);

}  // namespace skerry::trainer
