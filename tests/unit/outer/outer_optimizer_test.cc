#include "strategies/outer/outer_optimizer.h"

#include <cmath>
#include <cstring>

#include <catch2/catch.hpp>
#include <hwy/targets.h>

namespace skerry::strategies {
namespace {

// A small fragment that an optimizer walks: values, state, and the outer gradients given one after the other.
struct Walker {
  Walker(const Part& part, std::vector<float> start) : values(std::move(start)) {
    auto made = make_outer_optimizer(part);
    REQUIRE(made.ok());
    optimizer = std::move(made).value();
    state.assign(optimizer.state_vectors.size(), std::vector<float>(values.size(), 0.0f));
  }

  // Returns the change.
  std::vector<float> step(const std::vector<float>& delta) {
    std::vector<float> change(values.size());
    std::vector<float*> pointers;
    for (auto& vector : state) pointers.push_back(vector.data());
    OuterBlock block;
    block.step = ++steps;
    block.count = values.size();
    block.delta = delta.data();
    block.base = values.data();
    block.state = pointers;
    block.change = change.data();
    optimizer.step(block);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] += change[i];
    return change;
  }

  OuterOptimizer optimizer;
  std::vector<float> values;
  std::vector<std::vector<float>> state;
  std::uint64_t steps = 0;
};

// Values of many magnitudes and both signs, the same in every run.
std::vector<float> some_values(std::size_t count, unsigned seed) {
  std::vector<float> values(count);
  std::uint32_t state = seed * 2654435761u + 1;
  for (float& value : values) {
    state = state * 1664525u + 1013904223u;
    const float mantissa = static_cast<float>(state >> 8) / 8388608.0f - 1.0f;
    value = std::ldexp(mantissa, static_cast<int>(state % 30) - 20);
  }
  return values;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Runs `check` once for every SIMD target that was compiled and that this machine has.
template <typename Check>
void on_every_target(const Check& check) {
  const auto targets = hwy::SupportedTargets();
  for (std::int64_t left = static_cast<std::int64_t>(targets); left != 0; left &= left - 1) {
    hwy::SetSupportedTargetsForTest(left & -left);
    check();
  }
  hwy::SetSupportedTargetsForTest(0);
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
  CHECK(make_outer_optimizer(adam())->state_vectors == std::vector<std::string>{"first_moment", "second_moment"});
}

TEST_CASE("options out of range are refused with the value and the range") {
  CHECK(make_outer_optimizer(nesterov({.momentum = 1.3})).error().message ==
        "outer.momentum is 1.3, must be in [0, 1)");
  CHECK(make_outer_optimizer(sgd({.learning_rate = 0})).error().message ==
        "outer.learning_rate is 0, must be in (0, 1000000]");
  CHECK(make_outer_optimizer(adam({.beta2 = 1})).error().message == "outer.beta2 is 1, must be in [0, 1)");
  CHECK(make_outer_optimizer(adam({.epsilon = 0})).error().message == "outer.epsilon is 0, must be in (0, 1000000]");
  CHECK(make_outer_optimizer({"yogi", {}}).error().message ==
        "outer is \"yogi\", must be one of sgd, momentum, nesterov, adam");
}

TEST_CASE("defaults in a run spec are those of the options") {
  for (const Part& part : {sgd(), momentum(), nesterov(), adam()}) {
    const auto resolved = resolve({part.name, {}}, "outer", outer_catalogue());
    REQUIRE(resolved.ok());
    CHECK(*resolved == part);
  }
}

}  // namespace skerry::strategies
