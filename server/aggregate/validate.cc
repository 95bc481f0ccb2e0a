#include "server/aggregate/validate.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "common/codec/encoding.h"
#include "common/tensor/kernels.h"
#include "server/aggregate/inputs.h"
#include "server/aggregate/kernels.h"

namespace skerry::server {
namespace {

constexpr std::size_t kPieceElements = 16384;  // stays in cache while it is measured
constexpr std::uint64_t kDropBytes = 4u << 20;

std::string shown(double value) {
  char buffer[32];
  std::snprintf(buffer, sizeof buffer, "%.6g", value);
  return buffer;
}

}  // namespace

Result<UpdateStatistics> validate_update(std::string_view encoding_name, const Payload& payload, std::uint64_t elements,
                                         double maximum_norm, std::span<const strategies::TensorRange> tensors) {
  SKERRY_ASSIGN(const Encoding* encoding, find_encoding(encoding_name));
  SKERRY_ASSIGN(const Source source, Source::open(payload, "update"));
  const std::uint64_t expected = encoding->encoded_bytes(elements);
  if (source.bytes().size() != expected) {
    return invalid_argument("the update has " + std::to_string(source.bytes().size()) + " bytes; " +
                            std::to_string(elements) + " elements in " + std::string(encoding_name) + " have " +
                            std::to_string(expected));
  }
  const std::uint64_t block = encoding->block_elements();
  const std::uint64_t piece = (kPieceElements + block - 1) / block * block;
  const Scratch decoded(std::min(piece, elements) * sizeof(float));
  double squares = 0;
  std::uint64_t dropped = 0;  // bytes before this one are no longer in memory
  for (std::uint64_t first = 0; first < elements; first += piece) {
    const std::size_t count = std::min(piece, elements - first);
    const std::uint64_t begin = encoding->encoded_bytes(first);
    const auto bytes = source.bytes().subspan(begin, encoding->encoded_bytes(count));
    const float* values = decoded.as<float>();
    if (encoding->name() == "f32") {
      values = source.floats(begin, count, decoded.as<float>());
    } else {
      if (encoding->block_elements() > 1) SKERRY_TRY(encoding->validate(bytes, first, count));  // scales and codebooks
      encoding->decode(bytes, {decoded.as<float>(), count});
    }
    const double piece_squares = sum_of_squares(values, count);
    if (!std::isfinite(piece_squares)) {
      SKERRY_TRY(source.check());
      const std::uint64_t bad = std::min<std::uint64_t>(first_non_finite({values, count}), count - 1);
      return invalid_argument("the update's " + element_text(first + bad, tensors) + " is " +
                              non_finite_text(values[bad]) + ", must be finite");
    }
    squares += piece_squares;
    if (begin + bytes.size() - dropped >= kDropBytes) {
      source.drop(dropped, begin + bytes.size() - dropped);
      dropped = begin + bytes.size();
    }
  }
  SKERRY_TRY(source.check());
  const double norm = std::sqrt(squares);
  if (maximum_norm > 0 && norm > maximum_norm) {
    return invalid_argument("the update's norm is " + shown(norm) + ", must be at most " + shown(maximum_norm));
  }
  return UpdateStatistics{norm};
}

}  // namespace skerry::server
