#include "tests/simulation/histories.h"

TEST_CASE("many more histories keep every promise") {
  const auto totals = skerry::simulation::run_histories(100000, 100000, "simulation_long_test");
  CHECK(totals.at("events") > 0);
}

TEST_CASE("many more histories of nodes that train on keep every promise") {
  const auto totals = skerry::simulation::run_histories(skerry::simulation::kFirstOverlapped + 100000, 100000,
                                                        "simulation_long_test");
  CHECK(totals.at("events") > 0);
}
