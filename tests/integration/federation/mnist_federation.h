// Ten holders of handwritten digits, each with its own mixture of the ten classes, and a FedAvg run among them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tests/support/federation.h"

namespace skerry::test {

/// What a run over all holders reached on the 1,000 digits that none of them trained on.
struct DigitsRun {
  std::vector<double> accuracies;      ///< after each round, from round 1
  std::optional<std::size_t> reached;  ///< the first round with at least the target
  double best = 0;
  double seconds = 0;                  ///< from the submission to the end

  std::string text(std::uint64_t seed) const;
};

/// Directory of MNIST's 10,000 test digits below SKERRY_DATA; nothing where they are absent.
std::optional<std::string> digits_directory();

/// Rows of the first 9,000 digits, one list a holder: of each class, holder h gets a share that is drawn from a symmetric
/// Dirichlet distribution with this concentration. The same seed gives the same lists.
std::vector<std::vector<unsigned>> dirichlet_split(const std::vector<std::uint8_t>& labels, unsigned holders, double concentration,
                                                   std::uint64_t seed);

/// Trains the default `cnn` by FedAvg with 5 local epochs among ten holders (Dirichlet 0.5) until `target` or `rounds`.
/// Every holder keeps 100 of the last 1,000 digits for measuring, so that a round's accuracy is over all of these.
DigitsRun train_on_digits(const std::string& directory, std::uint64_t seed, unsigned rounds, double target);

}  // namespace skerry::test
