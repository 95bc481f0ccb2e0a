#include "tests/simulation/histories.h"

TEST_CASE("thousands of short histories with crashes, broken links and failing trainers keep every promise") {
  const auto totals = skerry::simulation::run_histories(1, 3000, "simulation_test");
  for (const auto& [what, count] : totals)
    std::printf("%s: %llu\n", what.c_str(), static_cast<unsigned long long>(count));
  if (std::getenv("SKERRY_SEED") != nullptr) return;
  // The histories are worth something only if most runs come to their end and updates are lost and counted on the way.
  CHECK(totals.at("completed") > 2000);
  CHECK(totals.at("stopped") > 30);
  CHECK(totals.at("counted") > 10000);
  CHECK(totals.at("discarded") > 900);
}

TEST_CASE("nodes that train on while their updates travel keep every promise, too") {
  const auto totals = skerry::simulation::run_histories(skerry::simulation::kFirstOverlapped, 3000, "simulation_test");
  for (const auto& [what, count] : totals)
    std::printf("overlapped %s: %llu\n", what.c_str(), static_cast<unsigned long long>(count));
  if (std::getenv("SKERRY_SEED") != nullptr) return;
  CHECK(totals.at("completed") > 2000);
  CHECK(totals.at("counted") > 10000);
  CHECK(totals.at("discarded") > 900);
}
