// Presets: the named strategies, each composed of the five parts.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "strategies/evaluation.h"
#include "strategies/exchange.h"
#include "strategies/part.h"
#include "strategies/participation.h"

namespace skerry::strategies {

/// What trainers are told of how to train.
struct Objective {
  std::string optimizer = {};     ///< the inner one of the method's paper; empty: training.optimizer's default
  std::string schedule = "constant";  ///< of the inner learning rate, over the run
  double final_fraction = 0;          ///< of it, at the schedule's end
  double clip_norm = 0;               ///< of the gradient; 0: off
  double proximal = 0;            ///< FedProx's μ
  bool control_variates = false;  ///< SCAFFOLD
  bool start_loss = false;        ///< report the loss of the model that a task starts from
};

struct Preset {
  std::string name;
  std::string meaning;      ///< what it is, in one line
  std::string source;       ///< the paper, for example "arXiv 1602.05629, algorithm 1"
  std::string when_to_use;  ///< a sentence or two
  Participation participation;
  Exchange exchange;
  Part aggregation;
  Part outer;
  Evaluation evaluation;
  Objective objective = {};
  std::string also = {};  ///< TOML that a run spec says besides, for example which node is trusted
};

/// All of them, by name.
std::span<const Preset> presets();

/// The preset of that name; nullptr if there is none.
const Preset* find_preset(std::string_view name);

/// A run spec in TOML that names the preset, says what it must and leaves the rest to defaults.
std::string minimal_run_spec(const Preset& preset);

}  // namespace skerry::strategies
