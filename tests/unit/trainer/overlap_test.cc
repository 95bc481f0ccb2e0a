#include "client/trainer/overlap.h"

#include <catch2/catch.hpp>

using namespace skerry;
using namespace skerry::trainer;

namespace {

using Values = std::vector<float>;

MergePlan plan(MergeRule rule, double alpha, std::uint64_t exchange) { return {"f", exchange, 0, rule, alpha, true}; }

// A trainer of one parameter that read 10 as version 3.
struct One {
  FragmentMemory memory;
  Values own{10};

  One() { remember_read(memory, 3, own); }
  void learn(float amount) { own[0] -= amount; }
  /// Emits for an exchange; what its update is.
  float emit(std::uint64_t exchange) {
    const float delta = memory.base[0] - own[0];
    remember_emitted(memory, exchange, own);
    return delta;
  }
  void merge(MergeRule rule, double alpha, std::uint64_t exchange, std::uint64_t version, float fresh) {
    REQUIRE(trainer::merge(memory, plan(rule, alpha, exchange), version, Values{fresh}, own).ok());
  }
};

}  // namespace

TEST_CASE("each rule moves the trainer's tensors, and what was learned since the emission stays to be sent") {
  One one;
  one.learn(2);
  CHECK(one.emit(1) == 2);  // at 8
  one.learn(1);             // at 7: one is learned and not sent
  SECTION("replace forgets it") {
    one.merge(MergeRule::kReplace, 0.5, 1, 4, 9);
    CHECK(one.own == Values{9});
    CHECK(one.emit(2) == 0);
  }
  SECTION("lerp keeps its share of it") {
    one.merge(MergeRule::kLerp, 0.25, 1, 4, 9);
    CHECK(one.own == Values{0.25f * 7 + 0.75f * 9});
    CHECK(one.memory.base == Values{0.25f * 8 + 0.75f * 9});
    CHECK(one.emit(2) == 0.25f);
  }
  SECTION("eager learns its share of it again from the new tensors") {
    one.merge(MergeRule::kEager, 1, 1, 4, 9);
    CHECK(one.own == Values{8});
    CHECK(one.memory.base == Values{9});
    one.learn(3);
    CHECK(one.emit(2) == 4);
  }
  CHECK(one.memory.version == 4);
}

TEST_CASE("with a whole round between emission and merge each update covers exactly its own steps") {
  const MergeRule rule = GENERATE(MergeRule::kReplace, MergeRule::kLerp, MergeRule::kEager);
  const double alpha = rule == MergeRule::kEager ? 1 : 0.5;
  One one;
  one.learn(1);
  CHECK(one.emit(1) == 1);
  one.learn(2);
  CHECK(one.emit(2) == 2);  // before the first merge
  one.merge(rule, alpha, 1, 4, 9.5f);
  one.learn(4);
  CHECK(one.emit(3) == 4);
  one.merge(rule, alpha, 2, 5, 8.5f);
  one.learn(8);
  CHECK(one.emit(4) == 8);
}

TEST_CASE("eager goes back to the emission that the version contains, not to the latest one") {
  One one;
  one.learn(1);
  one.emit(1);  // 9
  one.learn(2);
  one.emit(2);  // 7
  one.merge(MergeRule::kEager, 1, 1, 4, 20);
  CHECK(one.own == Values{18});  // the two learned after the first emission, again
  one.learn(4);
  one.merge(MergeRule::kEager, 1, 2, 5, 30);
  CHECK(one.own == Values{26});  // the four learned after the second: the jump from 7 to 18 was nothing learned
}

TEST_CASE("a read starts anew: nothing is in flight, and eager has nothing to go back to") {
  One one;
  one.learn(1);
  one.emit(1);
  remember_read(one.memory, 7, Values{5});
  one.own = {5};
  const auto refused = merge(one.memory, plan(MergeRule::kEager, 1, 1), 8, Values{4}, one.own);
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().code == Code::kFailedPrecondition);
  CHECK(one.own == Values{5});
  CHECK(one.memory.base == Values{5});
  one.merge(MergeRule::kReplace, 0, 1, 8, 4);
  CHECK(one.own == Values{4});
}

TEST_CASE("an exchange is merged once, and none after a later one of its fragment") {
  One one;
  one.emit(4);
  one.merge(MergeRule::kReplace, 0, 4, 5, 9);
  CHECK(is_merged(one.memory, plan(MergeRule::kReplace, 0, 4)));
  CHECK(is_merged(one.memory, plan(MergeRule::kReplace, 0, 3)));
  CHECK_FALSE(is_merged(one.memory, plan(MergeRule::kReplace, 0, 5)));
  CHECK_FALSE(is_merged(one.memory, plan(MergeRule::kReplace, 0, 0)));
  remember_read(one.memory, 4, Values{1});  // of before that exchange
  CHECK_FALSE(is_merged(one.memory, plan(MergeRule::kReplace, 0, 4)));
}

TEST_CASE("emissions that are never merged are forgotten, the oldest first") {
  One one;
  for (std::uint64_t exchange = 1; exchange <= 9; ++exchange) one.emit(exchange);
  CHECK(one.memory.earlier.size() <= 2);
  CHECK(one.memory.earlier.count(8) == 1);
}

TEST_CASE("lerp and eager of a fragment that was never read are refused, replace is a read") {
  FragmentMemory memory;
  Values own{1};
  CHECK_FALSE(merge(memory, plan(MergeRule::kLerp, 0.5, 1), 2, Values{3}, own).ok());
  CHECK(merge(memory, plan(MergeRule::kReplace, 0, 1), 2, Values{3}, own).ok());
  CHECK(memory.base == Values{3});
}
