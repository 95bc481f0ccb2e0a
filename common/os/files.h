// Files as the rest of Skerry sees them: every error names the path, what was being done and what to do next.
//
// Error codes, everywhere here: NOT_FOUND (no such file), PERMISSION_DENIED, ALREADY_EXISTS, RESOURCE_EXHAUSTED (no
// space, quota, too many open files; with the path and the free bytes), DATA_LOSS (the disk failed: EIO), INTERNAL
// otherwise. Every descriptor is close-on-exec.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/base/result.h"

namespace skerry {

/// The bytes of `text`, without a copy.
inline std::span<const std::byte> as_bytes_of(std::string_view text) {
  return std::as_bytes(std::span<const char>(text.data(), text.size()));
}

/// `bytes` seen as text, without a copy.
inline std::string_view as_text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// The Error for `error_number` (an errno) of `action` ("write", "open", …) on `path`, with the codes listed above.
Error file_error(int error_number, std::string_view action, const std::string& path);

/// Owns a descriptor; closes it at the end.
class FileDescriptor {
 public:
  FileDescriptor() = default;
  explicit FileDescriptor(int fd) : fd_(fd) {}
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept;
  ~FileDescriptor() { reset(); }

  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  int release() { return std::exchange(fd_, -1); }
  void reset();

 private:
  int fd_ = -1;
};

enum class OpenMode {
  kRead,           ///< must exist
  kReadWrite,      ///< must exist
  kCreate,         ///< must not exist (ALREADY_EXISTS); read and write
  kCreateOrOpen,   ///< read and write, content kept
  kCreateOrEmpty,  ///< read and write, content dropped
  kAppend,         ///< created if needed; every write goes to the end
};

/// An open file. Positions are explicit, so that threads may share one for pread and pwrite.
class File {
 public:
  /// `permissions` apply to a file that is created (the process's umask does not).
  static Result<File> open(const std::string& path, OpenMode mode, unsigned permissions = 0600);

  /// Reads up to `out.size()` bytes from `offset`; fewer only at the end of the file.
  Result<std::size_t> pread(std::span<std::byte> out, std::uint64_t offset) const;

  /// Fills `out` from `offset`; DATA_LOSS if the file ends before.
  Result<void> pread_exact(std::span<std::byte> out, std::uint64_t offset) const;

  /// Writes all of `bytes` at `offset`.
  Result<void> pwrite(std::span<const std::byte> bytes, std::uint64_t offset);

  /// Writes all of `bytes` at the end (kAppend only).
  Result<void> append(std::span<const std::byte> bytes);

  Result<void> fsync();
  Result<void> fdatasync();

  /// Makes the file `size` bytes long, cutting or adding a hole.
  Result<void> resize(std::uint64_t size);

  /// Reserves disk space for the first `size` bytes and makes the file that long, so that later writes cannot run out
  /// of space; on file systems that cannot reserve, a hole is made.
  Result<void> allocate(std::uint64_t size);

  Result<std::uint64_t> size() const;
  Result<void> set_permissions(unsigned permissions);

  /// Tells the kernel that these pages will not be needed soon; only a hint.
  void drop_cache(std::uint64_t offset, std::uint64_t length) const;

  /// Starts writing these dirty pages to the disk without waiting, so that a later fsync finds little left to do.
  void start_writeback(std::uint64_t offset, std::uint64_t length) const;

  int fd() const { return fd_.get(); }
  const std::string& path() const { return path_; }

 private:
  File(FileDescriptor fd, std::string path) : fd_(std::move(fd)), path_(std::move(path)) {}

  FileDescriptor fd_;
  std::string path_;
};

/// A read-only mapping of a whole file. Map only sealed files that we wrote ourselves.
///
/// A page that cannot be read (the file was cut, the disk failed) does not kill the process: it reads as zeros and
/// `check()` tells. So: read a block, then check before trusting it.
class MappedFile {
 public:
  static Result<MappedFile> open(const std::string& path);

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  std::uint64_t size() const { return size_; }
  const std::string& path() const { return path_; }

  /// DATA_LOSS naming the file if a page of it could not be read since it was opened.
  Result<void> check() const;

  /// Drops these pages from this process's memory (they count as its RssFile); reading them again is allowed.
  void drop(std::uint64_t offset, std::uint64_t length) const;

  /// Tells the kernel that the file is read once, from the front to the end; only a hint.
  void expect_sequential() const;

 private:
  MappedFile() = default;
  void close();

  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  int slot_ = -1;
  std::string path_;
};

/// The whole file as a string; RESOURCE_EXHAUSTED (not retryable) if it is longer than `max_bytes`.
Result<std::string> read_file(const std::string& path, std::uint64_t max_bytes);

/// Replaces `path` by `content` so that after any crash either the old or the new file is there, whole: a temporary
/// file beside it, fsync, rename, fsync of the directory.
Result<void> write_file_atomic(const std::string& path, std::string_view content, unsigned permissions = 0600);

/// rename(2), then fsync of the target's directory (and of the source's, if it is another).
Result<void> rename_durable(const std::string& from, const std::string& to);

Result<void> fsync_directory(const std::string& path);

/// Makes `path` and its missing parents.
Result<void> make_directories(const std::string& path, unsigned permissions = 0700);

/// True if something (file, directory, socket) is there and can be seen.
bool path_exists(const std::string& path);

Result<std::uint64_t> file_size(const std::string& path);

/// Removes a file; success if there was none.
Result<void> remove_file(const std::string& path);

/// Removes a directory with all it contains (symbolic links are removed, not followed); success if there was none.
Result<void> remove_tree(const std::string& path);

struct DirectoryEntry {
  std::string name;
  bool is_directory = false;  ///< not a symbolic link to one
  std::uint64_t size = 0;     ///< of a regular file
};

/// What is in a directory, sorted by name, without "." and "..".
Result<std::vector<DirectoryEntry>> list_directory(const std::string& path);

/// Bytes that an unprivileged process may still write on the file system of `path`.
Result<std::uint64_t> free_disk_bytes(const std::string& path);

/// "/a/b" for "/a/b/c"; "." where there is no directory part.
std::string parent_directory(const std::string& path);

/// `directory` + "/" + `name`.
std::string join_path(std::string_view directory, std::string_view name);

/// Holds a home for one process: the file `lock` in it, locked and carrying our pid. The lock goes with the process,
/// however that ends.
class HomeLock {
 public:
  /// FAILED_PRECONDITION "… is in use by process 1234" if another process has it.
  static Result<HomeLock> acquire(const std::string& home);

 private:
  explicit HomeLock(File file) : file_(std::move(file)) {}
  File file_;
};

}  // namespace skerry
