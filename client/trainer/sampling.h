// Choosing the next byte from a model's logits, again and again.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "common/base/result.h"

namespace skerry::trainer {

/// Draw `position` of the stream that `seed` names: an index into `logits` (not empty), distributed as
/// softmax(logits / temperature) over the `top_k` largest (0: all; of equal ones the lower index first). Temperature 0:
/// the largest. The same arguments give the same index.
std::size_t draw_class(std::span<const float> logits, double temperature, std::uint64_t top_k, std::uint64_t seed,
                       std::uint64_t position);

class Engine;

struct SamplingOptions {
  std::uint64_t tokens = 100;
  double temperature = 1.0;
  std::uint64_t top_k = 0;
  std::uint64_t seed = 0;
};

/// What a text model says after `prompt` (empty: after a line feed), seeing the last `context` bytes. `between` is
/// called before every byte; its error ends the work.
Result<std::string> continue_prompt(Engine& engine, std::size_t context, std::string_view prompt,
                                    const SamplingOptions& options, const std::function<Result<void>()>& between);

}  // namespace skerry::trainer
