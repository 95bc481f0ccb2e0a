// Presets for language models on islands of compute that ordinary links join: DiLoCo, its family, and Photon.
//
// Their papers train with AdamW (the trainer's default), weight decay 0.1, warm-up and a cosine or WSD schedule over
// the whole run; learning rate, batch and schedule belong to the model and stay the run spec's.
#include "strategies/aggregation/directions.h"
#include "strategies/aggregation/weighted_mean.h"
#include "strategies/outer/outer_optimizer.h"
#include "strategies/preset_families.h"

namespace skerry::strategies {
namespace {

// DiLoCo: H inner steps on every island, then one outer Nesterov step (Douillard et al., algorithm 1; weights by
// examples as §6.1 advises for shards that differ).
Preset diloco() {
  return {.name = "diloco",
          .meaning = "H inner steps on every island, then one outer Nesterov step",
          .source = "arXiv 2311.08105, algorithm 1",
          .when_to_use = "Language models on a few strong islands joined by slow links.",
          .participation = everyone(),
          .exchange = whole_model({.inner_steps = 500}),
          .aggregation = weighted_mean(Weights::kExamples),
          .outer = nesterov({.learning_rate = 0.7, .momentum = 0.9}),
          .evaluation = on_holdouts()};
}

// Streaming DiLoCo (Douillard et al., algorithm 2): P strided fragments in turn, each every H = 100 steps, four bits a
// value, sent while the node trains on for τ = 1 step and mixed half and half (α = 0.5). Outer learning rate 0.4.
Preset streaming_diloco() {
  return {.name = "streaming-diloco",
          .meaning = "DiLoCo by fragments in turn, in four bits, beside training",
          .source = "arXiv 2501.18512, algorithm 2",
          .when_to_use =
              "Where the link is the limit: its peak is divided by exchange.fragments (the paper: three layers each). "
              "exchange.overlap up to 5 costs little and hides slower links.",
          .participation = everyone(),
          .exchange = {.inner_steps = 25,
                       .fragments = 4,
                       .schedule = ExchangeSpec::Schedule::kStaggered,
                       .up = "e3m0",
                       .down = "e3m0",
                       .overlap = 1},
          .aggregation = weighted_mean(Weights::kExamples),
          .outer = nesterov({.learning_rate = 0.4, .momentum = 0.9}),
          .evaluation = on_holdouts()};
}

// Eager updates (Kale et al.): the exchange of a whole outer round runs beside the next one, H = 30; what a node
// learned meanwhile is put on top of the version that comes.
Preset eager_diloco() {
  return {.name = "eager-diloco",
          .meaning = "DiLoCo whose exchange takes as long as a round, hidden behind the next one",
          .source = "arXiv 2502.12996",
          .when_to_use =
              "Where a transfer takes about as long as a round; a lower outer.learning_rate helps where it swings.",
          .participation = everyone(),
          .exchange = whole_model({.inner_steps = 30, .up = "e3m0", .down = "e3m0", .overlap = 30, .merge = "eager"}),
          .aggregation = weighted_mean(Weights::kExamples),
          .outer = nesterov({.learning_rate = 0.4, .momentum = 0.9}),
          .evaluation = on_holdouts()};
}

// Decoupled DiLoCo: learners on their own clocks; fragments exchanged one after another, each as soon as a minimum
// quorum and an adaptive grace window allow; updates weigh by tokens × tokens a step; norms and directions are averaged
// apart; what arrives replaces what the learner has.
// Less momentum than in rounds: fragments move more often than every learner reports, and 0.9 diverged in small runs.
Preset decoupled_diloco() {
  return {.name = "decoupled-diloco",
          .meaning =
              "DiLoCo by fragments on every island's own clock, with a minimum quorum, adaptive grace and "
              "radial-directional averaging",
          .source = "arXiv 2604.21428",
          .when_to_use = "Language models on many islands of which some are always slow or away.",
          .participation = {.mode = ParticipationSpec::Mode::kAsynchronous,
                            .adaptive_grace = true,
                            .buffer = 2,
                            .maximum_staleness = 10,
                            .staleness_exponent = 0},
          .exchange = {.inner_steps = 25,
                       .fragments = 4,
                       .schedule = ExchangeSpec::Schedule::kStaggered,
                       .overlap = 25,
                       .merge = "replace",
                       .block = false},
          .aggregation = radial_directional({.weighting = {.by = Weights::kTokenRate}}),
          .outer = nesterov({.learning_rate = 0.7, .momentum = 0.5}),
          .evaluation = on_holdouts()};
}

// PRIME, as INTELLECT-1 was trained: DiLoCo with H = 100 and int8 (codebook over 6σ, bucket means) both ways; islands
// come and go at any round, and an exchange goes on without the dead.
Preset prime() {
  return {.name = "prime",
          .meaning = "DiLoCo in int8 both ways, for islands that come and go",
          .source = "arXiv 2412.01152 (INTELLECT-1)",
          .when_to_use =
              "Large models over links of some hundred Mbit/s; set participation.quorum to the fewest islands that a "
              "step is worth taking with, and deadline_s to what a round may take.",
          .participation = everyone(),
          .exchange = whole_model({.inner_steps = 100, .up = "int8", .down = "int8"}),
          .aggregation = weighted_mean(Weights::kExamples),
          .outer = nesterov({.learning_rate = 0.7, .momentum = 0.9}),
          .evaluation = on_holdouts()};
}

// SparseLoCo (Templar, Covenant-72B): the 64 largest of every 4,096 values in 2 bits, what is left out fed back with
// β = 0.95 (topk2's default) in place of the outer momentum; H = 30, outer SGD(1). The mean of sparse updates goes down
// in int8 with a scale for each 256 values.
Preset sparseloco() {
  return {.name = "sparseloco",
          .meaning = "1.6 % of the values in 2 bits, with error feedback instead of outer momentum",
          .source = "arXiv 2508.15706",
          .when_to_use = "Where the way up is by far the slower one, as on a home connection.",
          .participation = everyone(),
          .exchange = whole_model({.inner_steps = 30, .up = "topk2", .down = "int8_block"}),
          .aggregation = weighted_mean(Weights::kUniform),
          .outer = sgd({.learning_rate = 1.0}),
          .evaluation = on_holdouts()};
}

// Asynchronous Local-SGD (Liu et al., algorithms 3 and 4): every update at once, delayed Nesterov with N = 4 workers
// and c = 0, work by measured speed (DyLU), updates more than 10 exchanges old dropped, no other discount.
Preset async_diloco() {
  return {.name = "async-diloco",
          .meaning = "DiLoCo without rounds: delayed Nesterov, and work by measured speed",
          .source = "arXiv 2401.09135, algorithm 3",
          .when_to_use = "Language models on islands of very different speed; set outer.delay to their number.",
          .participation = {.mode = ParticipationSpec::Mode::kAsynchronous,
                            .buffer = 1,
                            .maximum_staleness = 10,
                            .staleness_exponent = 0,
                            .work = ParticipationSpec::Work::kDylu},
          .exchange = whole_model({.inner_steps = 50}),
          .aggregation = weighted_mean(Weights::kExamples),
          .outer = delayed_nesterov({.learning_rate = 0.7, .momentum = 0.9, .delay = 4, .carry = 0}),
          .evaluation = on_holdouts()};
}

// Photon (Sani et al.): averaging of many islands; its recipe is a small local batch (32, the trainer's default) at the
// learning rate of the large batch, on a cosine schedule stretched over the federation's steps. 128 local steps.
constexpr char kPhotonSource[] = "arXiv 2411.02908";
const Objective kPhotonRecipe = {.schedule = "cosine", .final_fraction = 0.1, .clip_norm = 1.0};

Preset photon() {
  return {.name = "photon",
          .meaning = "plain averaging of language models trained in small batches at a high learning rate",
          .source = kPhotonSource,
          .when_to_use =
              "Language models on many modest islands; give training.learning_rate the peak of a large batch, and "
              "sample clients with participation.cohort_size.",
          .participation = everyone(),
          .exchange = whole_model({.inner_steps = 128}),
          .aggregation = weighted_mean(Weights::kExamples),
          .outer = sgd({.learning_rate = 1.0}),
          .evaluation = on_holdouts(),
          .objective = kPhotonRecipe};
}

// The same with the server optimizer that Photon's code has by default: Nesterov, 0.7 and 0.7.
Preset photon_nesterov() {
  Preset preset = photon();
  preset.name = "photon-nesterov";
  preset.meaning = "Photon with Nesterov momentum on the server";
  preset.when_to_use = "As photon, where many rounds are to come and the gain of plain averaging has slowed down.";
  preset.outer = nesterov({.learning_rate = 0.7, .momentum = 0.7});
  return preset;
}

// And with FedMom (arXiv 2002.02090), its momentum starting at the model.
Preset photon_fedmom() {
  Preset preset = photon();
  preset.name = "photon-fedmom";
  preset.meaning = "Photon with FedMom's momentum over models on the server";
  preset.when_to_use = "As photon-nesterov, where the outer learning rate has a schedule.";
  preset.outer = nesterov({.learning_rate = 1.0, .momentum = 0.7, .form = NesterovOptions::Form::kFedMom});
  return preset;
}

}  // namespace

std::vector<Preset> language_presets() {
  return {async_diloco(),  decoupled_diloco(), diloco(), eager_diloco(), photon(),
          photon_fedmom(), photon_nesterov(),  prime(),  sparseloco(),   streaming_diloco()};
}

}  // namespace skerry::strategies
