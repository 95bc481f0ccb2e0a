// The loops of the encodings for every SIMD target that the machine may have; each gives the same bytes on all of them.
//
// They take whole vectors, of which the last block may be short, and payloads at any address. docs/encodings.md says what each
// computes; `first` is the number of values[0] in its vector and matters to random bits alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "common/codec/encoding.h"

namespace skerry::codec_kernels {

/// The random words of elements first … first + words.size() − 1.
void random_words(const Rounding& rounding, std::uint64_t first, std::span<std::uint32_t> words);

/// The largest of the values' bits without their signs: above 0x7f7fffff exactly where one is not finite.
std::uint32_t largest_magnitude_bits(std::span<const float> values);

/// bits[i] = those of values[i] without the sign.
void magnitude_bits(std::span<const float> values, std::uint32_t* bits);

/// How many are at least `limit`.
std::size_t count_from(std::span<const std::uint32_t> bits, std::uint32_t limit);

void encode_bf16_at_random(std::span<const float> values, std::uint64_t first, const Rounding& rounding,
                           std::byte* payload);
void encode_f16(std::span<const float> values, std::uint64_t first, const Rounding& rounding, std::byte* payload);
void decode_f16(const std::byte* payload, std::span<float> out);

void encode_int8_block(std::span<const float> values, std::uint64_t first, const Rounding& rounding,
                       std::byte* payload);

void encode_int4(std::span<const float> values, std::uint64_t first, const Rounding& rounding, std::byte* payload);
void decode_int4(const std::byte* payload, std::span<float> out);

void encode_e3m0(std::span<const float> values, std::uint64_t first, const Rounding& rounding, std::byte* payload);
void decode_e3m0(const std::byte* payload, std::span<float> out);

void encode_sign(std::span<const float> values, std::uint64_t first, const Rounding& rounding, std::byte* payload);
void decode_sign(const std::byte* payload, std::span<float> out);

}  // namespace skerry::codec_kernels
