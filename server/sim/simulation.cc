#include "server/sim/simulation.h"

#include <time.h>  // NOLINT(modernize-deprecated-headers): clock_gettime

#include <algorithm>
#include <chrono>
#include <utility>

#include "common/os/files.h"
#include "server/sim/simulation_state.h"

namespace skerry::sim {
namespace {

using Steady = std::chrono::steady_clock;

constexpr std::uint64_t kMaxIdleEvents = 1'000'000;  // without any task ending: nothing will come of it any more

double process_cpu_seconds() {
  timespec now{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

}  // namespace

Simulation::Simulation(const SimulationOptions& options, server::RunPlan plan, Population population,
                       Availability availability)
    : options_(options),
      plan_(std::move(plan)),
      population_(std::move(population)),
      availability_(std::move(availability)),
      shared_{plan_, "r-" + plan_.spec.hash.substr(0, 16) + "-1", join_path(options.scratch, "clients"),
              options.scenario.threads},
      pool_(std::max(1u, options.workers)) {}

Result<void> Simulation::begin() {
  const std::string home = join_path(options_.scratch, "home");
  const std::string versions = join_path(options_.scratch, "versions");
  for (const std::string& directory : {home, versions, shared_.directory}) SKERRY_TRY(make_directories(directory));
  for (ClientPlan& plan : population_.clients) {
    Member member;
    member.result = {.name = plan.name,
                     .hostile = plan.hostile,
                     .speed = plan.pace.speed,
                     .examples = plan.examples,
                     .holdout_examples = plan.holdout_examples};
    places_[plan.name] = members_.size();
    member.plan = std::move(plan);
    members_.push_back(std::move(member));
  }
  for (Member& member : members_) member.client = std::make_unique<VirtualClient>(shared_, member.plan);
  test_.emplace(shared_, population_, pool_, members_.size());
  attack_strength_ = attack_strength();

  SKERRY_ASSIGN(coordinator_, VirtualCoordinator::make(home, plan_, options_.scenario.initial, clock_, pool_.threads(),
                                                       {[this](const std::string& node, v1::ToNode message) { told(node, message); },
                                                        [this](const std::string& node) { return members_[places_.at(node)].there; },
                                                        [this] { released_ = true; }}));
  files_ = std::make_unique<ModelFiles>(versions, plan_.layout, coordinator_->cargo());
  SKERRY_TRY(coordinator_->settle());
  everyone_joins();
  return {};
}

// How strong the attack is where the scenario does not say it.
double Simulation::attack_strength() const {
  std::uint64_t hostile = 0;
  for (const Member& member : members_) hostile += member.plan.hostile ? 1 : 0;
  const auto rate = plan_.spec.outer.parameters.find("learning_rate");
  const double* learning_rate = rate == plan_.spec.outer.parameters.end() ? nullptr : std::get_if<double>(&rate->second);
  const auto& participation = plan_.spec.participation;
  std::uint64_t cohort = participation.cohort_size > 0 ? std::min<std::uint64_t>(participation.cohort_size, members_.size())
                                                       : members_.size();
  if (participation.mode == ParticipationSpec::Mode::kAsynchronous) cohort = participation.buffer;
  const AttackPlan& attack = options_.scenario.attack;
  const bool of_cohort = attack.kind == AttackKind::kModelReplacement;
  return attack.strength.value_or(
      default_strength(attack.kind, of_cohort ? cohort : members_.size(), hostile, learning_rate ? *learning_rate : 1));
}

Result<SimulationResult> Simulation::run() {
  const auto begun = Steady::now();
  const double cpu_begun = process_cpu_seconds();
  SKERRY_TRY(begin());
  SKERRY_TRY(loop());
  SKERRY_TRY(test_latest());
  SimulationResult found = result();
  SKERRY_ASSIGN(found.tests, test_->finish());
  found.trainer_seconds += test_->trainer_seconds();
  found.wall_seconds = std::chrono::duration<double>(Steady::now() - begun).count();
  found.cpu_seconds = process_cpu_seconds() - cpu_begun;
  return found;
}

Result<void> Simulation::loop() {
  for (;;) {
    SKERRY_ASSIGN(const auto coordinator_ms, coordinator_->settle());
    if (broken_) return *broken_;
    if (std::exchange(released_, false)) SKERRY_TRY(released());
    if (coordinator_->run().finished()) return {};
    if (options_.stop != nullptr && *options_.stop) {
      ended_ = "interrupted";
      return {};
    }
    if (idle_events_ > kMaxIdleEvents || (!coordinator_ms && due_.empty())) {
      ended_ = "stuck";
      ended_reason_ = "no client will ever do anything more: " + coordinator_->run().summary().status_reason();
      return {};
    }
    SKERRY_TRY(advance(coordinator_ms));
  }
}

// To the next instant at which anything happens, and lets one thing happen.
Result<void> Simulation::advance(std::optional<std::int64_t> coordinator_ms) {
  ++idle_events_;
  if (!due_.empty() && (!coordinator_ms || due_.top().at_ms <= *coordinator_ms)) {
    const Due due = due_.top();
    due_.pop();
    clock_.move_to(std::max(now(), due.at_ms));
    happen(due);
  } else {
    clock_.move_to(std::max(now(), *coordinator_ms));
  }
  return {};
}

void Simulation::happen(const Due& due) {
  switch (due.what) {
    case Due::What::kArrival: return arrive(due.task);
    case Due::What::kComputed: return computed(due.task);
    case Due::What::kDraw: return draw_all();
    case Due::What::kKill: return kill(due.client);
    case Due::What::kChange: break;
  }
  const auto spell = availability_.spell(due.client, now());
  set_there(due.client, spell.there);
  plan_change(due.client, spell);
}

Result<std::map<std::string, std::shared_ptr<const ModelFile>>> Simulation::latest_model() {
  std::map<std::string, std::shared_ptr<const ModelFile>> model;
  for (const server::FragmentShape& shape : plan_.shapes) {
    SKERRY_ASSIGN(const auto version, coordinator_->store().latest_version(shared_.run_id, shape.name));
    if (!version) continue;
    SKERRY_ASSIGN(model[shape.name], files_->get(*version));
  }
  return model;
}

Result<void> Simulation::released() {
  SKERRY_ASSIGN(const auto row, coordinator_->store().latest_metric(shared_.run_id, "exchange"));
  if (!row || row->exchange == exchanges_) return {};
  exchanges_ = row->exchange;
  if (availability_.by_round()) draw_anew();
  plan_kill();
  if (exchanges_ % options_.scenario.test_every == 0) SKERRY_TRY(test_latest());
  if (options_.progress) return report(*row);
  return {};
}

Result<void> Simulation::test_latest() {
  if (!test_->has_data() || exchanges_ == 0) return {};
  SKERRY_ASSIGN(auto model, latest_model());
  return test_->begin(exchanges_, std::move(model));
}

Result<void> Simulation::report(const server::MetricRecord& row) {
  const v1::RunSummary summary = coordinator_->run().summary();
  Progress progress{summary.round(), summary.rounds(), now(), {}};
  for (const server::MetricValue& metric : row.metrics) progress.metrics[metric.name] = metric.value;
  SKERRY_ASSIGN(const auto evaluation, coordinator_->store().latest_metric(shared_.run_id, "evaluation"));
  if (evaluation)
    for (const server::MetricValue& metric : evaluation->metrics) progress.metrics["evaluation " + metric.name] = metric.value;
  for (const auto& [name, value] : test_->latest()) progress.metrics["test " + name] = value;
  options_.progress(progress);
  return {};
}

SimulationResult Simulation::result() {
  SimulationResult result;
  const v1::RunDetail detail = coordinator_->run().detail();
  result.name = plan_.spec.name;
  result.strategy = plan_.spec.strategy;
  result.spec_hash = plan_.spec.hash;
  result.seed = plan_.spec.seed;
  result.attack = attack_name(options_.scenario.attack.kind);
  result.status = ended_.empty() ? detail.summary().status() : ended_;
  result.status_reason = ended_.empty() ? detail.summary().status_reason() : ended_reason_;
  result.virtual_ms = now();
  if (auto rows = coordinator_->store().metrics(shared_.run_id); rows.ok()) result.rows = std::move(rows).value();
  for (const Member& member : members_) result.clients.push_back(member.result);
  for (const auto& [reason, count] : detail.discarded()) result.discarded[reason] = count;
  for (const server::FragmentShape& shape : plan_.shapes) {
    auto version = coordinator_->store().latest_version(shared_.run_id, shape.name);
    if (!version.ok() || !*version) continue;
    auto file = files_->get(**version);
    if (!file.ok()) continue;
    result.model.push_back({shape.name, (*version)->version, (*version)->whole.content_id, (*file)->path, *file});
  }
  result.trainer_seconds = trainer_seconds_;
  result.workers = pool_.threads();
  return result;
}

Result<SimulationResult> simulate(const SimulationOptions& options) {
  if (!options.spec.start.run.empty())
    return invalid_argument("start.run is \"" + options.spec.start.run +
                            "\", and a simulation has no other run to go on from: name a model with initial");
  SKERRY_ASSIGN(server::RunPlan plan, server::RunPlan::from_spec(options.spec, options.rules));
  SKERRY_ASSIGN(Population population, make_population(options.scenario, options.spec));
  std::vector<std::string> names;
  for (const ClientPlan& client : population.clients) names.push_back(client.name);
  SKERRY_ASSIGN(Availability availability, Availability::make(options.scenario.availability, names, options.spec.seed));
  return Simulation(options, std::move(plan), std::move(population), std::move(availability)).run();
}

}  // namespace skerry::sim
