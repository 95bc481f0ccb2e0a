// What a trainer must not forget, in one safetensors file: named vectors and a note of JSON text.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "common/base/result.h"

namespace skerry::trainer {

struct Checkpoint {
  std::string note;
  std::map<std::string, std::vector<float>> vectors;
};

/// What is to be written: vectors that lie elsewhere.
struct CheckpointView {
  std::string note;
  std::map<std::string, std::span<const float>> vectors;
};

/// Replaces `path` (temporary file, rename): a killed process leaves the old file or the new one. There is no fsync;
/// after a power cut a torn file is recognised by its checksum, and the one before it is still there.
Result<void> write_checkpoint(const std::string& path, const CheckpointView& view);

/// The latest whole one. NOT_FOUND where there is none; DATA_LOSS where its checksum is wrong, and so is that of the
/// one before it, or there is none; INVALID_ARGUMENT where it is no checkpoint.
Result<Checkpoint> read_checkpoint(const std::string& path);

/// Removes both.
Result<void> remove_checkpoint(const std::string& path);

/// Writes checkpoints beside the training, one at a time.
class CheckpointWriter {
 public:
  CheckpointWriter() = default;
  CheckpointWriter(CheckpointWriter&&) = delete;
  /// Waits for what is being written.
  ~CheckpointWriter() { (void)wait().ok(); }

  /// Copies `view`, whose vectors may change afterwards, and writes it in the background. False where the one before is
  /// still being written: then nothing is done.
  bool start(std::string path, const CheckpointView& view);

  /// Waits until nothing is being written; the error of what was, once.
  Result<void> wait();

 private:
  std::thread thread_;
  std::atomic<bool> busy_ = false;
  Result<void> result_;  // of the latest, once the thread was joined
};

/// CRC-32 of these bytes.
std::uint32_t checksum(std::span<const std::byte> bytes);

/// Writes the pieces to a temporary file beside `path`, then renames. No fsync.
Result<void> write_scratch_file(const std::string& path, std::span<const std::span<const std::byte>> pieces);

}  // namespace skerry::trainer
