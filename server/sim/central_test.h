// The central test: released models measured on data that no client has, beside the clients' work.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "server/sim/population.h"
#include "server/sim/results.h"
#include "server/sim/virtual_client.h"
#include "server/sim/worker_pool.h"

namespace skerry::sim {

class CentralTest {
 public:
  /// Works in `lane` of the pool, which must end before this; `shared` and `pool` must outlive it. Without test data in
  /// the population nothing is ever measured.
  CentralTest(const ClientSurroundings& shared, const Population& population, WorkerPool& pool, std::size_t lane);

  bool has_data() const { return client_ != nullptr; }

  /// Begins to measure the model of an exchange, once. The trainer's errors, of earlier tests.
  Result<void> begin(std::uint64_t exchange, std::map<std::string, std::shared_ptr<const ModelFile>> model);

  /// All results, in the exchanges' order, when the last is there.
  Result<std::vector<TestResult>> finish();

  /// The latest that has ended; empty at first.
  const std::map<std::string, double>& latest() const { return latest_; }
  double trainer_seconds() const { return trainer_seconds_; }

 private:
  struct Test {
    std::uint64_t exchange = 0;
    WorkerPool::Ticket ticket = 0;
    Job job;
  };
  Result<void> collect(std::size_t left);

  WorkerPool& pool_;
  const std::size_t lane_;
  std::optional<ClientPlan> plan_;
  std::unique_ptr<VirtualClient> client_;
  std::uint64_t begun_ = 0;  // the latest exchange
  std::vector<std::unique_ptr<Test>> tests_;
  std::vector<TestResult> results_;
  std::map<std::string, double> latest_;
  double trainer_seconds_ = 0;
};

}  // namespace skerry::sim
