// Initial tensors of a layout: element i of a tensor depends only on (seed, tensor name, i), so that any block can be
// made alone, by any thread, by the server and by every trainer, with the same bits.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "common/base/result.h"
#include "common/model/layout.h"
#include "common/tensor/safetensors.h"

namespace skerry {

/// Elements first … first + out.size() − 1 of `tensor`.
void initialise_tensor(const TensorLayout& tensor, std::uint64_t seed, std::uint64_t first, std::span<float> out);

/// Elements first … first + out.size() − 1 of the fragment's vector (layout order).
/// OUT_OF_RANGE where the range leaves the fragment; NOT_FOUND where the layout has no such fragment.
Result<void> initialise_fragment(const ModelLayout& layout, std::string_view fragment, std::uint64_t seed,
                                 std::uint64_t first, std::span<float> out);

/// Writes the fragment's initial version as a fragment file (model/fragment_file.h), a block at a time.
/// Errors: NOT_FOUND (no such fragment), those of writing a file.
Result<void> write_initial_fragment(const ModelLayout& layout, std::string_view fragment, std::uint64_t seed,
                                    const std::string& path, Durability durability = Durability::kDurable);

}  // namespace skerry
