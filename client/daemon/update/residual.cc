#include "client/daemon/update/residual.h"

#include <algorithm>
#include <utility>

namespace skerry::client {
namespace {

constexpr std::uint64_t kBlockElements = 256 * 1024;

}  // namespace

std::string residual_path(const std::string& directory, const std::string& fragment, const std::string& content_id) {
  return directory + "/" + fragment + "." + content_id;
}

Result<void> verify_residual(const std::string& directory, const Residual& residual) {
  if (residual.content_id.empty()) return {};
  const std::string path = residual_path(directory, residual.fragment, residual.content_id);
  SKERRY_ASSIGN(const MappedFile map, MappedFile::open(path));
  map.expect_sequential();
  ContentHasher hasher;
  hasher.update(map.bytes());
  SKERRY_TRY(map.check());
  if (hasher.finish() != residual.content_id) return data_loss(path + " is damaged: its content is not what its name says");
  return {};
}

Result<ResidualWalk> ResidualWalk::open(const std::string& directory, const std::string& fragment, const Residual& before,
                                        std::uint64_t elements) {
  ResidualWalk walk;
  walk.directory_ = directory;
  walk.before_ = &before;
  walk.next_.fragment = fragment;
  std::uint64_t found = before.values.empty() ? elements : before.values.size();
  if (!before.content_id.empty()) {
    const std::string path = residual_path(directory, fragment, before.content_id);
    SKERRY_ASSIGN(File file, File::open(path, OpenMode::kRead));
    SKERRY_ASSIGN(const std::uint64_t bytes, file_size(path));
    found = bytes / sizeof(float);
    walk.old_file_.emplace(std::move(file));
  }
  if (found != elements)
    return data_loss("the residual of fragment " + fragment + " has " + std::to_string(found) + " values, the fragment " +
                     std::to_string(elements));
  if (directory.empty()) {
    walk.next_.values.reserve(elements);
    return walk;
  }
  SKERRY_TRY(make_directories(directory));
  walk.temporary_ = directory + "/" + fragment + ".new";
  SKERRY_ASSIGN(File file, File::open(walk.temporary_, OpenMode::kCreateOrEmpty));
  SKERRY_TRY(file.allocate(elements * sizeof(float)));
  walk.new_file_.emplace(std::move(file));
  return walk;
}

Result<void> ResidualWalk::read(std::uint64_t first, std::span<float> values) const {
  if (old_file_) return old_file_->pread_exact(std::as_writable_bytes(values), first * sizeof(float));
  if (before_->values.empty()) {
    std::fill(values.begin(), values.end(), 0.0f);
  } else {
    std::copy_n(before_->values.begin() + static_cast<std::ptrdiff_t>(first), values.size(), values.begin());
  }
  return {};
}

Result<void> ResidualWalk::write(std::span<const float> values) {
  if (!new_file_) {
    next_.values.insert(next_.values.end(), values.begin(), values.end());
    return {};
  }
  const auto bytes = std::as_bytes(values);
  hasher_.update(bytes);
  SKERRY_TRY(new_file_->pwrite(bytes, written_));
  new_file_->start_writeback(written_, bytes.size());
  written_ += bytes.size();
  return {};
}

Result<Residual> ResidualWalk::finish() {
  if (!new_file_) return std::move(next_);
  SKERRY_TRY(new_file_->fsync());
  new_file_.reset();
  next_.content_id = hasher_.finish();
  SKERRY_TRY(rename_durable(temporary_, residual_path(directory_, next_.fragment, next_.content_id)));
  return std::move(next_);
}

Result<Residual> give_back(const std::string& directory, const std::string& fragment, const Residual& before,
                           const Encoding& encoding, std::span<const std::byte> payload, std::uint64_t elements) {
  SKERRY_TRY(encoding.validate(payload, 0, elements));
  SKERRY_ASSIGN(ResidualWalk walk, ResidualWalk::open(directory, fragment, before, elements));
  const std::uint64_t granule = encoding.block_elements();
  const std::uint64_t block = std::max<std::uint64_t>(granule, kBlockElements / granule * granule);
  std::vector<float> values(static_cast<std::size_t>(std::min(block, elements)));
  std::vector<float> sent(values.size());
  for (std::uint64_t first = 0; first < elements; first += block) {
    const auto count = static_cast<std::size_t>(std::min(block, elements - first));
    const auto now = std::span(values).first(count);
    SKERRY_TRY(walk.read(first, now));
    decode_at(encoding, payload, first, std::span(sent).first(count));
    for (std::size_t i = 0; i < count; ++i) now[i] += sent[i];
    SKERRY_TRY(walk.write(now));
  }
  return walk.finish();
}

}  // namespace skerry::client
