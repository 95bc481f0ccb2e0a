// Attacks: the vectors that hostile clients send, by hand.
#include "server/sim/attacks.h"

#include <catch2/catch.hpp>

#include <cmath>

using namespace skerry;
using namespace skerry::sim;

namespace {

const std::vector<float> kOwn{1, -2, 3};
const std::vector<float> kFirst{1, 2, 3};
const std::vector<float> kSecond{3, 2, -1};

std::vector<float> sent(AttackKind kind, double strength, AttackView view) {
  view.own = kOwn;
  return hostile_update(kind, strength, view, Draws(1, "attack"));
}

}  // namespace

TEST_CASE("sign flip and model replacement scale the own update") {
  CHECK(sent(AttackKind::kSignFlip, 10, {}) == std::vector<float>{-10, 20, -30});
  CHECK(sent(AttackKind::kModelReplacement, 20, {}) == std::vector<float>{20, -40, 60});
}

TEST_CASE("inner product manipulation sends the honest mean backward") {
  CHECK(sent(AttackKind::kInnerProduct, 0.5, {.honest = {kFirst, kSecond}}) == std::vector<float>{-1, -1, -0.5});
  CHECK(sent(AttackKind::kInnerProduct, 0.5, {}) == std::vector<float>{-0.5, 1, -1.5});  // nobody to look at
}

TEST_CASE("a little is enough: the honest mean less z deviations, value by value") {
  // Means 2, 2, 1; deviations 1, 0, 2.
  CHECK(sent(AttackKind::kALittle, 0.5, {.honest = {kFirst, kSecond}}) == std::vector<float>{1.5, 2, 0});
}

TEST_CASE("a free rider sends nothing, or the model's last change") {
  CHECK(sent(AttackKind::kFreeRider, 0, {.last_change = kFirst}) == std::vector<float>{0, 0, 0});
  CHECK(sent(AttackKind::kFreeRider, 1, {.last_change = kFirst}) == kFirst);
  CHECK(sent(AttackKind::kFreeRider, 1, {}) == std::vector<float>{0, 0, 0});
}

TEST_CASE("noise has the strength's multiple of the own update's size, and the seed decides it") {
  const std::vector<float> own(10'000, 2.0f);
  const auto noise = hostile_update(AttackKind::kNoise, 10, {.own = own}, Draws(1, "attack"));
  double squares = 0;
  for (const float value : noise) squares += static_cast<double>(value) * static_cast<double>(value);
  CHECK(std::sqrt(squares / 10'000) == Approx(20).epsilon(0.05));
  CHECK(noise == hostile_update(AttackKind::kNoise, 10, {.own = own}, Draws(1, "attack")));
  CHECK(noise != hostile_update(AttackKind::kNoise, 10, {.own = own}, Draws(2, "attack")));
}

TEST_CASE("ALIE's z follows from the number of clients and of hostile ones") {
  CHECK(alie_z(50, 24) == Approx(1.4261).epsilon(1e-3));  // s = 2: quantile of 24 / 26
  CHECK(alie_z(20, 4) == Approx(0.1573).epsilon(1e-3));   // s = 7: quantile of 9 / 16
  CHECK(alie_z(4, 1) == 0);                               // s = 2: 1 / 3, below one half
  CHECK(alie_z(3, 3) == 0);
}

TEST_CASE("an attack's text names its kind, how many are hostile and how strongly") {
  const AttackPlan some = parse_attack("ipm:4,0.1").value();
  CHECK(some.kind == AttackKind::kInnerProduct);
  CHECK(some.hostile(20) == 4);
  CHECK(some.strength == 0.1);
  CHECK(parse_attack("sign_flip:0.25").value().hostile(10) == 3);  // 2.5 is rounded away from zero
  CHECK(parse_attack("sign_flip:7").value().hostile(5) == 5);
  CHECK(parse_attack("none").value().hostile(5) == 0);
  CHECK(parse_attack("flip:4").error().message ==
        "\"flip:4\" is no attack; known are none, sign_flip, noise, ipm, alie, label_flip, free_rider, model_replacement");
  CHECK(parse_attack("noise").error().message == "\"noise\" must be KIND:COUNT or KIND:COUNT,STRENGTH, for example sign_flip:4");
  CHECK(parse_attack("noise:1.5").error().message ==
        "\"noise:1.5\": the hostile clients must be a share in (0, 1) or a whole number");
}

TEST_CASE("model replacement is as strong as the number of updates over the outer learning rate") {
  CHECK(default_strength(AttackKind::kModelReplacement, 20, 4, 0.5) == 40);
  CHECK(default_strength(AttackKind::kSignFlip, 20, 4, 0.5) == 10);
  CHECK(default_strength(AttackKind::kALittle, 20, 4, 1) == alie_z(20, 4));
}
