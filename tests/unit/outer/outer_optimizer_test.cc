#include "strategies/outer/outer_optimizer.h"

#include <cmath>
#include <cstring>

#include <catch2/catch.hpp>

#include "tests/unit/outer/walker.h"

namespace skerry::strategies {
namespace {

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace

TEST_CASE("sgd with learning rate 1 moves a model onto the mean of what came back") {
  Walker walker(sgd(), {5.0f, -2.0f});
  walker.step({1.5f, -1.0f});  // Δ = old − mean, so the mean is 3.5 and -1
  CHECK(walker.values == std::vector<float>{3.5f, -1.0f});
}

TEST_CASE("sgd scales the outer gradient by its learning rate and subtracts it") {
  Walker walker(sgd({.learning_rate = 0.5}), {1.0f});
  CHECK(walker.step({4.0f}) == std::vector<float>{-2.0f});
  CHECK(walker.state.empty());
}

TEST_CASE("momentum adds up a decaying velocity") {
  // β = 0.5, η = 1: u = 2, then 0.5·2 + 4 = 5, then 0.5·5 − 1 = 1.5.
  Walker walker(momentum({.learning_rate = 1.0, .momentum = 0.5}), {10.0f});
  CHECK(walker.step({2.0f}) == std::vector<float>{-2.0f});
  CHECK(walker.step({4.0f}) == std::vector<float>{-5.0f});
  CHECK(walker.step({-1.0f}) == std::vector<float>{-1.5f});
  CHECK(walker.state[0] == std::vector<float>{1.5f});
  CHECK(walker.values == std::vector<float>{1.5f});
}

TEST_CASE("nesterov follows torch.optim.SGD(lr=0.5, momentum=0.5, nesterov=True)") {
  // PyTorch: buf = g at the first step, then buf = β·buf + g; p −= lr · (g + β·buf). All numbers are exact in f32.
  //   g = 2:  buf 2       p = 10    − 0.5·(2 + 1)      = 8.5
  //   g = 4:  buf 5       p = 8.5   − 0.5·(4 + 2.5)    = 5.25
  //   g = -1: buf 1.5     p = 5.25  − 0.5·(−1 + 0.75)  = 5.375
  //   g = 0:  buf 0.75    p = 5.375 − 0.5·(0 + 0.375)  = 5.1875
  Walker walker(nesterov({.learning_rate = 0.5, .momentum = 0.5}), {10.0f});
  const struct {
    float gradient, velocity, value;
  } table[] = {{2, 2, 8.5f}, {4, 5, 5.25f}, {-1, 1.5f, 5.375f}, {0, 0.75f, 5.1875f}};
  for (const auto& row : table) {
    walker.step({row.gradient});
    CHECK(walker.state[0][0] == row.velocity);
    CHECK(walker.values[0] == row.value);
  }
}

TEST_CASE("nesterov at DiLoCo's settings amplifies a constant outer gradient sevenfold") {
  Walker walker(nesterov({.learning_rate = 0.7, .momentum = 0.9}), {0.0f});
  float change = 0;
  for (int i = 0; i < 400; ++i) change = walker.step({1.0f})[0];
  CHECK(change == Approx(-0.7 / (1 - 0.9)).epsilon(1e-5));
}

TEST_CASE("adam without bias correction is FedAdam") {
  // β₁ = β₂ = 0.5, τ = 1, η = 1. Δ = 2: m = 1, v = 2. Δ = −6: m = −2.5, v = 19.
  Walker walker(adam({.learning_rate = 1.0, .beta1 = 0.5, .beta2 = 0.5, .epsilon = 1.0, .bias_correction = false}),
                {0.0f});
  CHECK(walker.step({2.0f})[0] == static_cast<float>(-1.0 / (std::sqrt(2.0) + 1.0)));
  CHECK(walker.step({-6.0f})[0] == static_cast<float>(2.5 / (std::sqrt(19.0) + 1.0)));
  CHECK(walker.state[0] == std::vector<float>{-2.5f});
  CHECK(walker.state[1] == std::vector<float>{19.0f});
}

TEST_CASE("adam with bias correction divides the moments by 1 - beta^t") {
  // The same moments; step 1 divides both by 0.5, step 2 by 0.75.
  Walker walker(adam({.learning_rate = 1.0, .beta1 = 0.5, .beta2 = 0.5, .epsilon = 1.0, .bias_correction = true}),
                {0.0f});
  CHECK(walker.step({2.0f})[0] == static_cast<float>(-2.0 / (std::sqrt(4.0) + 1.0)));
  CHECK(walker.step({-6.0f})[0] == static_cast<float>((2.5 / 0.75) / (std::sqrt(19.0 / 0.75) + 1.0)));
}

TEST_CASE("adam's first corrected step is the learning rate against the sign of the gradient") {
  Walker walker(adam({.learning_rate = 0.1, .beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8, .bias_correction = true}),
                {0.0f, 0.0f});
  const auto change = walker.step({3.0f, -0.25f});
  CHECK(change[0] == Approx(-0.1).epsilon(1e-5));
  CHECK(change[1] == Approx(0.1).epsilon(1e-5));
}

TEST_CASE("every optimizer gives the formulas' values, computed in float64, at any length and on any SIMD target") {
  const double rate = 0.7;
  const double beta = 0.9;
  const double beta2 = 0.99;
  const double tau = 1e-3;
  for (const std::size_t count : {1, 7, 8, 33, 1000}) {
    const auto delta1 = some_values(count, 1);
    const auto delta2 = some_values(count, 2);
    on_every_target([&] {
      Walker plain(sgd({rate}), std::vector<float>(count));
      Walker heavy(momentum({rate, beta}), std::vector<float>(count));
      Walker ahead(nesterov({rate, beta}), std::vector<float>(count));
      Walker adaptive(adam({rate, beta, beta2, tau, true}), std::vector<float>(count));
      for (Walker* walker : {&plain, &heavy, &ahead, &adaptive}) walker->step(delta1);
      const auto plain_change = plain.step(delta2);
      const auto heavy_change = heavy.step(delta2);
      const auto ahead_change = ahead.step(delta2);
      const auto adaptive_change = adaptive.step(delta2);
      std::vector<float> expected[4];
      for (std::size_t i = 0; i < count; ++i) {
        const double d1 = delta1[i];
        const double d2 = delta2[i];
        expected[0].push_back(static_cast<float>(-rate * d2));
        const double u = static_cast<float>(beta * d1 + d2);
        expected[1].push_back(static_cast<float>(-rate * u));
        expected[2].push_back(static_cast<float>(-rate * (d2 + beta * u)));
        const double m1 = static_cast<float>((1 - beta) * d1);
        const double v1 = static_cast<float>((1 - beta2) * (d1 * d1));
        const double m2 = static_cast<float>(beta * m1 + (1 - beta) * d2);
        const double v2 = static_cast<float>(beta2 * v1 + (1 - beta2) * (d2 * d2));
        const double m_hat = m2 / (1 - beta * beta);
        const double v_hat = v2 / (1 - beta2 * beta2);
        expected[3].push_back(static_cast<float>(-rate * m_hat / (std::sqrt(v_hat) + tau)));
      }
      CHECK(same_bits(plain_change, expected[0]));
      CHECK(same_bits(heavy_change, expected[1]));
      CHECK(same_bits(ahead_change, expected[2]));
      CHECK(same_bits(adaptive_change, expected[3]));
    });
  }
}

TEST_CASE("optimizers name their state vectors") {
  CHECK(make_outer_optimizer(sgd())->state_vectors.empty());
  CHECK(make_outer_optimizer(momentum())->state_vectors == std::vector<std::string>{"velocity"});
  CHECK(make_outer_optimizer(nesterov())->state_vectors == std::vector<std::string>{"velocity"});
  CHECK(make_outer_optimizer(nesterov({.form = NesterovOptions::Form::kFedMom}))->state_vectors ==
        std::vector<std::string>{"ahead"});
  CHECK(make_outer_optimizer(delayed_nesterov())->state_vectors == std::vector<std::string>{"velocity", "buffer"});
  CHECK(make_outer_optimizer(adagrad())->state_vectors == std::vector<std::string>{"sum_of_squares"});
  CHECK(make_outer_optimizer(adam())->state_vectors == std::vector<std::string>{"first_moment", "second_moment"});
  CHECK(make_outer_optimizer(yogi())->state_vectors == std::vector<std::string>{"first_moment", "second_moment"});
}

TEST_CASE("options out of range are refused with the value and the range") {
  CHECK(make_outer_optimizer(nesterov({.momentum = 1.3})).error().message ==
        "outer.momentum is 1.3, must be in [0, 1)");
  CHECK(make_outer_optimizer(sgd({.learning_rate = 0})).error().message ==
        "outer.learning_rate is 0, must be in (0, 1000000]");
  CHECK(make_outer_optimizer(adam({.beta2 = 1})).error().message == "outer.beta2 is 1, must be in [0, 1)");
  CHECK(make_outer_optimizer(adam({.epsilon = 0})).error().message == "outer.epsilon is 0, must be in (0, 1000000]");
  CHECK(make_outer_optimizer(adagrad({.initial_accumulator = -1})).error().message ==
        "outer.initial_accumulator is -1, must be in [0, 1000000]");
  CHECK(make_outer_optimizer(delayed_nesterov({.delay = 4, .carry = 0.3})).error().message ==
        "outer.carry is 0.3, must be at most 1 / outer.delay (1 / 4)");
  CHECK(make_outer_optimizer(sgd({.schedule = {.kind = Schedule::Kind::kCosine}})).error().message ==
        "outer.schedule_steps is 0, must be above outer.warmup_steps (0) for schedule cosine");
  CHECK(make_outer_optimizer({"lion", {}}).error().message ==
        "outer is \"lion\", must be one of sgd, momentum, nesterov, delayed_nesterov, adagrad, adam, yogi");
}

TEST_CASE("defaults in a run spec are those of the options") {
  for (const Part& part : {sgd(), momentum(), nesterov(), delayed_nesterov(), adagrad(), adam(), yogi()}) {
    const auto silent = resolve({part.name, {}}, "outer", outer_catalogue());
    const auto said = resolve(part, "outer", outer_catalogue());
    REQUIRE(silent.ok());
    REQUIRE(said.ok());
    CHECK(*silent == *said);
  }
}

TEST_CASE("every optimizer moves the model towards what came back") {
  // Old values 1 and −1, what came back is 0 in both: Δ = (1, −1). FedAdam and FedYogi with the wrong sign move away.
  for (const Part& part : {sgd(), momentum(), nesterov(), nesterov({.form = NesterovOptions::Form::kFedMom}),
                           delayed_nesterov(), adagrad(), adam(), adam({.bias_correction = true}), yogi(),
                           yogi({.learning_rate = 0.01, .initial_accumulator = 1e-6})}) {
    Walker walker(part, {1.0f, -1.0f});
    for (int i = 0; i < 3; ++i) {
      const auto change = walker.step({1.0f, -1.0f});
      INFO(part.name << " at step " << i + 1);
      CHECK(change[0] < 0);
      CHECK(change[1] > 0);
    }
  }
}

TEST_CASE("yogi's second moment falls where squares fall, by no more than the newest square") {
  // β₂ = 0.5, Δ = 4: v = 8. Δ = 2: v = 8 − 0.5·4 = 6 (Adam: 6). Δ = 0: v = 6 (Adam: 3). Δ = 3: v = 6 + 0.5·9 = 10.5.
  Walker walker(yogi({.learning_rate = 1, .beta1 = 0, .beta2 = 0.5, .epsilon = 1}), {0.0f});
  const struct { float gradient, second_moment; } table[] = {{4, 8}, {2, 6}, {0, 6}, {3, 10.5f}};
  for (const auto& row : table) {
    const auto change = walker.step({row.gradient});
    CHECK(walker.state[1][0] == row.second_moment);
    CHECK(change[0] == static_cast<float>(-row.gradient / (std::sqrt(static_cast<double>(row.second_moment)) + 1)));
  }
}

TEST_CASE("yogi leaves a second moment that equals the newest square") {
  Walker walker(yogi({.learning_rate = 1, .beta2 = 0.5, .initial_accumulator = 4}), {0.0f});
  walker.step({2.0f});
  CHECK(walker.state[1][0] == 4.0f);
}

TEST_CASE("adagrad, adam and yogi start from the initial accumulator, once") {
  Walker sum(adagrad({.learning_rate = 1, .epsilon = 1, .initial_accumulator = 12}), {0.0f});
  CHECK(sum.step({2.0f})[0] == static_cast<float>(-2.0 / (std::sqrt(16.0) + 1)));
  sum.step({3.0f});
  CHECK(sum.state[0][0] == 25.0f);
  Walker mean(adam({.beta2 = 0.5, .initial_accumulator = 8}), {0.0f});
  mean.step({2.0f});
  CHECK(mean.state[1][0] == 6.0f);
  mean.step({2.0f});
  CHECK(mean.state[1][0] == 5.0f);
}

TEST_CASE("fedmom's buffer starts at the model, so the first step does not inflate the weights") {
  // η = 0.5, β = 0.5, w = 10, Δ = 2: v' = 9, v = 10: w' = 9 + 0.5·(9 − 10) = 8.5. A buffer of zeros would give 13.5.
  // Then Δ = 4: v' = 8.5 − 2 = 6.5, w' = 6.5 + 0.5·(6.5 − 9) = 5.25.
  Walker walker(nesterov({.learning_rate = 0.5, .momentum = 0.5, .form = NesterovOptions::Form::kFedMom}), {10.0f});
  walker.step({2.0f});
  CHECK(walker.values[0] == 8.5f);
  CHECK(walker.state[0][0] == 9.0f - 8.5f);  // v − w
  walker.step({4.0f});
  CHECK(walker.values[0] == 5.25f);
  CHECK(walker.state[0][0] == 6.5f - 5.25f);
}

TEST_CASE("at a constant learning rate fedmom's form and pytorch's are the same walk") {
  Walker pytorch(nesterov({.learning_rate = 0.7, .momentum = 0.9}), std::vector<float>(50));
  Walker fedmom(nesterov({.learning_rate = 0.7, .momentum = 0.9, .form = NesterovOptions::Form::kFedMom}),
                std::vector<float>(50));
  for (unsigned i = 1; i <= 20; ++i) {
    const auto one = pytorch.step(some_values(50, i));
    const auto other = fedmom.step(some_values(50, i));
    for (std::size_t k = 0; k < one.size(); ++k) CHECK(one[k] == Approx(other[k]).epsilon(1e-5).margin(1e-5));
  }
}

TEST_CASE("delayed nesterov moves its velocity at every N-th step, with the mean of N gradients") {
  // ε = 1, β = 0.5, N = 2, c = 0. Δ = 4: only −4/2. Δ = 8: m = 12/2 = 6, change −(0.5·6 + 8/2) = −7. Δ = 2: −1.
  // Δ = 6: m = 3 + 4 = 7, change −(3.5 + 3).
  Walker walker(delayed_nesterov({.learning_rate = 1, .momentum = 0.5, .delay = 2}), {0.0f});
  CHECK(walker.step({4.0f}) == std::vector<float>{-2.0f});
  CHECK(walker.state == std::vector<std::vector<float>>{{0.0f}, {4.0f}});
  CHECK(walker.step({8.0f}) == std::vector<float>{-7.0f});
  CHECK(walker.state == std::vector<std::vector<float>>{{6.0f}, {0.0f}});
  CHECK(walker.step({2.0f}) == std::vector<float>{-1.0f});
  CHECK(walker.step({6.0f}) == std::vector<float>{-6.5f});
  CHECK(walker.state == std::vector<std::vector<float>>{{7.0f}, {0.0f}});
}

TEST_CASE("delayed nesterov with a carry spreads the velocity over the steps between") {
  // c = 1/N: every step takes cβm. N = 2, β = 0.5: after m = 6, the next step −(0.25·6 + 2/2).
  Walker walker(delayed_nesterov({.learning_rate = 1, .momentum = 0.5, .delay = 2, .carry = 0.5}), {0.0f});
  walker.step({4.0f});
  CHECK(walker.step({8.0f}) == std::vector<float>{-(0.25f * 6 + 4)});
  CHECK(walker.step({2.0f}) == std::vector<float>{-(0.25f * 6 + 1)});
}

TEST_CASE("delayed nesterov without delay is nesterov") {
  Walker delayed(delayed_nesterov({.learning_rate = 0.7, .momentum = 0.9, .delay = 1}), std::vector<float>(33));
  Walker plain(nesterov({.learning_rate = 0.7, .momentum = 0.9}), std::vector<float>(33));
  for (unsigned i = 1; i <= 5; ++i) CHECK(same_bits(delayed.step(some_values(33, i)), plain.step(some_values(33, i))));
}

TEST_CASE("a schedule scales every optimizer's learning rate") {
  const Schedule halving{.kind = Schedule::Kind::kStep, .step_every = 1, .step_factor = 0.5};
  Walker walker(sgd({.learning_rate = 1, .schedule = halving}), {0.0f});
  CHECK(walker.step({1.0f}) == std::vector<float>{-1.0f});
  CHECK(walker.step({1.0f}) == std::vector<float>{-0.5f});
  CHECK(walker.step({1.0f}) == std::vector<float>{-0.25f});
  for (const Part& plain : {momentum(), nesterov(), nesterov({.form = NesterovOptions::Form::kFedMom}),
                            delayed_nesterov(), adagrad(), adam(), yogi()}) {
    Part scheduled = plain;
    put_schedule({.warmup_steps = 4}, scheduled);
    Walker full(plain, {0.0f});
    Walker warming(scheduled, {0.0f});
    INFO(plain.name);
    CHECK(warming.step({1.0f})[0] == Approx(full.step({1.0f})[0] / 4).epsilon(1e-6));
  }
}

TEST_CASE("the bytes of every optimizer are the same on every SIMD target") {
  for (const Part& part : {sgd(), momentum(), nesterov(), nesterov({.form = NesterovOptions::Form::kFedMom}),
                           delayed_nesterov({.delay = 2, .carry = 0.3}), adagrad(), adam({.bias_correction = true}),
                           yogi({.learning_rate = 0.01, .initial_accumulator = 1e-6})}) {
    std::vector<std::vector<float>> first;
    on_every_target([&] {
      Walker walker(part, std::vector<float>(1001));
      for (unsigned i = 1; i <= 4; ++i) walker.step(some_values(1001, i));
      std::vector<std::vector<float>> all = walker.state;
      all.push_back(walker.values);
      if (first.empty()) first = all;
      REQUIRE(all.size() == first.size());
      for (std::size_t i = 0; i < all.size(); ++i) CHECK(same_bits(all[i], first[i]));
    });
  }
}

}  // namespace skerry::strategies
