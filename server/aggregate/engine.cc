#include "server/aggregate/engine.h"

#include <algorithm>
#include <chrono>
#include <thread>

#include "server/aggregate/cohort_walk.h"
#include "server/aggregate/commit_walk.h"
#include "server/aggregate/pool.h"

namespace skerry::server {
namespace {

class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

unsigned threads_of(const EngineOptions& options) {
  return options.threads != 0 ? options.threads : std::max(1u, std::thread::hardware_concurrency());
}

}  // namespace

AggregationEngine::AggregationEngine(EngineOptions options) : pool_(std::make_unique<ReductionPool>(threads_of(options))) {}
AggregationEngine::~AggregationEngine() = default;

Result<ReduceOutcome> AggregationEngine::reduce(const ReduceJob& job) {
  const Stopwatch watch;
  SKERRY_ASSIGN(CohortWalk cohort, CohortWalk::open(job, *pool_));
  SKERRY_TRY(cohort.run_statistics());
  ReduceStatistics measured;
  if (job.measure_updates) {
    SKERRY_ASSIGN(measured, cohort.measure(true));
  }
  SKERRY_ASSIGN(ReduceOutcome outcome, commit_walk(job, cohort, *pool_));
  ReduceStatistics& statistics = outcome.statistics;
  statistics.update_norms = std::move(measured.update_norms);
  statistics.cosines = std::move(measured.cosines);
  statistics.bytes_read += cohort.bytes_read();
  statistics.seconds = watch.seconds();
  return outcome;
}

Result<ReduceStatistics> AggregationEngine::measure(const ReduceJob& job) {
  const Stopwatch watch;
  SKERRY_ASSIGN(CohortWalk cohort, CohortWalk::open(job, *pool_));
  SKERRY_TRY(cohort.run_statistics());
  SKERRY_ASSIGN(ReduceStatistics statistics, cohort.measure(job.measure_updates));
  statistics.bytes_read = cohort.bytes_read();
  statistics.seconds = watch.seconds();
  return statistics;
}

void AggregationEngine::parallel_for(std::size_t count, const std::function<void(std::size_t)>& body) {
  pool_->run(count, [&](std::size_t index, std::size_t) { body(index); });
}

unsigned AggregationEngine::threads() const { return pool_->threads(); }

}  // namespace skerry::server
