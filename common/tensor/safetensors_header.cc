#include <algorithm>
#include <bit>
#include <cstring>
#include <exception>
#include <numeric>
#include <optional>
#include <set>

#include <nlohmann/json.hpp>

#include "common/tensor/safetensors.h"
#include "common/tensor/text.h"

static_assert(std::endian::native == std::endian::little, "safetensors is little-endian, and so must be the machine");

namespace skerry {
namespace {

using nlohmann::json;

constexpr std::string_view kMetadataName = "__metadata__";
constexpr std::size_t kMaxRank = 32;
constexpr std::uint64_t kMaxBytes = std::uint64_t{1} << 62;

std::string tensor_prefix(std::string_view name) { return "tensor " + quoted_name(name) + ": "; }

// Reads the header as a stream of JSON events, because a document tree would silently drop duplicate names. Wherever
// the structure is not {name: {dtype, shape, data_offsets}, "__metadata__": {key: text}} it stops with a sentence in
// `error`.
class HeaderEvents final : public nlohmann::json_sax<json> {
 public:
  struct Raw {
    std::string name;
    std::optional<std::string> dtype;
    std::optional<std::vector<std::uint64_t>> shape;
    std::optional<std::vector<std::uint64_t>> offsets;
  };

  bool null() override { return unexpected("null"); }
  bool boolean(bool value) override { return unexpected(value ? "true" : "false"); }
  bool number_integer(number_integer_t value) override { return unexpected(std::to_string(value)); }
  bool number_float(number_float_t, const string_t& text) override { return unexpected(text.substr(0, 40)); }
  bool binary(binary_t&) override { return unexpected("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (where_ != Where::kShape && where_ != Where::kOffsets) return unexpected(std::to_string(value));
    std::vector<std::uint64_t>& list = where_ == Where::kShape ? *tensors.back().shape : *tensors.back().offsets;
    if (where_ == Where::kShape && list.size() == kMaxRank)
      return fail(here() + "shape has more than " + std::to_string(kMaxRank) + " dimensions");
    if (where_ == Where::kOffsets && list.size() == 2) return fail(here() + "data_offsets has more than two numbers");
    list.push_back(value);
    return true;
  }

  bool string(string_t& value) override {
    if (where_ == Where::kMetadata) {
      metadata[member_] = std::move(value);
      return true;
    }
    if (where_ != Where::kTensor || member_ != "dtype") return unexpected("text " + quoted_name(value));
    tensors.back().dtype = std::move(value);
    return true;
  }

  bool start_object(std::size_t) override {
    switch (where_) {
      case Where::kBegin:
        where_ = Where::kTop;
        return true;
      case Where::kTop:
        where_ = member_ == kMetadataName ? Where::kMetadata : Where::kTensor;
        break;
      default:
        return unexpected("an object");
    }
    if (where_ == Where::kTensor) tensors.push_back({member_, {}, {}, {}});
    return true;
  }

  bool key(string_t& name) override {
    if (where_ == Where::kTop) {
      if (!names_.insert(name).second) return fail(tensor_prefix(name) + "the name is there twice");
    } else if (where_ == Where::kMetadata) {
      if (metadata.count(name) != 0) return fail("metadata member " + quoted_name(name) + " is there twice");
    } else {
      const Raw& tensor = tensors.back();
      const bool twice = (name == "dtype" && tensor.dtype) || (name == "shape" && tensor.shape) ||
                         (name == "data_offsets" && tensor.offsets);
      if (twice) return fail(here() + name + " is there twice");
      if (name != "dtype" && name != "shape" && name != "data_offsets")
        return fail(here() + "member " + quoted_name(name) + " is not one of dtype, shape, data_offsets");
    }
    member_ = std::move(name);
    return true;
  }

  bool end_object() override {
    where_ = where_ == Where::kTop ? Where::kEnd : Where::kTop;
    return true;
  }

  bool start_array(std::size_t) override {
    if (where_ != Where::kTensor || member_ == "dtype") return unexpected("a list");
    where_ = member_ == "shape" ? Where::kShape : Where::kOffsets;
    (where_ == Where::kShape ? tensors.back().shape : tensors.back().offsets).emplace();
    return true;
  }

  bool end_array() override {
    where_ = Where::kTensor;
    return true;
  }

  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception& exception) override {
    std::string reason = exception.what();
    for (char& c : reason)
      if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = '?';
    return fail("the header is not JSON at its byte " + std::to_string(position) + " (" + reason.substr(0, 200) + ")");
  }

  std::vector<Raw> tensors;
  SafetensorsMetadata metadata;
  std::string error;

 private:
  enum class Where { kBegin, kTop, kTensor, kShape, kOffsets, kMetadata, kEnd };

  std::string here() const { return tensor_prefix(tensors.back().name); }

  bool fail(std::string reason) {
    if (error.empty()) error = std::move(reason);
    return false;
  }

  bool unexpected(const std::string& what) {
    switch (where_) {
      case Where::kBegin:
      case Where::kEnd:
        return fail("the header is " + what + ", must be an object");
      case Where::kTop:
        return fail(tensor_prefix(member_) + "is " + what + ", must be an object");
      case Where::kMetadata:
        return fail("metadata member " + quoted_name(member_) + " is " + what + ", must be text");
      case Where::kTensor:
        return fail(here() + member_ + " is " + what + ", must be " +
                    (member_ == "dtype" ? "text" : "a list of numbers"));
      case Where::kShape:
        return fail(here() + "shape contains " + what + ", must contain whole numbers from 0");
      case Where::kOffsets:
        return fail(here() + "data_offsets contains " + what + ", must contain whole numbers from 0");
    }
    return false;
  }

  Where where_ = Where::kBegin;
  std::string member_;
  std::set<std::string> names_;
};

Result<HeaderEvents> parse_events(std::string_view text) {
  HeaderEvents events;
  if (text.empty() || text.front() != '{')
    return invalid_argument("the header does not begin with {, it is not safetensors");
  // The JSON library takes a zero byte for the end of the text.
  if (const auto zero = text.find('\0'); zero != std::string_view::npos)
    return invalid_argument("the header has a zero byte at its byte " + std::to_string(zero));
  try {
    if (!json::sax_parse(text.begin(), text.end(), &events)) return invalid_argument(events.error);
  } catch (const std::exception& exception) {
    return invalid_argument(std::string("the header cannot be parsed: ") + exception.what());
  }
  return events;
}

Result<TensorEntry> check_tensor(HeaderEvents::Raw raw, std::uint64_t data_bytes) {
  const std::string prefix = tensor_prefix(raw.name);
  for (const auto& [member, present] : {std::pair<const char*, bool>{"dtype", raw.dtype.has_value()},
                                        {"shape", raw.shape.has_value()},
                                        {"data_offsets", raw.offsets.has_value()}})
    if (!present) return invalid_argument(prefix + member + " is missing");
  if (raw.offsets->size() != 2)
    return invalid_argument(prefix + "data_offsets has " + std::to_string(raw.offsets->size()) +
                            " numbers, must have two");

  TensorEntry entry;
  auto dtype = parse_dtype(*raw.dtype);
  if (!dtype.ok()) return with_context(dtype.error(), "tensor " + quoted_name(raw.name));
  entry.dtype = *dtype;
  auto bytes = tensor_bytes(*dtype, *raw.shape);
  if (!bytes.ok()) return with_context(bytes.error(), "tensor " + quoted_name(raw.name));
  entry.bytes = *bytes;
  entry.elements = entry.bytes / dtype_bytes(entry.dtype);

  const std::uint64_t begin = (*raw.offsets)[0];
  const std::uint64_t end = (*raw.offsets)[1];
  const std::string offsets = "data_offsets " + shape_text(*raw.offsets);
  if (begin > end) return invalid_argument(prefix + offsets + " end before they begin");
  if (end > data_bytes)
    return invalid_argument(prefix + offsets + " reach beyond the file's " + std::to_string(data_bytes) +
                            " bytes of data");
  if (end - begin != entry.bytes)
    return invalid_argument(prefix + offsets + " hold " + std::to_string(end - begin) + " bytes, but " +
                            std::string(dtype_name(entry.dtype)) + " " + shape_text(*raw.shape) + " needs " +
                            std::to_string(entry.bytes));
  entry.offset = begin;
  entry.name = std::move(raw.name);
  entry.shape = std::move(*raw.shape);
  return entry;
}

// The tensors, sorted by offset, must cover the data area exactly.
Result<void> check_coverage(const std::vector<TensorEntry>& tensors, std::uint64_t data_bytes) {
  std::uint64_t covered = 0;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const TensorEntry& tensor = tensors[i];
    if (tensor.offset < covered)
      return invalid_argument(tensor_prefix(tensor.name) + "begins at byte " + std::to_string(tensor.offset) +
                              " of the data, inside tensor " + quoted_name(tensors[i - 1].name) + " which ends at " +
                              std::to_string(covered));
    if (tensor.offset > covered)
      return invalid_argument(tensor_prefix(tensor.name) + "begins at byte " + std::to_string(tensor.offset) +
                              " of the data, which leaves a gap from byte " + std::to_string(covered));
    covered += tensor.bytes;
  }
  if (covered != data_bytes)
    return invalid_argument("the tensors end at byte " + std::to_string(covered) + " of the data, the file has " +
                            std::to_string(data_bytes) +
                            (tensors.empty() ? "" : "; the last tensor is " + quoted_name(tensors.back().name)));
  return {};
}

}  // namespace

Result<std::uint64_t> tensor_bytes(DType dtype, std::span<const std::uint64_t> shape) {
  // A zero anywhere makes the tensor empty, whatever the other sizes; they are still checked against overflow.
  std::uint64_t bytes = dtype_bytes(dtype);
  bool empty = false;
  for (const std::uint64_t size : shape) {
    if (size == 0) {
      empty = true;
    } else if (size > kMaxBytes / bytes) {
      return invalid_argument("shape " + shape_text(shape) + " of " + std::string(dtype_name(dtype)) +
                              " is larger than any file can be");
    } else {
      bytes *= size;
    }
  }
  return empty ? 0 : bytes;
}

Result<SafetensorsHeader> parse_safetensors_header(std::span<const std::byte> front, std::uint64_t file_bytes) {
  constexpr std::uint64_t kLengthWord = 8;
  if (file_bytes < kLengthWord || front.size() < kLengthWord)
    return invalid_argument("the file has " + std::to_string(std::min<std::uint64_t>(file_bytes, front.size())) +
                            " bytes, a safetensors file has at least 8");
  std::uint64_t length;
  std::memcpy(&length, front.data(), sizeof length);
  if (length > kMaxSafetensorsHeader)
    return invalid_argument("the header claims " + std::to_string(length) + " bytes, at most " +
                            std::to_string(kMaxSafetensorsHeader) + " are allowed; is this a safetensors file?");
  if (length > file_bytes - kLengthWord || length > front.size() - kLengthWord)
    return invalid_argument("the header claims " + std::to_string(length) + " bytes, the file has only " +
                            std::to_string(std::min<std::uint64_t>(file_bytes, front.size()) - kLengthWord) +
                            " after its length: it is truncated");

  const auto* text = reinterpret_cast<const char*>(front.data()) + kLengthWord;
  SKERRY_ASSIGN(HeaderEvents events, parse_events({text, static_cast<std::size_t>(length)}));

  SafetensorsHeader header;
  header.metadata = std::move(events.metadata);
  header.data_begin = kLengthWord + length;
  header.data_bytes = file_bytes - header.data_begin;
  header.tensors.reserve(events.tensors.size());
  for (HeaderEvents::Raw& raw : events.tensors) {
    SKERRY_ASSIGN(TensorEntry entry, check_tensor(std::move(raw), header.data_bytes));
    header.tensors.push_back(std::move(entry));
  }
  std::sort(header.tensors.begin(), header.tensors.end(), [](const TensorEntry& a, const TensorEntry& b) {
    if (a.offset != b.offset) return a.offset < b.offset;
    if (a.bytes != b.bytes) return a.bytes < b.bytes;
    return a.name < b.name;
  });
  SKERRY_TRY(check_coverage(header.tensors, header.data_bytes));
  return header;
}

Result<std::string> make_safetensors_header(std::span<const TensorSpec> tensors, const SafetensorsMetadata& metadata) {
  const auto json_text = [](const std::string& text) { return json(text).dump(); };  // throws where it is not UTF-8
  std::set<std::string_view> names;
  std::uint64_t offset = 0;
  std::string out(8, '\0');
  try {
    out += '{';
    const auto separate = [&out] {
      if (out.back() != '{') out += ',';
    };
    if (!metadata.empty()) {
      out += json_text(std::string(kMetadataName)) + ":{";
      for (const auto& [key, value] : metadata) {
        separate();
        out += json_text(key) + ":" + json_text(value);
      }
      out += '}';
    }
    for (const TensorSpec& tensor : tensors) {
      if (tensor.name == kMetadataName || !names.insert(tensor.name).second)
        return invalid_argument(tensor_prefix(tensor.name) +
                                (tensor.name == kMetadataName ? "the name is reserved" : "the name is there twice"));
      if (tensor.shape.size() > kMaxRank)
        return invalid_argument(tensor_prefix(tensor.name) + "shape has more than " + std::to_string(kMaxRank) +
                                " dimensions");
      auto bytes = tensor_bytes(tensor.dtype, tensor.shape);
      if (!bytes.ok()) return with_context(bytes.error(), "tensor " + quoted_name(tensor.name));
      if (*bytes > kMaxBytes - offset)
        return invalid_argument(tensor_prefix(tensor.name) + "the file would be larger than any file can be");
      separate();
      out += json_text(tensor.name) + ":{\"dtype\":\"" + std::string(dtype_name(tensor.dtype)) + "\",\"shape\":[";
      for (std::size_t i = 0; i < tensor.shape.size(); ++i)
        out += (i == 0 ? "" : ",") + std::to_string(tensor.shape[i]);
      out += "],\"data_offsets\":[" + std::to_string(offset) + "," + std::to_string(offset + *bytes) + "]}";
      offset += *bytes;
    }
    out += '}';
  } catch (const std::exception& exception) {
    return invalid_argument(std::string("a tensor's name or metadata cannot be written as JSON: ") + exception.what());
  }
  out.append((kSafetensorsAlignment - out.size() % kSafetensorsAlignment) % kSafetensorsAlignment, ' ');
  const std::uint64_t length = out.size() - 8;
  if (length > kMaxSafetensorsHeader)
    return invalid_argument("the header would have " + std::to_string(length) + " bytes, at most " +
                            std::to_string(kMaxSafetensorsHeader) + " are allowed; write fewer tensors a file");
  std::memcpy(out.data(), &length, sizeof length);
  return out;
}

}  // namespace skerry
