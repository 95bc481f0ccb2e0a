#include "common/model/initialise.h"

#include <algorithm>
#include <vector>

#include "common/model/fragment_file.h"
#include "common/model/philox.h"
#include "common/tensor/text.h"

namespace skerry {
namespace {

// The four elements that come from one Philox block.
struct Quad {
  float values[4];
};

Quad quad(const Initialiser& initialiser, PhiloxCounter words) {
  if (initialiser.kind == Initialiser::Kind::kUniform) {
    Quad out;
    for (int i = 0; i < 4; ++i)
      out.values[i] = static_cast<float>(initialiser.scale * (2.0 * uniform_from(words[i]) - 1.0));
    return out;
  }
  const NormalPair low = normal_pair(words[0], words[1]);
  const NormalPair high = normal_pair(words[2], words[3]);
  const double scale = initialiser.scale;
  return {{static_cast<float>(scale * low.first), static_cast<float>(scale * low.second),
           static_cast<float>(scale * high.first), static_cast<float>(scale * high.second)}};
}

}  // namespace

void initialise_tensor(const TensorLayout& tensor, std::uint64_t seed, std::uint64_t first, std::span<float> out) {
  const Initialiser& initialiser = tensor.initialiser;
  if (initialiser.kind == Initialiser::Kind::kZeros || initialiser.kind == Initialiser::Kind::kOnes) {
    std::fill(out.begin(), out.end(), initialiser.kind == Initialiser::Kind::kOnes ? 1.0f : 0.0f);
    return;
  }
  const PhiloxStream stream(seed, stream_of_name(tensor.name));
  for (std::size_t done = 0; done < out.size();) {
    const std::uint64_t element = first + done;
    const Quad four = quad(initialiser, stream.block(element / 4));
    const std::size_t skip = element % 4;
    const std::size_t take = std::min<std::size_t>(4 - skip, out.size() - done);
    std::copy_n(four.values + skip, take, out.begin() + static_cast<std::ptrdiff_t>(done));
    done += take;
  }
}

Result<void> initialise_fragment(const ModelLayout& layout, std::string_view fragment, std::uint64_t seed,
                                 std::uint64_t first, std::span<float> out) {
  const FragmentLayout* found = layout.find_fragment(fragment);
  if (found == nullptr) return not_found("the model has no fragment " + quoted_name(fragment));
  if (first > found->elements || out.size() > found->elements - first)
    return Error{Code::kOutOfRange, "fragment " + quoted_name(fragment) + " has " + std::to_string(found->elements) +
                                        " elements, asked for " + std::to_string(out.size()) + " from " +
                                        std::to_string(first)};
  if (found->role == FragmentRole::kControl) {
    std::fill(out.begin(), out.end(), 0.0f);
    return {};
  }
  for (const std::size_t index : found->tensors) {
    const TensorLayout& tensor = layout.tensors[index];
    const std::uint64_t begin = std::max(first, tensor.offset);
    const std::uint64_t end = std::min(first + out.size(), tensor.offset + tensor.elements);
    if (begin < end) initialise_tensor(tensor, seed, begin - tensor.offset, out.subspan(begin - first, end - begin));
  }
  return {};
}

Result<void> write_initial_fragment(const ModelLayout& layout, std::string_view fragment, std::uint64_t seed,
                                    const std::string& path, Durability durability) {
  SKERRY_ASSIGN(const std::vector<TensorSpec> tensors, fragment_tensors(layout, fragment));
  SKERRY_ASSIGN(SafetensorsWriter writer, SafetensorsWriter::create(path, tensors, {}, durability));
  constexpr std::uint64_t kBlock = 256 * 1024;
  const std::uint64_t elements = layout.find_fragment(fragment)->elements;
  std::vector<float> block(std::min(kBlock, elements));
  for (std::uint64_t first = 0; first < elements; first += kBlock) {
    const auto values = std::span(block).first(std::min(kBlock, elements - first));
    SKERRY_TRY(initialise_fragment(layout, fragment, seed, first, values));
    SKERRY_TRY(writer.append(std::as_bytes(values)));
  }
  return writer.finish();
}

}  // namespace skerry
