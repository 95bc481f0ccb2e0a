#include "common/tensor/safetensors.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <optional>
#include <utility>

#include "common/tensor/kernels.h"
#include "common/tensor/text.h"

namespace skerry {
namespace {

template <typename T>
T load(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

std::uint64_t first_non_finite_f16(std::span<const std::byte> bytes) {
  const std::uint64_t count = bytes.size() / 2;
  for (std::uint64_t i = 0; i < count; ++i)
    if ((load<std::uint16_t>(bytes.data() + 2 * i) & 0x7C00u) == 0x7C00u) return i;
  return count;
}

std::uint64_t first_non_finite_f64(std::span<const std::byte> bytes) {
  const std::uint64_t count = bytes.size() / 8;
  for (std::uint64_t i = 0; i < count; ++i)
    if (!std::isfinite(load<double>(bytes.data() + 8 * i))) return i;
  return count;
}

std::uint64_t first_non_finite_in(DType dtype, std::span<const std::byte> bytes) {
  switch (dtype) {
    case DType::kF32:
      return first_non_finite_f32(bytes);
    case DType::kBF16:
      return first_non_finite_bf16(bytes);
    case DType::kF16:
      return first_non_finite_f16(bytes);
    case DType::kF64:
      return first_non_finite_f64(bytes);
    case DType::kI32:
    case DType::kI64:
    case DType::kU8:
      break;
  }
  return bytes.size() / dtype_bytes(dtype);
}

float element_as_f32(DType dtype, const std::byte* at) {
  switch (dtype) {
    case DType::kF32:
      return load<float>(at);
    case DType::kBF16:
      return bf16_to_f32(load<std::uint16_t>(at));
    case DType::kF16:
      return f16_to_f32(load<std::uint16_t>(at));
    case DType::kF64:
      return static_cast<float>(load<double>(at));
    case DType::kI32:
    case DType::kI64:
    case DType::kU8:
      break;
  }
  return 0.0f;
}

std::string value_text(double value) {
  if (std::isnan(value)) return "NaN";
  return value > 0 ? "+infinity" : "-infinity";
}

}  // namespace

Result<SafetensorsFile> SafetensorsFile::open(const std::string& path) {
  SKERRY_ASSIGN(MappedFile file, MappedFile::open(path));
  auto header = parse_safetensors_header(file.bytes(), file.size());
  SKERRY_TRY(file.check());
  if (!header.ok()) return with_context(std::move(header).error(), path);
  return SafetensorsFile(std::move(file), *std::move(header));
}

SafetensorsFile::SafetensorsFile(MappedFile file, SafetensorsHeader header)
    : file_(std::move(file)), header_(std::move(header)), by_name_(header_.tensors.size()) {
  std::iota(by_name_.begin(), by_name_.end(), std::size_t{0});
  std::sort(by_name_.begin(), by_name_.end(),
            [this](std::size_t a, std::size_t b) { return header_.tensors[a].name < header_.tensors[b].name; });
}

const TensorEntry* SafetensorsFile::find(std::string_view name) const {
  const auto at = std::lower_bound(
      by_name_.begin(), by_name_.end(), name,
      [this](std::size_t index, std::string_view wanted) { return header_.tensors[index].name < wanted; });
  if (at == by_name_.end() || header_.tensors[*at].name != name) return nullptr;
  return &header_.tensors[*at];
}

std::span<const std::byte> SafetensorsFile::bytes(const TensorEntry& tensor) const {
  return data().subspan(tensor.offset, tensor.bytes);
}

std::span<const std::byte> SafetensorsFile::data() const { return file_.bytes().subspan(header_.data_begin); }

Result<void> SafetensorsFile::read_f32(const TensorEntry& tensor, std::uint64_t first, std::span<float> out) const {
  if (!dtype_is_floating(tensor.dtype))
    return invalid_argument(path() + ": tensor " + quoted_name(tensor.name) + " is " +
                            std::string(dtype_name(tensor.dtype)) + ", a floating type is needed");
  if (first > tensor.elements || out.size() > tensor.elements - first)
    return Error{Code::kOutOfRange, path() + ": tensor " + quoted_name(tensor.name) + " has " +
                                        std::to_string(tensor.elements) + " elements, asked for " +
                                        std::to_string(out.size()) + " from " + std::to_string(first)};
  const std::uint64_t width = dtype_bytes(tensor.dtype);
  const auto source = bytes(tensor).subspan(first * width, out.size() * width);
  if (tensor.dtype == DType::kF32) {
    if (!out.empty()) std::memcpy(out.data(), source.data(), source.size());
  } else if (tensor.dtype == DType::kBF16) {
    widen_bf16(source, out);
  } else {
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = element_as_f32(tensor.dtype, source.data() + i * width);
  }
  return file_.check();
}

Result<void> SafetensorsFile::check_finite() const {
  for (const TensorEntry& tensor : tensors()) {
    const auto values = bytes(tensor);
    const std::uint64_t bad = first_non_finite_in(tensor.dtype, values);
    if (bad == tensor.elements) continue;
    const std::byte* at = values.data() + bad * dtype_bytes(tensor.dtype);
    const double value = tensor.dtype == DType::kF64 ? load<double>(at) : double{element_as_f32(tensor.dtype, at)};
    return invalid_argument(path() + ": tensor " + quoted_name(tensor.name) + ": element " + std::to_string(bad) +
                            " is " + value_text(value) + ", must be finite");
  }
  return file_.check();
}

struct SafetensorsWriter::State {
  std::string path;
  std::string temporary;
  Durability durability = Durability::kDurable;
  std::optional<File> file = std::nullopt;
  std::uint64_t at = 0;      // where the next bytes belong in the file
  std::uint64_t end = 0;     // of the file
  std::string pending = {};  // header and small pieces before `at`, not yet written

  Result<void> flush() {
    SKERRY_TRY(file->pwrite(as_bytes_of(pending), at - pending.size()));
    pending.clear();
    return {};
  }
};

SafetensorsWriter::SafetensorsWriter(std::unique_ptr<State> state) : state_(std::move(state)) {}
SafetensorsWriter::SafetensorsWriter(SafetensorsWriter&&) noexcept = default;

SafetensorsWriter& SafetensorsWriter::operator=(SafetensorsWriter&& other) noexcept {
  std::swap(state_, other.state_);
  return *this;
}

SafetensorsWriter::~SafetensorsWriter() {
  // A file that was not finished is worth nothing; that it could not be removed either is nobody's loss.
  if (state_ && state_->file) (void)remove_file(state_->temporary);
}

Result<SafetensorsWriter> SafetensorsWriter::create(const std::string& path, std::span<const TensorSpec> tensors,
                                                    const SafetensorsMetadata& metadata, Durability durability) {
  SKERRY_ASSIGN(std::string header, make_safetensors_header(tensors, metadata));
  auto state = std::unique_ptr<State>(new State{path, path + ".part", durability});
  state->at = header.size();
  state->end = header.size();
  for (const TensorSpec& tensor : tensors) {
    SKERRY_ASSIGN(const std::uint64_t bytes, tensor_bytes(tensor.dtype, tensor.shape));
    state->end += bytes;
  }
  state->pending = std::move(header);
  SKERRY_ASSIGN(File file, File::open(state->temporary, OpenMode::kCreateOrEmpty));
  state->file.emplace(std::move(file));
  return SafetensorsWriter(std::move(state));
}

Result<void> SafetensorsWriter::append(std::span<const std::byte> bytes) {
  State& state = *state_;
  if (bytes.size() > state.end - state.at)
    return Error{Code::kOutOfRange, state.path + ": " + std::to_string(bytes.size()) +
                                        " more bytes were appended where its tensors have only " +
                                        std::to_string(state.end - state.at) + " left"};
  constexpr std::size_t kSmall = 256 * 1024;
  if (state.pending.size() + bytes.size() <= kSmall) {
    state.pending.append(as_text(bytes));
    state.at += bytes.size();
    return {};
  }
  SKERRY_TRY(state.flush());
  SKERRY_TRY(state.file->pwrite(bytes, state.at));
  state.at += bytes.size();
  return {};
}

Result<void> SafetensorsWriter::finish() {
  State& state = *state_;
  if (state.at != state.end)
    return failed_precondition(state.path + ": " + std::to_string(state.end - state.at) +
                               " bytes of its tensors were not written");
  SKERRY_TRY(state.flush());
  if (state.durability == Durability::kDurable) {
    SKERRY_TRY(state.file->fsync());
    SKERRY_TRY(rename_durable(state.temporary, state.path));
  } else if (std::rename(state.temporary.c_str(), state.path.c_str()) != 0) {
    return file_error(errno, "rename", state.temporary);
  }
  state.file.reset();
  return {};
}

}  // namespace skerry
