#include "common/model/fragment_file.h"

#include <algorithm>
#include <cstring>

#include "common/tensor/text.h"

namespace skerry {

Result<std::vector<TensorSpec>> fragment_tensors(const ModelLayout& layout, std::string_view fragment) {
  const FragmentLayout* found = layout.find_fragment(fragment);
  if (found == nullptr) return not_found("the model has no fragment " + quoted_name(fragment));
  std::vector<TensorSpec> tensors;
  tensors.reserve(found->tensors.size());
  for (const std::size_t index : found->tensors) {
    const TensorLayout& tensor = layout.tensors[index];
    tensors.push_back({tensor.name, tensor.dtype, tensor.shape});
  }
  return tensors;
}

Result<std::string> fragment_header(const ModelLayout& layout, std::string_view fragment) {
  SKERRY_ASSIGN(const std::vector<TensorSpec> tensors, fragment_tensors(layout, fragment));
  return make_safetensors_header(tensors);
}

Result<void> write_fragment_file(const std::string& path, const ModelLayout& layout, std::string_view fragment,
                                 std::span<const float> values, Durability durability) {
  SKERRY_ASSIGN(const std::vector<TensorSpec> tensors, fragment_tensors(layout, fragment));
  const std::uint64_t elements = layout.find_fragment(fragment)->elements;
  if (values.size() != elements)
    return invalid_argument(path + ": fragment " + quoted_name(fragment) + " has " + std::to_string(elements) +
                            " elements, was given " + std::to_string(values.size()));
  SKERRY_ASSIGN(SafetensorsWriter writer, SafetensorsWriter::create(path, tensors, {}, durability));
  SKERRY_TRY(writer.append(std::as_bytes(values)));
  return writer.finish();
}

Result<FragmentFile> FragmentFile::open(const std::string& path, const ModelLayout& layout, std::string_view fragment) {
  const FragmentLayout* found = layout.find_fragment(fragment);
  if (found == nullptr) return not_found("the model has no fragment " + quoted_name(fragment));
  SKERRY_ASSIGN(SafetensorsFile opened, SafetensorsFile::open(path));
  FragmentFile file(std::move(opened));
  file.elements_ = found->elements;
  for (const std::size_t index : found->tensors) {
    const TensorLayout& wanted = layout.tensors[index];
    const std::string prefix = path + ": tensor " + quoted_name(wanted.name);
    const TensorEntry* entry = file.file_.find(wanted.name);
    if (entry == nullptr)
      return invalid_argument(prefix + " is missing, fragment " + quoted_name(fragment) + " has it");
    if (entry->dtype != wanted.dtype)
      return invalid_argument(prefix + " is " + std::string(dtype_name(entry->dtype)) + ", must be " +
                              std::string(dtype_name(wanted.dtype)));
    if (entry->shape != wanted.shape)
      return invalid_argument(prefix + " has shape " + shape_text(entry->shape) + ", must be " +
                              shape_text(wanted.shape));
    file.parts_.push_back({wanted.offset, file.file_.bytes(*entry)});
  }
  if (file.file_.tensors().size() != found->tensors.size()) {
    for (const TensorEntry& entry : file.file_.tensors()) {
      const auto& own = found->tensors;
      if (std::none_of(own.begin(), own.end(),
                       [&](std::size_t index) { return layout.tensors[index].name == entry.name; }))
        return invalid_argument(path + ": tensor " + quoted_name(entry.name) + " does not belong to fragment " +
                                quoted_name(fragment));
    }
  }
  return file;
}

Result<void> FragmentFile::read(std::uint64_t first, std::span<float> out) const {
  if (first > elements_ || out.size() > elements_ - first)
    return Error{Code::kOutOfRange, file_.path() + ": the fragment has " + std::to_string(elements_) +
                                        " elements, asked for " + std::to_string(out.size()) + " from " +
                                        std::to_string(first)};
  // The last part that begins at or before `first`; later ones follow until the range is full.
  auto part = std::upper_bound(parts_.begin(), parts_.end(), first,
                               [](std::uint64_t element, const Part& each) { return element < each.first; });
  if (part != parts_.begin()) --part;
  for (; !out.empty() && part != parts_.end(); ++part) {
    const std::uint64_t skip = first - part->first;
    const std::uint64_t count = std::min<std::uint64_t>(part->bytes.size() / sizeof(float) - skip, out.size());
    if (count == 0) continue;
    std::memcpy(out.data(), part->bytes.data() + skip * sizeof(float), count * sizeof(float));
    out = out.subspan(count);
    first += count;
  }
  return file_.mapped().check();
}

std::optional<std::span<const float>> FragmentFile::values() const {
  const std::byte* begin = file_.data().data();
  if (reinterpret_cast<std::uintptr_t>(begin) % alignof(float) != 0) return std::nullopt;
  for (const Part& part : parts_)
    if (part.bytes.data() != begin + part.first * sizeof(float)) return std::nullopt;
  return std::span<const float>(reinterpret_cast<const float*>(begin), elements_);
}

}  // namespace skerry
