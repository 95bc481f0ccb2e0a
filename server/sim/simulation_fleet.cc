#include "server/sim/simulation_state.h"

namespace skerry::sim {
namespace {

using server::NodeJoined;
using server::NodeLeft;

constexpr std::int64_t kRedrawMs = 60'000;  // availability by round: drawn again where no exchange came of it

}  // namespace

// Nobody is given work before all who are there have joined.
void Simulation::everyone_joins() {
  coordinator_->run().handle(server::OperatorPause{"the clients join"});
  for (std::size_t i = 0; i < members_.size(); ++i) {
    if (availability_.by_round()) {
      set_there(i, availability_.drawn(i, 0));
    } else {
      const auto spell = availability_.spell(i, 0);
      set_there(i, spell.there);
      plan_change(i, spell);
    }
  }
  if (availability_.by_round()) at(kRedrawMs, Due::What::kDraw, 0);
  coordinator_->run().handle(server::OperatorResume{});
}

void Simulation::set_there(std::size_t client, bool there) {
  Member& member = members_[client];
  if (member.there == there) return;
  member.there = there;
  if (there)
    coordinator_->run().handle(NodeJoined{.node = member.plan.name,
                                          .data_set = "virtual",
                                          .examples = member.plan.examples,
                                          .holdout_examples = member.plan.holdout_examples});
  else
    coordinator_->run().handle(NodeLeft{member.plan.name});
}

void Simulation::plan_change(std::size_t client, const Availability::Spell& spell) {
  if (spell.until_ms) at(*spell.until_ms, Due::What::kChange, client);
}

void Simulation::draw_all() {
  ++draws_;
  for (std::size_t i = 0; i < members_.size(); ++i) set_there(i, availability_.drawn(i, draws_));
  at(now() + kRedrawMs, Due::What::kDraw, 0);
}

// The clients of the next round; what was drawn for a round that brought nothing is no longer due.
void Simulation::draw_anew() {
  std::priority_queue<Due, std::vector<Due>, std::greater<>> others;
  for (; !due_.empty(); due_.pop())
    if (due_.top().what != Due::What::kDraw) others.push(due_.top());
  due_ = std::move(others);
  draw_all();
}

// In the middle of the next round, where that is one in which somebody dies.
void Simulation::plan_kill() {
  const std::uint64_t every = options_.scenario.kill_every;
  if (every == 0 || exchanges_ % every != 0) return;
  Draws draws(plan_.spec.seed, "kill", exchanges_);
  const auto client = static_cast<std::size_t>(draws.below(members_.size()));
  const double round = static_cast<double>(plan_.spec.training.steps) * step_seconds_of(members_[client]);
  at(now() + in_ms(round * draws.uniform()), Due::What::kKill, client);
}

// What it had is lost: its tasks, the model, the optimizer's state, its place in the data. One with its name and data
// comes instead.
void Simulation::kill(std::size_t client) {
  Member& member = members_[client];
  ++member.result.killed;
  set_there(client, false);
  for (auto it = outstanding_.begin(); it != outstanding_.end();) {
    Outstanding& lost = it->second;
    if (lost.job->client != client || lost.offered) {
      ++it;
      continue;
    }
    if (lost.ticket) (void)pool_.cancel(*lost.ticket);
    it = outstanding_.erase(it);
  }
  killed_.push_back(std::move(member.client));
  member.client = std::make_unique<VirtualClient>(shared_, member.plan);
  member.bases.clear();
  member.previous.clear();
  member.delivered.clear();
  member.merged.clear();
  member.counted.clear();
  member.free_at_ms = now();
  set_there(client, true);
}

}  // namespace skerry::sim
