#include "common/codec/compression.h"

#include <zstd.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "common/os/files.h"

namespace skerry {
namespace {

constexpr std::string_view kSuffix = "+zstd";
constexpr int kLevel = 3;
constexpr int kLargestWindowLog = 23;
constexpr std::size_t kPiece = 1 << 20;

using Sink = std::function<Result<void>(std::span<const std::byte>)>;

struct FreeCompressor {
  void operator()(ZSTD_CCtx* context) const { ZSTD_freeCCtx(context); }
};
struct FreeDecompressor {
  void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
};

/// At most so many bytes are worth sending in place of `size`.
std::uint64_t worthwhile(std::uint64_t size) { return size - (size + 32) / 33; }

/// False where the frame would have more than `most` bytes.
Result<bool> compress(std::span<const std::byte> bytes, std::uint64_t most, const Sink& sink) {
  const std::unique_ptr<ZSTD_CCtx, FreeCompressor> context(ZSTD_createCCtx());
  if (context == nullptr) return resource_exhausted("no memory for compression");
  ZSTD_CCtx_setParameter(context.get(), ZSTD_c_compressionLevel, kLevel);
  ZSTD_CCtx_setPledgedSrcSize(context.get(), bytes.size());
  std::vector<std::byte> piece(kPiece);
  std::uint64_t written = 0;
  ZSTD_inBuffer in{bytes.data(), bytes.size(), 0};
  for (;;) {
    ZSTD_outBuffer out{piece.data(), piece.size(), 0};
    const std::size_t left = ZSTD_compressStream2(context.get(), &out, &in, ZSTD_e_end);
    if (ZSTD_isError(left) != 0) return internal_error(std::string("zstd: ") + ZSTD_getErrorName(left));
    written += out.pos;
    if (written > most) return false;
    SKERRY_TRY(sink(std::span(piece).first(out.pos)));
    if (left == 0) return true;
  }
}

Result<void> decompress(std::span<const std::byte> frame, std::uint64_t size, const Sink& sink) {
  const auto refused = [&](const std::string& what) {
    return invalid_argument("zstd payload of " + std::to_string(frame.size()) + " bytes: " + what);
  };
  const std::unique_ptr<ZSTD_DCtx, FreeDecompressor> context(ZSTD_createDCtx());
  if (context == nullptr) return resource_exhausted("no memory for decompression");
  ZSTD_DCtx_setParameter(context.get(), ZSTD_d_windowLogMax, kLargestWindowLog);
  std::vector<std::byte> piece(std::min<std::uint64_t>(kPiece, size + 1));
  std::uint64_t written = 0;
  ZSTD_inBuffer in{frame.data(), frame.size(), 0};
  for (;;) {
    const std::size_t read = in.pos;
    ZSTD_outBuffer out{piece.data(), piece.size(), 0};
    const std::size_t left = ZSTD_decompressStream(context.get(), &out, &in);
    if (ZSTD_isError(left) != 0) return refused(ZSTD_getErrorName(left));
    written += out.pos;
    if (written > size) return refused("it comes to more than " + std::to_string(size) + " bytes");
    SKERRY_TRY(sink(std::span(piece).first(out.pos)));
    if (left == 0) break;
    if (in.pos == read && out.pos == 0) return refused("it is cut");
  }
  if (in.pos != in.size) return refused("something follows its frame");
  if (written < size) return refused("it comes to " + std::to_string(written) + " bytes, must come to " + std::to_string(size));
  return {};
}

/// Appends what it is given to a file that goes again unless it is kept.
class NewFile {
 public:
  static Result<NewFile> create(const std::string& path) {
    SKERRY_ASSIGN(File file, File::open(path, OpenMode::kCreateOrEmpty));
    return NewFile(std::move(file), path);
  }
  NewFile(NewFile&&) noexcept = default;
  ~NewFile() {
    if (file_ && !file_->path().empty() && !kept_) (void)remove_file(path_);
  }
  Sink sink() {
    return [this](std::span<const std::byte> bytes) -> Result<void> {
      SKERRY_TRY(file_->pwrite(bytes, size_));
      size_ += bytes.size();
      return {};
    };
  }
  std::uint64_t keep() {
    kept_ = true;
    return size_;
  }

 private:
  NewFile(File file, std::string path) : file_(std::move(file)), path_(std::move(path)) {}
  std::optional<File> file_;
  std::string path_;
  std::uint64_t size_ = 0;
  bool kept_ = false;
};

Sink into(std::string& text) {
  return [&text](std::span<const std::byte> bytes) -> Result<void> {
    text.append(as_text(bytes));
    return {};
  };
}

}  // namespace

Result<WireEncoding> find_wire_encoding(std::string_view name) {
  WireEncoding found;
  found.zstd = name.ends_with(kSuffix);
  if (found.zstd) name.remove_suffix(kSuffix.size());
  SKERRY_ASSIGN(found.encoding, find_encoding(name));
  return found;
}

std::string wire_name(std::string_view encoding, bool zstd) { return std::string(encoding) + (zstd ? std::string(kSuffix) : ""); }

std::optional<std::string> compressed(std::span<const std::byte> bytes) {
  std::string frame;
  const auto pays = compress(bytes, worthwhile(bytes.size()), into(frame));
  if (!pays.ok() || !*pays) return std::nullopt;
  return frame;
}

Result<std::optional<std::uint64_t>> compress_to_file(std::span<const std::byte> bytes, const std::string& path) {
  SKERRY_ASSIGN(NewFile file, NewFile::create(path));
  SKERRY_ASSIGN(const bool pays, compress(bytes, worthwhile(bytes.size()), file.sink()));
  if (!pays) return std::optional<std::uint64_t>();
  return std::optional<std::uint64_t>(file.keep());
}

Result<std::string> decompressed(std::span<const std::byte> frame, std::uint64_t size) {
  std::string bytes;
  SKERRY_TRY(decompress(frame, size, into(bytes)));
  return bytes;
}

Result<void> decompress_to_file(std::span<const std::byte> frame, std::uint64_t size, const std::string& path) {
  SKERRY_ASSIGN(NewFile file, NewFile::create(path));
  SKERRY_TRY(decompress(frame, size, file.sink()));
  file.keep();
  return {};
}

}  // namespace skerry
