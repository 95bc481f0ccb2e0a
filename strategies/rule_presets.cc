// Presets whose point is the aggregation rule: those that bear hostile or broken nodes, that are fair, or that take
// updates of different ages or lengths.
#include "strategies/aggregation/clipping.h"
#include "strategies/aggregation/coordinates.h"
#include "strategies/aggregation/directions.h"
#include "strategies/aggregation/geometric_median.h"
#include "strategies/aggregation/krum.h"
#include "strategies/aggregation/qffl.h"
#include "strategies/aggregation/weighted_mean.h"
#include "strategies/outer/outer_optimizer.h"
#include "strategies/preset_families.h"

namespace skerry::strategies {
namespace {

// FedNova (Wang et al., §4): updates are divided by the steps they took, and the mean is given their mean length back.
Preset fednova() {
  return {.name = "fednova",
          .meaning = "federated averaging that is not biased towards nodes that take more steps",
          .source = "arXiv 2007.07481",
          .when_to_use =
              "When nodes take different numbers of steps, as with shards of different size; say "
              "aggregation.momentum where training.momentum is set.",
          .participation = everyone(),
          .exchange = whole_model({.epochs = 2}),
          .aggregation = normalised_mean(),
          .outer = sgd({.learning_rate = 1.0}),
          .evaluation = on_holdouts(),
          .objective = {.optimizer = "sgd"}};
}

// q-FFL (Li et al., algorithm 2, q-FedAvg).
Preset qfedavg() {
  return {.name = "qfedavg",
          .meaning = "fair averaging: holders whose loss is high count more",
          .source = "arXiv 1905.10497, algorithm 2",
          .when_to_use = "When the worst-off holder matters more than the mean; raise aggregation.q for more fairness.",
          .participation = everyone(),
          .exchange = whole_model({.epochs = 1}),
          .aggregation = qffl({.q = 0.2, .learning_rate = 0.1}),
          .outer = sgd({.learning_rate = 1.0}),
          .evaluation = on_holdouts(),
          .objective = {.optimizer = "sgd", .start_loss = true}};
}

// Coordinate median (Yin et al., option I).
Preset fedmedian() {
  return {.name = "fedmedian",
          .meaning = "the median of each coordinate",
          .source = "arXiv 1803.01498, option I",
          .when_to_use =
              "When fewer than half of the nodes may be broken or hostile, nobody knows how many, and shards "
              "are alike.",
          .participation = at_least(3),
          .exchange = whole_model({.epochs = 1}),
          .aggregation = median(),
          .outer = sgd({.learning_rate = 1.0}),
          .evaluation = on_holdouts(),
          .objective = {.optimizer = "sgd"}};
}

// Trimmed mean (Yin et al., option II), one value off each end.
Preset fedtrimmedavg() {
  return {.name = "fedtrimmedavg",
          .meaning = "the mean of each coordinate without its extremes",
          .source = "arXiv 1803.01498, option II",
          .when_to_use =
              "When a known number of nodes may be hostile: set aggregation.trim to it. Less noise than "
              "fedmedian.",
          .participation = at_least(3),
          .exchange = whole_model({.epochs = 1}),
          .aggregation = trimmed_mean({.trim = 1}),
          .outer = sgd({.learning_rate = 1.0}),
          .evaluation = on_holdouts(),
          .objective = {.optimizer = "sgd"}};
}

// Krum (Blanchard et al., §4) for one hostile node: n ≥ 2f + 3 = 5.
Preset krum_preset() {
  return {.name = "krum",
          .meaning = "the one update that is closest to its neighbours",
          .source = "arXiv 1703.02757, section 4",
          .when_to_use = "To compare with; it learns from one shard a round, multikrum is better in nearly every case.",
          .participation = at_least(5),
          .exchange = whole_model({.epochs = 1}),
          .aggregation = krum(1),
          .outer = sgd({.learning_rate = 1.0}),
          .evaluation = on_holdouts(),
          .objective = {.optimizer = "sgd"}};
}

// Multi-Krum (Blanchard et al., §5): the mean of the n − f − 2 best.
Preset multikrum() {
  return {.name = "multikrum",
          .meaning = "the mean of the updates that are closest to their neighbours",
          .source = "arXiv 1703.02757, section 5",
          .when_to_use = "When a known number of nodes may be hostile and shards are alike: set aggregation.byzantine.",
          .participation = at_least(5),
          .exchange = whole_model({.epochs = 1}),
          .aggregation = multi_krum({.byzantine = 1}),
          .outer = sgd({.learning_rate = 1.0}),
          .evaluation = on_holdouts(),
          .objective = {.optimizer = "sgd"}};
}

// Bulyan (El Mhamdi et al.) for one hostile node: n ≥ 4f + 3 = 7.
Preset bulyan_preset() {
  return {.name = "bulyan",
          .meaning = "Krum's choice, one by one, then the mean around the median of each coordinate",
          .source = "arXiv 1802.07927",
          .when_to_use = "Against hostile nodes that hide a large change in one coordinate; needs many nodes.",
          .participation = at_least(7),
          .exchange = whole_model({.epochs = 1}),
          .aggregation = bulyan(1),
          .outer = sgd({.learning_rate = 1.0}),
          .evaluation = on_holdouts(),
          .objective = {.optimizer = "sgd"}};
}

// RFA (Pillutla et al., algorithm 2): the geometric median. The paper's α_k are shares of the examples; here nodes
// count alike, because a hostile one would claim the most.
Preset geomedian() {
  return {.name = "geomedian",
          .meaning = "the geometric median of the updates",
          .source = "arXiv 1912.13445, algorithm 2",
          .when_to_use =
              "The robust rule to try first: no number of hostile nodes to guess, and it bears shards that "
              "differ better than Krum.",
          .participation = at_least(3),
          .exchange = whole_model({.epochs = 1}),
          .aggregation = geometric_median(),
          .outer = sgd({.learning_rate = 1.0}),
          .evaluation = on_holdouts(),
          .objective = {.optimizer = "sgd"}};
}

// Centered clipping (Karimireddy et al., §5) around the last outer gradient; the paper's nodes use momentum 0.9.
Preset centered_clipping_preset() {
  return {.name = "centered-clipping",
          .meaning = "updates are clipped around the last outer gradient",
          .source = "arXiv 2012.10333, section 5",
          .when_to_use = "Against hostile nodes that push a little in every round; train with momentum.",
          .participation = at_least(3),
          .exchange = whole_model({.epochs = 1}),
          .aggregation = centered_clipping(),
          .outer = sgd({.learning_rate = 1.0}),
          .evaluation = on_holdouts(),
          .objective = {.optimizer = "sgd"}};
}

// Norm bounding (Sun et al., §4), at the median of the norms.
Preset norm_bound_preset() {
  return {.name = "norm-bound",
          .meaning = "the mean of updates that are cut to a common length",
          .source = "arXiv 1911.07963, section 4",
          .when_to_use = "Against single nodes that replace the model; costs little where all are honest.",
          .participation = at_least(3),
          .exchange = whole_model({.epochs = 1}),
          .aggregation = norm_bound(),
          .outer = sgd({.learning_rate = 1.0}),
          .evaluation = on_holdouts(),
          .objective = {.optimizer = "sgd"}};
}

// FLTrust (Cao et al., algorithm 2): the coordinator's own daemon trains on a small clean data set, and every update is
// trusted as far as it points the same way.
Preset fltrust_preset() {
  return {.name = "fltrust",
          .meaning = "updates count as far as they agree with a trusted node's",
          .source = "arXiv 2012.13995, algorithm 2",
          .when_to_use = "When even a majority may be hostile and the operator has a few hundred clean examples.",
          .participation = at_least(2),
          .exchange = whole_model({.epochs = 1}),
          .aggregation = fltrust(""),
          .outer = sgd({.learning_rate = 1.0}),
          .evaluation = on_holdouts(),
          .objective = {.optimizer = "sgd"},
          .also = "[aggregation]\ntrusted = \"operator\"  # the node beside the clean data\n"};
}

// signSGD with majority vote (Bernstein et al., algorithm 1): the learning rate is the step of every coordinate.
Preset sign_majority_preset() {
  return {.name = "sign-majority",
          .meaning = "one vote a node and coordinate: up or down",
          .source = "arXiv 1810.05291",
          .when_to_use = "Against large updates of any shape; short rounds and a small outer.learning_rate.",
          .participation = at_least(3),
          .exchange = whole_model({.epochs = 1}),
          .aggregation = sign_majority(),
          .outer = sgd({.learning_rate = 1e-3}),
          .evaluation = on_holdouts(),
          .objective = {.optimizer = "sgd"}};
}

// FedAsync (Xie et al., algorithm 1): w ← (1 − α_s) w + α_s w_k with α_s = α (1 + s)^-0.5, α = 0.6, and ρ = 0.005.
Preset fedasync() {
  return {
      .name = "fedasync",
      .meaning = "every update is mixed into the model when it comes",
      .source = "arXiv 1903.03934",
      .when_to_use = "When nodes differ much in speed and few work at the same time; fedbuff bears more of them.",
      .participation = {.mode = ParticipationSpec::Mode::kAsynchronous, .buffer = 1, .maximum_staleness = 16},
      .exchange = whole_model({.epochs = 1}),
      .aggregation = weighted_mean(
          {.weighting = {.by = Weights::kUniform}, .discount = WeightedMeanOptions::Discount::kKept, .rebase = true}),
      .outer = sgd({.learning_rate = 0.6}),
      .evaluation = on_holdouts(),
      .objective = {.optimizer = "sgd", .proximal = 0.005}};
}

// FedBuff (Nguyen et al., algorithm 1): a buffer of K = 10 updates, each by 1/√(1 + s).
Preset fedbuff() {
  return {.name = "fedbuff",
          .meaning = "no rounds: a step for every ten updates, old ones count less",
          .source = "arXiv 2106.06639, algorithm 1",
          .when_to_use =
              "When nodes differ much in speed and many work at the same time; set participation.buffer well "
              "below their number.",
          .participation = buffered(10, 20),
          .exchange = whole_model({.epochs = 1}),
          .aggregation =
              weighted_mean({.weighting = {.by = Weights::kUniform}, .discount = WeightedMeanOptions::Discount::kKept}),
          .outer = sgd({.learning_rate = 1.0}),
          .evaluation = on_holdouts(),
          .objective = {.optimizer = "sgd"}};
}

}  // namespace

std::vector<Preset> rule_presets() {
  return {bulyan_preset(),
          centered_clipping_preset(),
          fedasync(),
          fedbuff(),
          fedmedian(),
          fednova(),
          fedtrimmedavg(),
          fltrust_preset(),
          geomedian(),
          krum_preset(),
          multikrum(),
          norm_bound_preset(),
          qfedavg(),
          sign_majority_preset()};
}

}  // namespace skerry::strategies
