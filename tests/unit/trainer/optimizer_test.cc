// The inner optimizers against values worked out by hand. (Against torch.optim: torch_optimizer_test.cc.)
#include <cmath>
#include <limits>

#include <catch2/catch.hpp>

#include "client/trainer/optimizer.h"

using namespace skerry::trainer;

namespace {

std::vector<float> after(const OptimizerOptions& options, double rate, int steps, std::vector<float> parameters,
                         const std::vector<float>& gradient) {
  OptimizerState state = fresh_state(options, parameters.size());
  for (int i = 0; i < steps; ++i) optimizer_step(options, rate, gradient, parameters, state);
  CHECK(state.steps == static_cast<std::uint64_t>(steps));
  return parameters;
}

}  // namespace

TEST_CASE("plain SGD subtracts rate times gradient and keeps no state") {
  const OptimizerOptions options{OptimizerKind::kSgd};
  CHECK(fresh_state(options, 2).first.empty());
  CHECK(after(options, 0.5, 2, {1, -1}, {2, 4}) == std::vector<float>{-1, -5});
}

TEST_CASE("momentum adds up: 1, then 1.5 times the gradient") {
  OptimizerOptions options{OptimizerKind::kSgd};
  options.momentum = 0.5;
  CHECK(after(options, 1, 1, {0}, {1}) == std::vector<float>{-1});
  CHECK(after(options, 1, 2, {0}, {1}) == std::vector<float>{-2.5});
  options.nesterov = true;  // g + 0.5 v: 1.5, then 1 + 0.75
  CHECK(after(options, 1, 1, {0}, {1}) == std::vector<float>{-1.5});
  CHECK(after(options, 1, 2, {0}, {1}) == std::vector<float>{-3.25});
}

TEST_CASE("weight decay of SGD is part of the gradient") {
  OptimizerOptions options{OptimizerKind::kSgd};
  options.weight_decay = 0.5;
  CHECK(after(options, 1, 1, {4}, {1}) == std::vector<float>{1});
}

TEST_CASE("Adam's first step has the size of the learning rate, whatever the gradient's") {
  OptimizerOptions options{OptimizerKind::kAdam};
  const auto parameters = after(options, 0.1, 1, {1, 1}, {1000, -0.001f});
  CHECK(parameters[0] == Approx(0.9));
  CHECK(parameters[1] == Approx(1.1).epsilon(1e-4));
}

TEST_CASE("AdamW decays the weight itself, apart from the gradient") {
  OptimizerOptions options{OptimizerKind::kAdamW};
  options.weight_decay = 0.5;
  CHECK(after(options, 0.1, 1, {2}, {0})[0] == Approx(1.9));
}

TEST_CASE("clipping scales the whole gradient to the norm, and leaves a small one alone") {
  std::vector<float> gradient{3, 4};
  CHECK(clip_to_norm(gradient, 1.0) == 5.0);
  CHECK(l2_norm(gradient) == Approx(1.0).epsilon(1e-5));
  CHECK(gradient[1] / gradient[0] == Approx(4.0 / 3));
  const std::vector<float> small = gradient;
  clip_to_norm(gradient, 10.0);
  CHECK(gradient == small);
}

TEST_CASE("the norm of many values is right to the last figures") {
  std::vector<float> values(1'000'003, 0.001f);
  CHECK(l2_norm(values) == Approx(0.001f * std::sqrt(1'000'003.0)).epsilon(1e-12));
}

TEST_CASE("a value that is not finite is found wherever it stands") {
  std::vector<float> values(37, 1e30f);
  CHECK(all_finite(values));
  for (const float bad : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                          std::numeric_limits<float>::quiet_NaN()}) {
    for (const std::size_t at : {0u, 17u, 36u}) {
      std::vector<float> spoiled = values;
      spoiled[at] = bad;
      CHECK_FALSE(all_finite(spoiled));
    }
  }
}
