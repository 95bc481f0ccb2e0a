// FedAvg's own experiment on real digits that are split unevenly: what it must reach, as a mean over seeds.
#include <catch2/catch.hpp>

#include <iostream>

#include "tests/integration/federation/mnist_federation.h"

namespace skerry::test {
namespace {

TEST_CASE("FedAvg among ten holders (Dirichlet 0.5) reaches 95 % of the held-out digits within 30 rounds, over three seeds") {
  const auto directory = digits_directory();
  if (!directory) {
    WARN("no MNIST below SKERRY_DATA: not tested");
    return;
  }
  double sum = 0;
  for (const std::uint64_t seed : {1, 2, 3}) {
    const DigitsRun run = train_on_digits(*directory, seed, 30, 0.95);
    std::cout << run.text(seed) << std::endl;
    sum += run.best;
  }
  CHECK(sum / 3 >= 0.95);
}

}  // namespace
}  // namespace skerry::test
