#include <cmath>
#include <map>
#include <string>

#include <catch2/catch.hpp>

#include "strategies/evaluation.h"
#include "strategies/exchange.h"
#include "strategies/participation.h"

using namespace skerry;
using namespace skerry::strategies;

TEST_CASE("a cohort has its size, or its fraction rounded up, and never less than the quorum") {
  ParticipationSpec spec;
  spec.quorum = 2;
  CHECK(cohort_target(spec, 10) == 10);
  spec.cohort_fraction = 0.25;
  CHECK(cohort_target(spec, 10) == 3);
  CHECK(cohort_target(spec, 4) == 2);
  CHECK(cohort_target(spec, 1) == 1);
  spec.cohort_size = 5;
  CHECK(cohort_target(spec, 10) == 5);
}

TEST_CASE("the draw differs between exchanges and seeds but not between repetitions") {
  CHECK(draw_order(1, 7, "a") == draw_order(1, 7, "a"));
  CHECK(draw_order(1, 7, "a") != draw_order(1, 8, "a"));
  CHECK(draw_order(1, 7, "a") != draw_order(2, 7, "a"));
  CHECK(task_seed(1, "a", 1) != task_seed(1, "b", 1));
  CHECK(task_seed(1, "a", 1) < (std::uint64_t{1} << 53));
}

TEST_CASE("an old update counts less, and not at all beyond the maximum") {
  ParticipationSpec spec;
  spec.maximum_staleness = 3;
  CHECK(staleness_factor(spec, 0) == 1.0);
  CHECK(staleness_factor(spec, 3) == 0.5);
  CHECK_FALSE(staleness_factor(spec, 4).has_value());
  spec.staleness_exponent = 0;
  CHECK(staleness_factor(spec, 3) == 1.0);
  spec.staleness_exponent = 1;
  CHECK(staleness_factor(spec, 3) == 0.25);
}

TEST_CASE("whole exchanges have one lane of all fragments, staggered ones a lane for each") {
  ExchangeSpec spec;
  CHECK(lanes(spec, 3) == std::vector<std::vector<std::uint32_t>>{{0, 1, 2}});
  spec.schedule = ExchangeSpec::Schedule::kStaggered;
  CHECK(lanes(spec, 3) == std::vector<std::vector<std::uint32_t>>{{0}, {1}, {2}});
}

TEST_CASE("metrics are means over all examples of those who report them") {
  const std::map<std::string, double> a = {{"loss", 1.0}, {"secret", 5.0}};
  const std::map<std::string, double> b = {{"loss", 4.0}, {"accuracy", 0.5}};
  const std::map<std::string, double> c = {{"loss", std::nan("")}};
  const auto merged = merge_metrics({{200, &a}, {100, &b}, {100, &c}}, {"loss", "accuracy"});
  CHECK(merged == std::map<std::string, double>{{"accuracy", 0.5}, {"loss", 2.0}});
}

TEST_CASE("perplexities merge as the pooled text's would") {
  const std::map<std::string, double> a = {{"perplexity", 2.0}};
  const std::map<std::string, double> b = {{"perplexity", 8.0}};
  CHECK(merge_metrics({{10, &a}, {10, &b}}, {"perplexity"}).at("perplexity") == Approx(4.0));
}

TEST_CASE("a metric whose sum is beyond all numbers has no mean") {
  const std::map<std::string, double> huge = {
      {"loss", 1e308}, {"accuracy", 0.5}, {"perplexity", 1.7976931348623157e308}};
  const auto merged = merge_metrics({{1000, &huge}}, {"loss", "accuracy", "perplexity"});
  CHECK(merged.at("accuracy") == 0.5);
  CHECK(merged.count("loss") == 0);
  for (const auto& [name, mean] : merged) CHECK(std::isfinite(mean));
}

TEST_CASE("a target is reached from its own side") {
  StopSpec stop;
  CHECK_FALSE(target_reached(stop, {{"loss", 0.1}}));
  stop.metric = "loss";
  stop.comparison = StopSpec::Comparison::kAtMost;
  stop.value = 0.5;
  CHECK(target_reached(stop, {{"loss", 0.5}}));
  CHECK_FALSE(target_reached(stop, {{"loss", 0.6}}));
  CHECK_FALSE(target_reached(stop, {}));
}
