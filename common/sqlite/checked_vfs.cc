#include "common/sqlite/checked_vfs.h"

#include <sqlite3.h>

#include <array>
#include <cstring>

namespace skerry::sqlite {
namespace {

constexpr int kHeaderBytes = 100;
constexpr int kSummedBytes = kCheckedPageBytes - kChecksumBytes;

using Page = std::array<unsigned char, kCheckedPageBytes>;

/// What SQLite allocates for an open file: this, and right behind it the file of the VFS below.
struct CheckedFile {
  sqlite3_file base;
  bool is_database;
  bool checked;
  std::uint64_t damaged_page;

  sqlite3_file* below() { return reinterpret_cast<sqlite3_file*>(this + 1); }
};

CheckedFile& self(sqlite3_file* file) { return *reinterpret_cast<CheckedFile*>(file); }
sqlite3_file* below(sqlite3_file* file) { return self(file).below(); }
sqlite3_vfs* below(sqlite3_vfs* vfs) { return static_cast<sqlite3_vfs*>(vfs->pAppData); }

/// Whether a database that begins with these bytes keeps room for sums in each page.
bool has_room(const unsigned char* header) {
  const int page_bytes = header[16] << 8 | header[17];
  return page_bytes == kCheckedPageBytes && header[20] == kChecksumBytes;
}

bool is_header(const void* bytes, int count, sqlite3_int64 offset) {
  return offset == 0 && count >= kHeaderBytes && std::memcmp(bytes, "SQLite format 3", 16) == 0;
}

std::uint64_t stored_checksum(const Page& page) {
  std::uint64_t sum = 0;
  std::memcpy(&sum, page.data() + kSummedBytes, sizeof sum);
  return sum;
}

/// Reads the page at `offset` and compares it with its sum.
int read_page(CheckedFile& file, Page& page, sqlite3_int64 offset) {
  const auto number = static_cast<std::uint64_t>(offset / kCheckedPageBytes + 1);
  // Page 1 is also read before a connection knows that the database has a log, while another may be folding the log back.
  for (int attempt = 0; attempt < 3; ++attempt) {
    const int code = file.below()->pMethods->xRead(file.below(), page.data(), kCheckedPageBytes, offset);
    if (code == SQLITE_IOERR_SHORT_READ) {
      sqlite3_int64 size = 0;
      const int sized = file.below()->pMethods->xFileSize(file.below(), &size);
      if (sized != SQLITE_OK || size == 0) return sized != SQLITE_OK ? sized : code;
      break;  // SQLite would take what is missing for zeros
    }
    if (code != SQLITE_OK) return code;
    if (page_checksum(page.data(), number) == stored_checksum(page)) return SQLITE_OK;
  }
  file.damaged_page = number;
  sqlite3_log(SQLITE_IOERR_DATA, "page %lld does not have its checksum", static_cast<long long>(number));
  return SQLITE_IOERR_DATA;
}

int file_close(sqlite3_file* file) { return below(file)->pMethods->xClose(below(file)); }

int file_read(sqlite3_file* file, void* out, int count, sqlite3_int64 offset) {
  const sqlite3_int64 within = offset % kCheckedPageBytes;
  const bool whole = count == kCheckedPageBytes;
  // Parts of page 1 (the header, the change counter) are read without a lock; SQLite reads it whole before it trusts it.
  const bool checkable = whole || offset >= kCheckedPageBytes;
  if (!self(file).is_database || !self(file).checked || !checkable || within + count > kCheckedPageBytes)
    return below(file)->pMethods->xRead(below(file), out, count, offset);
  Page page;
  const int code = read_page(self(file), page, offset - within);
  if (code == SQLITE_OK || code == SQLITE_IOERR_SHORT_READ)
    std::memcpy(out, page.data() + within, static_cast<std::size_t>(count));
  return code;
}

int file_write(sqlite3_file* file, const void* bytes, int count, sqlite3_int64 offset) {
  if (self(file).is_database && is_header(bytes, count, offset))
    self(file).checked = has_room(static_cast<const unsigned char*>(bytes));
  if (!self(file).is_database || !self(file).checked || count != kCheckedPageBytes)
    return below(file)->pMethods->xWrite(below(file), bytes, count, offset);
  Page page;
  std::memcpy(page.data(), bytes, kSummedBytes);
  const std::uint64_t sum = page_checksum(page.data(), static_cast<std::uint64_t>(offset / kCheckedPageBytes + 1));
  std::memcpy(page.data() + kSummedBytes, &sum, sizeof sum);
  return below(file)->pMethods->xWrite(below(file), page.data(), count, offset);
}

int file_truncate(sqlite3_file* file, sqlite3_int64 size) { return below(file)->pMethods->xTruncate(below(file), size); }
int file_sync(sqlite3_file* file, int flags) { return below(file)->pMethods->xSync(below(file), flags); }
int file_size(sqlite3_file* file, sqlite3_int64* size) { return below(file)->pMethods->xFileSize(below(file), size); }
int file_lock(sqlite3_file* file, int lock) { return below(file)->pMethods->xLock(below(file), lock); }
int file_unlock(sqlite3_file* file, int lock) { return below(file)->pMethods->xUnlock(below(file), lock); }
int file_check_reserved(sqlite3_file* file, int* out) { return below(file)->pMethods->xCheckReservedLock(below(file), out); }

int file_control(sqlite3_file* file, int operation, void* argument) {
  if (operation == kFileIsChecked) {
    *static_cast<int*>(argument) = self(file).checked ? 1 : 0;
    return SQLITE_OK;
  }
  if (operation == kFileDamagedPage) {
    *static_cast<std::uint64_t*>(argument) = self(file).damaged_page;
    return SQLITE_OK;
  }
  return below(file)->pMethods->xFileControl(below(file), operation, argument);
}

int file_sector_size(sqlite3_file* file) { return below(file)->pMethods->xSectorSize(below(file)); }
int file_characteristics(sqlite3_file* file) { return below(file)->pMethods->xDeviceCharacteristics(below(file)); }
int file_shm_map(sqlite3_file* file, int region, int bytes, int extend, void volatile** out) {
  return below(file)->pMethods->xShmMap(below(file), region, bytes, extend, out);
}
int file_shm_lock(sqlite3_file* file, int offset, int count, int flags) {
  return below(file)->pMethods->xShmLock(below(file), offset, count, flags);
}
void file_shm_barrier(sqlite3_file* file) { below(file)->pMethods->xShmBarrier(below(file)); }
int file_shm_unmap(sqlite3_file* file, int remove) { return below(file)->pMethods->xShmUnmap(below(file), remove); }

// Version 2 has no xFetch: SQLite maps no pages, every one comes through file_read.
constexpr sqlite3_io_methods kMethods = {
    2,           file_close,         file_read,     file_write,       file_truncate,        file_sync,
    file_size,   file_lock,          file_unlock,   file_check_reserved, file_control,      file_sector_size,
    file_characteristics, file_shm_map, file_shm_lock, file_shm_barrier, file_shm_unmap, nullptr, nullptr};

int vfs_open(sqlite3_vfs* vfs, const char* name, sqlite3_file* file, int flags, int* out_flags) {
  CheckedFile& opened = self(file);
  std::memset(file, 0, static_cast<std::size_t>(vfs->szOsFile));
  const int code = below(vfs)->xOpen(below(vfs), name, opened.below(), flags, out_flags);
  if (opened.below()->pMethods != nullptr) opened.base.pMethods = &kMethods;
  if (code != SQLITE_OK || (flags & SQLITE_OPEN_MAIN_DB) == 0) return code;
  opened.is_database = true;
  std::array<unsigned char, kHeaderBytes> header;
  const int read = opened.below()->pMethods->xRead(opened.below(), header.data(), kHeaderBytes, 0);
  opened.checked = read != SQLITE_OK || has_room(header.data());  // a new one will have sums
  return SQLITE_OK;
}

int vfs_delete(sqlite3_vfs* vfs, const char* name, int sync) { return below(vfs)->xDelete(below(vfs), name, sync); }
int vfs_access(sqlite3_vfs* vfs, const char* name, int flags, int* out) {
  return below(vfs)->xAccess(below(vfs), name, flags, out);
}
int vfs_full_path(sqlite3_vfs* vfs, const char* name, int count, char* out) {
  return below(vfs)->xFullPathname(below(vfs), name, count, out);
}
int vfs_randomness(sqlite3_vfs* vfs, int count, char* out) { return below(vfs)->xRandomness(below(vfs), count, out); }
int vfs_sleep(sqlite3_vfs* vfs, int microseconds) { return below(vfs)->xSleep(below(vfs), microseconds); }
int vfs_time(sqlite3_vfs* vfs, double* out) { return below(vfs)->xCurrentTime(below(vfs), out); }
int vfs_last_error(sqlite3_vfs* vfs, int count, char* out) { return below(vfs)->xGetLastError(below(vfs), count, out); }
int vfs_time_64(sqlite3_vfs* vfs, sqlite3_int64* out) { return below(vfs)->xCurrentTimeInt64(below(vfs), out); }

sqlite3_vfs make_vfs() {
  sqlite3_vfs* system = sqlite3_vfs_find(nullptr);
  sqlite3_vfs vfs{};
  vfs.iVersion = 2;
  vfs.szOsFile = static_cast<int>(sizeof(CheckedFile)) + system->szOsFile;
  vfs.mxPathname = system->mxPathname;
  vfs.zName = "skerry-checked";
  vfs.pAppData = system;
  vfs.xOpen = vfs_open;
  vfs.xDelete = vfs_delete;
  vfs.xAccess = vfs_access;
  vfs.xFullPathname = vfs_full_path;
  vfs.xRandomness = vfs_randomness;
  vfs.xSleep = vfs_sleep;
  vfs.xCurrentTime = vfs_time;
  vfs.xGetLastError = vfs_last_error;
  vfs.xCurrentTimeInt64 = vfs_time_64;
  return vfs;
}

}  // namespace

const char* checked_vfs() {
  static sqlite3_vfs vfs = make_vfs();
  static const int registered = sqlite3_vfs_register(&vfs, 0);
  return registered == SQLITE_OK ? vfs.zName : nullptr;
}

std::uint64_t page_checksum(const unsigned char* page, std::uint64_t number) {
  // Each step is a bijection of the sum for a given word and of the word for a given sum, so one changed word always shows.
  constexpr std::uint64_t kOdd = 0x9e3779b97f4a7c15;
  std::uint64_t sum = (number + 1) * kOdd;
  for (int i = 0; i < kSummedBytes; i += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, page + i, sizeof word);
    sum = (sum ^ word) * kOdd;
    sum = sum << 29 | sum >> 35;
  }
  return sum;
}

}  // namespace skerry::sqlite
