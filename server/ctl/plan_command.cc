// skerry plan: what a run will cost, before anyone trains. No coordinator is asked.
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "common/config/run_spec.h"
#include "common/os/files.h"
#include "server/ctl/commands.h"
#include "server/ctl/console.h"
#include "strategies/catalogue.h"
#include "strategies/plan/run_plan.h"

namespace skerry::ctl {
namespace {

using nlohmann::json;
using strategies::kUtilisations;
using strategies::PlanAssumptions;
using strategies::PlanRow;
using strategies::RunCost;

constexpr std::uint64_t kMaxSpecBytes = 256 * 1024;

struct Arguments {
  std::string file;
  std::uint64_t nodes = 0;
  double step_seconds = 1, up_mbps = 100, down_mbps = 100, coordinator_mbps = 1000, latency_ms = 50;
  double examples = 0, reduce_mb_s = 500;
};

PlanAssumptions assumptions_of(const Arguments& given, const RunSpec& spec) {
  PlanAssumptions out;
  out.nodes = given.nodes > 0                      ? given.nodes
              : spec.participation.start_nodes > 1 ? spec.participation.start_nodes
                                                   : std::max(out.nodes, spec.participation.cohort_size);
  out.step_seconds = given.step_seconds;
  out.node = {given.up_mbps * 1e6, given.down_mbps * 1e6};
  out.coordinator = {given.coordinator_mbps * 1e6, given.coordinator_mbps * 1e6};
  out.latency_seconds = given.latency_ms / 1000;
  out.examples = given.examples;
  out.reduce_rate = given.reduce_mb_s * 1e6;
  return out;
}

std::string bytes_text(double bytes) { return human_bytes(static_cast<std::uint64_t>(std::llround(bytes))); }

std::string bandwidth_text(double bits) {
  if (std::isinf(bits)) return "-";
  char text[32];
  const bool giga = bits >= 1e9;
  std::snprintf(text, sizeof text, "%.3g %s", giga ? bits / 1e9 : bits / 1e6, giga ? "Gbit/s" : "Mbit/s");
  return text;
}

/// "7.24 B", "12.6 M": parameters.
std::string count_text(double count) {
  char text[32];
  const double unit = count >= 1e9 ? 1e9 : count >= 1e6 ? 1e6 : 1;
  std::snprintf(text, sizeof text, unit > 1 ? "%.3g %s" : "%.0f%s", count / unit,
                unit == 1e9   ? "B"
                : unit == 1e6 ? "M"
                              : "");
  return text;
}

std::string percent(double share) {
  char text[16];
  std::snprintf(text, sizeof text, "%.1f %%", 100 * share);
  return text;
}

json to_json(const RunSpec& spec, const PlanAssumptions& assumed, const RunCost& cost,
             const std::vector<PlanRow>& rows) {
  json methods = json::array();
  for (const PlanRow& row : rows) {
    json bandwidth = json::array();
    for (std::size_t i = 0; i < row.bandwidth.size(); ++i)
      bandwidth.push_back({{"utilisation", kUtilisations[i]},
                           {"bits_per_second", std::isinf(row.bandwidth[i]) ? json() : json(row.bandwidth[i])}});
    methods.push_back({{"method", row.method},
                       {"bandwidth", bandwidth},
                       {"utilisation", row.utilisation},
                       {"total_seconds", row.total_seconds}});
  }
  return {{"run", {{"name", spec.name}, {"strategy", spec.strategy}, {"spec_hash", spec.hash}}},
          {"assumed",
           {{"nodes", assumed.nodes},
            {"step_seconds", assumed.step_seconds},
            {"up_bits_per_second", assumed.node.up},
            {"down_bits_per_second", assumed.node.down},
            {"coordinator_bits_per_second", assumed.coordinator.up},
            {"latency_seconds", assumed.latency_seconds},
            {"reduce_bytes_per_second", assumed.reduce_rate}}},
          {"model",
           {{"parameters", cost.parameters}, {"exchanged", cost.exchanged}, {"largest_exchange", cost.largest_lane}}},
          {"exchange",
           {{"rounds", cost.rounds},
            {"exchanges_per_round", cost.lanes},
            {"inner_steps", cost.steps},
            {"cohort", cost.cohort},
            {"overlap_steps", cost.overlap_steps},
            {"up", spec.exchange.up},
            {"down", spec.exchange.down}}},
          {"bytes",
           {{"node_up_per_round", cost.up_per_round},
            {"node_down_per_round", cost.down_per_round},
            {"coordinator_in_per_round", cost.coordinator_in},
            {"coordinator_out_per_round", cost.coordinator_out},
            {"coordinator_in_total", cost.total_in},
            {"coordinator_out_total", cost.total_out},
            {"joiner", cost.join}}},
          {"held",
           {{"island_memory", cost.island_memory},
            {"island_disk", cost.island_disk},
            {"coordinator_memory", cost.coordinator_memory},
            {"coordinator_disk", cost.coordinator_disk}}},
          {"time",
           {{"exchange_seconds", cost.exchange_seconds},
            {"transfer_seconds", cost.transfer_seconds},
            {"stall_seconds", cost.stall_seconds},
            {"utilisation", cost.utilisation},
            {"round_seconds", cost.round_seconds},
            {"total_seconds", cost.total_seconds}}},
          {"methods", methods}};
}

void print(const RunSpec& spec, const PlanAssumptions& assumed, const RunCost& cost, const std::vector<PlanRow>& rows) {
  std::printf("%s (%s)\n", printable(spec.name).c_str(), spec.strategy.c_str());
  std::printf("  model     %s parameters, of which %s are exchanged\n",
              count_text(static_cast<double>(cost.parameters)).c_str(),
              count_text(static_cast<double>(cost.exchanged)).c_str());
  std::printf("  exchange  %s parameters every %s inner steps, %llu %s, %s up, %s down\n",
              count_text(static_cast<double>(cost.largest_lane)).c_str(), human_number(cost.steps).c_str(),
              static_cast<unsigned long long>(cost.cohort), cost.cohort == 1 ? "update" : "updates",
              spec.exchange.up.c_str(), spec.exchange.down.c_str());
  std::printf("  run       %llu %s of %llu %s\n", static_cast<unsigned long long>(cost.rounds),
              cost.rounds == 1 ? "round" : "rounds", static_cast<unsigned long long>(cost.lanes),
              cost.lanes == 1 ? "exchange" : "exchanges");
  std::printf("  assumed   %llu nodes, %s s a step, %s up and %s down, %s at the coordinator, %s ms latency\n\n",
              static_cast<unsigned long long>(assumed.nodes), human_number(assumed.step_seconds).c_str(),
              bandwidth_text(assumed.node.up).c_str(), bandwidth_text(assumed.node.down).c_str(),
              bandwidth_text(assumed.coordinator.up).c_str(), human_number(assumed.latency_seconds * 1000).c_str());

  Table bytes({"BYTES", "UP", "DOWN"});
  bytes.add({"a node, each round", bytes_text(cost.up_per_round), bytes_text(cost.down_per_round)});
  bytes.add({"coordinator, each round", bytes_text(cost.coordinator_in), bytes_text(cost.coordinator_out)});
  bytes.add({"coordinator, whole run", bytes_text(cost.total_in), bytes_text(cost.total_out)});
  bytes.add({"a node that joins", "-", bytes_text(cost.join)});
  std::printf("%s\n", bytes.text().c_str());

  std::vector<std::string> headings = {"BANDWIDTH FOR UTILISATION"};
  for (const double utilisation : kUtilisations) headings.push_back(human_number(100 * utilisation) + " %");
  headings.insert(headings.end(), {"HERE", "DONE IN"});
  Table bandwidth(headings);
  for (const PlanRow& row : rows) {
    std::vector<std::string> cells = {row.method};
    for (const double bits : row.bandwidth) cells.push_back(bandwidth_text(bits));
    cells.insert(cells.end(), {percent(row.utilisation), human_seconds(row.total_seconds)});
    bandwidth.add(std::move(cells));
  }
  std::printf("%s\n", bandwidth.text().c_str());

  Table held({"HELD", "MEMORY", "DISK"});
  held.add({"each island", bytes_text(cost.island_memory) + " and activations", bytes_text(cost.island_disk)});
  held.add({"coordinator", bytes_text(cost.coordinator_memory), bytes_text(cost.coordinator_disk)});
  std::printf("%s\n", held.text().c_str());

  std::printf("An exchange every %s: %s of transfer, of which a node waits for %s. Compute utilisation %s.\n",
              human_seconds(cost.exchange_seconds).c_str(), human_seconds(cost.transfer_seconds).c_str(),
              cost.stall_seconds > 0 ? human_seconds(cost.stall_seconds).c_str() : "none", percent(cost.utilisation).c_str());
  std::printf("The run takes %s.\n", human_seconds(cost.total_seconds).c_str());
}

Result<void> plan(const Context& context, const Arguments& arguments) {
  SKERRY_ASSIGN(const std::string toml, read_file(arguments.file, kMaxSpecBytes));
  SKERRY_ASSIGN(const RunSpec spec, parse_run_spec(toml, strategies::spec_catalogue()));
  const PlanAssumptions assumed = assumptions_of(arguments, spec);
  SKERRY_ASSIGN(const RunCost cost, strategies::plan_run(spec, assumed));
  const std::vector<PlanRow> rows = strategies::compare_methods(cost, assumed);
  if (context.json)
    std::printf("%s\n", to_json(spec, assumed, cost, rows).dump(2).c_str());
  else
    print(spec, assumed, cost, rows);
  return {};
}

}  // namespace

void add_plan_command(CLI::App& app, Context& context) {
  CLI::App* command = app.add_subcommand(
      "plan",
      "What a run will cost in bytes, bandwidth, memory, disk and time; no coordinator is asked (docs/scale.md)");
  auto arguments = std::make_shared<Arguments>();
  command->add_option("SPEC", arguments->file, "The run spec, a TOML file")->required();
  command->add_option("--nodes", arguments->nodes, "That take part; 0: participation.start_nodes, or 4")
      ->capture_default_str();
  command->add_option("--step-seconds", arguments->step_seconds, "Of one inner step on a node")->capture_default_str();
  command->add_option("--up-mbps", arguments->up_mbps, "A node's link up, Mbit/s")->capture_default_str();
  command->add_option("--down-mbps", arguments->down_mbps, "A node's link down, Mbit/s")->capture_default_str();
  command->add_option("--coordinator-mbps", arguments->coordinator_mbps, "The coordinator's link, Mbit/s each way")
      ->capture_default_str();
  command->add_option("--latency-ms", arguments->latency_ms, "One way")->capture_default_str();
  command->add_option("--examples", arguments->examples, "Of a node, for runs that count epochs")
      ->capture_default_str();
  command->add_option("--reduce-mb-s", arguments->reduce_mb_s, "MB of f32 model that the coordinator makes a second")
      ->capture_default_str();
  command->callback(
      [&context, arguments] { context.chosen = [&context, arguments] { return plan(context, *arguments); }; });
}

}  // namespace skerry::ctl
