// SQLite's access to files, with a checksum in the last 8 bytes of every page of a database. Internal to common/sqlite.
//
// SQLite takes whatever bytes a page has; a flipped bit in a row passes even its integrity check. Here a page is summed when
// it is written to the database's file and compared whenever it is read from there: reading a damaged one fails with
// SQLITE_IOERR_DATA, which Database reports as DATA_LOSS with the page's number. The sum covers the page's number too, so
// that a page in another's place does not pass, and is never 0 over zeros, so that a hole does not pass. The write-ahead log
// has sums of its own, which SQLite compares when it takes the log up; CommitWitness notices what it leaves out.
//
// A database made without it (header byte 20 is not 8) is read and written as it is; see Database::migrate.
#pragma once

#include <cstdint>

namespace skerry::sqlite {

inline constexpr int kCheckedPageBytes = 4096;
inline constexpr int kChecksumBytes = 8;

/// sqlite3_file_control on "main": an int, whether the database's pages have sums.
inline constexpr int kFileIsChecked = 0x736b7901;
/// The same: a uint64, the page that failed last; 0 for none.
inline constexpr int kFileDamagedPage = 0x736b7902;

/// The name to open databases by; registers it with SQLite the first time.
const char* checked_vfs();

/// The sum over a page's first kCheckedPageBytes - kChecksumBytes bytes. A change within any 8 bytes is always found.
std::uint64_t page_checksum(const unsigned char* page, std::uint64_t number);

}  // namespace skerry::sqlite
