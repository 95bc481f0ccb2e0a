// The trainer of an overlapped run in a simulation: no tensors, but what a trainer must know of them. It goes on from
// its checkpoint, waits where a merge is late, and notices when something it learned would be sent twice.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "client/daemon/machine/client_machine.h"
#include "tests/simulation/simulation.h"

namespace skerry::simulation {

class SimTrainer {
 public:
  SimTrainer(World& world, std::string node, std::int64_t step_ms, std::function<void(const client::Event&)> say)
      : world_(world), node_(std::move(node)), step_ms_(step_ms), say_(std::move(say)) {}

  /// Begins a train task.
  void train(const v1::Task& task);
  /// The merge line: this version of the fragment is there.
  void hand(std::uint64_t exchange, const std::string& fragment, std::uint64_t version);
  void cancel() { ++generation_; }
  /// The process ends; another one goes on from the checkpoint, which may be gone.
  void end();

  bool busy() const { return busy_; }
  /// What the update of a task that it finished is measured from, by fragment.
  const std::map<std::string, std::uint64_t>& bases(const std::string& task) const { return emitted_.at(task); }

 private:
  using Key = std::pair<std::uint64_t, std::string>;  // exchange and fragment

  struct Memory {
    std::uint64_t version = 0;          ///< read or merged last
    std::uint64_t merged = 0;           ///< newest exchange merged
    std::set<std::uint64_t> in_flight;  ///< exchanges it was emitted for
    std::set<std::string> learned;      ///< tasks whose training is in no update yet
  };
  struct State {
    std::string last_task;
    std::map<std::string, Memory> fragments;
  };

  void later(std::int64_t delay_ms, void (SimTrainer::*next)());
  void fail(std::int64_t delay_ms, Error error);
  void walk();
  void arrive();
  void merge(const v1::MergePlan& plan, std::uint64_t version);
  void finish();

  World& world_;
  std::string node_;
  std::int64_t step_ms_;
  std::function<void(const client::Event&)> say_;

  State saved_;  ///< the checkpoint
  std::map<std::string, std::map<std::string, std::uint64_t>> emitted_;  ///< by task: files in its state directory
  std::map<std::pair<std::string, std::string>, std::string> sent_;  ///< by fragment and task: the task that sent it

  std::uint64_t generation_ = 0;
  bool busy_ = false;
  v1::Task task_;
  State state_;
  std::vector<v1::MergePlan> plans_;  ///< by step
  std::size_t next_ = 0;
  std::uint64_t step_ = 0;
  bool waiting_ = false;
  std::set<std::size_t> passed_;  ///< plans on arrival whose step is over
  std::map<Key, std::uint64_t> handed_;
};

}  // namespace skerry::simulation
