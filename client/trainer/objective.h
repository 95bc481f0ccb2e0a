// What a client's objective adds to the gradient: FedProx's pull towards the received model, SCAFFOLD's control
// variates.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "client/trainer/options.h"

namespace skerry::trainer {

/// What a trainer remembers for its objective, besides tensors and optimizer: one value for each exchanged parameter in
/// each vector that the objective uses (none: empty).
struct ObjectiveState {
  std::vector<float> received;      ///< both: the tensors as they were last received, w_global and x in the papers
  std::vector<float> control;       ///< SCAFFOLD: c as received; after a task what stands in its place in the update
  std::vector<float> own_control;   ///< c_i
  std::vector<float> next_control;  ///< c_i⁺, which becomes c_i if the update of `next_task` counts
  std::string next_task;            ///< empty: no task's fate is awaited
  double rates = 0;                 ///< sum of the learning rates of the task's steps so far

  friend bool operator==(const ObjectiveState&, const ObjectiveState&) = default;
};

/// The state before the first task: zeros for `exchanged` values.
ObjectiveState fresh_objective(const ObjectiveOptions& options, std::size_t exchanged);

/// A task begins, of which `counted` says the latest task whose update is part of a model (empty: none): c_i becomes
/// c_i⁺ where that is the task which made it; otherwise c_i⁺ is forgotten.
void begin_task(ObjectiveState& state, std::string_view counted);

/// Makes the loss's gradient that of the objective: plus μ(w − w_global), plus c − c_i. Parameters and gradient are the
/// exchanged ones. Sources: arXiv 1812.06127, equation 2; arXiv 1910.06378, algorithm 1.
void add_objective(const ObjectiveOptions& options, const ObjectiveState& state, std::span<const float> parameters,
                   std::span<float> gradient);

/// The task has ended with these parameters y. SCAFFOLD's option II: c_i⁺ = c_i − c + (x − y)/Ση, and the update
/// carries c + (c_i⁺ − c_i), which is (x − y)/Ση. (η is the learning rate of each step; where it is constant, Ση = Kη.)
void end_task(const ObjectiveOptions& options, ObjectiveState& state, const std::string& task,
              std::span<const float> parameters);

}  // namespace skerry::trainer
