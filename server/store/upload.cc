#include "server/store/upload.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <thread>
#include <utility>

namespace skerry::server {
namespace {

constexpr std::string_view kInfoMagic = "skerry-upload-v1";

std::string info_header(const UploadRequest& request) {
  std::string header = std::string(kInfoMagic) + "\n" + request.task + "\n" + request.node + "\n" + request.content_id +
                       "\n" + std::to_string(request.size) + "\n";
  header.resize(kInfoHeaderBytes, '\0');
  return header;
}

std::uint64_t load_u64(const std::byte* bytes) {
  std::uint64_t value = 0;
  for (int i = 7; i >= 0; --i) value = value << 8 | std::to_integer<std::uint64_t>(bytes[i]);
  return value;
}

std::array<std::byte, kInfoSlotBytes> slot_of(std::uint64_t chunk, const ChunkHash& hash) {
  std::array<std::byte, kInfoSlotBytes> slot{};
  for (std::size_t i = 0; i < 8; ++i) slot[i] = static_cast<std::byte>((chunk + 1) >> (8 * i));
  std::memcpy(slot.data() + 8, hash.data(), hash.size());
  return slot;
}

/// Makes an upload ready, with these chunks there already.
void publish(Upload& upload, File part, File info, const std::vector<std::uint64_t>& chunks,
             const std::vector<ChunkHash>& hashes) {
  std::lock_guard lock(upload.mutex);
  upload.part = std::make_shared<File>(std::move(part));
  upload.info = std::make_shared<File>(std::move(info));
  upload.leaves.assign(upload.chunks(), ChunkHash{});
  upload.present.assign(upload.chunks(), false);
  for (std::size_t i = 0; i < chunks.size(); ++i) {
    upload.leaves[chunks[i]] = hashes[i];
    upload.present[chunks[i]] = true;
  }
  upload.present_count = chunks.size();
  upload.ready = true;
}

Result<void> begin_files(Upload& upload) {
  SKERRY_ASSIGN(File info, File::open(upload.info_path(), OpenMode::kCreateOrEmpty, 0600));
  SKERRY_TRY(info.pwrite(as_bytes_of(info_header(upload.request)), 0));
  SKERRY_ASSIGN(File part, File::open(upload.part_path(), OpenMode::kCreateOrEmpty, 0600));
  SKERRY_TRY(part.allocate(upload.request.size));
  publish(upload, std::move(part), std::move(info), {}, {});
  return {};
}

/// Reads the chunks that the info file claims, on several threads, and keeps those that have the hash claimed.
Result<void> take_up_files(Upload& upload) {
  SKERRY_ASSIGN(File info, File::open(upload.info_path(), OpenMode::kReadWrite));
  SKERRY_ASSIGN(File part, File::open(upload.part_path(), OpenMode::kReadWrite));
  SKERRY_ASSIGN(MappedFile mapped, MappedFile::open(upload.part_path()));
  if (mapped.size() != upload.request.size) SKERRY_TRY(part.allocate(upload.request.size));

  struct Claimed {
    std::uint64_t chunk;
    ChunkHash hash;
    bool true_hash = false;
  };
  std::vector<Claimed> claimed;
  for (std::uint64_t chunk = 0; chunk < upload.chunks(); ++chunk) {
    std::array<std::byte, kInfoSlotBytes> slot{};
    SKERRY_ASSIGN(std::size_t count, info.pread(slot, kInfoHeaderBytes + chunk * kInfoSlotBytes));
    bool inside = chunk * kChunkBytes + chunk_size(upload.request.size, chunk) <= mapped.size();
    if (count != slot.size() || load_u64(slot.data()) != chunk + 1 || !inside) continue;
    Claimed entry{chunk, {}, false};
    std::memcpy(entry.hash.data(), slot.data() + 8, entry.hash.size());
    claimed.push_back(entry);
  }

  std::atomic<std::size_t> next{0};
  auto check_some = [&] {
    for (std::size_t i = next.fetch_add(1); i < claimed.size(); i = next.fetch_add(1)) {
      std::uint64_t first = claimed[i].chunk * kChunkBytes;
      std::uint64_t length = chunk_size(upload.request.size, claimed[i].chunk);
      claimed[i].true_hash = hash_chunk(mapped.bytes().subspan(first, length)) == claimed[i].hash;
      mapped.drop(first, length);
    }
  };
  std::vector<std::thread> helpers;
  std::size_t cores = std::min<std::size_t>(std::max(1U, std::thread::hardware_concurrency()), 8);
  for (std::size_t i = 1; i < std::min(cores, claimed.size()); ++i) helpers.emplace_back(check_some);
  check_some();
  for (std::thread& helper : helpers) helper.join();
  SKERRY_TRY(mapped.check());

  std::vector<std::uint64_t> chunks;
  std::vector<ChunkHash> hashes;
  for (const Claimed& entry : claimed) {
    if (!entry.true_hash) continue;
    chunks.push_back(entry.chunk);
    hashes.push_back(entry.hash);
  }
  publish(upload, std::move(part), std::move(info), chunks, hashes);
  return {};
}

}  // namespace

Result<UploadRequest> read_upload_info(const std::string& path) {
  SKERRY_ASSIGN(File file, File::open(path, OpenMode::kRead));
  std::string header(kInfoHeaderBytes, '\0');
  SKERRY_ASSIGN(std::size_t count, file.pread(std::as_writable_bytes(std::span(header.data(), header.size())), 0));
  header.resize(count);
  std::vector<std::string> lines;
  for (std::size_t begin = 0, end = 0; (end = header.find('\n', begin)) != std::string::npos; begin = end + 1) {
    lines.push_back(header.substr(begin, end - begin));
  }
  UploadRequest request;
  bool whole = lines.size() == 5 && lines[0] == kInfoMagic;
  if (whole) {
    request = {lines[1], lines[2], lines[3], 0};
    auto parsed = std::from_chars(lines[4].data(), lines[4].data() + lines[4].size(), request.size);
    whole = parsed.ec == std::errc() && parsed.ptr == lines[4].data() + lines[4].size() && request.size > 0 &&
            check_content_id(request.content_id).ok();
  }
  if (!whole) return data_loss(path + " is not the description of an upload");
  return request;
}

Result<void> prepare_upload(Upload& upload) {
  std::lock_guard work(upload.work_mutex);
  {
    std::lock_guard lock(upload.mutex);
    if (upload.ready || upload.complete || upload.ended) return {};
  }
  const bool left_over = path_exists(upload.part_path()) && path_exists(upload.info_path());
  return left_over ? take_up_files(upload) : begin_files(upload);
}

UploadStatus status_of(Upload& upload) {
  std::lock_guard lock(upload.mutex);
  UploadStatus status;
  status.complete = upload.complete;
  if (upload.complete) return status;
  for (std::uint64_t chunk = 0; chunk < upload.chunks(); ++chunk) {
    if (upload.ready && upload.present[chunk]) continue;
    std::uint64_t first = chunk * kChunkBytes;
    std::uint64_t last = first + chunk_size(upload.request.size, chunk) - 1;
    if (!status.missing.empty() && status.missing.back().last + 1 == first)
      status.missing.back().last = last;
    else
      status.missing.push_back({first, last});
  }
  return status;
}

void end_upload(Upload& upload, const std::function<void(const std::string& path)>& remove) {
  std::lock_guard lock(upload.mutex);
  upload.ended = true;
  for (const std::string& path : {upload.part_path(), upload.info_path(), upload.sealed_path}) remove(path);
}

// ---- writers ----

namespace {

Error ended_error(const UploadRequest& request) {
  return {Code::kAborted,
          "the upload of " + request.content_id + " was ended: its task is decided, or its content was wrong", true};
}

Error superseded_error(const UploadRequest& request, std::uint64_t chunk) {
  return {Code::kAborted,
          "a newer writer took over chunk " + std::to_string(chunk) + " of the upload of " + request.content_id, true};
}

}  // namespace

ChunkWriter::ChunkWriter(std::unique_ptr<State> state) : state_(std::move(state)) {}
ChunkWriter::ChunkWriter(ChunkWriter&&) noexcept = default;
ChunkWriter& ChunkWriter::operator=(ChunkWriter&& other) noexcept {
  if (this != &other) {
    if (state_) state_->give_up_claim();
    state_ = std::move(other.state_);
  }
  return *this;
}
ChunkWriter::~ChunkWriter() {
  if (state_) state_->give_up_claim();
}

std::uint64_t ChunkWriter::position() const { return state_->position; }

Result<void> ChunkWriter::write(std::span<const std::byte> piece) {
  if (state_->failed) return *state_->failed;
  auto result = state_->write(piece);
  if (!result.ok()) {
    state_->failed = result.error();
    state_->give_up_claim();
  }
  return result;
}

Result<UploadStatus> ChunkWriter::finish() {
  state_->give_up_claim();
  if (state_->failed) return *state_->failed;
  return state_->complete(state_->upload);
}

Result<void> ChunkWriter::State::write(std::span<const std::byte> piece) {
  const std::uint64_t size = upload->request.size;
  while (!piece.empty()) {
    if (position >= size) {
      return invalid_argument("the body goes beyond the " + std::to_string(size) + " bytes announced for " +
                              upload->request.content_id);
    }
    if (position % kChunkBytes == 0) SKERRY_TRY(begin_chunk());
    const std::uint64_t index = position / kChunkBytes;
    const std::uint64_t end = index * kChunkBytes + chunk_size(size, index);
    const auto step = static_cast<std::size_t>(std::min<std::uint64_t>(piece.size(), end - position));
    if (claim) SKERRY_TRY(write_bytes(piece.first(step)));
    piece = piece.subspan(step);
    position += step;
    if (claim && position == end) SKERRY_TRY(end_chunk(index));
  }
  return {};
}

/// At a chunk's first byte: takes the right to it, from an older writer if need be.
Result<void> ChunkWriter::State::begin_chunk() {
  const std::uint64_t index = position / kChunkBytes;
  std::shared_ptr<ChunkClaim> older;
  {
    std::lock_guard lock(upload->mutex);
    if (upload->ended) return ended_error(upload->request);
    if (upload->complete || upload->present[index]) return {};
    claim = std::make_shared<ChunkClaim>();
    part = upload->part;
    info = upload->info;
    older = std::exchange(upload->claims[index], claim);
  }
  if (older) {
    std::lock_guard lock(older->mutex);  // waits for the bytes it is writing at the moment
    older->superseded = true;
  }
  return {};
}

Result<void> ChunkWriter::State::write_bytes(std::span<const std::byte> bytes) {
  hasher.update(bytes);
  std::lock_guard lock(claim->mutex);
  if (claim->superseded) return superseded_error(upload->request, position / kChunkBytes);
  if (upload->ended) return ended_error(upload->request);
  return part->pwrite(bytes, position);
}

/// After a chunk's last byte: it is there.
Result<void> ChunkWriter::State::end_chunk(std::uint64_t index) {
  const ChunkHash leaf = hasher.finish();
  part->start_writeback(index * kChunkBytes, chunk_size(upload->request.size, index));
  std::lock_guard lock(upload->mutex);
  if (upload->ended) return ended_error(upload->request);
  auto entry = upload->claims.find(index);
  if (entry == upload->claims.end() || entry->second != claim) return superseded_error(upload->request, index);
  SKERRY_TRY(info->pwrite(slot_of(index, leaf), kInfoHeaderBytes + index * kInfoSlotBytes));
  upload->claims.erase(entry);
  claim.reset();
  upload->leaves[index] = leaf;
  upload->present[index] = true;
  ++upload->present_count;
  return {};
}

void ChunkWriter::State::give_up_claim() {
  if (!claim) return;
  std::lock_guard lock(upload->mutex);
  for (auto entry = upload->claims.begin(); entry != upload->claims.end(); ++entry) {
    if (entry->second != claim) continue;
    upload->claims.erase(entry);
    break;
  }
  claim.reset();
}

}  // namespace skerry::server
