// One upload on its way into the spool; shared by the CargoStore and the writers at work on it. Internal to
// server/store.
//
// Its info file has a header of kInfoHeaderBytes (text lines, padded) and then a slot of kInfoSlotBytes per chunk: the
// chunk's index + 1 and its hash, written when the chunk is complete. Nothing is synced before the end: a slot is
// believed within the process that wrote it, and after a restart only once the chunk was read again and has that hash.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "common/base/result.h"
#include "common/crypto/content_id.h"
#include "common/os/files.h"
#include "server/store/cargo_store.h"

namespace skerry::server {

inline constexpr std::uint64_t kInfoHeaderBytes = 1024;
inline constexpr std::uint64_t kInfoSlotBytes = 8 + sizeof(ChunkHash);

/// The right of one writer to one chunk, until the chunk is complete or a newer writer comes.
struct ChunkClaim {
  std::mutex mutex;  ///< held while bytes are written
  bool superseded = false;
};

struct Upload {
  UploadRequest request;
  std::string sealed_path;  ///< where it goes, also after a restart; `.part` and `.info` are beside it

  std::mutex work_mutex;  ///< held for what takes long and happens once: taking up after a restart, completing

  std::mutex mutex;                  ///< guards what follows; held briefly
  std::shared_ptr<File> part, info;  ///< shared with the writers that hold a claim
  std::vector<ChunkHash> leaves;
  std::vector<bool> present;
  std::uint64_t present_count = 0;
  std::map<std::uint64_t, std::shared_ptr<ChunkClaim>> claims;
  bool ready = false;     ///< files are open, `present` is true
  bool complete = false;  ///< sealed and durable
  std::atomic<bool> ended = false;

  std::string part_path() const { return sealed_path + ".part"; }
  std::string info_path() const { return sealed_path + ".info"; }
  std::uint64_t chunks() const { return chunk_count(request.size); }
};

/// What an info file's header says; DATA_LOSS if it is none.
Result<UploadRequest> read_upload_info(const std::string& path);

/// Makes `upload` ready: new files, or those that an earlier process left, whose chunks are read again. Repeating is
/// cheap.
Result<void> prepare_upload(Upload& upload);

/// What is missing of a ready upload.
UploadStatus status_of(Upload& upload);

/// Marks it as ended and gives its files to `remove`, paths that may not exist among them.
void end_upload(Upload& upload, const std::function<void(const std::string& path)>& remove);

/// Completes an upload whose chunks are all there, or says what is missing.
using CompleteUpload = std::function<Result<UploadStatus>(const std::shared_ptr<Upload>&)>;

struct ChunkWriter::State {
  State(std::shared_ptr<Upload> target, CompleteUpload completion, std::uint64_t offset)
      : upload(std::move(target)), complete(std::move(completion)), position(offset) {}

  std::shared_ptr<Upload> upload;
  CompleteUpload complete;
  std::uint64_t position = 0;
  std::shared_ptr<ChunkClaim> claim;  ///< null: between chunks, or passing over a chunk that is there
  std::shared_ptr<File> part, info;   ///< while there is a claim
  ChunkHasher hasher;
  std::optional<Error> failed;  ///< the error that ended this writer

  Result<void> write(std::span<const std::byte> piece);
  Result<void> begin_chunk();
  Result<void> write_bytes(std::span<const std::byte> bytes);
  Result<void> end_chunk(std::uint64_t index);
  void give_up_claim();
};

}  // namespace skerry::server
