#include "common/os/files.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>

namespace skerry {
namespace {

std::string error_text(int error_number) {
  std::array<char, 256> buffer{};
  return ::strerror_r(error_number, buffer.data(), buffer.size());
}

std::string free_space_note(const std::string& path) {
  auto free_bytes = free_disk_bytes(path_exists(path) ? path : parent_directory(path));
  return free_bytes.ok() ? " (" + std::to_string(*free_bytes) + " bytes are free there)" : std::string();
}

/// A name beside `path` that no other call of this process uses.
std::string temporary_beside(const std::string& path) {
  static std::atomic<std::uint64_t> serial{0};
  return path + ".tmp-" + std::to_string(::getpid()) + "-" + std::to_string(serial.fetch_add(1));
}

Result<void> remove_entry(const std::string& path) {
  struct stat info {};
  if (::lstat(path.c_str(), &info) != 0) {
    if (errno == ENOENT) return {};
    return file_error(errno, "look at", path);
  }
  if (!S_ISDIR(info.st_mode)) return remove_file(path);
  SKERRY_ASSIGN(auto entries, list_directory(path));
  for (const DirectoryEntry& entry : entries) SKERRY_TRY(remove_entry(join_path(path, entry.name)));
  if (::rmdir(path.c_str()) != 0 && errno != ENOENT) return file_error(errno, "remove directory", path);
  return {};
}

}  // namespace

Error file_error(int error_number, std::string_view action, const std::string& path) {
  std::string message = "cannot " + std::string(action) + " " + path + ": " + error_text(error_number);
  switch (error_number) {
    case ENOENT:
    case ENOTDIR:
      return not_found(std::move(message));
    case EACCES:
    case EPERM:
    case EROFS:
      return permission_denied(std::move(message) + "; check the owner and the mode of it and of its directories");
    case EEXIST:
      return already_exists(std::move(message));
    case ENOSPC:
    case EDQUOT:
      return resource_exhausted(std::move(message) + free_space_note(path) + "; free some space and try again");
    case EFBIG:
      return resource_exhausted(std::move(message) + "; the process or the file system limits the size of one file");
    case EMFILE:
    case ENFILE:
      return resource_exhausted(std::move(message) + "; raise the limit of open files (ulimit -n)");
    case EIO:
      return data_loss(std::move(message) + "; the disk has failed, look at the kernel's log");
    default:
      return internal_error(std::move(message));
  }
}

FileDescriptor& FileDescriptor::operator=(FileDescriptor&& other) noexcept {
  if (this != &other) {
    reset();
    fd_ = other.release();
  }
  return *this;
}

void FileDescriptor::reset() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

Result<File> File::open(const std::string& path, OpenMode mode, unsigned permissions) {
  int flags = O_CLOEXEC;
  switch (mode) {
    case OpenMode::kRead:
      flags |= O_RDONLY;
      break;
    case OpenMode::kReadWrite:
      flags |= O_RDWR;
      break;
    case OpenMode::kCreate:
      flags |= O_RDWR | O_CREAT | O_EXCL;
      break;
    case OpenMode::kCreateOrOpen:
      flags |= O_RDWR | O_CREAT;
      break;
    case OpenMode::kCreateOrEmpty:
      flags |= O_RDWR | O_CREAT | O_TRUNC;
      break;
    case OpenMode::kAppend:
      flags |= O_WRONLY | O_CREAT | O_APPEND;
      break;
  }
  int raw = -1;
  // A created file gets its permissions whatever the umask; O_EXCL tells whether it was created by us.
  if ((flags & O_CREAT) != 0) {
    raw = ::open(path.c_str(), flags | O_EXCL, permissions);
    if (raw >= 0) {
      FileDescriptor created(raw);
      if (::fchmod(raw, permissions) != 0) return file_error(errno, "set the mode of", path);
      return File(std::move(created), path);
    }
    if (errno != EEXIST || mode == OpenMode::kCreate) return file_error(errno, "create", path);
    flags &= ~O_EXCL;
  }
  raw = ::open(path.c_str(), flags, permissions);
  if (raw < 0) return file_error(errno, "open", path);
  return File(FileDescriptor(raw), path);
}

Result<std::size_t> File::pread(std::span<std::byte> out, std::uint64_t offset) const {
  std::size_t done = 0;
  while (done < out.size()) {
    ssize_t count = ::pread(fd(), out.data() + done, out.size() - done, static_cast<off_t>(offset + done));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return file_error(errno, "read", path_);
    if (count == 0) break;
    done += static_cast<std::size_t>(count);
  }
  return done;
}

Result<void> File::pread_exact(std::span<std::byte> out, std::uint64_t offset) const {
  SKERRY_ASSIGN(std::size_t count, pread(out, offset));
  if (count != out.size()) {
    return data_loss(path_ + " ends at byte " + std::to_string(offset + count) + ", but " + std::to_string(out.size()) +
                     " bytes were expected from byte " + std::to_string(offset) + ": the file was cut");
  }
  return {};
}

Result<void> File::pwrite(std::span<const std::byte> bytes, std::uint64_t offset) {
  std::size_t done = 0;
  while (done < bytes.size()) {
    ssize_t count = ::pwrite(fd(), bytes.data() + done, bytes.size() - done, static_cast<off_t>(offset + done));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return file_error(errno, "write", path_);
    done += static_cast<std::size_t>(count);
  }
  return {};
}

Result<void> File::append(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    ssize_t count = ::write(fd(), bytes.data(), bytes.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return file_error(errno, "append to", path_);
    bytes = bytes.subspan(static_cast<std::size_t>(count));
  }
  return {};
}

Result<void> File::fsync() {
  if (::fsync(fd()) != 0) return file_error(errno, "sync", path_);
  return {};
}

Result<void> File::fdatasync() {
  if (::fdatasync(fd()) != 0) return file_error(errno, "sync", path_);
  return {};
}

Result<void> File::resize(std::uint64_t size) {
  if (::ftruncate(fd(), static_cast<off_t>(size)) != 0) return file_error(errno, "resize", path_);
  return {};
}

Result<void> File::allocate(std::uint64_t size) {
  if (size == 0) return {};
  int status = 0;
  do {
    status = ::fallocate(fd(), 0, 0, static_cast<off_t>(size)) == 0 ? 0 : errno;
  } while (status == EINTR);
  if (status == EOPNOTSUPP || status == ENOSYS) {
    SKERRY_ASSIGN(std::uint64_t present, this->size());
    return present < size ? resize(size) : Result<void>();
  }
  if (status != 0) return file_error(status, "reserve " + std::to_string(size) + " bytes for", path_);
  return {};
}

Result<std::uint64_t> File::size() const {
  struct stat info {};
  if (::fstat(fd(), &info) != 0) return file_error(errno, "look at", path_);
  return static_cast<std::uint64_t>(info.st_size);
}

Result<void> File::set_permissions(unsigned permissions) {
  if (::fchmod(fd(), permissions) != 0) return file_error(errno, "set the mode of", path_);
  return {};
}

void File::drop_cache(std::uint64_t offset, std::uint64_t length) const {
  (void)::posix_fadvise(fd(), static_cast<off_t>(offset), static_cast<off_t>(length), POSIX_FADV_DONTNEED);
}

void File::start_writeback(std::uint64_t offset, std::uint64_t length) const {
  (void)::sync_file_range(fd(), static_cast<off_t>(offset), static_cast<off_t>(length), SYNC_FILE_RANGE_WRITE);
}

Result<std::string> read_file(const std::string& path, std::uint64_t max_bytes) {
  SKERRY_ASSIGN(File file, File::open(path, OpenMode::kRead));
  std::string content;
  // Read until the end rather than trusting the size, which is 0 for files such as those in /proc.
  for (;;) {
    std::size_t before = content.size();
    std::uint64_t room = max_bytes - before;
    std::size_t step = static_cast<std::size_t>(std::min<std::uint64_t>(room + 1, std::max<std::size_t>(4096, before)));
    content.resize(before + step);
    SKERRY_ASSIGN(std::size_t count,
                  file.pread(std::as_writable_bytes(std::span(content.data() + before, step)), before));
    content.resize(before + count);
    if (content.size() > max_bytes) {
      Error error =
          resource_exhausted(path + " is longer than the " + std::to_string(max_bytes) + " bytes allowed for it");
      error.retryable = false;
      return error;
    }
    if (count < step) return content;
  }
}

Result<void> write_file_atomic(const std::string& path, std::string_view content, unsigned permissions) {
  std::string temporary = temporary_beside(path);
  auto write_all = [&]() -> Result<void> {
    SKERRY_ASSIGN(File file, File::open(temporary, OpenMode::kCreate, permissions));
    SKERRY_TRY(file.pwrite(as_bytes_of(content), 0));
    SKERRY_TRY(file.fsync());
    return rename_durable(temporary, path);
  };
  auto result = write_all();
  if (!result.ok()) (void)::unlink(temporary.c_str());
  return result;
}

Result<void> rename_durable(const std::string& from, const std::string& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) return file_error(errno, "rename " + from + " to", to);
  SKERRY_TRY(fsync_directory(parent_directory(to)));
  if (parent_directory(from) != parent_directory(to)) SKERRY_TRY(fsync_directory(parent_directory(from)));
  return {};
}

Result<void> fsync_directory(const std::string& path) {
  FileDescriptor directory(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory) return file_error(errno, "open directory", path);
  if (::fsync(directory.get()) != 0) return file_error(errno, "sync directory", path);
  return {};
}

Result<void> make_directories(const std::string& path, unsigned permissions) {
  if (::mkdir(path.c_str(), permissions) == 0) return {};
  int error_number = errno;
  if (error_number == EEXIST) {
    struct stat info {};
    if (::stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode)) return {};
    return already_exists("cannot make directory " + path + ": something else has that name");
  }
  std::string parent = parent_directory(path);
  if (error_number != ENOENT || parent == path || parent == ".")
    return file_error(error_number, "make directory", path);
  SKERRY_TRY(make_directories(parent, permissions));
  if (::mkdir(path.c_str(), permissions) != 0 && errno != EEXIST) return file_error(errno, "make directory", path);
  return {};
}

bool path_exists(const std::string& path) {
  struct stat info {};
  return ::lstat(path.c_str(), &info) == 0;
}

Result<std::uint64_t> file_size(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return file_error(errno, "look at", path);
  return static_cast<std::uint64_t>(info.st_size);
}

Result<void> remove_file(const std::string& path) {
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) return file_error(errno, "remove", path);
  return {};
}

Result<void> remove_tree(const std::string& path) { return remove_entry(path); }

Result<std::vector<DirectoryEntry>> list_directory(const std::string& path) {
  struct Closer {
    void operator()(DIR* directory) const { ::closedir(directory); }
  };
  std::unique_ptr<DIR, Closer> directory(::opendir(path.c_str()));
  if (!directory) return file_error(errno, "open directory", path);
  std::vector<DirectoryEntry> entries;
  for (;;) {
    errno = 0;
    const dirent* entry = ::readdir(directory.get());
    if (entry == nullptr) {
      if (errno != 0) return file_error(errno, "read directory", path);
      break;
    }
    std::string_view name = entry->d_name;
    if (name == "." || name == "..") continue;
    struct stat info {};
    if (::fstatat(::dirfd(directory.get()), entry->d_name, &info, AT_SYMLINK_NOFOLLOW) != 0) {
      if (errno == ENOENT) continue;  // removed since it was listed
      return file_error(errno, "look at", join_path(path, name));
    }
    entries.push_back({std::string(name), S_ISDIR(info.st_mode),
                       S_ISREG(info.st_mode) ? static_cast<std::uint64_t>(info.st_size) : 0});
  }
  std::sort(entries.begin(), entries.end(),
            [](const DirectoryEntry& a, const DirectoryEntry& b) { return a.name < b.name; });
  return entries;
}

Result<std::uint64_t> free_disk_bytes(const std::string& path) {
  struct statvfs info {};
  if (::statvfs(path.c_str(), &info) != 0) return file_error(errno, "measure the free space of", path);
  return static_cast<std::uint64_t>(info.f_bavail) * info.f_frsize;
}

std::string parent_directory(const std::string& path) {
  std::size_t end = path.find_last_not_of('/');
  if (end == std::string::npos) return path.empty() ? "." : "/";
  std::size_t slash = path.rfind('/', end);
  if (slash == std::string::npos) return ".";
  std::size_t last = path.find_last_not_of('/', slash);
  return last == std::string::npos ? "/" : path.substr(0, last + 1);
}

std::string join_path(std::string_view directory, std::string_view name) {
  std::string path(directory);
  if (!path.empty() && path.back() != '/') path += '/';
  path += name;
  return path;
}

Result<HomeLock> HomeLock::acquire(const std::string& home) {
  std::string path = join_path(home, "lock");
  SKERRY_ASSIGN(File file, File::open(path, OpenMode::kCreateOrOpen));
  if (::flock(file.fd(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return file_error(errno, "lock", path);
    auto holder = read_file(path, 64);
    std::string pid = holder.ok() ? holder->substr(0, holder->find('\n')) : std::string();
    return failed_precondition(home + " is in use by process " + (pid.empty() ? "(unknown)" : pid) +
                               "; stop that one first, or choose another --home");
  }
  SKERRY_TRY(file.resize(0));
  SKERRY_TRY(file.pwrite(as_bytes_of(std::to_string(::getpid()) + "\n"), 0));
  return HomeLock(std::move(file));
}

}  // namespace skerry
