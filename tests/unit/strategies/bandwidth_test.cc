#include "strategies/plan/bandwidth.h"

#include <cmath>
#include <set>
#include <string>

#include <catch2/catch.hpp>

using namespace skerry::strategies;

namespace {

constexpr double kUtilisations[] = {0.5, 0.8, 0.9, 0.95, 0.99};

// Streaming DiLoCo (arXiv 2501.18512), table 4: Gbit/s for those utilisations, H = 100, by the order of
// published_methods.
const struct {
  const char* size;
  double parameters, step_seconds;
  std::uint64_t fragments;
  double gigabits[5][5];
} kTable4[] = {{"1B",
                1e9,
                0.1,
                8,
                {{86.8, 152.6, 184.2, 222.3, 569.0},
                 {1.4, 6.2, 13.3, 23.3, 86.8},
                 {1.4, 5.2, 9.1, 16.0, 28.1},
                 {1.4, 4.3, 6.2, 9.1, 11.0},
                 {0.4, 0.9, 1.7, 2.0, 3.0}}},
               {"10B",
                1e10,
                0.8,
                16,
                {{104.8, 222.3, 222.3, 268.3, 471.5},
                 {1.7, 7.5, 16.0, 33.9, 104.8},
                 {1.7, 5.2, 9.1, 13.3, 19.3},
                 {1.7, 3.6, 5.2, 6.2, 7.5},
                 {0.4, 0.9, 1.4, 1.4, 1.7}}},
               {"100B",
                1e11,
                4.9,
                36,
                {{184.2, 323.8, 390.7, 390.7, 471.5},
                 {3.0, 11.0, 23.3, 49.4, 184.2},
                 {2.4, 6.2, 9.1, 11.0, 19.3},
                 {1.7, 3.6, 4.3, 5.2, 5.2},
                 {0.5, 0.9, 1.1, 1.1, 1.4}}}};

std::string cell(const std::string& size, const std::string& method, double utilisation) {
  return size + " " + method + " " + std::to_string(std::lround(100 * utilisation)) + " %";
}

}  // namespace

TEST_CASE("the bandwidth that the published table asks for is met within a fifth in all but four of its 75 cells") {
  // The paper simulates a graph of reductions per layer. The formula has no such graph, so it misses where the last
  // hundredth of data-parallel training hangs on the reduction that no later layer hides, and two cells between whose
  // neighbours the table jumps by a step of its own grid (a factor of 1.21).
  const std::set<std::string> exceptions = {"1B data-parallel 99 %", "10B data-parallel 99 %", "100B streaming 99 %",
                                            "100B streaming, overlap 50 %"};
  std::set<std::string> missed;
  for (const auto& size : kTable4) {
    const auto methods = published_methods(100, size.fragments);
    REQUIRE(methods.size() == 5);
    for (std::size_t m = 0; m < methods.size(); ++m)
      for (std::size_t u = 0; u < 5; ++u) {
        const LinkLoad load = published_load(methods[m], size.parameters, size.step_seconds);
        const double gigabits = needed_bandwidth(load, kUtilisations[u]) / 1e9;
        if (std::abs(gigabits / size.gigabits[m][u] - 1) > 0.2) {
          missed.insert(cell(size.size, methods[m].name, kUtilisations[u]));
          UNSCOPED_INFO(cell(size.size, methods[m].name, kUtilisations[u])
                        << ": " << gigabits << ", published " << size.gigabits[m][u]);
        }
      }
  }
  CHECK(missed == exceptions);
}

TEST_CASE("INTELLECT-1's compute utilisation follows from its 38 minutes of training and its median all-reduce") {
  CHECK(100 * compute_utilisation(38 * 60, 103) == Approx(95.7).margin(0.5));
  CHECK(100 * compute_utilisation(38 * 60, 382) == Approx(85.6).margin(0.5));
  CHECK(100 * compute_utilisation(38 * 60, 469) == Approx(83.0).margin(0.5));
}

TEST_CASE("a link as fast as a utilisation needs gives that utilisation") {
  const LinkLoad load = {.bits = 8e9, .compute_seconds = 60, .hidden_seconds = 5, .fixed_seconds = 2};
  for (const double utilisation : kUtilisations)
    CHECK(compute_utilisation(load, needed_bandwidth(load, utilisation)) == Approx(utilisation));
}

TEST_CASE("no bandwidth is enough where latency alone takes more than there is") {
  const LinkLoad load = {.bits = 8e9, .compute_seconds = 60, .hidden_seconds = 0, .fixed_seconds = 10};
  CHECK(std::isinf(needed_bandwidth(load, 0.99)));
  CHECK(needed_bandwidth(load, 0.8) == Approx(8e9 / 5));
}
