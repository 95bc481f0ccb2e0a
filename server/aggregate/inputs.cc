#include "server/aggregate/inputs.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstring>

namespace skerry::server {
namespace {

constexpr std::size_t kAlignment = 64;
constexpr std::uint64_t kMappedAround = 2u << 20;  // the largest pages of the page cache

bool aligned(const void* pointer, std::size_t alignment) {
  return reinterpret_cast<std::uintptr_t>(pointer) % alignment == 0;
}

// How add_rows can take an encoding's bytes as they lie there; nothing where it cannot.
std::optional<RowKind> kind_of(std::string_view encoding, const std::byte* bytes) {
  if (encoding == "int8") return RowKind::kInt8;
  if (encoding == "int8_block") return RowKind::kInt8Block;
  if (encoding == "f32" && aligned(bytes, alignof(float))) return RowKind::kF32;
  if (encoding == "bf16" && aligned(bytes, alignof(std::uint16_t))) return RowKind::kBf16;
  return std::nullopt;
}

}  // namespace

Scratch::Scratch(std::size_t bytes) : memory_(new std::byte[bytes + kAlignment]), size_(bytes) {
  const auto address = reinterpret_cast<std::uintptr_t>(memory_.get());
  begin_ = memory_.get() + (kAlignment - address % kAlignment) % kAlignment;
}

Result<Source> Source::open(const Payload& payload, std::string name) {
  Source source;
  source.name_ = std::move(name);
  if (payload.path.empty()) {
    source.bytes_ = as_bytes_of(payload.bytes);
    return source;
  }
  auto file = MappedFile::open(payload.path);
  if (!file.ok()) return with_context(std::move(file).error(), source.name_);
  source.file_.emplace(std::move(file).value());
  source.bytes_ = source.file_->bytes();
  return source;
}

void Source::drop(std::uint64_t offset, std::uint64_t length) const {
  const std::uint64_t before = std::min(offset, kMappedAround);
  if (file_) file_->drop(offset - before, length + before);
}

const float* Source::floats(std::uint64_t offset, std::size_t count, float* scratch) const {
  const std::byte* at = bytes_.data() + offset;
  if (aligned(at, alignof(float))) return reinterpret_cast<const float*>(at);
  std::memcpy(scratch, at, count * sizeof(float));
  return scratch;
}

Result<UpdateReader> UpdateReader::open(const UpdateInput& update, std::uint64_t elements, bool mapped) {
  const std::string name = "update of task " + update.task_id;
  UpdateReader reader;
  reader.task_id_ = update.task_id;
  auto encoding = find_encoding(update.encoding);
  if (!encoding.ok()) return with_context(std::move(encoding).error(), name);
  reader.encoding_ = *encoding;

  std::uint64_t size = update.payload.bytes.size();
  if (update.payload.path.empty() || mapped) {
    SKERRY_ASSIGN(Source source, Source::open(update.payload, name));
    size = source.bytes().size();
    reader.source_.emplace(std::move(source));
  } else {
    auto file_bytes = file_size(update.payload.path);
    if (!file_bytes.ok()) return with_context(std::move(file_bytes).error(), name);
    size = *file_bytes;
    reader.path_ = update.payload.path;
  }
  const std::uint64_t expected = reader.encoding_->encoded_bytes(elements);
  if (size != expected) {
    const std::string where = update.payload.path.empty() ? "" : " (" + update.payload.path + ")";
    return invalid_argument(name + where + " has " + std::to_string(size) + " bytes; " + std::to_string(elements) +
                            " elements in " + update.encoding + " have " + std::to_string(expected));
  }
  if (reader.source_) reader.kind_ = kind_of(reader.encoding_->name(), reader.source_->bytes().data());
  return reader;
}

void UpdateReader::rebase(const Source& current, const Source& then, std::uint64_t data_offset) {
  current_ = current.bytes().subspan(data_offset);
  then_ = then.bytes().subspan(data_offset);
  kind_.reset();
}

Result<void> UpdateReader::decode(std::uint64_t first, std::span<float> out, std::byte* scratch) const {
  if (source_) {
    decode_at(*encoding_, source_->bytes(), first, out);
    return {};
  }
  SKERRY_ASSIGN(const File file, File::open(path_, OpenMode::kRead));
  const std::span<std::byte> prefix(scratch, encoding_->prefix_bytes());
  while (!out.empty()) {
    const PartPlace part = part_place(*encoding_, first, out.size());
    const std::span<std::byte> values(scratch + prefix.size(), part.bytes);
    SKERRY_TRY(file.pread_exact(prefix, part.prefix));
    SKERRY_TRY(file.pread_exact(values, part.values));
    encoding_->decode_part(prefix, values, out.first(part.elements));
    first += part.elements;
    out = out.subspan(part.elements);
  }
  return {};
}

Result<Row> UpdateReader::row(std::uint64_t first, std::size_t count, const RowScratch& scratch) const {
  if (!kind_) {
    SKERRY_ASSIGN(const float* values, floats(first, count, scratch));
    return Row{values};
  }
  const PartPlace part = part_place(*encoding_, first, count);
  assert(part.elements == count);
  return Row{source_->bytes().data() + part.values, source_->bytes().data() + part.prefix};
}

Result<const float*> UpdateReader::floats(std::uint64_t first, std::size_t count, const RowScratch& scratch) const {
  if (kind_ == RowKind::kF32) {
    return reinterpret_cast<const float*>(source_->bytes().data() + encoding_->encoded_bytes(first));
  }
  SKERRY_TRY(decode(first, {scratch.decoded, count}, scratch.encoded));
  if (!current_.empty()) {
    add_difference(current_.subspan(4 * first), then_.subspan(4 * first), count, scratch.decoded);
  }
  return static_cast<const float*>(scratch.decoded);
}

void UpdateReader::drop(std::uint64_t first, std::uint64_t count) const {
  if (!source_) return;
  const std::uint64_t begin = encoding_->encoded_bytes(first);
  source_->drop(begin, encoding_->encoded_bytes(first + count) - begin);
}

std::string element_text(std::uint64_t element, std::span<const strategies::TensorRange> tensors) {
  std::string text = "element " + std::to_string(element);
  const auto found = std::find_if(tensors.begin(), tensors.end(), [&](const strategies::TensorRange& tensor) {
    return element >= tensor.first && element - tensor.first < tensor.count;
  });
  if (found == tensors.end()) return text;
  return text + " (tensor " + found->name + ", its element " + std::to_string(element - found->first) + ")";
}

std::string non_finite_text(float value) {
  if (std::isnan(value)) return "NaN";
  return value > 0 ? "+infinity" : "-infinity";
}

}  // namespace skerry::server
