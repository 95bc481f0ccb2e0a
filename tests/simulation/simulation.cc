#include "tests/simulation/simulation.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "strategies/catalogue.h"
#include "tests/simulation/sim_client.h"
#include "tests/simulation/sim_coordinator.h"

namespace skerry::simulation {
namespace {

constexpr std::int64_t kCalmMs = 6 * 3600 * 1000;  // by then a run without faults has ended
constexpr std::int64_t kRestMs = 30 * 60 * 1000;   // and its clients have been told of everything

std::string line(const char* field, std::int64_t value) {
  return std::string(field) + " = " + std::to_string(value) + "\n";
}

/// What holds between nodes and exchanges: [participation] of a run that its clients can bring to an end.
std::string draw_asynchronous(Random& random, const Shape& shape) {
  std::string toml = "mode = \"asynchronous\"\n" + line("maximum_staleness", random.between(0, 5));
  if (random.chance(0.3)) toml += line("concurrency", random.between(1, shape.clients));
  if (random.chance(0.2) && !shape.staggered) {
    toml += "work = \"fedcompass\"\n" + line("minimum_steps", random.between(1, 20));
    toml += "group_patience = 1." + std::to_string(random.between(0, 9)) + "\n";
  } else if (random.chance(0.2)) {
    toml += "work = \"dylu\"\n" + line("minimum_steps", random.between(1, 20));
  } else if (random.chance(0.3) && !shape.staggered) {
    const auto separation = random.between(2, 3);
    if (const auto buffer = shape.clients / separation; buffer > 0)
      return toml + line("buffer", buffer) + line("minimum_separation", separation);
  }
  if (random.chance(0.2)) toml += "required_nodes = [\"n0\"]\n";
  return toml + line("buffer", random.between(1, 4));
}

std::string draw_synchronous(Random& random, const Shape& shape) {
  auto quorum = random.between(1, shape.clients);
  std::string toml = line("grace_s", random.between(-1, 3));
  if (random.chance(0.3)) toml += "grace = \"adaptive\"\ngrace_safety = " + std::to_string(random.between(1, 3)) + "\n";
  if (random.chance(0.3)) toml += "work = \"dylu\"\n" + line("minimum_steps", random.between(1, 20));
  const bool over = random.chance(0.3);
  const bool turns = random.chance(0.3) && shape.clients > 1;
  if (turns) {
    // Enough others for as many exchanges as a node must wait.
    const auto separation = random.between(2, std::min(shape.clients, 3));
    quorum = random.between(1, shape.clients / separation);
    toml += line("minimum_separation", separation) + line("cohort_size", quorum);
  } else if (over || random.chance(0.3)) {
    toml += random.chance(0.5) && quorum == 1 ? "cohort_fraction = 0.5\n"
                                              : line("cohort_size", random.between(quorum, shape.clients));
  }
  if (over && (turns || toml.find("cohort") != std::string::npos))
    toml += "over_selection = 1." + std::to_string(random.between(0, 9)) + "\n";
  else if (random.chance(0.2))
    toml += "minimum_completion = 0." + std::to_string(random.between(1, 9)) + "\n";
  if (!turns && random.chance(0.2)) toml += "required_nodes = [\"n0\"]\n";
  return toml + line("quorum", quorum);
}

/// What every history may have: deadlines, evaluations, rounds, faults.
void draw_rest(Random& random, Shape& shape) {
  shape.toml += "deadline_s = " + std::to_string(random.between(10, 120)) +
                "\nreconnect_s = " + std::to_string(random.between(0, 20)) + "\n";
  shape.toml += "[evaluation]\nevery = " + std::to_string(random.between(0, 2)) +
                "\nminimum = " + std::to_string(random.between(1, 2)) +
                "\ndeadline_s = " + std::to_string(random.between(5, 60)) + "\n";
  shape.toml += "[stop]\nrounds = " + std::to_string(random.between(1, 4)) + "\n";

  shape.faults_end_ms = random.between(0, 180) * 1000;
  shape.link_breaks = random.chance(0.7) ? 0.02 : 0;
  shape.duplicates = random.chance(0.5) ? 0.2 : 0;
  shape.trainer_failures = random.chance(0.5) ? 0.1 : 0;
  shape.reduce_failures = random.chance(0.3) ? 0.2 : 0;
  shape.coordinator_crashes = random.chance(0.6) ? static_cast<int>(random.between(1, 4)) : 0;
  shape.client_crashes = random.chance(0.6) ? static_cast<int>(random.between(1, 6)) : 0;
  shape.pauses = random.chance(0.3) ? static_cast<int>(random.between(1, 3)) : 0;
  shape.stops = random.chance(0.1);
}

/// Nodes that train on, in rounds or each on its own clock.
Shape draw_overlapped(Random& random) {
  Shape shape;
  shape.overlapped = true;
  shape.clients = static_cast<int>(random.between(1, 6));
  shape.staggered = random.chance(0.5);
  shape.fragments = static_cast<int>(random.between(shape.staggered ? 2 : 1, 3));
  shape.frozen = random.chance(0.15);
  shape.partial = random.chance(0.2);
  const bool asynchronous = random.chance(0.4);
  std::string& toml = shape.toml;
  toml += "[exchange]\n" + line("overlap", random.chance(0.3) ? 20 : random.between(1, 19));
  const char* rules[] = {"lerp", "replace", "eager"};
  toml += "merge = \"" + std::string(rules[random.below(3)]) + "\"\n";
  if (asynchronous || random.chance(0.4)) toml += "on_late = \"on_arrival\"\n";
  toml += "[participation]\n";
  if (asynchronous) {
    toml += "mode = \"asynchronous\"\n" + line("maximum_staleness", random.between(0, 5)) +
            line("buffer", random.between(1, 4));
    if (random.chance(0.3)) toml += "work = \"dylu\"\n" + line("minimum_steps", random.between(1, 20));
  } else {
    toml += line("quorum", random.between(1, shape.clients));
    if (random.chance(0.3)) toml += "minimum_completion = 0." + std::to_string(random.between(1, 9)) + "\n";
  }
  toml += line("grace_s", random.between(-1, 3));
  if (random.chance(0.4)) toml += "grace = \"adaptive\"\ngrace_safety = " + std::to_string(random.between(1, 3)) + "\n";
  if (random.chance(0.15)) toml += "required_nodes = [\"n0\"]\n";
  shape.drops = random.chance(0.3) ? 0.3 : 0;
  draw_rest(random, shape);
  return shape;
}

Shape draw_shape(Random& random) {
  Shape shape;
  shape.clients = static_cast<int>(random.between(1, 6));
  shape.staggered = random.chance(0.3);
  shape.fragments = shape.staggered ? static_cast<int>(random.between(2, 3)) : static_cast<int>(random.between(1, 2));
  shape.twins = random.chance(0.15);
  shape.frozen = random.chance(0.15);
  shape.partial = random.chance(0.2);
  shape.rebased = random.chance(0.2);
  const bool asynchronous = random.chance(0.35);
  std::string& toml = shape.toml;
  toml += "[participation]\n" + (asynchronous ? draw_asynchronous(random, shape) : draw_synchronous(random, shape));
  draw_rest(random, shape);
  return shape;
}

server::RunSetup setup_of(const Shape& shape) {
  auto spec = parse_run_spec(R"(name = "simulated"
[model]
architecture = "linear"
inputs = 4
outputs = 2
[data]
kind = "idx"
schema = { shape = [4], classes = 2 }
[training]
learning_rate = 0.1
steps = 20
)" + shape.toml,
                             strategies::spec_catalogue());
  if (!spec.ok()) std::fprintf(stderr, "%s\n%s", spec.error().message.c_str(), shape.toml.c_str());
  server::RunSetup setup{.run_id = "r", .task_prefix = "r", .spec = std::move(spec).value(), .fragments = {}};
  // The fragments of a model do not matter here, only how many there are.
  if (shape.staggered) setup.spec.exchange.schedule = ExchangeSpec::Schedule::kStaggered;
  const auto add = [&setup](std::string name, FragmentRole role) {
    setup.fragments.push_back(std::move(name));
    setup.roles.push_back(role);
  };
  for (int i = 0; i < shape.fragments; ++i) add("f" + std::to_string(i), FragmentRole::kExchanged);
  for (int i = 0; shape.twins && i < shape.fragments; ++i)
    add("f" + std::to_string(i) + "-control", FragmentRole::kControl);
  if (shape.frozen) add("frozen", FragmentRole::kFrozen);
  setup.needs.partial_updates = shape.partial;
  setup.needs.rebased = shape.rebased;
  return setup;
}

void plan_faults(World& world, SimCoordinator& coordinator, std::vector<std::unique_ptr<SimClient>>& clients) {
  const Shape& shape = world.shape;
  const auto at = [&] { return world.random.between(0, shape.faults_end_ms); };
  for (int i = 0; i < shape.coordinator_crashes; ++i) {
    const auto when = at();
    world.after(when, [&coordinator] { coordinator.crash(); });
    world.after(when + world.random.between(1, 30000), [&coordinator] { coordinator.boot(); });
  }
  for (int i = 0; i < shape.client_crashes; ++i) {
    SimClient* client = clients[world.random.below(clients.size())].get();
    const auto when = at();
    world.after(when, [client] { client->crash(); });
    world.after(when + world.random.between(1, 60000), [client] { client->boot(); });
  }
  for (int i = 0; i < shape.pauses; ++i) {
    SimClient* client = clients[world.random.below(clients.size())].get();
    const auto when = at();
    const bool at_once = world.random.chance(0.5);
    world.after(when, [client, at_once] { client->holder_says(client::Pause{at_once}); });
    world.after(when + world.random.between(1, 60000), [client] { client->holder_says(client::Resume{}); });
    const auto later = at();
    world.after(later, [&coordinator] { coordinator.operator_says(server::OperatorPause{"maintenance"}); });
    world.after(later + world.random.between(1, 30000),
                [&coordinator] { coordinator.operator_says(server::OperatorResume{}); });
  }
  if (shape.stops) world.after(at(), [&coordinator] { coordinator.operator_says(server::OperatorStop{"enough"}); });
  // When the faults end, everything that is down comes back and everything that is paused resumes.
  world.after(shape.faults_end_ms + 60001, [&coordinator, &clients] {
    coordinator.boot();
    coordinator.operator_says(server::OperatorResume{});
    for (auto& client : clients) {
      client->boot();
      client->holder_says(client::Resume{});
    }
  });
}

}  // namespace

std::string describe(const Shape& shape) {
  return std::to_string(shape.clients) + " clients, " + std::to_string(shape.fragments) +
         (shape.staggered ? " staggered" : "") + " fragments, faults until " + std::to_string(shape.faults_end_ms) +
         " ms, breaks " + std::to_string(shape.link_breaks) + ", crashes " + std::to_string(shape.coordinator_crashes) +
         "/" + std::to_string(shape.client_crashes) + "\n" + shape.toml;
}

Outcome simulate(std::uint64_t seed, bool trace) {
  World world(seed);
  world.trace = trace;
  world.shape = seed >= kFirstOverlapped ? draw_overlapped(world.random) : draw_shape(world.random);
  world.faults_end = world.shape.faults_end_ms;
  if (trace) world.record(describe(world.shape));
  SimCoordinator coordinator(world, setup_of(world.shape));
  std::vector<std::unique_ptr<SimClient>> clients;
  for (int i = 0; i < world.shape.clients; ++i) {
    const std::string name = "n" + std::to_string(i);
    clients.push_back(std::make_unique<SimClient>(world, coordinator, name));
    coordinator.attach(name, clients.back().get());
    world.after(world.random.between(0, 2000), [client = clients.back().get()] { client->boot(); });
  }
  coordinator.boot();
  plan_faults(world, coordinator, clients);

  const std::int64_t limit = world.faults_end + kCalmMs;
  while (world.violations.empty() && !coordinator.ended() && world.step(limit)) {
  }
  Outcome outcome;
  if (!coordinator.ended() && world.violations.empty())
    world.violation("the run has not ended " + std::to_string(kCalmMs / 1000) +
                    " s after the faults: " + coordinator.undecided());
  // A holder must learn what became of each of its updates.
  const auto untold = [&clients] {
    std::size_t updates = 0;
    for (const auto& client : clients) updates += client->outbox();
    return updates;
  };
  const std::int64_t rest = std::max(world.now(), world.faults_end + 60001) + kRestMs;
  while (world.violations.empty() && (world.now() <= world.faults_end + 60001 || untold() > 0) && world.step(rest)) {
  }
  if (world.violations.empty()) {
    if (untold() > 0) world.violation(std::to_string(untold()) + " updates are still in outboxes");
    coordinator.check_end();
    if (coordinator.outcome() == "failed") world.violation("faults that pass have ended the run");
  }
  outcome.ended = coordinator.ended();
  if (outcome.ended) outcome.outcome = coordinator.outcome();
  outcome.violations = world.violations;
  outcome.digest = world.digest;
  outcome.events = world.events;
  outcome.counted = coordinator.counted();
  outcome.discarded = coordinator.discarded();
  outcome.virtual_ms = world.now();
  return outcome;
}

}  // namespace skerry::simulation
