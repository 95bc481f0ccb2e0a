// Choosing the next token from a model's logits, again and again.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.h"

namespace skerry::trainer {

/// How the next token is chosen.
struct ChoiceOptions {
  double temperature = 1.0;  ///< 0: the likeliest
  std::uint64_t top_k = 0;   ///< among so many of the likeliest; 0: all
  double top_p = 1.0;        ///< among the fewest of the likeliest that together have at least this probability
  std::uint64_t seed = 0;
};

/// Draw `position` of the stream that the seed names: an index into `logits` (not empty), distributed as
/// softmax(logits / temperature) over those that top_k and then top_p leave (of equal ones the lower index first; at
/// least one). The same arguments give the same index.
std::size_t draw_class(std::span<const float> logits, const ChoiceOptions& options, std::uint64_t position);

class Engine;
class Tokenizer;

struct SamplingOptions {
  ChoiceOptions choice;
  std::uint64_t tokens = 100;
  std::optional<std::int64_t> end;  ///< the token after which a text is over
  bool cached = true;  ///< keep keys and values; otherwise the whole window is read for every token, to the same end
};

/// The tokens that a text model says after `prompt` (not empty), seeing the last `context` of them: at most
/// options.tokens, without `end`. `between` is called before every token; its error ends the work.
Result<std::vector<std::int64_t>> continue_tokens(Engine& engine, std::size_t context, std::vector<std::int64_t> prompt,
                                                  const SamplingOptions& options,
                                                  const std::function<Result<void>()>& between);

/// The same for text: what the model says after `prompt` (empty: after a line feed), as bytes. INVALID_ARGUMENT where
/// the prompt has no tokens.
Result<std::string> continue_prompt(Engine& engine, std::size_t context, const Tokenizer& tokenizer,
                                    std::string_view prompt, const SamplingOptions& options,
                                    const std::function<Result<void>()>& between);

}  // namespace skerry::trainer
