#include "strategies/combination.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include <nlohmann/json.hpp>

#include "common/config/canonical_json.h"
#include "strategies/catalogue.h"
#include "strategies/outer/outer_optimizer.h"
#include "strategies/participation.h"

namespace skerry::strategies {
namespace {

bool has(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

std::optional<double> number_in(const SpecPart& part, const std::string& name) {
  const auto found = part.parameters.find(name);
  if (found == part.parameters.end()) return std::nullopt;
  const auto* number = std::get_if<double>(&found->second);
  return number == nullptr ? std::nullopt : std::optional(*number);
}

Result<void> check_counts(const Needs& needs, const Surroundings& offered, const std::string& who) {
  if (needs.minimum_updates > offered.fewest_updates)
    return invalid_argument(who + " needs at least " + std::to_string(needs.minimum_updates) + " updates" +
                            (needs.because.empty() ? "" : " (" + needs.because + ")") +
                            ", but an exchange may be committed with " + std::to_string(offered.fewest_updates) +
                            (offered.groups         ? ": set participation.work to equal or dylu"
                             : offered.asynchronous ? ": raise participation.buffer"
                                                    : ": raise participation.quorum"));
  if (needs.maximum_updates < offered.most_updates)
    return invalid_argument(who + " takes at most " + std::to_string(needs.maximum_updates) +
                            " updates, but an exchange may have more: " +
                            (offered.asynchronous ? "lower participation.buffer" : "set participation.cohort_size") +
                            " to no more than that");
  return {};
}

/// Whether normalised_mean knows how far the nodes' inner steps go.
void add_notes_on_steps(const RunSpec& spec, std::vector<std::string>& notes) {
  const auto training = nlohmann::json::parse(spec.training_json);
  const double momentum = training.value("momentum", 0.0);
  const std::string lengths = ": normalised_mean then divides updates by other lengths than they have";
  if (training.value("optimizer", "") != "sgd")
    notes.push_back("training.optimizer is " + training.value("optimizer", "") + ", not sgd" + lengths);
  else if (momentum > 0 && training.value("optimizer_state", "") == "keep")
    notes.push_back("training.momentum is kept between tasks (training.optimizer_state reset forgets it)" + lengths);
  if (number_in(spec.aggregation, "momentum") != momentum)
    notes.push_back("aggregation.momentum and training.momentum differ" + lengths);
  const double pull = spec.training.learning_rate * spec.training.proximal;
  if (std::abs(number_in(spec.aggregation, "proximal").value_or(0) - pull) > 1e-9 * pull)
    notes.push_back("aggregation.proximal is not training.learning_rate times training.proximal" + lengths);
}

/// Whether the run can train on while its updates travel.
Result<void> check_overlap(const RunSpec& spec, const Rule& rule) {
  const ExchangeSpec& exchange = spec.exchange;
  if (exchange.merge == "replace" && exchange.alpha != 0)
    return invalid_argument("exchange.alpha is " + canonical_number(exchange.alpha) +
                            ", but exchange.merge replace takes the new version as it is: choose lerp or eager");
  if (exchange.overlap == 0) return {};
  const auto refused = [&exchange](const std::string& why) {
    return invalid_argument("exchange.overlap is " + std::to_string(exchange.overlap) + ", but " + why);
  };
  const ParticipationSpec& participation = spec.participation;
  const bool asynchronous = participation.mode == ParticipationSpec::Mode::kAsynchronous;
  if (spec.training.steps == 0)
    return refused("training.steps is 0: what a node merges when is counted in steps of its tasks");
  if (exchange.overlap > spec.training.steps)
    return refused("a task has " + std::to_string(spec.training.steps) +
                   " steps (training.steps): a version is merged within the task after the one that it contains");
  if (spec.training.control_variates)
    return refused("training.control_variates need every task to begin with the model that all have");
  if (participation.cohort_size > 0 || participation.cohort_fraction < 1)
    return refused("nodes are drawn for each exchange (participation.cohort_size, cohort_fraction): those who train on "
                   "work for every exchange");
  if (participation.minimum_separation > 1)
    return refused("participation.minimum_separation lets nodes rest: those who train on work for every exchange");
  if (asynchronous && participation.concurrency > 0)
    return refused("participation.concurrency lets only some nodes train at once: those who train on do not stop");
  if (participation.work == ParticipationSpec::Work::kFedCompass)
    return refused("participation.work fedcompass plans when nodes are done, which it cannot where they do not wait: "
                   "choose equal or dylu");
  if (participation.work == ParticipationSpec::Work::kDylu && !asynchronous)
    return refused("participation.work dylu measures how long tasks take, and in overlapped rounds all take as long as "
                   "the slowest node: choose equal, or participation.mode asynchronous");
  if (asynchronous && exchange.block)
    return refused("exchange.on_late is block, and in an asynchronous run the exchange may need further updates of the "
                   "very node that waits for it: set it to on_arrival");
  if (rule.needs.rebased)
    return refused("aggregation.rule " + rule.name +
                   " moves updates from the versions they were measured against, and merged tensors are no version: "
                   "set aggregation.rebase to false");
  return {};
}

/// What overlapped exchange can do but is rarely meant to.
void add_notes_on_overlap(const RunSpec& spec, std::vector<std::string>& notes) {
  const ExchangeSpec& exchange = spec.exchange;
  if (exchange.overlap == 0) return;
  const bool whole_round = exchange.overlap == spec.training.steps;
  const double momentum = number_in(spec.outer, "momentum").value_or(0);
  const bool whole_model = exchange.schedule == ExchangeSpec::Schedule::kWhole;
  if (whole_round && whole_model && momentum >= 0.8 && exchange.merge != "eager")
    notes.push_back("exchange.overlap is a whole round: each outer step then answers the model of two rounds ago, and "
                    "outer.momentum " + canonical_number(momentum) +
                    " may swing; merge eager, a lower outer.learning_rate or less momentum are usual (arXiv "
                    "2502.12996)");
  if (exchange.merge == "lerp" && exchange.alpha == 1)
    notes.push_back("exchange.alpha is 1 with merge lerp: nodes keep their own tensors and never take the new version");
  if (exchange.merge == "eager" && !whole_round)
    notes.push_back("exchange.merge eager is meant for an overlap of a whole round (training.steps); lerp is usual "
                    "below");
  if (exchange.merge == "lerp" && whole_round)
    notes.push_back("exchange.merge lerp is meant for a few steps of overlap; over a whole round replace or eager are "
                    "usual");
  if (exchange.merge == "replace" && !whole_round && spec.participation.mode == ParticipationSpec::Mode::kSynchronous)
    notes.push_back("exchange.merge replace throws away what a node learns in the " + std::to_string(exchange.overlap) +
                    " steps of overlap; lerp keeps half of it");
}

}  // namespace

Surroundings surroundings(const RunSpec& spec) {
  const auto& participation = spec.participation;
  Surroundings out;
  out.asynchronous = participation.mode == ParticipationSpec::Mode::kAsynchronous;
  out.staggered = spec.exchange.schedule == ExchangeSpec::Schedule::kStaggered;
  out.all_clients = !out.asynchronous && participation.grace_s < 0 && participation.deadline_s == 0;
  out.groups = participation.work == ParticipationSpec::Work::kFedCompass;
  out.fewest_updates = out.groups ? 1 : out.asynchronous ? participation.buffer : participation.quorum;
  const bool grace = participation.adaptive_grace || participation.grace_s > 0;
  if (out.asynchronous && !out.groups && !grace) out.most_updates = participation.buffer;
  if (!out.asynchronous && participation.cohort_size > 0)
    out.most_updates = invited_for(participation, participation.cohort_size);
  out.start_loss = spec.training.start_loss;
  return out;
}

Result<void> check_needs(const Rule& rule, const Surroundings& offered) {
  const std::string who = "aggregation.rule " + rule.name;
  if (rule.needs.individual_updates && !offered.individual_updates)
    return invalid_argument(who +
                            " must see single updates, but the exchange sums them secretly: choose weighted_mean or an "
                            "exchange without secure sums");
  if (!rule.needs.linear && offered.only_sums)
    return invalid_argument(who + " is not linear, but only weighted sums of updates are known: choose weighted_mean");
  if (rule.needs.all_clients && !offered.all_clients)
    return invalid_argument(who +
                            " needs every invited node, but this run commits without some: set participation.mode to "
                            "synchronous, grace_s to -1 and deadline_s to 0");
  if (rule.needs.rebased && offered.staggered)
    return invalid_argument(who +
                            " moves late updates onto the newest version, which fragments that are exchanged one after "
                            "another do not share: set exchange.schedule to whole or aggregation.rebase to false");
  if (has(rule.needs.metrics, "start_loss") && !offered.start_loss)
    return invalid_argument(who +
                            " needs the loss of the model that a task starts from, which trainers do not measure: set "
                            "training.start_loss to true");
  return check_counts(rule.needs, offered, who);
}

Result<void> check_combination(const RunSpec& spec, const RuleCatalogue& rules) {
  SKERRY_ASSIGN(const Rule rule, rules.make(aggregation_part(spec)));
  SKERRY_TRY(make_outer_optimizer(outer_part(spec)));
  SKERRY_TRY(check_needs(rule, surroundings(spec)));
  SKERRY_TRY(check_overlap(spec, rule));
  if (spec.training.control_variates && spec.aggregation.name != "weighted_mean")
    return invalid_argument("aggregation.rule is " + spec.aggregation.name +
                            ", must be weighted_mean with training.control_variates: control variates are averages");
  const auto weights = spec.aggregation.parameters.find("weights");
  if (weights != spec.aggregation.parameters.end() && spec.data.kind != "text" &&
      (weights->second == Value(std::string("tokens")) || weights->second == Value(std::string("token_rate"))))
    return invalid_argument("aggregation.weights is " + std::get<std::string>(weights->second) + ", but data.kind " +
                            spec.data.kind + " has no tokens: choose examples, steps or uniform");
  return check_participation(spec, rule.needs);
}

std::vector<std::string> combination_notes(const RunSpec& spec) {
  const bool asynchronous = spec.participation.mode == ParticipationSpec::Mode::kAsynchronous;
  const std::string& rule = spec.aggregation.name;
  const std::string& outer = spec.outer.name;
  std::vector<std::string> notes;
  if (outer == "delayed_nesterov" && !asynchronous)
    notes.push_back(
        "outer.optimizer delayed_nesterov is meant for updates that come one by one; in synchronous rounds "
        "its velocity moves in every outer.delay-th round only: nesterov is the usual choice");
  // Decoupled exchange bears a little momentum: its nodes merge every version.
  const bool decoupled = spec.exchange.overlap > 0 && number_in(spec.outer, "momentum").value_or(0) <= 0.5;
  if ((outer == "nesterov" || outer == "momentum") && asynchronous && !decoupled)
    notes.push_back("outer.optimizer " + outer +
                    " in an asynchronous run gives every update in turn the momentum meant for a whole round, and may "
                    "diverge (arXiv 2401.09135): consider delayed_nesterov or sgd");
  const double hostile = std::max(number_in(spec.aggregation, "byzantine").value_or(0),
                                  number_in(spec.aggregation, "trim").value_or(0));
  if (asynchronous && hostile > 0 && spec.participation.minimum_separation <= 1)
    notes.push_back("aggregation.rule " + rule +
                    " counts hostile updates, and in an asynchronous run a fast node may have several of an exchange: "
                    "participation.minimum_separation 2 lets it have one");
  if (number_in(spec.aggregation, "byzantine") == 0.0)
    notes.push_back("aggregation.byzantine is 0: " + rule + " then holds against no hostile update");
  if (rule == "normalised_mean") add_notes_on_steps(spec, notes);
  if (rule == "sign_majority" && spec.aggregation.parameters.at("magnitude") == Value(std::string("unit")) &&
      number_in(spec.outer, "learning_rate") > 0.1)
    notes.push_back(
        "aggregation.rule sign_majority gives every value an outer gradient of 1 or -1, and "
        "outer.learning_rate above 0.1 moves it by as much in every exchange: values like 0.001 are usual");
  add_notes_on_overlap(spec, notes);
  if (rule == "qffl" && number_in(spec.aggregation, "learning_rate") != spec.training.learning_rate)
    notes.push_back("aggregation.learning_rate and training.learning_rate differ: qffl takes the one for the other");
  if (spec.strategy == "fedper" && spec.exchange.personal.empty())
    notes.push_back("strategy fedper without exchange.personal is plain fedavg: name the tensors that stay");
  return notes;
}

}  // namespace skerry::strategies
