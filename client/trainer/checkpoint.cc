#include "client/trainer/checkpoint.h"

#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>

#include "common/os/files.h"
#include "common/tensor/safetensors.h"

namespace skerry::trainer {
namespace {

constexpr const char* kNote = "skerry-trainer";
constexpr const char* kSum = "crc32";

std::uint32_t add_to_sum(std::uint32_t sum, std::span<const std::byte> bytes) {
  constexpr std::size_t kPiece = std::size_t{1} << 30;
  for (std::size_t at = 0; at < bytes.size(); at += kPiece) {
    const std::size_t now = std::min(kPiece, bytes.size() - at);
    sum = static_cast<std::uint32_t>(
        crc32(sum, reinterpret_cast<const unsigned char*>(bytes.data() + at), static_cast<unsigned>(now)));
  }
  return sum;
}

}  // namespace

std::uint32_t checksum(std::span<const std::byte> bytes) { return add_to_sum(0, bytes); }

Result<void> write_scratch_file(const std::string& path, std::span<const std::span<const std::byte>> pieces) {
  const std::string temporary = path + ".new";
  const FileDescriptor file(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!file) return file_error(errno, "create", temporary);
  std::vector<iovec> vectors;
  for (const auto& piece : pieces) {
    if (!piece.empty()) vectors.push_back({const_cast<std::byte*>(piece.data()), piece.size()});
  }
  for (std::size_t at = 0; at < vectors.size();) {
    const auto count = static_cast<int>(std::min<std::size_t>(vectors.size() - at, 64));
    const ssize_t put = ::writev(file.get(), vectors.data() + at, count);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) {
      const Error error = file_error(errno, "write", temporary);
      ::unlink(temporary.c_str());
      return error;
    }
    for (auto left = static_cast<std::size_t>(put); left > 0;) {
      const std::size_t now = std::min(left, vectors[at].iov_len);
      vectors[at].iov_base = static_cast<char*>(vectors[at].iov_base) + now;
      vectors[at].iov_len -= now;
      left -= now;
      if (vectors[at].iov_len == 0) ++at;
    }
  }
  if (::rename(temporary.c_str(), path.c_str()) != 0) return file_error(errno, "rename", temporary);
  return {};
}

static std::string previous_of(const std::string& path) { return path + ".previous"; }

Result<void> write_checkpoint(const std::string& path, const CheckpointView& view) {
  std::vector<TensorSpec> tensors;
  std::vector<std::span<const std::byte>> pieces(1);
  std::uint32_t sum = add_to_sum(0, as_bytes_of(view.note));
  for (const auto& [name, values] : view.vectors) {
    tensors.push_back({name, DType::kF32, {values.size()}});
    pieces.push_back(std::as_bytes(values));
    sum = add_to_sum(sum, pieces.back());
  }
  SKERRY_ASSIGN(const std::string header,
                make_safetensors_header(tensors, {{kNote, view.note}, {kSum, std::to_string(sum)}}));
  pieces[0] = as_bytes_of(header);
  // A second name for the old file; without an old one, or where the file system has no links, there is none.
  const std::string previous = previous_of(path), name = previous + ".new";
  if (::link(path.c_str(), name.c_str()) == 0 || errno == EEXIST) ::rename(name.c_str(), previous.c_str());
  return write_scratch_file(path, pieces);
}

static Result<Checkpoint> read_one(const std::string& path) {
  SKERRY_ASSIGN(const SafetensorsFile file, SafetensorsFile::open(path));
  const auto note = file.metadata().find(kNote);
  const auto expected = file.metadata().find(kSum);
  if (note == file.metadata().end() || expected == file.metadata().end()) {
    return invalid_argument(path + ": not a checkpoint of skerry-trainer");
  }
  Checkpoint checkpoint;
  checkpoint.note = note->second;
  std::uint32_t sum = add_to_sum(0, as_bytes_of(checkpoint.note));
  std::map<std::string, std::span<const std::byte>> by_name;
  for (const TensorEntry& tensor : file.tensors()) {
    if (tensor.dtype != DType::kF32) return invalid_argument(path + ": not a checkpoint of skerry-trainer");
    by_name[tensor.name] = file.bytes(tensor);
  }
  for (const auto& [name, bytes] : by_name) {
    sum = add_to_sum(sum, bytes);
    std::vector<float>& values = checkpoint.vectors[name];
    values.resize(bytes.size() / sizeof(float));
    if (!bytes.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
  }
  if (std::to_string(sum) != expected->second) {
    return data_loss(path + ": its checksum is wrong; the machine may have stopped while it was written");
  }
  return checkpoint;
}

Result<Checkpoint> read_checkpoint(const std::string& path) {
  auto latest = read_one(path);
  if (latest.ok() || latest.error().code == Code::kNotFound) return latest;
  auto previous = read_one(previous_of(path));
  return previous.ok() ? std::move(previous) : std::move(latest);
}

Result<void> remove_checkpoint(const std::string& path) {
  SKERRY_TRY(remove_file(path));
  return remove_file(previous_of(path));
}

bool CheckpointWriter::start(std::string path, const CheckpointView& view) {
  if (busy_.exchange(true)) return false;
  (void)wait().ok();  // its error was that of a checkpoint which this one replaces
  try {
    auto copy = std::make_unique<Checkpoint>();
    copy->note = view.note;
    for (const auto& [name, values] : view.vectors) copy->vectors[name].assign(values.begin(), values.end());
    thread_ = std::thread([this, path = std::move(path), owned = std::move(copy)] {
      CheckpointView whole{owned->note, {}};
      for (const auto& [name, values] : owned->vectors) whole.vectors[name] = values;
      result_ = write_checkpoint(path, whole);
      busy_ = false;
    });
  } catch (const std::exception&) {  // no memory for the copy: training matters more
    busy_ = false;
    return false;
  }
  return true;
}

Result<void> CheckpointWriter::wait() {
  if (!thread_.joinable()) return {};
  thread_.join();
  return std::exchange(result_, {});
}

}  // namespace skerry::trainer
