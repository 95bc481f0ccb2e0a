// Any bytes as a payload of each encoding: refused, or decoded to finite values, the same whole and in parts.
//
// Byte 0 is the encoding, bytes 1 and 2 the number of elements (missing bytes of the payload are zeros), the rest the payload.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "common/codec/encoding.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 3) return 0;
  const auto names = skerry::known_encodings();
  const skerry::Encoding& encoding = **skerry::find_encoding(names[data[0] % names.size()]);
  const std::size_t count = data[1] + 256u * data[2] + (data[0] >= 128 ? 65'000u : 0u);  // also more than one block of int8
  const auto given = std::as_bytes(std::span(data + 3, size - 3));
  if (given.size() != encoding.encoded_bytes(count) && encoding.validate(given, 0, count).ok()) std::abort();

  std::vector<std::byte> payload(encoding.encoded_bytes(count));
  std::copy_n(given.begin(), std::min(given.size(), payload.size()), payload.begin());
  std::vector<float> values(count);
  encoding.decode(payload, values);
  const auto checked = encoding.validate(payload, 0, count);
  if (!checked.ok()) {
    if (checked.error().message.empty() || checked.error().message.size() > 300) std::abort();
    return 0;
  }
  for (const float value : values) {
    if (!std::isfinite(value)) std::abort();
  }
  const std::size_t first = count / 3 / encoding.part_elements() * encoding.part_elements();
  std::vector<float> part(count - first);
  decode_at(encoding, payload, first, part);
  if (!part.empty() && std::memcmp(part.data(), values.data() + first, 4 * part.size()) != 0) std::abort();

  // What decodes can be encoded again, and that is valid, too.
  encoding.encode(values, 0, {}, payload);
  if (!encoding.validate(payload, 0, count).ok()) std::abort();
  return 0;
}
