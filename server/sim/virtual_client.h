// A virtual client: its trainer, and how a task becomes an update. What daemon and trainer do between a task's arrival
// and its update's departure, without processes and without a network.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "client/daemon/update/make_update.h"
#include "common/base/result.h"
#include "server/coordinator/run_plan.h"
#include "server/sim/attacks.h"
#include "server/sim/model_files.h"
#include "server/sim/population.h"
#include "server/sim/virtual_trainer.h"
#include "skerry/v1/fleet.pb.h"

namespace skerry::sim {

/// Δ of each fragment that a task writes, in the task's order.
using Deltas = std::vector<std::vector<float>>;

/// A task on its way through a client.
struct Job {
  v1::Task task;
  std::size_t client = 0;
  std::uint64_t number = 0;  ///< of this client's tasks, from 0
  std::string counted;       ///< the latest task of this client whose update was counted
  std::map<std::string, std::shared_ptr<const ModelFile>> read;
  std::vector<std::shared_ptr<const ModelFile>> bases;     ///< of task.write; where they are what the client read
  std::vector<std::shared_ptr<const ModelFile>> previous;  ///< the bases before them, where the client had some
  std::vector<std::shared_ptr<const ModelFile>> merges;    ///< versions for the entries of task.merge
  bool keeps_deltas = false;  ///< somebody wants to see them
  bool hostile_update = false;

  // What the work made:
  Result<TrainerAnswer> answer = TrainerAnswer{};
  Result<client::MadeUpdate> update = client::MadeUpdate{};
  std::vector<client::Residual> residuals;  ///< with error feedback: as they were before the update
  Deltas deltas;
  double trainer_seconds = 0;  ///< of the trainer's CPU time

  bool is_train() const { return task.kind() == v1::TASK_TRAIN; }
};

/// What all clients of a run share.
struct ClientSurroundings {
  const server::RunPlan& plan;
  std::string run_id;
  std::string directory;  ///< each client has one of its own in it
  unsigned threads = 1;
};

class VirtualClient {
 public:
  /// Both must outlive it.
  VirtualClient(const ClientSurroundings& shared, const ClientPlan& plan);

  /// Does a job's work: trains or evaluates, and makes the update unless it is a hostile one. One thread at a time.
  void work(Job& job);

  /// Puts the trainer back to before its latest train task, which this job was.
  void undo_task(Job& job);

  /// The job's update will never count: with error feedback what it held goes into a later one.
  void give_back(const Job& job);

  /// Makes a hostile job's update of what it sends instead, after its work.
  void make_hostile_update(Job& job, const Deltas& sent);

 private:
  Result<void> open_trainer();
  Result<TrainerAnswer> train_or_evaluate(Job& job);
  /// The bases of what was emitted, as files.
  Result<void> keep_bases(Job& job) const;
  /// `trained`: in the order of job.bases.
  Result<client::MadeUpdate> update_of(Job& job, const std::vector<std::span<const float>>& trained);

  const ClientSurroundings& shared_;
  const ClientPlan& plan_;
  std::string directory_;
  std::unique_ptr<VirtualTrainer> trainer_;
  std::map<std::string, client::Residual> residuals_;  // error feedback: of the exchanged fragments
};

}  // namespace skerry::sim
