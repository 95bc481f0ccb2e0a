// The simulation's state and what happens in it, one method for each; inside server/sim alone.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <queue>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "common/base/result.h"
#include "server/sim/central_test.h"
#include "server/sim/model_files.h"
#include "server/sim/simulation.h"
#include "server/sim/task_times.h"
#include "server/sim/virtual_client.h"
#include "server/sim/virtual_coordinator.h"
#include "server/sim/worker_pool.h"

namespace skerry::sim {

/// A version on its way to a client that is to merge it.
struct Delivered {
  std::shared_ptr<const ModelFile> version;
  std::int64_t arrives_ms = 0;
};

/// A client as the simulation sees it.
struct Member {
  ClientPlan plan;
  std::unique_ptr<VirtualClient> client;
  ClientResult result;
  bool there = false;
  std::string counted;                                               ///< its latest task whose update was counted
  std::int64_t free_at_ms = 0;                                       ///< when its trainer has done what it was given
  std::map<std::string, std::shared_ptr<const ModelFile>> bases;     ///< by fragment: what it fetched last to train on
  std::map<std::string, std::shared_ptr<const ModelFile>> previous;  ///< and before that
  std::map<std::pair<std::string, std::uint64_t>, Delivered> delivered;  ///< by fragment and exchange: not merged yet
  std::map<std::string, std::uint64_t> merged;  ///< by fragment: the newest exchange merged on its arrival
};

/// A task that was given out, until its receipt is final.
struct Outstanding {
  std::shared_ptr<Job> job;
  std::optional<WorkerPool::Ticket> ticket;  ///< nothing: it is not worked on yet
  bool given_up = false;                     ///< the client drops it in its middle
  std::int64_t ready_ms = 0;                 ///< when the client has what it reads
  std::int64_t begun_ms = 0;                 ///< overlapped: when its trainer began
  std::int64_t computed_ms = 0;              ///< when its trainer is done; 0: nobody knows yet
  double compute_seconds = 0;
  std::uint64_t bytes_up = 0;
  bool computed = false;
  bool waits_at_home = false;  ///< done while the client was away
  bool offered = false;
};

/// Something that happens at an instant of the virtual clock.
struct Due {
  enum class What { kArrival, kComputed, kChange, kDraw, kKill };
  std::int64_t at_ms = 0;
  std::uint64_t order = 0;  ///< of those at one instant
  What what = What::kArrival;
  std::size_t client = 0;
  std::string task;  ///< whose result arrives, or is computed
  bool operator>(const Due& other) const { return std::tie(at_ms, order) > std::tie(other.at_ms, other.order); }
};

class Simulation {
 public:
  Simulation(const SimulationOptions& options, server::RunPlan plan, Population population, Availability availability);

  Result<SimulationResult> run();

 private:
  // ---- simulation.cc: from the beginning to the end
  Result<void> begin();
  double attack_strength() const;
  void everyone_joins();
  Result<void> loop();
  Result<void> advance(std::optional<std::int64_t> coordinator_ms);
  void happen(const Due& due);
  Result<void> released();
  Result<std::map<std::string, std::shared_ptr<const ModelFile>>> latest_model();
  Result<void> test_latest();
  Result<void> report(const server::MetricRecord& row);
  SimulationResult result();

  // ---- simulation_fleet.cc: who is there
  void set_there(std::size_t client, bool there);
  void plan_change(std::size_t client, const Availability::Spell& spell);
  void draw_all();
  void draw_anew();
  void plan_kill();
  void kill(std::size_t client);

  // ---- simulation_tasks.cc: a task's way through a client
  void told(const std::string& node, const v1::ToNode& message);
  void take_task(std::size_t client, const v1::Task& task);
  void cancel(const std::string& task);
  void receive(const v1::Receipt& receipt);
  Result<std::shared_ptr<const ModelFile>> file_of(const v1::FragmentVersion& version);
  Result<std::shared_ptr<Job>> make_job(std::size_t client, const v1::Task& task);
  Result<void> find_bases(Job& job);
  bool gives_up(Outstanding& outstanding);
  void schedule(Outstanding& outstanding);
  void submit(Outstanding& outstanding);
  void arrive(const std::string& task);
  void offer(Outstanding& outstanding);
  void give_back(Outstanding& outstanding);
  void fail(Outstanding& outstanding, Error error);
  void attack(Outstanding& outstanding);
  v1::UpdateBody body_of(const Outstanding& outstanding) const;

  // ---- simulation_overlap.cc: tasks of overlapped runs, which merge versions while they are under way
  bool overlapped() const { return plan_.spec.exchange.overlap > 0; }
  void take_delivery(std::size_t client, const v1::Delivery& delivery);
  void begin_next(std::size_t client);
  std::optional<std::int64_t> end_of(const Member& member, const Outstanding& outstanding) const;
  void settle_merges(Member& member, Outstanding& outstanding);
  void computed(const std::string& task);

  double step_seconds_of(const Member& member) const { return step_seconds(options_.scenario, member.plan); }
  void at(std::int64_t at_ms, Due::What what, std::size_t client, std::string task = "") {
    due_.push({at_ms, next_order_++, what, client, std::move(task)});
  }
  std::int64_t now() const { return clock_.monotonic_ms(); }
  Member& member_of(const Outstanding& outstanding) { return members_[outstanding.job->client]; }
  const Member& member_of(const Outstanding& outstanding) const { return members_[outstanding.job->client]; }

  const SimulationOptions& options_;
  const server::RunPlan plan_;
  Population population_;
  Availability availability_;
  ClientSurroundings shared_;
  VirtualClock clock_;
  std::unique_ptr<VirtualCoordinator> coordinator_;
  std::unique_ptr<ModelFiles> files_;
  std::vector<Member> members_;
  std::map<std::string, std::size_t> places_;           // by name
  std::map<std::string, Outstanding> outstanding_;      // by task
  std::vector<std::unique_ptr<VirtualClient>> killed_;  // a thread may still be at work for them
  std::priority_queue<Due, std::vector<Due>, std::greater<>> due_;
  std::uint64_t next_order_ = 0;
  std::uint64_t idle_events_ = 0;
  std::uint64_t draws_ = 0;      // of all clients
  std::uint64_t exchanges_ = 0;  // released
  bool released_ = false;
  double attack_strength_ = 0;
  double trainer_seconds_ = 0;
  std::string ended_, ended_reason_;  // where the run itself does not say it
  std::optional<Error> broken_;       // the scratch directory failed inside a callback
  std::optional<CentralTest> test_;
  WorkerPool pool_;  // last: its threads are gone before what they work on
};

}  // namespace skerry::sim
