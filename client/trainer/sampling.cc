#include "client/trainer/sampling.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "client/trainer/engine.h"
#include "common/model/philox.h"

namespace skerry::trainer {

std::size_t draw_class(std::span<const float> logits, double temperature, std::uint64_t top_k, std::uint64_t seed,
                       std::uint64_t position) {
  std::vector<std::size_t> order(logits.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return logits[a] > logits[b]; });
  if (temperature == 0) return order[0];
  if (top_k != 0 && top_k < order.size()) order.resize(top_k);
  std::vector<double> shares;
  double total = 0;
  for (const std::size_t index : order) {
    shares.push_back(std::exp((static_cast<double>(logits[index]) - logits[order[0]]) / temperature));
    total += shares.back();
  }
  double left = uniform_from(PhiloxStream(seed, stream_of_name("generate")).word(position)) * total;
  for (std::size_t i = 0; i < order.size(); ++i) {
    left -= shares[i];
    if (left < 0) return order[i];
  }
  return order.back();
}

Result<std::string> continue_prompt(Engine& engine, std::size_t context, std::string_view prompt,
                                    const SamplingOptions& options, const std::function<Result<void>()>& between) {
  std::string text(prompt.empty() ? std::string_view("\n") : prompt);
  const std::size_t begin = text.size();
  for (std::uint64_t i = 0; i < options.tokens; ++i) {
    SKERRY_TRY(between());
    const std::string_view seen = text;
    const std::string_view window = seen.substr(seen.size() - std::min(seen.size(), context));
    SKERRY_ASSIGN(const std::vector<float> logits, engine.next_byte_logits(window));
    text += static_cast<char>(draw_class(logits, options.temperature, options.top_k, options.seed, i));
  }
  return text.substr(begin);
}

}  // namespace skerry::trainer
