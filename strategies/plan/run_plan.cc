#include "strategies/plan/run_plan.h"

#include <algorithm>
#include <cmath>

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

// What the fragments of a run come to.
struct RunSizes {
  Sizes round;    // of all lanes: fragments that are exchanged together, each with its control twin
  Sizes largest;  // lane
  std::uint64_t lanes = 0;
  double join = 0;      // bytes
  double frozen = 0;    // bytes of f32
  double personal = 0;  // bytes of f32
};

Result<RunSizes> sizes_of_run(const ModelLayout& layout, const ExchangeSpec& spec) {
  RunSizes sizes;
  std::vector<std::size_t> exchanged, shared;
  for (std::size_t i = 0; i < layout.fragments.size(); ++i) {
    const FragmentLayout& fragment = layout.fragments[i];
    const double bytes = kFloat * static_cast<double>(fragment.elements);
    if (fragment.role == FragmentRole::kExchanged) exchanged.push_back(i);
    if (fragment.role == FragmentRole::kFrozen) sizes.frozen += bytes;
    if (fragment.role == FragmentRole::kPersonal) sizes.personal += bytes;
    if (fragment.role != FragmentRole::kPersonal) shared.push_back(i);
  }
  for (const auto& lane : lanes(spec, static_cast<std::uint32_t>(exchanged.size()))) {
    std::vector<std::size_t> fragments;
    for (const std::uint32_t number : lane) {
      fragments.push_back(exchanged[number]);
      for (std::size_t i = 0; i < layout.fragments.size(); ++i)
        if (layout.fragments[i].role == FragmentRole::kControl && layout.fragments[i].twin == exchanged[number])
          fragments.push_back(i);
    }
    SKERRY_ASSIGN(const Sizes one, sizes_of(layout, fragments, spec));
    ++sizes.lanes;
    sizes.round.elements += one.elements;
    sizes.round.up += one.up;
    sizes.round.step += one.step;
    sizes.round.whole += one.whole;
    if (one.elements > sizes.largest.elements) sizes.largest = one;
  }
  SKERRY_ASSIGN(const Sizes all, sizes_of(layout, shared, spec));
  sizes.join = all.whole;
  return sizes;
}

// A node that takes part in `share` of the exchanges, and every node where everybody evaluates, reads the version
// before with this probability; otherwise the whole is fetched.
double reads_each_version(const RunSpec& spec, double share) {
  const double evaluates = spec.evaluation.every > 0 ? 1.0 / static_cast<double>(spec.evaluation.every) : 0;
  return share + (1 - share) * evaluates;
}

// What a node at work fetches in a round.
double read_in_round(const RunSpec& spec, const RunCost& cost, const RunSizes& sizes, double nodes) {
  const double cohort = static_cast<double>(cost.cohort);
  if (spec.exchange.overlap > 0) return sizes.round.step;
  if (cost.asynchronous) {
    // Between two tasks of a node the others commit so many exchanges, which take the lanes in turn.
    const double missed = nodes / cohort / static_cast<double>(sizes.lanes);
    return missed <= 1 ? sizes.round.step * missed : sizes.round.whole;
  }
  const double had = reads_each_version(spec, cohort / nodes);
  return had * sizes.round.step + (1 - had) * sizes.round.whole;
}

void add_traffic(const RunSpec& spec, const RunSizes& sizes, double nodes, RunCost& cost) {
  const double cohort = static_cast<double>(cost.cohort);
  const double rounds = static_cast<double>(cost.rounds);
  const bool all_evaluate = !cost.asynchronous && spec.exchange.overlap == 0;
  const double readers = all_evaluate ? nodes * reads_each_version(spec, cohort / nodes) : cohort;
  cost.join = sizes.join;
  cost.up_per_round = sizes.round.up;
  cost.down_per_round = read_in_round(spec, cost, sizes, nodes);
  cost.up_at_once = sizes.largest.up;
  cost.down_at_once = sizes.largest.step * cost.down_per_round / sizes.round.step;
  cost.coordinator_in = cohort * cost.up_per_round;
  cost.coordinator_out = readers * cost.down_per_round;
  cost.total_in = rounds * cost.coordinator_in;
  cost.total_out = rounds * cost.coordinator_out + nodes * cost.join;
}

// What each exchange takes whatever the links are.
double fixed_seconds(const RunCost& cost, const PlanAssumptions& given) {
  return kMessagesOfAnExchange * given.latency_seconds +
         kFloat * static_cast<double>(cost.largest_lane) / given.reduce_rate;
}

// A node computes, sends its largest lane, and gets it back when all have sent it and it is reduced.
void add_time(const PlanAssumptions& given, RunCost& cost) {
  const double at_once = cost.asynchronous ? 1 : static_cast<double>(cost.cohort);
  const double compute = cost.steps * given.step_seconds;
  const double slower_up = std::max(1 / given.node.up, at_once / given.coordinator.down);
  const double slower_down = std::max(1 / given.node.down, at_once / given.coordinator.up);
  cost.transfer_seconds =
      8 * cost.up_at_once * slower_up + 8 * cost.down_at_once * slower_down + fixed_seconds(cost, given);
  cost.stall_seconds = std::max(0.0, cost.transfer_seconds - cost.overlap_steps * given.step_seconds);
  cost.utilisation = compute_utilisation(compute, cost.stall_seconds);
  const double task = compute + cost.stall_seconds;
  const double nodes = static_cast<double>(given.nodes);
  cost.exchange_seconds = cost.asynchronous ? task * static_cast<double>(cost.cohort) / nodes : task;
  cost.round_seconds = cost.exchange_seconds * static_cast<double>(cost.lanes);
  cost.total_seconds = cost.round_seconds * static_cast<double>(cost.rounds) + 8 * cost.join / given.node.down;
}

// What is held; docs/scale.md says what each term is. `kept` vectors as long as the model belong to a version.
void add_holdings(const RunSpec& spec, const RunSizes& sizes, double kept, double nodes, RunCost& cost) {
  const bool overlapped = spec.exchange.overlap > 0;
  const double parameters = kFloat * static_cast<double>(cost.parameters);
  const double exchanged = kFloat * static_cast<double>(sizes.round.elements);
  const double lane = kFloat * static_cast<double>(sizes.largest.elements);
  const double trained = parameters - sizes.frozen;
  const double optimizer = inner_vectors(json::parse(spec.training_json)) * trained;
  const double emitted = overlapped ? lane : 0;
  const double in_flight = (overlapped ? 2 : 1) * sizes.largest.up;
  const double checkpoint = trained + optimizer + emitted;
  cost.island_memory = parameters + trained + optimizer + checkpoint;
  cost.island_disk = 2 * sizes.join + lane + sizes.personal + 2 * checkpoint + in_flight +
                     (spec.exchange.up_feedback > 0 ? exchanged : 0);

  const double vectors = kept + (spec.exchange.down_feedback > 0 ? 1 : 0);
  const double version = sizes.round.whole + (spec.exchange.down == "f32" ? 0 : sizes.round.step) + vectors * exchanged;
  const double versions = 2 + (spec.evaluation.every > 0 ? 1 : 0) + lane / exchanged;  // the one being written
  cost.coordinator_memory = kCoordinatorBase + kCoordinatorPerNode * nodes;
  cost.coordinator_disk = versions * version + sizes.frozen + static_cast<double>(cost.cohort) * in_flight;
}

}  // namespace

Result<RunCost> plan_run(const RunSpec& spec, const PlanAssumptions& given) {
  SKERRY_TRY(check(given, spec));
  SKERRY_ASSIGN(const ModelLayout layout, build_layout(json::parse(spec.model_json)));
  SKERRY_ASSIGN(const RunSizes sizes, sizes_of_run(layout, spec.exchange));
  SKERRY_ASSIGN(const OuterOptimizer outer, make_outer_optimizer(outer_part(spec)));
  SKERRY_ASSIGN(const Rule rule, make_rule(aggregation_part(spec)));
  const auto nodes = static_cast<double>(given.nodes);

  RunCost cost;
  cost.parameters = layout.parameters;
  for (const FragmentLayout& fragment : layout.fragments)
    if (fragment.role == FragmentRole::kExchanged) cost.exchanged += fragment.elements;
  cost.lanes = sizes.lanes;
  cost.largest_lane = sizes.largest.elements;
  cost.rounds = spec.stop.rounds;
  cost.steps = spec.training.steps > 0
                   ? static_cast<double>(spec.training.steps)
                   : std::ceil(spec.training.epochs * given.examples / static_cast<double>(spec.training.batch));
  cost.overlap_steps = static_cast<double>(spec.exchange.overlap);
  cost.asynchronous = spec.participation.mode == ParticipationSpec::Mode::kAsynchronous;
  cost.cohort = cost.asynchronous ? spec.participation.buffer : cohort_target(spec.participation, given.nodes);
  add_traffic(spec, sizes, nodes, cost);
  add_time(given, cost);
  add_holdings(spec, sizes, static_cast<double>(outer.state_vectors.size() + rule.state_vectors.size()), nodes, cost);
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
                        .fixed_seconds = fixed_seconds(cost, given)};
  PlanRow& here = row("this run", own);
  here.utilisation = cost.utilisation;
  here.total_seconds = cost.total_seconds;
  const auto h = static_cast<std::uint64_t>(cost.steps) * cost.lanes;
  for (const ExchangeMethod& method : published_methods(h, cost.lanes))
    row(method.name, published_load(method, static_cast<double>(cost.exchanged), given.step_seconds));
  return rows;
}

}  // namespace skerry::strategies
