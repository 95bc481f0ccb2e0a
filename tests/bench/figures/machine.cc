// What an idle process costs, and a build.
#include <chrono>
#include <thread>

#include "common/os/files.h"
#include "tests/bench/figures/benchmarks.h"
#include "tests/bench/fleet/process_watch.h"

namespace skerry::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr unsigned kSettleMs = 1500;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

struct Samples {
  std::vector<double> memory, milliseconds, bare_memory, bare_milliseconds;

  std::vector<Figure> figures(const std::string& who, double most_mb) const {
    const double mb = median(memory);
    const double ms = median(milliseconds);
    Figure resident{"idle." + who + "_memory", mb, "MB", median(bare_memory), "a bare gRPC server", "≤ " + std::to_string(static_cast<int>(most_mb)), mb <= most_mb};
    resident.detail = {{"values", memory}};
    Figure ready{"idle." + who + "_ready", ms, "ms", median(bare_milliseconds), "a bare gRPC server", "≤ 150", ms <= 150};
    ready.detail = {{"values", milliseconds}};
    return {resident, ready};
  }
};

}  // namespace

Figures idle(BenchmarkContext& context) {
  World& world = context.world;
  Samples coordinator, daemon;
  SKERRY_TRY(world.start_coordinator());
  SKERRY_TRY(world.make_holders(1));
  world.stop_coordinator();
  for (unsigned i = 0; i < context.repeat; ++i) {
    SKERRY_ASSIGN(const World::Bare bare, world.bare_server(kSettleMs));
    for (Samples* samples : {&coordinator, &daemon}) {
      samples->bare_memory.push_back(static_cast<double>(bare.resident_bytes) / 1e6);
      samples->bare_milliseconds.push_back(bare.seconds * 1e3);
    }
    SKERRY_ASSIGN(double seconds, world.start_coordinator());
    coordinator.milliseconds.push_back(seconds * 1e3);
    std::this_thread::sleep_for(std::chrono::milliseconds(kSettleMs));
    coordinator.memory.push_back(static_cast<double>(memory_of(world.coordinator_pid()).resident_bytes) / 1e6);

    SKERRY_ASSIGN(seconds, world.start_daemon(0));
    daemon.milliseconds.push_back(seconds * 1e3);
    std::this_thread::sleep_for(std::chrono::milliseconds(kSettleMs));
    daemon.memory.push_back(static_cast<double>(memory_of(world.daemon_pid(0)).resident_bytes) / 1e6);
    world.stop_daemons();
    world.stop_coordinator();
  }
  std::vector<Figure> figures = coordinator.figures("coordinator", 30);
  for (Figure& figure : daemon.figures("daemon", 25)) figures.push_back(std::move(figure));
  return figures;
}

Figures clean_build(BenchmarkContext& context) {
  const std::string directory = context.world.options().directory + "/build";
  SKERRY_TRY(remove_tree(directory));
  constexpr std::int64_t kTwoHours = 7'200'000;
  const auto start = Clock::now();
  const test::Finished configured = test::run_program({"cmake", "--preset", "release", "-S", context.source, "-B", directory, "-DCMAKE_CXX_COMPILER_LAUNCHER="},
                                                      {"CCACHE_DISABLE=1"}, {}, kTwoHours);
  if (!configured.ok()) return failed_precondition("cmake failed: " + configured.err);
  const test::Finished built = test::run_program({"ninja", "-C", directory, "-j2"}, {"CCACHE_DISABLE=1"}, {}, kTwoHours);
  const double minutes = seconds_since(start) / 60;
  SKERRY_TRY(remove_tree(directory));
  if (!built.ok()) return failed_precondition("the build failed: " + built.out.substr(built.out.size() > 4000 ? built.out.size() - 4000 : 0));
  const double perfect = (configured.status.cpu_seconds + built.status.cpu_seconds) / 2 / 60;
  return std::vector<Figure>{{"clean_build", minutes, "min", perfect, "its CPU time on two cores", "≤ 20", minutes <= 20}};
}

}  // namespace skerry::bench
