// Bulk bytes on the coordinator's disk: sealed files by content id, and uploads on their way to becoming one.
//
//   <home>/cargo/<aa>/<content-id>     sealed (0440): whole files and steps of released versions
//   <home>/cargo/state/<name>          outer optimizers' state, by name (it is never sent)
//   <home>/cargo/scratch/              results being written; emptied at start
//   <home>/spool/<task>.<content-id>   a sealed update; `.part` and `.info` beside it while it arrives
//
// docs/storage.md explains what survives what. The shape of an upload:
//
//   SKERRY_ASSIGN(auto status, cargo.begin_upload(request));          // what is still missing
//   SKERRY_ASSIGN(ChunkWriter writer, cargo.write_upload(request, offset));
//   SKERRY_TRY(writer.write(piece));                                  // as the body arrives, in order, any sizes
//   SKERRY_ASSIGN(auto status, writer.finish());                      // complete, or what is missing
//
// A writer that goes without finish() (a broken connection) keeps its complete chunks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.h"
#include "common/os/files.h"

namespace skerry::server {

/// What a member may take of the disk. Bytes are those of partial and of sealed uploads in the spool, at their full
/// size from the first byte on.
struct CargoLimits {
  std::uint64_t bytes_per_node = std::uint64_t{1} << 40;
  std::uint64_t bytes_per_run = std::uint64_t{1} << 43;
  std::uint32_t partial_uploads_per_node = 16;
  std::uint64_t minimum_free_bytes = std::uint64_t{256} << 20;  ///< left on the disk after what is asked for
};

/// Which upload is meant; equal requests mean the same one.
struct UploadRequest {
  /// The task whose update this is, "<run>.<serial>" ([A-Za-z0-9._-]); the quota of a run counts by the part before the
  /// last dot. Empty: an operator's upload, which becomes cargo when it is complete.
  std::string task;
  std::string node;        ///< who uploads, for its quota: the member's name
  std::string content_id;  ///< what the bytes must turn out to be
  std::uint64_t size = 0;  ///< in bytes, at least 1
};

/// Bytes first … last, inclusive.
struct ByteRange {
  std::uint64_t first = 0;
  std::uint64_t last = 0;
};

struct UploadStatus {
  bool complete = false;           ///< all there, checked, durable and sealed
  std::vector<ByteRange> missing;  ///< ascending, made of whole chunks; empty when complete
};

struct Upload;

/// Takes one body: bytes from a chunk's start onward, in order. One thread at a time; it may outlive neither its
/// CargoStore nor be used after finish(). Bytes are hashed as they come, so completion needs no second pass over them.
class ChunkWriter {
 public:
  ChunkWriter(ChunkWriter&&) noexcept;
  ChunkWriter& operator=(ChunkWriter&&) noexcept;
  ~ChunkWriter();

  /// Takes the next bytes of the body; may block for the disk. Bytes of a chunk that is there already are passed over.
  /// INVALID_ARGUMENT: more bytes than the upload's size. ABORTED (retryable): a newer writer took over this chunk, or
  /// the upload was ended. RESOURCE_EXHAUSTED: the disk is full.
  Result<void> write(std::span<const std::byte> piece);

  /// The body ended. If the upload is now whole: syncs it, compares its root with the content id, seals it.
  /// DATA_LOSS: the bytes are not those of the content id; the upload is dropped and may begin anew (HTTP 422).
  /// RESOURCE_EXHAUSTED: the disk is full; the chunks stay, call again by a PUT of nothing at the last chunk's offset.
  Result<UploadStatus> finish();

  /// Where the next byte goes.
  std::uint64_t position() const;

 private:
  friend class CargoStore;
  struct State;
  explicit ChunkWriter(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// A sealed file, open for reading.
struct CargoFile {
  File file;
  std::uint64_t size = 0;
};

struct CollectReport {
  std::uint64_t files = 0;  ///< removed
  std::uint64_t bytes = 0;
};

/// What the database says of files, for a collection.
struct LiveFiles {
  std::set<std::string> cargo;        ///< content ids that are referred to
  std::set<std::string> states;       ///< names that are referred to
  std::set<std::string> tasks;        ///< with an accepted update whose exchange is open
  std::set<std::string> ended_tasks;  ///< decided, or of a run that has ended: their uploads go
};

/// All of it. Thread-safe; calls that move bytes or sync block their caller only.
class CargoStore {
 public:
  /// Makes the directories where needed, empties scratch/, takes up the uploads that an earlier process left.
  static Result<std::unique_ptr<CargoStore>> open(const std::string& home, const CargoLimits& limits = {});

  ~CargoStore();
  CargoStore(const CargoStore&) = delete;
  CargoStore& operator=(const CargoStore&) = delete;

  // ---- cargo: sealed, by content id ----

  /// Makes `bytes` durable under their content id, which it returns. Cheap if they are there already.
  Result<std::string> put_bytes(std::span<const std::byte> bytes);

  /// Moves the file at `path` (same file system, see scratch_path) into cargo as `content_id`, sealed and durable. Its
  /// bytes are trusted to be those of the id. `synced`: the caller has called fsync on it already.
  Result<void> adopt_file(const std::string& path, const std::string& content_id, bool synced = false);

  /// Compares the file at `path`, cargo or a spool file, with the content id in its name, unless this process wrote it or
  /// compared it before. Call it before use: it reads the whole file, on all cores. Files that are named otherwise, states
  /// of optimizers, have checksums of their own. DATA_LOSS (retryable: the file may be put back) naming the file.
  Result<void> verify_once(const std::string& path) const;

  /// Opens cargo for reading. NOT_FOUND, INVALID_ARGUMENT (not a content id).
  Result<CargoFile> open_cargo(const std::string& content_id) const;

  /// The same, mapped, for sending. Files of up to 256 MiB are compared with their id first, as by verify_once; who
  /// receives a larger one compares it.
  Result<MappedFile> map_cargo(const std::string& content_id) const;

  /// Where this id's file stands, whether it exists or not; `content_id` must be valid.
  std::string cargo_path(const std::string& content_id) const;

  /// Its size; NOT_FOUND if it is not there.
  Result<std::uint64_t> cargo_size(const std::string& content_id) const;

  /// Reads the file again from the disk and compares its root. DATA_LOSS naming the file, NOT_FOUND.
  Result<void> verify_cargo(const std::string& content_id) const;

  /// Removes it; success if it was not there. Readers that have it open go on undisturbed.
  Result<void> remove_cargo(const std::string& content_id);

  // ---- states of outer optimizers, by name [A-Za-z0-9._-] ----

  std::string state_path(const std::string& name) const;
  Result<void> adopt_state(const std::string& path, const std::string& name, bool synced = false);
  Result<void> remove_state(const std::string& name);

  /// A path for a result that is being written, unique, on the same file system.
  std::string scratch_path();

  // ---- uploads into the spool ----

  /// Begins an upload or finds the one that is under way (also after a restart: the chunks that are there are then read
  /// again once, at about 1 GB/s, before they count). Complete at once if this task's file is in the spool already.
  /// INVALID_ARGUMENT: a bad id, name or size. RESOURCE_EXHAUSTED (retryable): a quota or the minimum of free disk
  /// space, with both numbers and what to wait for.
  Result<UploadStatus> begin_upload(const UploadRequest& request);

  /// What is missing, without beginning anything: all of it, where nothing is under way.
  Result<UploadStatus> upload_status(const UploadRequest& request);

  /// Begins or resumes as begin_upload does, then takes bytes from `offset` on, which must be a multiple of 4 MiB below
  /// `size` (INVALID_ARGUMENT). Several writers may work on one upload; two on one chunk are safe, the newer goes on.
  Result<ChunkWriter> write_upload(const UploadRequest& request, std::uint64_t offset);

  /// Where the sealed update of a task stands. NOT_FOUND if its upload is not complete.
  Result<std::string> spool_file(const std::string& task, const std::string& content_id) const;

  /// The task is decided, its exchange durable: its spool files and partial uploads go. Writers still at it get
  /// ABORTED.
  void end_task(const std::string& task);

  /// The same for partial uploads to which nothing was written for `idle_seconds`; how many there were.
  std::size_t end_idle_uploads(std::int64_t idle_seconds);

  /// Tasks that have anything in the spool, ascending; "" stands for operators' uploads.
  std::vector<std::string> spool_tasks() const;

  /// Bytes that a node's uploads take at the moment.
  std::uint64_t spool_bytes_of(const std::string& node) const;

  // ---- the whole ----

  /// Removes cargo and states that `live` does not name, uploads of its ended tasks, and sealed updates that neither an
  /// upload nor an accepted task owns. Cargo and states that were put by this process stay until they were live once or
  /// were removed, so that it may run while a version is being released. Store::collect calls it with the right sets.
  Result<CollectReport> collect(const LiveFiles& live);

  Result<std::uint64_t> free_bytes() const;
  const std::string& home() const;

 private:
  struct State;
  explicit CargoStore(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace skerry::server
