// Our flat optimizers take the steps of torch::optim, within the rounding of single precision.
#include <ATen/ATen.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>
#include <catch2/catch.hpp>

#include "client/trainer/optimizer.h"
#include "common/model/philox.h"

using namespace skerry::trainer;

namespace {

constexpr std::int64_t kSize = 103;

at::Tensor gradient_of_step(int step) {
  at::Tensor gradient = at::empty({kSize}, at::kFloat);
  const skerry::PhiloxStream draws(1, static_cast<std::uint64_t>(step));
  for (std::int64_t i = 0; i < kSize; ++i) {
    gradient.data_ptr<float>()[i] =
        static_cast<float>(skerry::uniform_from(draws.word(static_cast<std::uint64_t>(i))) - 0.4);
  }
  return gradient;
}

template <typename TorchOptimizer, typename TorchOptions>
void compare(const OptimizerOptions& options, double rate, const TorchOptions& torch_options) {
  at::Tensor theirs = at::linspace(-1, 1, kSize);
  theirs.requires_grad_(true);
  TorchOptimizer optimizer({theirs}, torch_options);
  const at::Tensor start = at::linspace(-1, 1, kSize);
  std::vector<float> ours(start.data_ptr<float>(), start.data_ptr<float>() + kSize);
  OptimizerState state = fresh_state(options, kSize);
  for (int step = 0; step < 20; ++step) {
    const at::Tensor gradient = gradient_of_step(step);
    theirs.mutable_grad() = gradient.clone();
    optimizer.step();
    optimizer_step(options, rate, {gradient.data_ptr<float>(), static_cast<std::size_t>(kSize)}, ours, state);
  }
  for (std::size_t i = 0; i < kSize; ++i) {
    REQUIRE(ours[i] == Approx(theirs.data_ptr<float>()[i]).epsilon(1e-5).margin(1e-6));
  }
}

}  // namespace

TEST_CASE("SGD is torch::optim::SGD: plain, decayed, with momentum, with Nesterov's") {
  using torch::optim::SGD;
  using torch::optim::SGDOptions;
  compare<SGD>({OptimizerKind::kSgd}, 0.1, SGDOptions(0.1));
  compare<SGD>({.kind = OptimizerKind::kSgd, .weight_decay = 0.1}, 0.1, SGDOptions(0.1).weight_decay(0.1));
  compare<SGD>({.kind = OptimizerKind::kSgd, .momentum = 0.9, .weight_decay = 0.1}, 0.1,
               SGDOptions(0.1).momentum(0.9).weight_decay(0.1));
  compare<SGD>({.kind = OptimizerKind::kSgd, .momentum = 0.9, .nesterov = true}, 0.1,
               SGDOptions(0.1).momentum(0.9).nesterov(true));
}

TEST_CASE("Adam is torch::optim::Adam") {
  using torch::optim::AdamOptions;
  compare<torch::optim::Adam>({.kind = OptimizerKind::kAdam}, 0.01, AdamOptions(0.01));
  compare<torch::optim::Adam>(
      {.kind = OptimizerKind::kAdam, .beta1 = 0.8, .beta2 = 0.95, .epsilon = 1e-4, .weight_decay = 0.1}, 0.01,
      AdamOptions(0.01).betas({0.8, 0.95}).eps(1e-4).weight_decay(0.1));
}

TEST_CASE("AdamW is torch::optim::AdamW") {
  using torch::optim::AdamWOptions;
  compare<torch::optim::AdamW>({.kind = OptimizerKind::kAdamW, .weight_decay = 0.1}, 0.01,
                               AdamWOptions(0.01).weight_decay(0.1));
}
