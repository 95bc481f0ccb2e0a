// One result that several threads write at once, each its own bytes: a file, or memory where there is no path.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "common/base/result.h"
#include "common/os/files.h"

namespace skerry::server {

class Output {
 public:
  Output() = default;
  Output(Output&&) noexcept = default;
  Output& operator=(Output&&) noexcept = default;
  /// Removes the file unless `keep` was called.
  ~Output();

  /// `size` bytes at `path`, with the space reserved; in memory where `path` is empty.
  static Result<Output> create(const std::string& path, std::uint64_t size);

  Result<void> write(std::span<const std::byte> bytes, std::uint64_t offset);
  /// These bytes are complete: the disk may begin with them.
  void start_writeback(std::uint64_t offset, std::uint64_t length) const;
  Result<void> sync();

  std::uint64_t size() const { return size_; }
  const std::string& path() const { return path_; }
  /// What was written so far, where there is no path.
  std::string_view memory() const { return memory_; }

  /// The file stays; the bytes of one in memory.
  std::string keep();

 private:
  std::string path_;
  std::uint64_t size_ = 0;
  std::optional<File> file_;
  std::string memory_;
};

}  // namespace skerry::server
