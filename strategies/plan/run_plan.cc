#include "strategies/plan/run_plan.h"

#include <algorithm>
#include <cmath>
#include <map>

#include <nlohmann/json.hpp>

#include "common/codec/encoding.h"
#include "common/model/fragment_file.h"
#include "common/model/layout.h"
#include "strategies/catalogue.h"
#include "strategies/exchange.h"
#include "strategies/outer/outer_optimizer.h"
#include "strategies/participation.h"

namespace skerry::strategies {
namespace {

using nlohmann::json;

constexpr double kFloat = 4;                    // bytes
constexpr double kMessagesOfAnExchange = 4;     // one after another: offer, update, announcement, fetch
constexpr double kCoordinatorBase = 64e6;       // bytes, whatever the model (docs/benchmarks.md, large_round_memory)
constexpr double kCoordinatorPerNode = 0.16e6;  // a TLS connection and its session (wide_round.memory)

// Vectors as long as the model that the inner optimizer keeps.
double inner_vectors(const json& training) {
  const std::string optimizer = training.at("optimizer");
  if (optimizer != "sgd") return 2;
  return training.at("momentum").get<double>() > 0 ? 1 : 0;
}

struct Sizes {
  std::uint64_t elements = 0;
  double up = 0;
  double step = 0;   // what a node fetches that has the version before
  double whole = 0;  // what any other fetches
};

Result<Sizes> sizes_of(const ModelLayout& layout, const std::vector<std::size_t>& fragments, const ExchangeSpec& spec) {
  SKERRY_ASSIGN(const Encoding* up, find_encoding(spec.up));
  SKERRY_ASSIGN(const Encoding* down, find_encoding(spec.down));
  Sizes sizes;
  for (const std::size_t index : fragments) {
    const FragmentLayout& fragment = layout.fragments[index];
    SKERRY_ASSIGN(const std::string header, fragment_header(layout, fragment.name));
    const double whole = static_cast<double>(header.size()) + kFloat * static_cast<double>(fragment.elements);
    sizes.elements += fragment.elements;
    sizes.up += static_cast<double>(up->encoded_bytes(fragment.elements));
    sizes.step += spec.down == "f32" ? whole : static_cast<double>(down->encoded_bytes(fragment.elements));
    sizes.whole += whole;
  }
  return sizes;
}

Result<void> check(const PlanAssumptions& given, const RunSpec& spec) {
  const auto positive = [](const char* what, double value) -> Result<void> {
    if (std::isfinite(value) && value > 0) return {};
    return invalid_argument(std::string(what) + " must be a number above 0");
  };
  if (given.nodes == 0) return invalid_argument("the number of nodes must be at least 1");
  SKERRY_TRY(positive("the seconds of a step", given.step_seconds));
  SKERRY_TRY(positive("a node's bandwidth up", given.node.up));
  SKERRY_TRY(positive("a node's bandwidth down", given.node.down));
  SKERRY_TRY(positive("the coordinator's bandwidth up", given.coordinator.up));
  SKERRY_TRY(positive("the coordinator's bandwidth down", given.coordinator.down));
  SKERRY_TRY(positive("the coordinator's rate of reduction", given.reduce_rate));
  if (!std::isfinite(given.latency_seconds) || given.latency_seconds < 0)
    return invalid_argument("the latency must be a number of at least 0");
  if (spec.training.steps == 0 && !(given.examples > 0))
    return invalid_argument("the run counts epochs (training.epochs is " + std::to_string(spec.training.epochs) +
                            "): say how many examples a node has");
  if (spec.participation.mode == ParticipationSpec::Mode::kSynchronous && given.nodes < spec.participation.quorum)
    return invalid_argument(std::to_string(given.nodes) + " nodes cannot be the quorum of " +
                            std::to_string(spec.participation.quorum) + " that participation.quorum demands");
  return {};
}

// A node that takes part in `share` of the exchanges, and every node where everybody evaluates, reads the version
// before with this probability; otherwise the whole is fetched.
double reads_each_version(const RunSpec& spec, double share) {
  const double evaluates = spec.evaluation.every > 0 ? 1.0 / static_cast<double>(spec.evaluation.every) : 0;
  return share + (1 - share) * evaluates;
}

}  // namespace

Result<RunCost> plan_run(const RunSpec& spec, const PlanAssumptions& given) {
  SKERRY_TRY(check(given, spec));
  SKERRY_ASSIGN(const ModelLayout layout, build_layout(json::parse(spec.model_json)));
  const json training = json::parse(spec.training_json);
  SKERRY_ASSIGN(const OuterOptimizer outer, make_outer_optimizer(outer_part(spec)));
  SKERRY_ASSIGN(const Rule rule, make_rule(aggregation_part(spec)));

  RunCost cost;
  cost.parameters = layout.parameters;
  cost.rounds = spec.stop.rounds;
  cost.overlap_steps = static_cast<double>(spec.exchange.overlap);
  cost.asynchronous = spec.participation.mode == ParticipationSpec::Mode::kAsynchronous;
  cost.steps = spec.training.steps > 0
                   ? static_cast<double>(spec.training.steps)
                   : std::ceil(spec.training.epochs * given.examples / static_cast<double>(spec.training.batch));

  // Lanes: fragments that are exchanged together, each with its control twin.
  std::vector<std::size_t> exchanged, every;
  double frozen = 0, personal = 0;
  for (std::size_t i = 0; i < layout.fragments.size(); ++i) {
    const FragmentLayout& fragment = layout.fragments[i];
    const double elements = static_cast<double>(fragment.elements);
    if (fragment.role == FragmentRole::kExchanged) exchanged.push_back(i);
    if (fragment.role == FragmentRole::kFrozen) frozen += elements;
    if (fragment.role == FragmentRole::kPersonal) personal += elements;
    if (fragment.role != FragmentRole::kPersonal) every.push_back(i);
    if (fragment.role == FragmentRole::kExchanged) cost.exchanged += fragment.elements;
  }
  Sizes round, largest;
  for (const auto& lane : lanes(spec.exchange, static_cast<std::uint32_t>(exchanged.size()))) {
    std::vector<std::size_t> fragments;
    for (const std::uint32_t number : lane) {
      fragments.push_back(exchanged[number]);
      for (std::size_t i = 0; i < layout.fragments.size(); ++i)
        if (layout.fragments[i].role == FragmentRole::kControl && layout.fragments[i].twin == exchanged[number])
          fragments.push_back(i);
    }
    SKERRY_ASSIGN(const Sizes sizes, sizes_of(layout, fragments, spec.exchange));
    ++cost.lanes;
    round.elements += sizes.elements;
    round.up += sizes.up;
    round.step += sizes.step;
    round.whole += sizes.whole;
    if (sizes.elements > largest.elements) largest = sizes;
  }
  cost.largest_lane = largest.elements;
  SKERRY_ASSIGN(const Sizes all, sizes_of(layout, every, spec.exchange));
  cost.join = all.whole;

  // Who takes part in an exchange, and what they fetch for it.
  const auto nodes = static_cast<double>(given.nodes);
  const auto lane_count = static_cast<double>(cost.lanes);
  cost.cohort = cost.asynchronous ? spec.participation.buffer : cohort_target(spec.participation, given.nodes);
  const auto cohort = static_cast<double>(cost.cohort);
  const bool overlapped = spec.exchange.overlap > 0;
  double reads = 0;  // a round, by a node at work
  if (overlapped) {
    reads = round.step;
  } else if (cost.asynchronous) {
    // Between two tasks of a node its others commit so many exchanges, which take the lanes in turn.
    const double missed = nodes / cohort / lane_count;
    reads = missed <= 1 ? round.step * missed : round.whole;
  } else {
    const double had = reads_each_version(spec, cohort / nodes);
    reads = had * round.step + (1 - had) * round.whole;
  }
  cost.up_per_round = round.up;
  cost.down_per_round = reads;
  cost.up_at_once = largest.up;
  cost.down_at_once = largest.step * (reads / round.step);
  cost.coordinator_in = cohort * cost.up_per_round;
  const double readers = cost.asynchronous || overlapped ? cohort : nodes * reads_each_version(spec, cohort / nodes);
  cost.coordinator_out = readers * cost.down_per_round;
  const auto rounds = static_cast<double>(cost.rounds);
  cost.total_in = rounds * cost.coordinator_in;
  cost.total_out = rounds * cost.coordinator_out + nodes * cost.join;

  // Time: a node computes `steps`, sends its largest lane, and gets it back when all have sent it and it is reduced.
  const double at_once = cost.asynchronous ? 1 : cohort;
  const double up = cost.up_at_once, down = cost.down_at_once;
  const double compute = cost.steps * given.step_seconds;
  cost.transfer_seconds = 8 * std::max(up / given.node.up, at_once * up / given.coordinator.down) +
                          8 * std::max(down / given.node.down, at_once * down / given.coordinator.up) +
                          kMessagesOfAnExchange * given.latency_seconds +
                          kFloat * static_cast<double>(largest.elements) / given.reduce_rate;
  cost.stall_seconds = std::max(0.0, cost.transfer_seconds - cost.overlap_steps * given.step_seconds);
  cost.utilisation = compute_utilisation(compute, cost.stall_seconds);
  const double task = compute + cost.stall_seconds;
  cost.exchange_seconds = cost.asynchronous ? task * cohort / nodes : task;
  cost.round_seconds = cost.exchange_seconds * lane_count;
  cost.total_seconds = cost.round_seconds * rounds + 8 * cost.join / given.node.down;

  // What is held. docs/scale.md says what each term is.
  const auto parameters = static_cast<double>(cost.parameters);
  const auto exchanged_bytes = kFloat * static_cast<double>(round.elements);
  const double trained = kFloat * (parameters - frozen);
  const double optimizer = inner_vectors(training) * trained;
  const double emitted = overlapped ? kFloat * static_cast<double>(largest.elements) : 0;
  const double feedback = spec.exchange.up_feedback > 0 ? kFloat * static_cast<double>(round.elements) : 0;
  const double in_flight = overlapped ? 2 : 1;
  cost.island_memory = kFloat * parameters + trained + optimizer + (trained + optimizer) + emitted;
  const double checkpoint = trained + optimizer + emitted;
  cost.island_disk = 2 * all.whole + kFloat * static_cast<double>(largest.elements) + kFloat * personal +
                     2 * checkpoint + in_flight * largest.up + feedback;
  cost.coordinator_memory = kCoordinatorBase + kCoordinatorPerNode * nodes;
  const double states = static_cast<double>(outer.state_vectors.size() + rule.state_vectors.size()) * exchanged_bytes;
  const double down_feedback = spec.exchange.down_feedback > 0 ? exchanged_bytes : 0;
  const double version = round.whole + (spec.exchange.down == "f32" ? 0 : round.step) + states + down_feedback;
  const double share_written = static_cast<double>(largest.elements) / static_cast<double>(round.elements);
  const double best = spec.evaluation.every > 0 ? version : 0;
  cost.coordinator_disk = (2 + share_written) * version + best + kFloat * frozen + in_flight * cohort * largest.up;
  return cost;
}

std::vector<PlanRow> compare_methods(const RunCost& cost, const PlanAssumptions& given) {
  const double inner_steps = cost.steps * static_cast<double>(cost.lanes) * static_cast<double>(cost.rounds);
  std::vector<PlanRow> rows;
  const auto row = [&](std::string method, const LinkLoad& load) -> PlanRow& {
    PlanRow& out = rows.emplace_back();
    out.method = std::move(method);
    for (const double utilisation : kUtilisations) out.bandwidth.push_back(needed_bandwidth(load, utilisation));
    out.utilisation = compute_utilisation(load, std::min(given.node.up, given.node.down));
    out.total_seconds = inner_steps * given.step_seconds / out.utilisation;
    return out;
  };
  const LinkLoad own = {.bits = 8 * (cost.up_at_once + cost.down_at_once),
                        .compute_seconds = cost.steps * given.step_seconds,
                        .hidden_seconds = cost.overlap_steps * given.step_seconds,
                        .fixed_seconds = kMessagesOfAnExchange * given.latency_seconds +
                                         kFloat * static_cast<double>(cost.largest_lane) / given.reduce_rate};
  PlanRow& here = row("this run", own);
  here.utilisation = cost.utilisation;
  here.total_seconds = cost.total_seconds;
  const auto h = static_cast<std::uint64_t>(cost.steps) * cost.lanes;
  for (const ExchangeMethod& method : published_methods(h, cost.lanes))
    row(method.name, published_load(method, static_cast<double>(cost.exchanged), given.step_seconds));
  return rows;
}

}  // namespace skerry::strategies
