#include "tests/integration/federation/mnist_federation.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <stdexcept>

#include <zlib.h>

#include "common/os/files.h"

namespace skerry::test {
namespace {

constexpr unsigned kHolders = 10, kDigits = 10'000, kTrain = 9'000, kHeldOutEach = (kDigits - kTrain) / kHolders;

std::vector<std::uint8_t> read_labels(const std::string& directory) {
  const std::string path = directory + "/t10k-labels-idx1-ubyte.gz";
  std::vector<std::uint8_t> bytes(8 + kDigits);  // magic and count, then a byte each
  gzFile file = gzopen(path.c_str(), "rb");
  const int read = file != nullptr ? gzread(file, bytes.data(), static_cast<unsigned>(bytes.size())) : -1;
  if (file != nullptr) gzclose(file);
  if (read != static_cast<int>(bytes.size())) throw std::runtime_error(path + " does not hold 10,000 labels");
  bytes.erase(bytes.begin(), bytes.begin() + 8);
  return bytes;
}

// A holder that trains on `rows` and measures on its own hundred of the held-out digits: they are listed last.
void add_holder(Federation& federation, unsigned holder, const std::string& directory, const std::vector<unsigned>& rows) {
  const std::string name = "holder" + std::to_string(holder);
  std::string lines;
  for (const unsigned row : rows) lines += std::to_string(row) + "\n";
  for (unsigned i = 0; i < kHeldOutEach; ++i) lines += std::to_string(kTrain + holder * kHeldOutEach + i) + "\n";
  const std::string indices = federation.directory() / (name + ".indices");
  const auto written = write_file_atomic(indices, lines, 0644);
  if (!written.ok()) throw std::runtime_error(to_string(written.error()));
  // Half an example less than a hundred: the cut is floor((1 - holdout) · rows), which is then safe from rounding.
  const double holdout = (kHeldOutEach - 0.5) / static_cast<double>(rows.size() + kHeldOutEach);
  Node& node = federation.add_node(name, {.kind = "idx", .path = directory, .indices = indices, .holdout = holdout});
  const std::string listed = node.command({"data", "list"}).out;
  const std::string counts = "holdout " + std::to_string(kHeldOutEach) + ", train " + std::to_string(rows.size()) + " ";
  if (listed.find(counts) == std::string::npos) throw std::runtime_error(name + " should have " + counts + ":\n" + listed);
}

}  // namespace

std::string DigitsRun::text(std::uint64_t seed) const {
  char line[200];
  std::snprintf(line, sizeof line, "seed %llu: best %.3f in %zu rounds, target reached %s, %.1f s; accuracies", static_cast<unsigned long long>(seed),
                best, accuracies.size(), reached ? ("in round " + std::to_string(*reached)).c_str() : "never", seconds);
  std::string text = line;
  for (const double accuracy : accuracies) {
    std::snprintf(line, sizeof line, " %.3f", accuracy);
    text += line;
  }
  return text;
}

std::optional<std::string> digits_directory() {
  const char* data = std::getenv("SKERRY_DATA");
  const std::string path = std::string(data != nullptr ? data : "") + "/mnist";
  for (const char* file : {"/t10k-images-idx3-ubyte.gz", "/t10k-labels-idx1-ubyte.gz"})
    if (!path_exists(path + file)) return std::nullopt;
  return path;
}

std::vector<std::vector<unsigned>> dirichlet_split(const std::vector<std::uint8_t>& labels, unsigned holders, double concentration,
                                                   std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::gamma_distribution<double> gamma(concentration, 1.0);
  std::vector<std::vector<unsigned>> split(holders);
  for (std::uint8_t digit = 0; digit < 10; ++digit) {
    std::vector<unsigned> rows;
    for (unsigned row = 0; row < kTrain; ++row)
      if (labels[row] == digit) rows.push_back(row);
    std::vector<double> shares(holders);
    for (double& share : shares) share = gamma(random);
    const double total = std::accumulate(shares.begin(), shares.end(), 0.0);
    double sum = 0;
    std::size_t first = 0;
    for (unsigned holder = 0; holder < holders; ++holder) {
      sum += shares[holder];
      const std::size_t end =
          holder + 1 == holders ? rows.size() : static_cast<std::size_t>(sum / total * static_cast<double>(rows.size()));
      split[holder].insert(split[holder].end(), rows.begin() + static_cast<std::ptrdiff_t>(first), rows.begin() + static_cast<std::ptrdiff_t>(end));
      first = end;
    }
  }
  return split;
}

DigitsRun train_on_digits(const std::string& directory, std::uint64_t seed, unsigned rounds, double target) {
  Federation federation;
  const auto split = dirichlet_split(read_labels(directory), kHolders, 0.5, seed);
  for (unsigned holder = 0; holder < kHolders; ++holder) add_holder(federation, holder, directory, split[holder]);

  RunText run;
  run.top = "purpose = \"test\"\nstrategy = \"fedavg\"\nseed = " + std::to_string(seed) + "\n";
  run.model = "architecture = \"cnn\"\n";
  run.data = "kind = \"idx\"\nschema = { shape = [1, 28, 28], classes = 10 }\n";
  run.training = "optimizer = \"sgd\"\nlearning_rate = 0.05\nbatch = 10\nepochs = 5\n";
  run.participation = "start_nodes = 10\nquorum = 10\n";
  run.evaluation = "every = 1\nminimum = 10\n";
  run.rounds = rounds;
  // The text ends with its [stop] section.
  const std::string spec = run.toml() + "metric = \"accuracy\"\nvalue = " + std::to_string(target) + "\n";
  const std::string path = federation.directory() / "digits.toml";
  const auto written = write_file_atomic(path, spec, 0644);
  if (!written.ok()) throw std::runtime_error(to_string(written.error()));

  const auto begin = std::chrono::steady_clock::now();
  const std::string id = federation.ask({"run", "submit", path}).at("run_id");
  federation.wait_for_status(id, "completed", 600'000);
  DigitsRun result;
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  result.accuracies = federation.metric_rows(id, "evaluation", "accuracy");
  for (std::size_t i = 0; i < result.accuracies.size(); ++i) {
    result.best = std::max(result.best, result.accuracies[i]);
    if (!result.reached && result.accuracies[i] >= target) result.reached = i + 1;
  }
  return result;
}

}  // namespace skerry::test
