#include <algorithm>
#include <cmath>
#include <iterator>

#include "server/sim/simulation_state.h"

namespace skerry::sim {
namespace {

constexpr std::uint64_t kKeptDeliveries = 64;  // exchanges; older ones are of tasks that are long over

}  // namespace

// It begins its way to the client now, as the step from the version before it where the client has that.
void Simulation::take_delivery(std::size_t client, const v1::Delivery& delivery) {
  Member& member = members_[client];
  const v1::FragmentVersion& version = delivery.version();
  const auto merged = member.merged.find(version.fragment());
  if (merged != member.merged.end() && delivery.exchange() <= merged->second) return;  // told again
  Delivered& delivered = member.delivered[{version.fragment(), delivery.exchange()}];
  if (delivered.version) return;  // told again
  auto& base = member.bases[version.fragment()];
  const Download download = download_of(base.get(), version);
  member.result.bytes_down += download.bytes;
  coordinator_->run().carried(member.plan.name, 0, download.cargo);
  auto file = file_of(version);
  if (!file.ok()) {
    broken_ = file.error();
    return;
  }
  base = delivered.version = *file;
  delivered.arrives_ms = now() + carry_ms(member.plan.pace, download.bytes, member.plan.pace.down_mbps);
  begin_next(client);
}

// Begins the client's next task when its trainer is free and the end can be foreseen: all versions that it must wait
// for are there or on their way.
void Simulation::begin_next(std::size_t client) {
  Member& member = members_[client];
  Outstanding* next = nullptr;
  for (auto& [id, outstanding] : outstanding_) {
    if (outstanding.job->client != client || !outstanding.job->is_train() || outstanding.computed ||
        outstanding.given_up)
      continue;
    if (next == nullptr || outstanding.job->number < next->job->number) next = &outstanding;
  }
  if (next == nullptr || next->computed_ms > 0) return;  // its trainer is at work
  next->begun_ms = std::max({now(), next->ready_ms, member.free_at_ms});
  const auto end = end_of(member, *next);
  if (!end) return;
  next->computed_ms = member.free_at_ms = *end;
  if (plan_.spec.exchange.block) {
    settle_merges(member, *next);
    submit(*next);
  }
  at(*end, Due::What::kComputed, client, next->job->task.task_id());
}

// Nothing where it waits for a version of which nobody knows yet when it will be there.
std::optional<std::int64_t> Simulation::end_of(const Member& member, const Outstanding& outstanding) const {
  const v1::Task& task = outstanding.job->task;
  std::vector<v1::MergePlan> plans(task.merge().begin(), task.merge().end());
  std::sort(plans.begin(), plans.end(), [](const auto& a, const auto& b) { return a.at_step() < b.at_step(); });
  std::int64_t at_ms = outstanding.begun_ms;
  std::uint64_t done = 0;
  for (const v1::MergePlan& plan : plans) {
    if (!plan.block()) continue;
    const auto delivered = member.delivered.find({plan.fragment(), plan.exchange()});
    if (delivered == member.delivered.end()) return std::nullopt;
    at_ms = std::max(at_ms + in_ms(static_cast<double>(plan.at_step() - done) * step_seconds_of(member)),
                     delivered->second.arrives_ms);
    done = plan.at_step();
  }
  return at_ms + in_ms(static_cast<double>(task.steps() - done) * step_seconds_of(member));
}

// Gives the task the versions that have come by its end; those it does not wait for are merged at the first step after
// they came, at which the trainer may as well wait for them. What no task can ask for any more is forgotten.
void Simulation::settle_merges(Member& member, Outstanding& outstanding) {
  Job& job = *outstanding.job;
  std::vector<v1::MergePlan> settled;
  for (v1::MergePlan plan : job.task.merge()) {
    auto& delivered = member.delivered;
    for (auto it = delivered.begin(); it != delivered.end();)
      it = it->first.first == plan.fragment() && it->first.second + kKeptDeliveries < plan.exchange()
               ? delivered.erase(it)
               : std::next(it);
    const auto found = delivered.find({plan.fragment(), plan.exchange()});
    if (found == delivered.end()) continue;
    if (!plan.block()) {
      const double waited = static_cast<double>(found->second.arrives_ms - outstanding.begun_ms) / 1000;
      const double step = std::ceil(std::max(0.0, waited / step_seconds_of(member)) - 1e-9);
      if (step >= static_cast<double>(job.task.steps())) continue;
      plan.set_at_step(std::max(plan.at_step(), static_cast<std::uint64_t>(step)));
      plan.set_block(true);
      auto& merged = member.merged[plan.fragment()];
      merged = std::max(merged, plan.exchange());
    }
    job.merges.push_back(found->second.version);
    settled.push_back(std::move(plan));
    delivered.erase(found);
  }
  job.task.mutable_merge()->Assign(settled.begin(), settled.end());
}

// The trainer is done: its update goes on its way, and the next task begins.
void Simulation::computed(const std::string& task) {
  const auto found = outstanding_.find(task);
  if (found == outstanding_.end()) return;  // cancelled meanwhile
  Outstanding& outstanding = found->second;
  Member& member = member_of(outstanding);
  if (!outstanding.ticket) {
    settle_merges(member, outstanding);
    submit(outstanding);
  }
  outstanding.computed = true;
  at(now() + carry_ms(member.plan.pace, outstanding.bytes_up, member.plan.pace.up_mbps), Due::What::kArrival,
     outstanding.job->client, task);
  begin_next(outstanding.job->client);
}

}  // namespace skerry::sim
