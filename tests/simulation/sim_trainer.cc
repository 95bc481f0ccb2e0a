#include "tests/simulation/sim_trainer.h"

#include <algorithm>

namespace skerry::simulation {

void SimTrainer::later(std::int64_t delay_ms, void (SimTrainer::*next)()) {
  world_.after(delay_ms, [this, next, generation = generation_] {
    if (generation == generation_) (this->*next)();
  });
}

void SimTrainer::fail(std::int64_t delay_ms, Error error) {
  world_.after(delay_ms, [this, error = std::move(error), generation = generation_] {
    if (generation != generation_) return;
    ++generation_;
    busy_ = false;
    say_(client::TrainerError{task_.run_id(), task_.task_id(), error});
  });
}

void SimTrainer::end() {
  ++generation_;
  busy_ = false;
  if (world_.faults() && world_.random.chance(0.3)) saved_ = {};
}

void SimTrainer::train(const v1::Task& task) {
  if (world_.trace) world_.record(node_ + " begins " + task.task_id());
  ++generation_;
  busy_ = true;
  task_ = task;
  state_ = saved_;
  plans_.assign(task.merge().begin(), task.merge().end());
  std::stable_sort(plans_.begin(), plans_.end(),
                   [](const auto& a, const auto& b) { return a.at_step() < b.at_step(); });
  next_ = 0;
  step_ = 0;
  waiting_ = false;
  passed_.clear();
  handed_.clear();
  if (saved_.last_task == task.task_id()) {  // its end is what the checkpoint holds: answered again, without training
    later(5, &SimTrainer::finish);
    return;
  }
  int reads = 0;
  for (const auto& read : task.read()) reads += read.fragment() != "frozen" ? 1 : 0;
  if (reads < world_.shape.fragments && (task.after().empty() || task.after() != saved_.last_task))
    return fail(1, not_found("the trainer is at the end of '" + saved_.last_task + "', not of '" + task.after() + "'"));
  for (const auto& read : task.read()) {
    Memory& memory = state_.fragments[read.fragment()];
    memory = {.version = read.version(), .merged = memory.merged};
  }
  if (world_.faults() && world_.random.chance(world_.shape.trainer_failures)) {
    const std::int64_t delay = world_.random.between(1, 2000);
    if (world_.random.chance(0.5))
      return fail(delay, {Code::kFailedPrecondition, "the loss is not finite", world_.random.chance(0.5)});
    world_.after(delay, [this, generation = generation_] {
      if (generation != generation_) return;
      end();
      say_(client::TrainerExited{task_.run_id(), unavailable("the trainer was killed")});
    });
  }
  walk();
}

void SimTrainer::walk() {
  const std::uint64_t stop = next_ < plans_.size() ? plans_[next_].at_step() : task_.steps();
  const std::int64_t delay = static_cast<std::int64_t>(stop - step_) * step_ms_ + world_.random.between(0, 3);
  step_ = stop;
  later(delay, next_ < plans_.size() ? &SimTrainer::arrive : &SimTrainer::finish);
}

/// At the step of the next plan.
void SimTrainer::arrive() {
  const v1::MergePlan& plan = plans_[next_];
  const auto found = handed_.find({plan.exchange(), plan.fragment()});
  if (plan.block() && plan.at_step() >= task_.steps())
    world_.violation("task " + task_.task_id() + " would wait for a merge when its update could be sent");
  if (plan.exchange() <= state_.fragments[plan.fragment()].merged) {
  } else if (found != handed_.end()) {
    merge(plan, found->second);
  } else if (plan.block()) {
    waiting_ = true;
    return;
  } else {
    passed_.insert(next_);
  }
  ++next_;
  walk();
}

void SimTrainer::hand(std::uint64_t exchange, const std::string& fragment, std::uint64_t version) {
  handed_[{exchange, fragment}] = version;
  for (const auto index : passed_)
    if (plans_[index].exchange() == exchange && plans_[index].fragment() == fragment &&
        state_.fragments[fragment].merged < exchange)
      merge(plans_[index], version);
  if (!waiting_ || plans_[next_].exchange() != exchange || plans_[next_].fragment() != fragment) return;
  waiting_ = false;
  merge(plans_[next_], version);
  ++next_;
  walk();
}

void SimTrainer::merge(const v1::MergePlan& plan, std::uint64_t version) {
  Memory& memory = state_.fragments[plan.fragment()];
  if (plan.rule() == "eager" && memory.in_flight.count(plan.exchange()) == 0)
    world_.violation("task " + task_.task_id() + " merges exchange " + std::to_string(plan.exchange()) +
                     " eagerly, for which nothing was emitted");
  if (version < memory.version)
    world_.violation(node_ + " merges version " + std::to_string(version) + " of " + plan.fragment() +
                     " after version " + std::to_string(memory.version));
  memory.version = version;
  memory.merged = plan.exchange();
  memory.in_flight.erase(memory.in_flight.begin(), memory.in_flight.upper_bound(plan.exchange()));
  say_(client::TrainerMerged{task_.run_id(), task_.task_id(), plan.exchange(), plan.fragment()});
}

void SimTrainer::finish() {
  if (world_.trace) world_.record(node_ + " ends " + task_.task_id());
  if (saved_.last_task != task_.task_id()) {
    for (auto& [fragment, memory] : state_.fragments) memory.learned.insert(task_.task_id());
    for (const auto& fragment : task_.write()) {
      Memory& memory = state_.fragments[fragment];
      emitted_[task_.task_id()][fragment] = memory.version;
      for (const auto& task : memory.learned) {
        const auto [known, fresh] = sent_.emplace(std::make_pair(fragment, task), task_.task_id());
        if (!fresh && known->second != task_.task_id())
          world_.violation(node_ + " sends what task " + task + " taught " + fragment + " in task " + task_.task_id() +
                           " and in task " + known->second);
      }
      memory.learned.clear();
      memory.in_flight.insert(task_.exchange());
    }
    state_.last_task = task_.task_id();
    saved_ = state_;
  }
  busy_ = false;
  ++generation_;
  client::TrainerResult result;
  result.steps = task_.steps();
  result.examples = 1;  // the node knows how many
  say_(client::TrainerDone{task_.run_id(), task_.task_id(), result});
}

}  // namespace skerry::simulation
