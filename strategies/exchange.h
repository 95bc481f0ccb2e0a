// Exchange: which fragments travel when, and encoded how.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/config/run_spec.h"

namespace skerry::strategies {

/// The part as a preset says it. Exactly one of `inner_steps` and `epochs` is above 0.
struct Exchange {
  std::uint64_t inner_steps = 0;
  double epochs = 0;
  std::uint64_t fragments = 1;
  ExchangeSpec::Schedule schedule = ExchangeSpec::Schedule::kWhole;
  std::string up = "f32";
  std::string down = "f32";
  std::uint64_t overlap = 0;
  std::string merge = "lerp";
  bool block = true;
};

struct WholeModel {
  std::uint64_t inner_steps = 0;
  double epochs = 0;
  std::string up = "f32";
  std::string down = "f32";
  std::uint64_t overlap = 0;
  std::string merge = "lerp";
};

/// The whole model in every exchange.
Exchange whole_model(WholeModel options);

/// Lanes: the sets of fragments that are exchanged together, each with exchanges of its own. `whole` has one lane of
/// all `fragments`; `staggered` has one for each, taken in turn.
std::vector<std::vector<std::uint32_t>> lanes(const ExchangeSpec& spec, std::uint32_t fragments);

}  // namespace skerry::strategies
