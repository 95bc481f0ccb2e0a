#include "strategies/exchange.h"

#include <numeric>
#include <utility>

namespace skerry::strategies {

Exchange whole_model(WholeModel options) {
  return {.inner_steps = options.inner_steps,
          .epochs = options.epochs,
          .up = std::move(options.up),
          .down = std::move(options.down),
          .overlap = options.overlap,
          .merge = std::move(options.merge)};
}

std::vector<std::vector<std::uint32_t>> lanes(const ExchangeSpec& spec, std::uint32_t fragments) {
  std::vector<std::uint32_t> all(fragments);
  std::iota(all.begin(), all.end(), 0u);
  if (spec.schedule == ExchangeSpec::Schedule::kWhole) return {all};
  std::vector<std::vector<std::uint32_t>> out;
  for (const auto fragment : all) out.push_back({fragment});
  return out;
}

}  // namespace skerry::strategies
