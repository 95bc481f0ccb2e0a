// Who takes part, with how much work and until when: the arithmetic of it.
#include <optional>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include "strategies/participation.h"

using namespace skerry;
using namespace skerry::strategies;

namespace {

using Remaining = std::vector<std::optional<std::int64_t>>;

}  // namespace

TEST_CASE("shares of nodes are not off by one where their product is not exact") {
  ParticipationSpec spec;
  spec.cohort_fraction = 0.29;
  CHECK(cohort_target(spec, 100) == 29);  // 0.29 * 100 = 28.999999999999996
  spec.cohort_fraction = 0.07;
  CHECK(cohort_target(spec, 100) == 7);  // 0.07 * 100 = 7.000000000000001
  spec.cohort_fraction = 0.071;
  CHECK(cohort_target(spec, 100) == 8);
  spec.over_selection = 1.1;
  CHECK(invited_for(spec, 10) == 11);  // 1.1 * 10 = 11.000000000000002
  spec.minimum_completion = 0.29;
  CHECK(needed_for(spec, 100) == 29);
}

TEST_CASE("over-selection invites the goal times its factor, rounded up") {
  ParticipationSpec spec;
  CHECK(invited_for(spec, 10) == 10);
  spec.over_selection = 1.3;
  CHECK(invited_for(spec, 10) == 13);
  CHECK(invited_for(spec, 4) == 6);
  CHECK(invited_for(spec, 0) == 0);
}

TEST_CASE("an exchange needs its quorum, and its share of the invited where that is more") {
  ParticipationSpec spec;
  spec.quorum = 3;
  CHECK(needed_for(spec, 10) == 3);
  spec.minimum_completion = 0.5;
  CHECK(needed_for(spec, 10) == 5);
  CHECK(needed_for(spec, 11) == 6);
  CHECK(needed_for(spec, 4) == 3);
}

TEST_CASE("the adaptive grace window waits for the last who can be expected, and a quarter longer") {
  ParticipationSpec spec;
  spec.grace_safety = 0.5;
  CHECK(adaptive_grace_ms(spec, 10000, Remaining{1000, 2000, -500}) == 2500);
  CHECK(adaptive_grace_ms(spec, 10000, Remaining{4000}) == 5000);
  CHECK(adaptive_grace_ms(spec, 10000, Remaining{4001}) == 0);  // it would take longer than is worth it
  CHECK(adaptive_grace_ms(spec, 10000, Remaining{1000, std::nullopt}) == 5000);
  CHECK(adaptive_grace_ms(spec, 10000, {}) == 0);
  spec.grace_s = 2;
  CHECK(adaptive_grace_ms(spec, 10000, Remaining{std::nullopt}) == 2000);
}

TEST_CASE("DyLU's steps follow the speeds, between the fewest and the run's") {
  ParticipationSpec spec;
  CHECK(dylu_steps(spec, 500, 10, 10) == 500);
  CHECK(dylu_steps(spec, 500, 15, 10) == 333);
  CHECK(dylu_steps(spec, 100, 100, 29) == 29);  // 29/100 * 100 = 28.999999999999996
  CHECK(dylu_steps(spec, 500, 1e9, 10) == 1);
  spec.minimum_steps = 20;
  CHECK(dylu_steps(spec, 500, 1e9, 10) == 20);
  CHECK(dylu_steps(spec, 10, 1e9, 10) == 10);
}

TEST_CASE("a FedCompass node joins the group that lets it do most") {
  ParticipationSpec spec;
  spec.minimum_steps = 5;
  const std::vector<ArrivalGroup> groups = {{1500, 10}, {1900, 10}, {3500, 10}};
  const Placement joined = fedcompass_steps(spec, 100, 10, 1000, groups);
  CHECK(joined.group == 1);  // 50, 90; with the third it would be 250
  CHECK(joined.steps == 90);
}

TEST_CASE("a FedCompass node that can arrive with nobody aims at a group's next turn") {
  ParticipationSpec spec;
  spec.minimum_steps = 20;
  const Placement begun = fedcompass_steps(spec, 100, 50, 1000, std::vector<ArrivalGroup>{{1500, 10}});
  CHECK_FALSE(begun.group.has_value());
  CHECK(begun.steps == 30);  // 500 ms now, and 100 steps of 10 ms after that: 1500 ms
}

TEST_CASE("the first FedCompass node does all steps, and one too slow for everybody does the fewest") {
  ParticipationSpec spec;
  CHECK(fedcompass_steps(spec, 100, 10, 1000, {}).steps == 100);
  const Placement slow = fedcompass_steps(spec, 100, 1e6, 1000, std::vector<ArrivalGroup>{{1500, 10}});
  CHECK_FALSE(slow.group.has_value());
  CHECK(slow.steps == 1);
}

TEST_CASE("the nodes an exchange must have are the run's and the rule's, each once") {
  ParticipationSpec spec;
  spec.required_nodes = {"b", "a"};
  Needs needs;
  needs.nodes = {"b", "trusted"};
  CHECK(required_nodes(spec, needs) == std::vector<std::string>{"a", "b", "trusted"});
}

TEST_CASE("a metric that the rule needs must be one that nodes may report") {
  RunSpec spec;
  spec.aggregation.name = "q_ffl";
  spec.limits.metrics = {"loss"};
  Needs needs;
  needs.metrics = {"start_loss"};
  const auto refused = check_participation(spec, needs);
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().message ==
        "aggregation.rule q_ffl needs every node to report start_loss, but limits.metrics does not name it: add it "
        "there");
  spec.limits.metrics.push_back("start_loss");
  CHECK(check_participation(spec, needs).ok());
}

TEST_CASE("a node that the rule needs cannot be kept away from exchanges") {
  RunSpec spec;
  spec.participation.minimum_separation = 2;
  Needs needs;
  needs.nodes = {"trusted"};
  CHECK_FALSE(check_participation(spec, needs).ok());
}
