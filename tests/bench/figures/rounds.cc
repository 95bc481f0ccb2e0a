// Many small exchanges: rounds a second, what the coordinator's disk sees of them, and one round of a thousand clients.
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <sstream>
#include <thread>

#include "common/os/files.h"
#include "tests/bench/figures/benchmarks.h"
#include "tests/bench/parts/rates.h"

namespace skerry::bench {
namespace {

constexpr unsigned kNodes = 10;
constexpr std::size_t kRoundBytes = 48 * 1024;  // ten updates of 4,000 bytes, with receipts
constexpr unsigned kFleetRounds = 1500;
constexpr unsigned kDaemonRounds = 600;
constexpr unsigned kCountedRounds = 200;
constexpr unsigned kWide = 1000;

/// What the disk allows: rounds a second if each were its two durable commits and nothing else.
Result<double> disk_bound(const World& world) {
  SKERRY_ASSIGN(const double commits, commit_rate(world.options().directory, 400, kRoundBytes / 2));
  return commits / 2;
}

/// Rounds a second by the coordinator's own clock, the first tenth left out.
Result<double> rate_of(Operator& watcher, const std::string& run_id) {
  SKERRY_ASSIGN(const auto rows, watcher.exchanges(run_id));
  const std::size_t skipped = rows.size() / 10;
  if (rows.size() < skipped + 2) return internal_error("run " + run_id + " shows only " + std::to_string(rows.size()) + " exchanges");
  const double seconds = static_cast<double>(rows.back().time_ms - rows[skipped].time_ms) / 1000.0;
  return static_cast<double>(rows.size() - 1 - skipped) / std::max(seconds, 1e-3);
}

/// Calls of fsync and fdatasync in strace's table.
Result<std::uint64_t> syncs_in(const std::string& path) {
  std::string text;
  // strace writes its table when the coordinator is gone, and a moment after.
  for (int attempt = 0; attempt < 100 && text.find("total") == std::string::npos; ++attempt) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    SKERRY_ASSIGN(text, read_file(path, 1u << 20));
  }
  std::istringstream lines(text);
  std::uint64_t calls = 0;
  bool any = false;
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::vector<std::string> columns;
    for (std::string word; words >> word;) columns.push_back(word);
    if (columns.size() < 5 || (columns.back() != "fsync" && columns.back() != "fdatasync")) continue;
    calls += std::strtoull(columns[3].c_str(), nullptr, 10);
    any = true;
  }
  if (!any) return internal_error("strace counted nothing in " + path);
  return calls;
}

/// Syncs of the coordinator a round, of a run of its own under strace: the difference between a longer and a shorter run,
/// so that what happens once a run does not count.
template <typename RunRounds>
Result<double> syncs_a_round(World& world, RunRounds run_rounds) {
  const std::string counts = world.options().directory + "/syncs";
  std::uint64_t calls[2] = {};
  const unsigned rounds[2] = {kCountedRounds / 4, kCountedRounds};
  for (int i = 0; i < 2; ++i) {
    SKERRY_TRY(remove_file(counts));
    SKERRY_TRY(world.start_coordinator({"strace", "-DD", "-f", "--seccomp-bpf", "-c", "-o", counts, "-e", "trace=fsync,fdatasync"}));
    SKERRY_TRY(run_rounds(rounds[i]));
    world.stop_daemons();
    world.stop_coordinator();
    SKERRY_ASSIGN(calls[i], syncs_in(counts));
  }
  return static_cast<double>(calls[1] - std::min(calls[0], calls[1])) / (rounds[1] - rounds[0]);
}

Figure syncs_figure(const char* name, double syncs) { return {name, syncs, "fsyncs", 0, "", "≤ 2 a round", syncs <= 2.0}; }

Result<double> daemon_rounds(World& world, unsigned rounds) {
  SKERRY_TRY(world.make_holders(kNodes));
  for (unsigned i = 0; i < kNodes; ++i) SKERRY_TRY(world.start_daemon(i));
  SKERRY_ASSIGN(Operator submitter, world.open_operator());
  SKERRY_ASSIGN(const std::string run, submitter.submit(spec_of({"small-rounds", kSmallModel, kNodes, rounds})));
  SKERRY_ASSIGN(const RunState end, submitter.wait(run, 600'000, 250));
  if (end.status != "completed" || end.discarded > 0)
    return failed_precondition("run " + run + " is " + end.status + ": " + end.reason + "; " + std::to_string(end.discarded) + " updates were discarded");
  return rate_of(submitter, run);
}

}  // namespace

Figures small_rounds(BenchmarkContext& context) {
  World& world = context.world;
  if (world.options().trainer.empty()) return not_found("there is no skerry-trainer; build it (SKERRY_TRAINER=ON) or name it with --trainer");
  std::vector<double> values, bounds;
  for (unsigned i = 0; i < context.repeat; ++i) {
    SKERRY_ASSIGN(bounds.emplace_back(), disk_bound(world));
    SKERRY_TRY(world.start_coordinator());
    auto rate = daemon_rounds(world, kDaemonRounds);
    world.stop_daemons();
    world.stop_coordinator();
    if (!rate.ok()) return rate.error();
    values.push_back(*rate);
  }
  const double value = median(values);
  Figure rounds{"small_rounds", value, "rounds/s", median(bounds), "two durable commits a round, nothing else", "≥ 100", value >= 100};
  rounds.detail = {{"values", values}, {"nodes", kNodes}, {"rounds", kDaemonRounds}};
  SKERRY_ASSIGN(const double syncs, syncs_a_round(world, [&](unsigned number) -> Result<void> {
                  SKERRY_TRY(daemon_rounds(world, number));
                  return {};
                }));
  return std::vector<Figure>{rounds, syncs_figure("small_rounds.fsyncs", syncs)};
}

Figures small_rounds_fleet(BenchmarkContext& context) {
  World& world = context.world;
  std::vector<double> values, bounds, server_cpu;
  for (unsigned i = 0; i < context.repeat; ++i) {
    SKERRY_ASSIGN(bounds.emplace_back(), disk_bound(world));
    SKERRY_TRY(world.start_coordinator());
    auto report = world.fleet(kNodes, spec_of({"small-rounds-fleet", kSmallModel, kNodes, kFleetRounds}), 300);
    world.stop_coordinator();
    if (!report.ok()) return report.error();
    values.push_back((*report)["runs"].begin().value()["rounds_per_second"].get<double>());
    server_cpu.push_back((*report)["watched"]["cpu_seconds"].get<double>() / kFleetRounds * 1e3);
  }
  const double value = median(values);
  Figure rounds{"small_rounds_fleet", value, "rounds/s", median(bounds), "two durable commits a round, nothing else", "≥ 200", value >= 200};
  rounds.detail = {{"values", values}, {"nodes", kNodes}, {"rounds", kFleetRounds}, {"coordinator_cpu_ms_a_round", median(server_cpu)}};
  SKERRY_ASSIGN(const double syncs, syncs_a_round(world, [&](unsigned number) -> Result<void> {
                  SKERRY_TRY(world.fleet(kNodes, spec_of({"counted", kSmallModel, kNodes, number}), 300));
                  return {};
                }));
  return std::vector<Figure>{rounds, syncs_figure("small_rounds_fleet.fsyncs", syncs)};
}

Figures wide_round(BenchmarkContext& context) {
  World& world = context.world;
  std::vector<double> seconds, memory, before, connecting, verifying;
  for (unsigned i = 0; i < context.repeat; ++i) {
    SKERRY_ASSIGN(const double verified, verify_rate(kWide));
    verifying.push_back(kWide / verified);
    SKERRY_TRY(world.start_coordinator());
    auto report = world.fleet(kWide, spec_of({"wide-round", kSmallModel, kWide, 1}), 300);
    world.stop_coordinator();
    if (!report.ok()) return report.error();
    seconds.push_back((*report)["runs"].begin().value()["median_round_seconds"].get<double>());
    memory.push_back((*report)["watched"]["peak_resident_bytes"].get<double>() / 1e6);
    before.push_back((*report)["watched"]["resident_bytes_before"].get<double>() / 1e6);
    connecting.push_back((*report)["connect_seconds"].get<double>());
  }
  const double value = median(seconds);
  const double peak = median(memory);
  Figure round{"wide_round", value, "s", median(verifying), "verifying the signatures on one core", "≤ 2", value <= 2.0};
  round.detail = {{"values", seconds}, {"clients", kWide}, {"connect_seconds", median(connecting)}};
  Figure resident{"wide_round.memory", peak, "MB", median(before), "with all connected, before the round", "≤ 200", peak <= 200.0};
  resident.detail = {{"values", memory}};
  return std::vector<Figure>{round, resident};
}

}  // namespace skerry::bench
