#include "strategies/presets.h"

#include <algorithm>
#include <vector>

#include "strategies/aggregation/weighted_mean.h"
#include "strategies/outer/outer_optimizer.h"
#include "strategies/preset_families.h"

namespace skerry::strategies {
namespace {

// Federated averaging: the new model is the mean of what came back (McMahan et al., algorithm 1, E = 5).
Preset fedavg() {
  return {.name = "fedavg",
          .meaning = "federated averaging: the mean of what came back",
          .source = "arXiv 1602.05629",
          .when_to_use = "The first thing to try, and the yardstick for the rest.",
          .participation = everyone(),
          .exchange = whole_model({.epochs = 5}),
          .aggregation = weighted_mean(Weights::kExamples),
          .outer = sgd({.learning_rate = 1.0}),
          .evaluation = on_holdouts(),
          .objective = {.optimizer = "sgd"}};
}

// Federated averaging with server momentum (Hsu et al., §4.3): v ← βv + Δ; w ← w − v.
Preset fedavgm() {
  return {.name = "fedavgm",
          .meaning = "federated averaging with server momentum",
          .source = "arXiv 1909.06335",
          .when_to_use = "When shards differ in their labels and fedavg swings from round to round.",
          .participation = everyone(),
          .exchange = whole_model({.epochs = 1}),
          .aggregation = weighted_mean(Weights::kExamples),
          .outer = momentum({.learning_rate = 1.0, .momentum = 0.9}),
          .evaluation = on_holdouts(),
          .objective = {.optimizer = "sgd"}};
}

// Federated momentum (Huo et al.): v' = w − ηΔ; w' = v' + β(v' − v), v starting at the model.
Preset fedmom() {
  return {.name = "fedmom",
          .meaning = "federated averaging with Nesterov's momentum over models",
          .source = "arXiv 2002.02090",
          .when_to_use = "As fedavgm, where the learning rate has a schedule: steps already taken keep their length.",
          .participation = everyone(),
          .exchange = whole_model({.epochs = 1}),
          .aggregation = weighted_mean(Weights::kExamples),
          .outer = nesterov({.learning_rate = 1.0, .momentum = 0.9, .form = NesterovOptions::Form::kFedMom}),
          .evaluation = on_holdouts(),
          .objective = {.optimizer = "sgd"}};
}

// FedProx (Li et al., algorithm 2): every node minimises its loss + μ/2 ‖w − received w‖². E = 20; μ = 1 is the best of
// {0.001, 0.01, 0.1, 1} on three of the paper's five data sets.
Preset fedprox() {
  return {.name = "fedprox",
          .meaning = "federated averaging whose nodes are held near the model they received",
          .source = "arXiv 1812.06127, algorithm 2",
          .when_to_use =
              "When shards differ and nodes train long between rounds; lower training.proximal where it "
              "learns too slowly.",
          .participation = everyone(),
          .exchange = whole_model({.epochs = 20}),
          .aggregation = weighted_mean(Weights::kExamples),
          .outer = sgd({.learning_rate = 1.0}),
          .evaluation = on_holdouts(),
          .objective = {.optimizer = "sgd", .proximal = 1.0}};
}

// SCAFFOLD (Karimireddy et al., algorithm 1, option II): nodes step along g − c_k + c; the variates travel with the
// model. Global step size 1, nodes count alike.
Preset scaffold() {
  return {.name = "scaffold",
          .meaning = "control variates correct what pulls the nodes apart",
          .source = "arXiv 1910.06378, algorithm 1",
          .when_to_use = "When shards differ much and the same nodes come back often; twice the traffic of fedavg.",
          .participation = everyone(),
          .exchange = whole_model({.epochs = 5}),
          .aggregation = weighted_mean(Weights::kUniform),
          .outer = sgd({.learning_rate = 1.0}),
          .evaluation = on_holdouts(),
          .objective = {.optimizer = "sgd", .control_variates = true}};
}

// FedPer (Arivazhagan et al.): the base is averaged, the last layers stay with each node. e = 4 local epochs.
Preset fedper() {
  return {.name = "fedper",
          .meaning = "the base is shared, the last layers stay personal",
          .source = "arXiv 1912.00818",
          .when_to_use = "When nodes want a model each, for example because the same label means different things.",
          .participation = everyone(),
          .exchange = whole_model({.epochs = 4}),
          .aggregation = weighted_mean(Weights::kExamples),
          .outer = sgd({.learning_rate = 1.0}),
          .evaluation = on_holdouts(),
          .objective = {.optimizer = "sgd"},
          .also = "[exchange]\npersonal = [\"layers.1.*\"]  # tensors that never leave a node\n"};
}

// Flower's FaultTolerantFedAvg: a round counts only if half of those who were asked returned.
Preset fault_tolerant_fedavg() {
  return {.name = "fault-tolerant-fedavg",
          .meaning = "federated averaging whose rounds count only if enough of the nodes came back",
          .source = "Flower's FaultTolerantFedAvg; the mean of arXiv 1602.05629",
          .when_to_use =
              "When nodes fail often and a round of a few survivors would mislead; lower "
              "participation.deadline_s to what a round may take.",
          .participation = {.minimum_completion = 0.5},
          .exchange = whole_model({.epochs = 5}),
          .aggregation = weighted_mean(Weights::kExamples),
          .outer = sgd({.learning_rate = 1.0}),
          .evaluation = on_holdouts(),
          .objective = {.optimizer = "sgd"}};
}

// Adaptive federated optimization (Reddi et al., algorithm 2): the paper's pseudo-gradient is new − old and is added;
// ours is old − new and is subtracted, which is the same step. τ = 1e-3, v₀ = τ², β₂ = 0.99; adagrad has no momentum.
// Of the paper's grid, 0.01 is what Adam and Yogi bear with an adaptive optimizer inside.
Preset fedadagrad() {
  return {.name = "fedadagrad",
          .meaning = "adaptive federated optimization with Adagrad on the server",
          .source = "arXiv 2003.00295, algorithm 2",
          .when_to_use = "When a few features are rare (words, tags): their coordinates get longer steps.",
          .participation = everyone(),
          .exchange = whole_model({.epochs = 1}),
          .aggregation = weighted_mean(Weights::kExamples),
          .outer = adagrad({.learning_rate = 0.1, .epsilon = 1e-3, .initial_accumulator = 1e-6}),
          .evaluation = on_holdouts(),
          .objective = {.optimizer = "sgd"}};
}

Preset fedadam() {
  return {
      .name = "fedadam",
      .meaning = "adaptive federated optimization with Adam on the server",
      .source = "arXiv 2003.00295, algorithm 2",
      .when_to_use = "When gradients differ much in size between layers, as in language models on small shards.",
      .participation = everyone(),
      .exchange = whole_model({.epochs = 1}),
      .aggregation = weighted_mean(Weights::kExamples),
      .outer = adam({.learning_rate = 0.01, .beta1 = 0.9, .beta2 = 0.99, .epsilon = 1e-3, .initial_accumulator = 1e-6}),
      .evaluation = on_holdouts(),
      .objective = {.optimizer = "sgd"}};
}

Preset fedyogi() {
  return {
      .name = "fedyogi",
      .meaning = "adaptive federated optimization with Yogi on the server",
      .source = "arXiv 2003.00295, algorithm 2",
      .when_to_use = "Where fedadam is unsteady: Yogi's second moment forgets large steps slowly.",
      .participation = everyone(),
      .exchange = whole_model({.epochs = 1}),
      .aggregation = weighted_mean(Weights::kExamples),
      .outer = yogi({.learning_rate = 0.01, .beta1 = 0.9, .beta2 = 0.99, .epsilon = 1e-3, .initial_accumulator = 1e-6}),
      .evaluation = on_holdouts(),
      .objective = {.optimizer = "sgd"}};
}

}  // namespace

std::span<const Preset> presets() {
  static const std::vector<Preset> all = [] {
    std::vector<Preset> out = {fault_tolerant_fedavg(), fedadagrad(), fedadam(), fedavg(),  fedavgm(),
                               fedmom(),                fedper(),     fedprox(), fedyogi(), scaffold()};
    for (auto& preset : language_presets()) out.push_back(std::move(preset));
    for (auto& preset : rule_presets()) out.push_back(std::move(preset));
    std::sort(out.begin(), out.end(), [](const Preset& a, const Preset& b) { return a.name < b.name; });
    return out;
  }();
  return all;
}

const Preset* find_preset(std::string_view name) {
  for (const Preset& preset : presets())
    if (preset.name == name) return &preset;
  return nullptr;
}

std::string minimal_run_spec(const Preset& preset) {
  const bool language = preset.exchange.inner_steps > 0;
  std::string out = "name = \"first-" + preset.name + "\"\nstrategy = \"" + preset.name + "\"\n\n";
  out += language ? "[model]\narchitecture = \"transformer\"\n\n[data]\nkind = \"text\"\n\n"
                  : "[model]\narchitecture = \"mlp\"\ninputs = 784\noutputs = 10\n\n"
                    "[data]\nkind = \"idx\"\nschema = { shape = [1, 28, 28], classes = 10 }\n\n";
  out += std::string("[training]\nlearning_rate = ") + (preset.objective.optimizer == "sgd" ? "0.1" : "1e-3") + "\n";
  return preset.also.empty() ? out : out + "\n" + preset.also;
}

}  // namespace skerry::strategies
