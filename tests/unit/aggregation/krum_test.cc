#include "strategies/aggregation/krum.h"

#include <cmath>
#include <numeric>

#include "strategies/aggregation/kernels/distances.h"
#include "tests/unit/aggregation/world.h"

namespace skerry::strategies {
namespace {

using Values = std::vector<float>;
using Indices = std::vector<std::size_t>;

// Squared distances between points on a line.
std::vector<double> distances_of(const std::vector<double>& points) {
  std::vector<double> out;
  for (std::size_t i = 0; i < points.size(); ++i)
    for (std::size_t j = i + 1; j < points.size(); ++j) out.push_back((points[i] - points[j]) * (points[i] - points[j]));
  return out;
}

Rows column(const Values& values) {
  Rows rows;
  for (const float value : values) rows.push_back({value});
  return rows;
}

}  // namespace

TEST_CASE("Krum takes the update closest to its n - f - 2 neighbours") {
  // f = 1, two neighbours: 0 has 1 + 4, 1 has 1 + 1, 2 has 1 + 4, 4 has 4 + 9.
  CHECK(gradient_of({krum(1), column({0, 1, 2, 4, 100})}) == Values{1});  // 1 + 1; the others have more
  CHECK(gradient_of({krum(1), column({100, 4, 3.5f, 3, 0})}) == Values{3.5f});
}

TEST_CASE("equal scores go to whoever has the next neighbour closer, then to the first update") {
  // Three points, f = 0, one neighbour: 1 and 2 are each other's; 2 is nearer to the third.
  CHECK(least_scores(distances_of({1, 2, 9}), 3, 1, 3) == Indices{1, 0, 2});
  CHECK(least_scores(distances_of({9, 2, 1}), 3, 1, 3) == Indices{1, 2, 0});
  CHECK(least_scores(distances_of({5, 5, 5, 5}), 4, 2, 4) == Indices{0, 1, 2, 3});
  CHECK(least_scores(distances_of({-1, 1, -1, 1}), 4, 2, 1) == Indices{0});
}

TEST_CASE("an impossible Krum is refused, however few updates there are") {
  CHECK(refusal_of({krum(1), column({1, 2, 3, 4})}) ==
        "krum needs at least 5 updates (n >= 2f + 3 with f = 1), this exchange has 4");
  CHECK(refusal_of({krum(0), column({1, 2})}) ==
        "krum needs at least 3 updates (n >= 2f + 3 with f = 0), this exchange has 2");
  CHECK(refusal_of({multi_krum({.byzantine = 1, .keep = 4}), column({1, 2, 3, 4, 5, 6})}) ==
        "multi_krum needs at least 7 updates (n >= keep + f + 2 with keep = 4 and f = 1), this exchange has 6");
  CHECK(refusal_of({bulyan(1), column({1, 2, 3, 4, 5, 6})}) ==
        "bulyan needs at least 7 updates (n >= 4f + 3 with f = 1), this exchange has 6");
}

TEST_CASE("with f = 0 Krum, Multi-Krum and Bulyan work") {
  const Rows three = column({1, 2, 9});
  CHECK(gradient_of({krum(0), three}) == Values{2});
  CHECK(gradient_of({multi_krum({.byzantine = 0}), three}) == Values{2});
  CHECK(gradient_of({bulyan(0), three}) == Values{4});  // θ = 3, all three around the median
}

TEST_CASE("Multi-Krum is the mean of the updates of least score") {
  // f = 1, two neighbours: 3.5 has 0.5; 4 and 3 have 1.25, and 3 has its next neighbour, 0, closer.
  CHECK(gradient_of({multi_krum({.byzantine = 1, .keep = 1}), column({100, 4, 3.5f, 3, 0})}) == Values{3.5f});
  CHECK(gradient_of({multi_krum({.byzantine = 1, .keep = 2}), column({100, 4, 3.5f, 3, 0})}) == Values{3.25f});
}

TEST_CASE("Bulyan removes what it chose and scores anew") {
  // Two clusters. One Krum for all scores would take the tight one first and whole: 0, 0.1, 0.2, 0.3 and so on; scored anew
  // with fewer neighbours the order changes.
  const std::vector<double> points = {0, 0.1, 0.2, 0.3, 5, 5.2, 5.5};
  const auto distances = distances_of(points);
  const Indices anew = bulyan_choice(distances, 7, 1);
  const Indices at_once = least_scores(distances, 7, 4, 5);
  CHECK(anew.size() == 5);
  CHECK(anew != at_once);
  // By hand: n = 7, f = 1, so 4 neighbours, then 3, 2, 1 and at last 1 of those left.
  Indices left = {0, 1, 2, 3, 4, 5, 6};
  for (const std::size_t chosen : anew) {
    const std::size_t neighbours = std::max<std::size_t>(1, left.size() < 4 ? 1 : left.size() - 3);
    const auto score_of = [&](std::size_t own) {
      std::vector<double> others;
      for (const std::size_t other : left)
        if (other != own) others.push_back((points[own] - points[other]) * (points[own] - points[other]));
      std::sort(others.begin(), others.end());
      return std::accumulate(others.begin(), others.begin() + static_cast<std::ptrdiff_t>(neighbours), 0.0);
    };
    for (const std::size_t other : left) CHECK(score_of(chosen) <= score_of(other) + 1e-12);
    left.erase(std::find(left.begin(), left.end(), chosen));
  }
}

TEST_CASE("Bulyan's chosen values far from the median of a coordinate do not count") {
  // One hostile update hides in one coordinate; n = 7, f = 1: θ = 5, then the 3 closest to the median.
  Rows rows(7, Values(100, 1.0f));
  for (std::size_t k = 0; k < 7; ++k) rows[k][1] = 1.0f + 0.001f * static_cast<float>(k);
  rows[6][0] = 50;
  const Values given = gradient_of({bulyan(1), rows});
  CHECK(given[0] == 1.0f);
  CHECK(std::abs(given[1] - 1.003f) < 0.002f);
}

TEST_CASE("distances of close updates far from zero do not cancel") {
  // In float32, ‖x‖² + ‖y‖² − 2x·y of these is noise of either sign; the true squared distance is 1000 · 2^-18.
  Rows rows(2, Values(1000, 4096.0f));
  for (float& value : rows[1]) value += std::ldexp(1.0f, -9);
  const float* pointers[] = {rows[0].data(), rows[1].data()};
  double distance = 0;
  add_pair_distances(pointers, 1000, {&distance, 1});
  CHECK(distance == std::ldexp(1000.0, -18));
}

TEST_CASE("distances hold from denormals to 1e30") {
  const Values zero(9);
  const Values far(9, 1e30f);
  const Values tiny(9, 1e-44f);
  const float* pointers[] = {zero.data(), far.data(), tiny.data()};
  double distances[3] = {};
  add_pair_distances(pointers, 9, distances);
  const double one_far = static_cast<double>(1e30f);
  const double one_tiny = static_cast<double>(1e-44f);
  CHECK(distances[0] == Approx(9 * one_far * one_far).epsilon(1e-14));
  CHECK(distances[1] == Approx(9 * one_tiny * one_tiny).epsilon(1e-14));
  CHECK(distances[1] > 0);
  CHECK(distances[2] == Approx(9 * one_far * one_far).epsilon(1e-14));
}

TEST_CASE("renaming clients does not change whom Krum and Bulyan choose") {
  for (const Part& part : {krum(2), multi_krum({.byzantine = 2, .keep = 1}), bulyan(1)}) {
    Case world{part, random_rows(9, 200, 4)};
    world.updates[3] = world.updates[7];  // equal updates, of whom either may be chosen
    const Values expected = gradient_of(world);
    for (int turn = 0; turn < 9; ++turn) {
      std::rotate(world.updates.begin(), world.updates.begin() + 2, world.updates.end());
      std::swap(world.updates[0], world.updates[5]);
      CHECK(gradient_of(world) == expected);
    }
  }
}

TEST_CASE("the SIMD target changes no bit of distances") {
  const Rows rows = random_rows(21, 3001, 6);
  std::vector<const float*> pointers;
  for (const auto& row : rows) pointers.push_back(row.data());
  std::vector<double> coefficients;
  for (std::size_t k = 0; k < 21; ++k) coefficients.push_back(0.1 * static_cast<double>(k) - 0.7);
  const auto measured = [&] {
    std::vector<double> all(pairs_of(21));
    add_pair_distances(pointers, 3001, all);
    std::vector<double> to_point(20);
    add_distances_to(coefficients, pointers, 3001, to_point);
    all.insert(all.end(), to_point.begin(), to_point.end());
    all.push_back(square_of_combination(coefficients, pointers, 3001));
    all.push_back(dot_product(pointers[0], pointers[1], 3001));
    return all;
  };
  const auto expected = measured();
  int targets = 0;
  on_every_target([&] {
    ++targets;
    CHECK(measured() == expected);
  });
  CHECK(targets >= 2);
}

}  // namespace skerry::strategies
