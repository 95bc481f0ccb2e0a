// The number of the newest commit, outside the database it belongs to. Internal to common/sqlite.
//
// SQLite ends its write-ahead log at the first frame that is damaged, and takes up a database whose log was removed, without
// a word: the commits behind are lost. So each transaction counts itself in the table `commit_counter`, and after it is
// durable its number is written to `<database>-commits`; a database that counts less than that file has lost commits.
//
// Two slots of 64 bytes, "<number> <check>", written in turn and never synced: after a power cut (and only then) the file
// may be behind, never ahead.
#pragma once

#include <cstdint>
#include <string>

#include "common/base/result.h"
#include "common/os/files.h"

namespace skerry::sqlite {

class CommitWitness {
 public:
  /// Opens or makes the file beside `database`, 0600.
  static Result<CommitWitness> open(const std::string& database);

  /// The newest number that is whole; 0 for a new file. DATA_LOSS if there is none.
  Result<std::uint64_t> read() const;
  Result<void> write(std::uint64_t number);

  /// Writes both slots and syncs, so that nothing newer is left.
  Result<void> reset(std::uint64_t number);

 private:
  explicit CommitWitness(File file) : file_(std::move(file)) {}
  File file_;
};

}  // namespace skerry::sqlite
