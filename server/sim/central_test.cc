#include "server/sim/central_test.h"

#include <utility>

namespace skerry::sim {
namespace {

constexpr std::size_t kBeside = 2;  // so many tests go on beside the next round's work

}  // namespace

CentralTest::CentralTest(const ClientSurroundings& shared, const Population& population, WorkerPool& pool,
                         std::size_t lane)
    : pool_(pool), lane_(lane) {
  if (population.test_data == nullptr) return;
  plan_ = ClientPlan{.name = "@test", .whole = population.test_data, .part = population.test_part};
  client_ = std::make_unique<VirtualClient>(shared, *plan_);
}

Result<void> CentralTest::begin(std::uint64_t exchange, std::map<std::string, std::shared_ptr<const ModelFile>> model) {
  if (begun_ == exchange) return {};
  begun_ = exchange;
  auto test = std::make_unique<Test>();
  test->exchange = exchange;
  test->job.task.set_task_id("test");
  test->job.task.set_kind(v1::TASK_EVALUATE);
  test->job.task.set_split("test");
  test->job.read = std::move(model);
  test->ticket = pool_.submit(lane_, [this, job = &test->job] { client_->work(*job); });
  tests_.push_back(std::move(test));
  return collect(kBeside);
}

Result<std::vector<TestResult>> CentralTest::finish() {
  SKERRY_TRY(collect(0));
  return std::move(results_);
}

// Tests end in their order.
Result<void> CentralTest::collect(std::size_t left) {
  while (tests_.size() > left) {
    const std::unique_ptr<Test> test = std::move(tests_.front());
    tests_.erase(tests_.begin());
    pool_.wait(test->ticket);
    trainer_seconds_ += test->job.trainer_seconds;
    if (!test->job.answer.ok()) return with_context(test->job.answer.error(), "test");
    latest_ = test->job.answer->metrics;
    results_.push_back({test->exchange, latest_});
  }
  return {};
}

}  // namespace skerry::sim
