#include "client/trainer/objective.h"

#include <cassert>

namespace skerry::trainer {

ObjectiveState fresh_objective(const ObjectiveOptions& options, std::size_t exchanged) {
  ObjectiveState state;
  if (options.proximal > 0 || options.control_variates) state.received.assign(exchanged, 0.0f);
  if (options.control_variates) {
    state.control.assign(exchanged, 0.0f);
    state.own_control.assign(exchanged, 0.0f);
    state.next_control.assign(exchanged, 0.0f);
  }
  return state;
}

void begin_task(ObjectiveState& state, std::string_view counted) {
  if (!state.next_task.empty() && state.next_task == counted) state.own_control.swap(state.next_control);
  state.next_task.clear();
  state.rates = 0;
}

void add_objective(const ObjectiveOptions& options, const ObjectiveState& state, std::span<const float> parameters,
                   std::span<float> gradient) {
  assert(parameters.size() == gradient.size());
  const std::size_t count = gradient.size();
  if (options.proximal > 0) {
    const float pull = static_cast<float>(options.proximal);
    const float* received = state.received.data();
    for (std::size_t i = 0; i < count; ++i) gradient[i] += pull * (parameters[i] - received[i]);
  }
  if (options.control_variates) {
    const float* all = state.control.data();
    const float* own = state.own_control.data();
    for (std::size_t i = 0; i < count; ++i) gradient[i] += all[i] - own[i];
  }
}

void end_task(const ObjectiveOptions& options, ObjectiveState& state, const std::string& task,
              std::span<const float> parameters) {
  if (!options.control_variates) return;
  const double scale = state.rates > 0 ? 1.0 / state.rates : 0.0;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const double mean = (static_cast<double>(state.received[i]) - parameters[i]) * scale;
    state.next_control[i] = static_cast<float>(static_cast<double>(state.own_control[i]) - state.control[i] + mean);
    state.control[i] = static_cast<float>(mean);
  }
  state.next_task = task;
}

}  // namespace skerry::trainer
