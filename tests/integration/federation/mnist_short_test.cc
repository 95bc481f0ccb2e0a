// Digits that ten holders do not share: three rounds of FedAvg learn most of them.
#include <catch2/catch.hpp>

#include <iostream>

#include "tests/integration/federation/mnist_federation.h"

namespace skerry::test {
namespace {

TEST_CASE("ten holders with different mixtures of digits learn most of them in three rounds of FedAvg") {
  const auto directory = digits_directory();
  if (!directory) {
    WARN("no MNIST below SKERRY_DATA: not tested");
    return;
  }
  const DigitsRun run = train_on_digits(*directory, 1, 3, 0.95);
  std::cout << run.text(1) << std::endl;
  CHECK(run.best > 0.6);
}

}  // namespace
}  // namespace skerry::test
