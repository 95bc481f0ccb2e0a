// What the encodings' validate() have in common. Internal to common/codec.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "common/codec/encoding.h"

namespace skerry {

/// INVALID_ARGUMENT with both sizes unless `payload` has the size of `count` elements.
Result<void> check_payload_size(const Encoding& encoding, std::span<const std::byte> payload, std::uint64_t count);

/// INVALID_ARGUMENT unless the f32 that `block` begins with is in [0, largest] and not −0. The block's elements are first … first + count − 1.
Result<void> check_scale(const Encoding& encoding, std::span<const std::byte> block, float largest, std::uint64_t first,
                         std::uint64_t count);

/// "elements 512 to 767"
std::string elements_text(std::uint64_t first, std::uint64_t count);

/// "NaN", "+infinity", "-infinity" or the number.
std::string value_text(float value);

}  // namespace skerry
