#include "server/aggregate/output.h"

#include <cstring>

namespace skerry::server {

Output::~Output() {
  // A moved-from optional still holds its moved-from file, whose path is empty.
  if (!file_ || file_->path().empty()) return;
  const std::string path = file_->path();
  file_.reset();
  (void)remove_file(path);
}

Result<Output> Output::create(const std::string& path, std::uint64_t size) {
  Output output;
  output.path_ = path;
  output.size_ = size;
  if (path.empty()) {
    output.memory_.resize(size);
    return output;
  }
  SKERRY_ASSIGN(File file, File::open(path, OpenMode::kCreateOrEmpty));
  output.file_.emplace(std::move(file));
  SKERRY_TRY(output.file_->allocate(size));
  return output;
}

Result<void> Output::write(std::span<const std::byte> bytes, std::uint64_t offset) {
  if (file_) return file_->pwrite(bytes, offset);
  std::memcpy(memory_.data() + offset, bytes.data(), bytes.size());
  return {};
}

void Output::start_writeback(std::uint64_t offset, std::uint64_t length) const {
  if (file_) file_->start_writeback(offset, length);
}

Result<void> Output::sync() { return file_ ? file_->fsync() : Result<void>(); }

std::string Output::keep() {
  file_.reset();
  return std::move(memory_);
}

}  // namespace skerry::server
