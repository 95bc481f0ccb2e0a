#include "client/trainer/sampling.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <utility>

#include "client/trainer/engine.h"
#include "client/trainer/tokenizer.h"
#include "common/model/philox.h"

namespace skerry::trainer {

std::size_t draw_class(std::span<const float> logits, const ChoiceOptions& options, std::uint64_t position) {
  std::vector<std::size_t> order(logits.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return logits[a] > logits[b]; });
  if (options.temperature == 0) return order[0];
  if (options.top_k != 0 && options.top_k < order.size()) order.resize(options.top_k);
  std::vector<double> shares;
  double total = 0;
  for (const std::size_t index : order) {
    shares.push_back(std::exp((static_cast<double>(logits[index]) - logits[order[0]]) / options.temperature));
    total += shares.back();
  }
  if (options.top_p < 1) {
    double kept = 0;
    std::size_t count = 0;
    while (count < shares.size() && (count == 0 || kept < options.top_p * total)) kept += shares[count++];
    shares.resize(count);
    total = kept;
  }
  double left = uniform_from(PhiloxStream(options.seed, stream_of_name("generate")).word(position)) * total;
  for (std::size_t i = 0; i < shares.size(); ++i) {
    left -= shares[i];
    if (left < 0) return order[i];
  }
  return order[shares.size() - 1];
}

Result<std::vector<std::int64_t>> continue_tokens(Engine& engine, std::size_t context, std::vector<std::int64_t> prompt,
                                                  const SamplingOptions& options,
                                                  const std::function<Result<void>()>& between) {
  std::vector<std::int64_t> text = std::move(prompt);
  const std::size_t begin = text.size();
  std::unique_ptr<Reader> reader;
  std::size_t read = 0;  // tokens that the reader has read
  for (std::uint64_t i = 0; i < options.tokens; ++i) {
    SKERRY_TRY(between());
    // Every token is seen from the window's beginning: once the window is full, it moves, and is read anew.
    if (!options.cached || reader == nullptr || text.size() > context) {
      reader = engine.reader();
      read = text.size() - std::min(text.size(), context);
    }
    SKERRY_ASSIGN(const std::vector<float> logits, reader->read(std::span(text).subspan(read)));
    read = text.size();
    const auto next = static_cast<std::int64_t>(draw_class(logits, options.choice, i));
    if (options.end && next == *options.end) break;
    text.push_back(next);
  }
  text.erase(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(begin));
  return text;
}

Result<std::string> continue_prompt(Engine& engine, std::size_t context, const Tokenizer& tokenizer,
                                    std::string_view prompt, const SamplingOptions& options,
                                    const std::function<Result<void>()>& between) {
  std::vector<std::int64_t> tokens;
  SKERRY_TRY(tokenizer.encode(prompt.empty() ? std::string_view("\n") : prompt, tokens));
  if (tokens.empty()) return invalid_argument("the prompt has no tokens");
  SKERRY_ASSIGN(const std::vector<std::int64_t> said,
                continue_tokens(engine, context, std::move(tokens), options, between));
  return tokenizer.decode(said);
}

}  // namespace skerry::trainer
