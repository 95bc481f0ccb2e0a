// How a vector of f32 values (an update, an outer step) travels: the interface of every encoding, and those there are.
//
// docs/encodings.md specifies each byte by byte. A payload is the bare encoded vector, without a header: its length
// follows from the number of elements. One property carries everything block-wise: an encoding cuts the vector into
// blocks of `block_elements()` (the last may be short), and the payload is the blocks' payloads one after another. So
// the bytes of elements [a, b) with a a multiple of the block (and b too, or the vector's end) start at
// encoded_bytes(a), number encoded_bytes(b − a), and are encoded or decoded without the rest.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "common/base/result.h"

namespace skerry {

/// How an encoder takes one of the two codes beside a value: the nearer one, or by chance such that the mean is the value.
/// Chance is Philox4x32-10 (common/codec/philox.h) of (seed, stream, element), so that bytes do not depend on how the
/// vector was cut, on threads or on the machine.
struct Rounding {
  bool stochastic = false;
  std::uint64_t seed = 0;    ///< of the task or the exchange
  std::uint64_t stream = 0;  ///< rounding_stream() of the fragment
};

/// The stream of a fragment's random bits: FNV-1a (64 bits) of its name.
std::uint64_t rounding_stream(std::string_view fragment);

/// What decoding may differ from what was encoded: |decoded − x| ≤ relative · |x| + absolute + of_largest · m for every
/// finite x of magnitude up to `reach`, where m is the largest magnitude in the block of x.
struct ErrorBound {
  double relative = 0.0;
  double absolute = 0.0;
  double of_largest = 0.0;
  bool unbiased = false;  ///< over the seeds, the mean of the decoded value is x (true where it is exact)
  double reach = 3.5e38;  ///< larger magnitudes become the largest that the encoding has
};

class Encoding {
 public:
  virtual ~Encoding() = default;

  /// Its name in run specs and messages, for example "bf16".
  virtual std::string_view name() const = 0;

  /// The granularity at which a payload can be cut; 1 for element-wise encodings.
  virtual std::uint64_t block_elements() const = 0;

  /// A block begins with this many bytes that each part of it needs (a codebook); its elements' bytes follow.
  virtual std::uint64_t prefix_bytes() const { return 0; }

  /// The granularity at which a block can be decoded in parts, given its prefix: a divisor of block_elements().
  virtual std::uint64_t part_elements() const { return block_elements(); }

  /// Bytes of a payload of `count` elements. It must not overflow: count ≤ kMaxModelElements in model/layout.h.
  virtual std::uint64_t encoded_bytes(std::uint64_t count) const = 0;

  virtual ErrorBound error_bound(bool stochastic) const = 0;

  /// Encodes the elements first … first + values.size() − 1 of a vector into `payload`, exactly
  /// encoded_bytes(values.size()) bytes. `first` is a multiple of block_elements(). Values that are not finite are encoded
  /// as such where the encoding has them, for validate() to refuse: callers check their own values first (blocks that share
  /// a scale or a codebook are then refused whole).
  virtual void encode(std::span<const float> values, std::uint64_t first, const Rounding& rounding,
                      std::span<std::byte> payload) const = 0;

  /// Decodes a part: `payload` holds exactly encoded_bytes(out.size()) bytes that start at a block's beginning. Any
  /// bytes are decodable (to garbage at worst): call validate() on what came from outside.
  virtual void decode(std::span<const std::byte> payload, std::span<float> out) const = 0;

  /// Decodes a part of one block: `prefix` is the block's, `values` the bytes of out.size() elements after it, from a
  /// multiple of part_elements() on.
  virtual void decode_part(std::span<const std::byte> prefix, std::span<const std::byte> values, std::span<float> out) const;

  /// Whether a part decodes to finite values: `payload` are the bytes of elements first … first + count − 1, from a
  /// block's beginning on.
  /// INVALID_ARGUMENT where its size is not encoded_bytes(count), or naming the first element (counted from the
  /// vector's beginning) or block that is not finite, and its value.
  virtual Result<void> validate(std::span<const std::byte> payload, std::uint64_t first, std::uint64_t count) const = 0;
};

/// Where a part of one block lies in a payload.
struct PartPlace {
  std::uint64_t prefix = 0;  ///< offset of the block's prefix_bytes()
  std::uint64_t values = 0;  ///< offset of the part's own bytes
  std::uint64_t bytes = 0;   ///< and their number
  std::size_t elements = 0;  ///< of the part: to the end of the block, or fewer where fewer are wanted
};

/// The place of the elements from `first`, a multiple of part_elements(), to the block's end, `most` of them at most.
PartPlace part_place(const Encoding& encoding, std::uint64_t first, std::uint64_t most);

/// Decodes elements first … first + out.size() − 1 of a whole payload. `first` is a multiple of part_elements(), and so is
/// the end, or it is the vector's.
void decode_at(const Encoding& encoding, std::span<const std::byte> payload, std::uint64_t first, std::span<float> out);

/// Error feedback: values[i] += share · residual[i], in float64 and rounded once to f32 …
void add_scaled(const float* residual, double share, std::size_t count, float* values);
/// … and residual[i] −= sent[i], in f32, when `residual` holds what was encoded and `sent` what that decodes to.
void subtract(const float* sent, std::size_t count, float* residual);

/// The encoding of that name; it lives for ever. INVALID_ARGUMENT listing the known names where there is none.
Result<const Encoding*> find_encoding(std::string_view name);

/// "f32", "bf16", …: every name find_encoding knows, in the order of docs/encodings.md.
std::vector<std::string_view> known_encodings();

}  // namespace skerry
