#include "server/sim/virtual_coordinator.h"

#include <algorithm>
#include <cstddef>
#include <utility>

#include "common/os/files.h"
#include "common/os/random.h"

namespace skerry::sim {
namespace {

/// Names and secrets of a simulation are no secrets: the same in every run.
class NoRandom final : public Random {
 public:
  void fill(std::span<std::byte> out) override { std::fill(out.begin(), out.end(), std::byte{0}); }
};

}  // namespace

VirtualCoordinator::VirtualCoordinator(server::Store store, std::unique_ptr<server::CargoStore> cargo,
                                       const VirtualClock& clock, unsigned threads, Wires wires)
    : clock_(clock),
      store_(std::move(store)),
      cargo_(std::move(cargo)),
      commit_(store_, *cargo_, clock_),
      core_(clock_, [this] { return commit_.settle(); }),
      bulk_(clock_, [] { return std::uint64_t{0}; }),
      engine_({.threads = threads}),
      services_{clock_,
                store_,
                *cargo_,
                commit_,
                core_,
                bulk_,
                engine_,
                metrics_,
                std::string(32, '\0'),
                std::move(wires.send),
                [there = std::move(wires.is_there)](const std::string& node) {
                  return there(node) ? std::optional(server::NodeSession{"virtual", "virtual"}) : std::nullopt;
                },
                [](const std::string&) {},
                [released = std::move(wires.released)](const server::RunHost&) { released(); },
                [](const std::string&) {},
                /*rules=*/{},
                /*own_updates=*/true} {}

Result<std::unique_ptr<VirtualCoordinator>> VirtualCoordinator::make(const std::string& home, server::RunPlan plan,
                                                                     const std::string& initial,
                                                                     const VirtualClock& clock, unsigned threads,
                                                                     Wires wires) {
  NoRandom random;
  SKERRY_ASSIGN(server::Store store,
                server::Store::open(home, random, {.synchronous = sqlite::Synchronous::kNormal, .now_ms = clock.unix_ms()}));
  SKERRY_ASSIGN(auto cargo, server::CargoStore::open(home));
  std::unique_ptr<VirtualCoordinator> made(
      new VirtualCoordinator(std::move(store), std::move(cargo), clock, threads, std::move(wires)));
  if (!initial.empty()) {
    SKERRY_ASSIGN(const MappedFile model, MappedFile::open(initial));
    SKERRY_TRY(made->cargo_->put_bytes(model.bytes()));
  }
  SKERRY_ASSIGN(std::vector<server::VersionRecord> versions, server::make_initial_versions(plan, *made->cargo_));
  server::RunRecord record;
  record.run_id = "r-" + plan.spec.hash.substr(0, 16) + "-1";
  record.name = plan.spec.name;
  record.strategy = plan.spec.strategy;
  record.spec_hash = plan.spec.hash;
  record.spec_json = plan.spec.canonical_json;
  record.created_ms = clock.unix_ms();
  made->run_ = server::RunHost::create(made->services_, std::move(record), std::move(plan), std::move(versions));
  made->run_->start();
  return made;
}

Result<std::optional<std::int64_t>> VirtualCoordinator::settle() {
  const auto now = static_cast<std::uint64_t>(clock_.monotonic_ms());
  for (;;) {
    const std::optional<std::uint64_t> next = core_.turn();
    if (commit_.fatal()) return *commit_.fatal();
    bulk_.turn();
    if (core_.waiting() || bulk_.waiting() || (next && *next <= now)) continue;
    return next ? std::optional(static_cast<std::int64_t>(*next)) : std::nullopt;
  }
}

}  // namespace skerry::sim
