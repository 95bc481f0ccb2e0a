#include "strategies/combination.h"

#include <string>

#include <catch2/catch.hpp>

#include "strategies/catalogue.h"

using namespace skerry;
using namespace skerry::strategies;

namespace {

const std::string kLinear = R"([model]
architecture = "linear"
inputs = 4
outputs = 2
[data]
kind = "idx"
schema = { shape = [4], classes = 2 }
[training]
learning_rate = 0.1
)";

/// A run spec with these lines in it, or what is wrong with it.
std::string refusal(const std::string& strategy, const std::string& more, const std::string& training = "") {
  const auto spec =
      parse_run_spec("name = \"p\"\nstrategy = \"" + strategy + "\"\n" + kLinear + training + more, spec_catalogue());
  if (!spec.ok()) return spec.error().message;
  const auto possible = check_combination(*spec);
  return possible.ok() ? "" : possible.error().message;
}

std::vector<std::string> notes(const std::string& more, const std::string& training = "") {
  const auto spec =
      parse_run_spec("name = \"p\"\n" + kLinear + "optimizer = \"sgd\"\n" + training + more, spec_catalogue());
  if (!spec.ok()) FAIL(spec.error().message);
  return combination_notes(*spec);
}

}  // namespace

TEST_CASE("a rule that must see single updates is refused under secret sums") {
  Rule median;
  median.name = "median";
  median.needs.individual_updates = true;
  CHECK(check_needs(median, {}).ok());
  CHECK(check_needs(median, {.individual_updates = false, .only_sums = true}).error().message ==
        "aggregation.rule median must see single updates, but the exchange sums them secretly: choose weighted_mean or "
        "an exchange without secure sums");
}

TEST_CASE("a rule that is not linear is refused where only sums are known") {
  Rule rule;
  rule.name = "clipped";
  CHECK(check_needs(rule, {.only_sums = true}).error().message ==
        "aggregation.rule clipped is not linear, but only weighted sums of updates are known: choose weighted_mean");
  rule.needs.linear = true;
  CHECK(check_needs(rule, {.only_sums = true}).ok());
}

TEST_CASE("a rule that needs all nodes is refused in a run that commits without some") {
  Rule rule;
  rule.name = "exact";
  rule.needs.all_clients = true;
  CHECK(check_needs(rule, {.all_clients = true}).ok());
  CHECK(check_needs(rule, {.all_clients = false}).error().message ==
        "aggregation.rule exact needs every invited node, but this run commits without some: set participation.mode to "
        "synchronous, grace_s to -1 and deadline_s to 0");
}

TEST_CASE("a rule that needs more updates than an exchange must have is refused with the count and the mend") {
  Rule rule;
  rule.name = "krum";
  rule.needs.minimum_updates = 5;
  rule.needs.because = "n >= 2f + 3 with f = 1";
  CHECK(check_needs(rule, {.fewest_updates = 5}).ok());
  CHECK(
      check_needs(rule, {.fewest_updates = 4}).error().message ==
      "aggregation.rule krum needs at least 5 updates (n >= 2f + 3 with f = 1), but an exchange may be committed with "
      "4: raise participation.quorum");
  CHECK(
      check_needs(rule, {.asynchronous = true, .fewest_updates = 4}).error().message ==
      "aggregation.rule krum needs at least 5 updates (n >= 2f + 3 with f = 1), but an exchange may be committed with "
      "4: raise participation.buffer");
}

TEST_CASE("a rule that takes fewer updates than an exchange may have is refused") {
  Rule rule;
  rule.name = "pair";
  rule.needs.maximum_updates = 2;
  CHECK(check_needs(rule, {.most_updates = 2}).ok());
  CHECK(
      check_needs(rule, {}).error().message ==
      "aggregation.rule pair takes at most 2 updates, but an exchange may have more: set participation.cohort_size to "
      "no more than that");
  CHECK(
      check_needs(rule, {.asynchronous = true, .most_updates = 3}).error().message ==
      "aggregation.rule pair takes at most 2 updates, but an exchange may have more: lower participation.buffer to no "
      "more than that");
}

TEST_CASE("a rule that moves late updates is refused where fragments are exchanged one after another") {
  Rule rule;
  rule.name = "weighted_mean";
  rule.needs.rebased = true;
  CHECK(check_needs(rule, {}).ok());
  CHECK(check_needs(rule, {.staggered = true}).error().message ==
        "aggregation.rule weighted_mean moves late updates onto the newest version, which fragments that are exchanged "
        "one after another do not share: set exchange.schedule to whole or aggregation.rebase to false");
}

TEST_CASE("a rule that needs the loss before training is refused where trainers do not measure it") {
  Rule rule;
  rule.name = "qffl";
  rule.needs.metrics = {"start_loss"};
  CHECK(check_needs(rule, {.start_loss = true}).ok());
  CHECK(check_needs(rule, {}).error().message ==
        "aggregation.rule qffl needs the loss of the model that a task starts from, which trainers do not measure: set "
        "training.start_loss to true");
}

TEST_CASE("krum's and bulyan's counts are held against the quorum, and against the buffer") {
  CHECK(
      refusal("krum", "[participation]\nquorum = 4\n") ==
      "aggregation.rule krum needs at least 5 updates (n >= 2f + 3 with f = 1), but an exchange may be committed with "
      "4: raise participation.quorum");
  CHECK(
      refusal("multikrum", "[aggregation]\nbyzantine = 2\n") ==
      "aggregation.rule multi_krum needs at least 7 updates (n >= 2f + 3 with f = 2), but an exchange may be committed "
      "with 5: raise participation.quorum");
  CHECK(refusal("bulyan", "[aggregation]\nbyzantine = 3\n[participation]\nquorum = 14\n") ==
        "aggregation.rule bulyan needs at least 15 updates (n >= 4f + 3 with f = 3), but an exchange may be committed "
        "with 14: raise participation.quorum");
  CHECK(
      refusal("krum", "[participation]\nmode = \"asynchronous\"\nbuffer = 3\n") ==
      "aggregation.rule krum needs at least 5 updates (n >= 2f + 3 with f = 1), but an exchange may be committed with "
      "3: raise participation.buffer");
  CHECK(
      refusal("krum", "[participation]\nmode = \"asynchronous\"\nbuffer = 8\nwork = \"fedcompass\"\n",
              "steps = 10\n") ==
      "aggregation.rule krum needs at least 5 updates (n >= 2f + 3 with f = 1), but an exchange may be committed with "
      "1: set participation.work to equal or dylu");
  CHECK(refusal("krum", "[aggregation]\nbyzantine = 0\n[participation]\nquorum = 3\n") == "");
}

TEST_CASE("trimming more than there is is refused") {
  CHECK(refusal("fedtrimmedavg", "[aggregation]\ntrim = 3\n[participation]\nquorum = 6\n")
            .find("aggregation.rule trimmed_mean needs at least 7 updates") == 0);
}

TEST_CASE("q-FFL is refused where nodes do not measure or may not report the loss before training") {
  CHECK(refusal("qfedavg", "") == "");
  CHECK(refusal("fedavg", "[aggregation]\nrule = \"qffl\"\n[limits]\nmetrics = [\"start_loss\"]\n") ==
        "aggregation.rule qffl needs the loss of the model that a task starts from, which trainers do not measure: set "
        "training.start_loss to true");
  CHECK(refusal("qfedavg", "[limits]\nmetrics = [\"loss\"]\n").find("limits.metrics") != std::string::npos);
}

TEST_CASE("weights that nodes report themselves must be a metric that they may report") {
  CHECK(refusal("fedavg", "[aggregation]\nweights = \"reported\"\n") ==
        "aggregation.rule weighted_mean needs every node to report weight, but limits.metrics does not name it: add it "
        "there");
}

TEST_CASE("weights by tokens are refused where the data has none") {
  CHECK(refusal("fedavg", "[aggregation]\nweights = \"tokens\"\n") ==
        "aggregation.weights is tokens, but data.kind idx has no tokens: choose examples, steps or uniform");
}

TEST_CASE("FLTrust without its node is refused") {
  CHECK(refusal("fltrust", "").find("aggregation.trusted") == 0);
  CHECK(refusal("fltrust", "[aggregation]\ntrusted = \"operator\"\n") == "");
}

TEST_CASE("SCAFFOLD is refused without rounds, with other rules and with other inner optimizers") {
  CHECK(refusal("scaffold", "") == "");
  CHECK(refusal("scaffold", "[participation]\nmode = \"asynchronous\"\n").find("participation.mode") !=
        std::string::npos);
  CHECK(refusal("scaffold", "[aggregation]\nrule = \"median\"\n").find("aggregation.rule") != std::string::npos);
  CHECK(refusal("scaffold", "", "optimizer = \"adamw\"\n").find("training.optimizer") != std::string::npos);
}

TEST_CASE("FedAsync is refused where fragments are exchanged one after another") {
  CHECK(refusal("fedasync", "[exchange]\nfragments = 2\nschedule = \"staggered\"\n")
            .find("aggregation.rule weighted_mean moves late updates") == 0);
}

TEST_CASE("an outer optimizer whose numbers cannot be is refused") {
  CHECK(refusal("fedavg", "[outer]\noptimizer = \"delayed_nesterov\"\ndelay = 4\ncarry = 0.5\n") ==
        "outer.carry is 0.5, must be at most 1 / outer.delay (1 / 4)");
  CHECK(refusal("fedavg", "[outer]\nschedule = \"cosine\"\nwarmup_steps = 20\n[stop]\nrounds = 10\n") ==
        "outer.schedule_steps is 10, must be above outer.warmup_steps (20) for schedule cosine");
}

TEST_CASE("what is possible but rarely meant is said") {
  CHECK(notes("").empty());
  const auto delayed = notes("[outer]\noptimizer = \"delayed_nesterov\"\n");
  REQUIRE(delayed.size() == 1);
  CHECK(delayed[0].find("outer.optimizer delayed_nesterov is meant for updates that come one by one") == 0);
  const auto momentum = notes("[outer]\noptimizer = \"nesterov\"\n[participation]\nmode = \"asynchronous\"\n");
  REQUIRE(momentum.size() == 1);
  CHECK(momentum[0].find("may diverge") != std::string::npos);
  CHECK(notes("[outer]\noptimizer = \"delayed_nesterov\"\n[participation]\nmode = \"asynchronous\"\n").empty());
  CHECK(notes("[aggregation]\nrule = \"krum\"\nbyzantine = 0\n[participation]\nquorum = 3\n") ==
        std::vector<std::string>{"aggregation.byzantine is 0: krum then holds against no hostile update"});
  const std::string krum = "[aggregation]\nrule = \"krum\"\n[participation]\nmode = \"asynchronous\"\nbuffer = 5\n";
  const auto several = notes(krum);
  REQUIRE(several.size() == 1);
  CHECK(several[0].find("aggregation.rule krum counts hostile updates") == 0);
  CHECK(notes(krum + "minimum_separation = 2\n").empty());
  const std::string reset = "momentum = 0.9\noptimizer_state = \"reset\"\n";
  CHECK(notes("[aggregation]\nrule = \"normalised_mean\"\n", reset).size() == 1);
  CHECK(notes("[aggregation]\nrule = \"normalised_mean\"\nmomentum = 0.9\n", reset).empty());
  CHECK(notes("[aggregation]\nrule = \"normalised_mean\"\nmomentum = 0.9\n", "momentum = 0.9\n").size() == 1);
  CHECK(notes("[aggregation]\nrule = \"normalised_mean\"\n", "proximal = 0.5\n").size() == 1);
  CHECK(notes("[aggregation]\nrule = \"normalised_mean\"\nproximal = 0.05\n", "proximal = 0.5\n").empty());
  CHECK(notes("[aggregation]\nrule = \"sign_majority\"\n").size() == 1);
  CHECK(notes("[aggregation]\nrule = \"sign_majority\"\n[outer]\nlearning_rate = 0.001\n").empty());
  CHECK(notes("[aggregation]\nrule = \"qffl\"\nlearning_rate = 0.2\n").size() == 1);
  CHECK(notes("[aggregation]\nrule = \"qffl\"\n").empty());
}

TEST_CASE("overlapped exchange is refused where a node cannot train on while its update travels") {
  const auto overlap = [](const std::string& more, const std::string& steps = "10",
                          const std::string& exchange = "overlap = 5\n") {
    return refusal("diloco", "[exchange]\n" + exchange + more, "optimizer = \"sgd\"\nsteps = " + steps + "\n");
  };
  const auto says = [](const std::string& found, const std::string& wanted) {
    INFO(found);
    CHECK(found.find(wanted) != std::string::npos);
  };
  CHECK(overlap("") == "");
  CHECK(overlap("", "5") == "");
  CHECK(overlap("on_late = \"on_arrival\"\n[participation]\nmode = \"asynchronous\"\nwork = \"dylu\"\n") == "");
  says(overlap("", "0\nepochs = 1"), "exchange.overlap is 5, but training.steps is 0");
  says(overlap("", "4"), "exchange.overlap is 5, but a task has 4 steps");
  says(overlap("", "10\ncontrol_variates = true\nmomentum = 0"), "control_variates");
  says(overlap("[participation]\ncohort_size = 3\n"), "drawn for each exchange");
  says(overlap("[participation]\ncohort_fraction = 0.5\n"), "drawn for each exchange");
  says(overlap("[participation]\nmode = \"asynchronous\"\nminimum_separation = 2\n"), "minimum_separation");
  says(overlap("[participation]\nmode = \"asynchronous\"\nconcurrency = 2\n"), "concurrency");
  says(overlap("[participation]\nmode = \"asynchronous\"\nwork = \"fedcompass\"\n"), "fedcompass");
  says(overlap("[participation]\nwork = \"dylu\"\n"), "dylu");
  says(overlap("[participation]\nmode = \"asynchronous\"\n"), "set it to on_arrival");
  says(overlap("alpha = 0.5\nmerge = \"replace\"\n"), "takes the new version as it is");
}

TEST_CASE("decoupled exchange goes with the rules it was published with") {
  for (const char* rule : {"weighted_mean", "radial_directional"}) {
    const std::string text = R"(name = "p"
strategy = "diloco"
[model]
architecture = "transformer"
[data]
kind = "text"
[training]
learning_rate = 1e-3
steps = 24
[exchange]
fragments = 2
schedule = "staggered"
overlap = 4
merge = "replace"
on_late = "on_arrival"
[participation]
mode = "asynchronous"
buffer = 2
grace = "adaptive"
[aggregation]
weights = "token_rate"
rule = ")";
    const auto spec = parse_run_spec(text + rule + "\"\n", spec_catalogue());
    REQUIRE(spec.ok());
    const auto possible = check_combination(*spec);
    INFO((possible.ok() ? "" : possible.error().message));
    CHECK(possible.ok());
    CHECK(surroundings(*spec).most_updates > 2);  // those who come within the grace window
    CHECK(surroundings(*spec).fewest_updates == 2);
  }
}

TEST_CASE("an operator is told of overlaps that are rarely meant") {
  const auto note = [](const std::string& exchange, const std::string& outer) {
    const auto found =
        notes("[exchange]\n" + exchange + "[outer]\noptimizer = \"nesterov\"\nmomentum = " + outer + "\n",
              "steps = 10\n");
    return found.empty() ? "" : found.front();
  };
  CHECK(note("overlap = 10\nmerge = \"replace\"\n", "0.9").find("may swing") != std::string::npos);
  CHECK(note("overlap = 10\nmerge = \"eager\"\n", "0.9") == "");
  CHECK(note("overlap = 5\n", "0.9") == "");
  CHECK(note("overlap = 5\nalpha = 1\n", "0.9").find("never take the new version") != std::string::npos);
  CHECK(note("overlap = 5\nmerge = \"replace\"\n", "0.9").find("throws away") != std::string::npos);
}
