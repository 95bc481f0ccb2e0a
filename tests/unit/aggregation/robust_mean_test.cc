// Geometric median, clipping, trust, directions, fairness: small values that can be checked by hand.
#include <cmath>

#include "strategies/aggregation/clipping.h"
#include "strategies/aggregation/directions.h"
#include "strategies/aggregation/geometric_median.h"
#include "strategies/aggregation/qffl.h"
#include "strategies/aggregation/weighted_mean.h"
#include "tests/unit/aggregation/world.h"

namespace skerry::strategies {
namespace {

using Values = std::vector<float>;

std::vector<Contribution> of_nodes(std::size_t count) {
  std::vector<Contribution> out(count);
  for (std::size_t k = 0; k < count; ++k) {
    out[k].examples = 1;
    out[k].steps = 1;
    out[k].node = "node-" + std::to_string(k);
    out[k].metrics = {1.0};
  }
  return out;
}

bool close(float given, double expected, double tolerance = 1e-6) { return std::abs(given - expected) <= tolerance; }

}  // namespace

TEST_CASE("the geometric median of points on a line is their median") {
  const Part part = geometric_median({.iterations = 400, .tolerance = 0});
  CHECK(close(gradient_of({part, {{0}, {1}, {100}}})[0], 1, 1e-3));
  CHECK(gradient_of({part, {{3}, {3}, {3}}}) == Values{3});
  CHECK(gradient_of({part, {{-4}}}) == Values{-4});
}

TEST_CASE("the geometric median of the corners of a square is its centre, reached at once") {
  const auto reduced = reduce({geometric_median(), {{1, 1}, {1, -1}, {-1, 1}, {-1, -1}}});
  REQUIRE(reduced.ok());
  CHECK(reduced->gradient == Values{0, 0});
  CHECK(reduced->passes == 3);  // two measurements that show that nothing moves, and the output
}

TEST_CASE("one update 1e30 away does not keep the geometric median from the others") {
  Rows rows = random_rows(10, 64, 1);
  for (float& value : rows[4]) value = 1e30f;
  const Values given = gradient_of({geometric_median({.iterations = 100}), rows});
  double square = 0;
  for (const float value : given) square += static_cast<double>(value) * value;
  CHECK(std::sqrt(square) < 8);  // the others' norms are about 4.6
}

TEST_CASE("centered clipping starts at zero, moves by at most the radius and remembers where it was") {
  const Part part = centered_clipping({.radius = 1});
  CHECK(close(gradient_of({part, {{3, 4}, {0, 0}}})[0], 0.3));   // (0.6, 0.8) / 2
  CHECK(close(gradient_of({part, {{3, 4}, {0, 0}}})[1], 0.4));
  // From the center (2, 0): differences (1, 4) of length √17 and (−2, 0) of length 2, each cut to 1.
  Case later{part, {{3, 4}, {0, 0}}, {}, {}, {{2, 0}}};
  CHECK(close(gradient_of(later)[0], 2 + 0.5 * (1 / std::sqrt(17.0) - 1)));
  CHECK(close(gradient_of(later)[1], 0.5 * 4 / std::sqrt(17.0)));
  const auto rule = make_rule(part);
  REQUIRE(rule.ok());
  CHECK(rule->state_vectors == std::vector<std::string>{"center"});
}

TEST_CASE("updates at the center are not divided by their distance of zero") {
  CHECK(gradient_of({centered_clipping(), {{0, 0}, {0, 0}}}) == Values{0, 0});
  CHECK(gradient_of({centered_clipping({.radius = 5}), {{1, 1}}, {}, {}, {{1, 1}}}) == Values{1, 1});
  CHECK(gradient_of({norm_bound(), {{0, 0}, {0, 0}}}) == Values{0, 0});
}

TEST_CASE("norm bounding shortens what is too long and leaves the rest") {
  const Rows rows = {{3, 4}, {0, 1}, {30, 40}, {0, 0}};
  // Norms 5, 1, 50, 0 with bound 2: (1.2, 1.6) + (0, 1) + (1.2, 1.6) + 0, over 4.
  const Values given = gradient_of({norm_bound({.bound = 2}), rows});
  CHECK(close(given[0], 0.6));
  CHECK(close(given[1], 1.05));
  // The median of the norms is (1 + 5) / 2 = 3.
  CHECK(close(gradient_of({norm_bound(), rows})[0], (1.8 + 1.8) / 4));
}

TEST_CASE("a radial-directional average keeps the length that a mean of orthogonal updates loses") {
  const Values given = gradient_of({radial_directional({.direct = ""}), {{3, 0}, {0, 5}}});
  CHECK(close(given[0], 4 / std::sqrt(2.0)));  // mean norm 4, mean direction at 45°
  CHECK(close(given[1], 4 / std::sqrt(2.0)));
}

TEST_CASE("a radial-directional average is taken tensor by tensor, and directly where a pattern says so") {
  Case world{radial_directional({.direct = "bias *embed*"}), {{3, 0, 2, 0, 8}, {0, 5, 0, 4, 0}}};
  world.tensors = {{"w", 0, 2}, {"token_embedding", 2, 2}, {"bias", 4, 1}};
  const Values given = gradient_of(world);
  CHECK(close(given[0], 4 / std::sqrt(2.0)));
  CHECK(given[2] == 1);
  CHECK(given[3] == 2);
  CHECK(given[4] == 4);
}

TEST_CASE("directions that cancel give zero, and an update of norm zero has none") {
  const Part part = radial_directional({.direct = ""});
  CHECK(gradient_of({part, {{1, 2}, {-1, -2}}}) == Values{0, 0});
  CHECK(gradient_of({part, {{1, 2}, {-3, -6}}}) == Values{0, 0});
  CHECK(gradient_of({part, {{0, 0}, {0, 0}}}) == Values{0, 0});
  const Values half = gradient_of({part, {{0, 0}, {3, 4}}});  // mean norm 2.5 along (0.6, 0.8)
  CHECK(close(half[0], 1.5));
  CHECK(close(half[1], 2.0));
}

TEST_CASE("FLTrust scales updates to the trusted one's length and trusts as far as they agree") {
  Case world{fltrust("node-1"), {{10, 0}, {0, 2}, {0, 7}, {5, 5}, {0, -9}, {0, 0}}, of_nodes(6)};
  // Trust: 0, –, 1, 1/√2, 0, 0; lengths 2.
  const double c = 1 / std::sqrt(2.0);
  const Values given = gradient_of(world);
  CHECK(close(given[0], c * 2 * c / (1 + c)));
  CHECK(close(given[1], (2 + c * 2 * c) / (1 + c)));
}

TEST_CASE("FLTrust keeps the model where nobody agrees with the trusted node or that one did not move") {
  Case world{fltrust("node-0"), {{1, 0}, {-1, 0}, {0, 3}}, of_nodes(3)};
  CHECK(gradient_of(world) == Values{0, 0});
  world.updates[0] = {0, 0};
  CHECK(gradient_of(world) == Values{0, 0});
}

TEST_CASE("FLTrust says whom it needs, and refuses to work without") {
  CHECK(make_rule(fltrust("")).error().message ==
        "aggregation.trusted is empty, must name the node that trains on the coordinator's own data");
  const auto rule = make_rule(fltrust("harbour"));
  REQUIRE(rule.ok());
  CHECK(rule->needs.nodes == std::vector<std::string>{"harbour"});
  CHECK(rule->needs.minimum_updates == 2);
  CHECK(refusal_of({fltrust("harbour"), {{1}, {2}}, of_nodes(2)}).find("no update of node harbour") != std::string::npos);
}

TEST_CASE("q-FFL with q = 0 is the mean, and a larger q listens to the worse off") {
  Case world{qffl({.q = 0}), {{1}, {3}}, of_nodes(2)};
  CHECK(gradient_of(world) == Values{2});
  // q = 1, L = 1: Σ F Δ / Σ (Δ² + F) with F = 1 and 3: (1 + 9) / (1 + 1 + 9 + 3) = 10/14.
  world.part = qffl({.q = 1, .learning_rate = 1});
  world.contributions[1].metrics = {3.0};
  CHECK(close(gradient_of(world)[0], 10.0 / 14));
  const auto rule = make_rule(world.part);
  REQUIRE(rule.ok());
  CHECK(rule->needs.metrics == std::vector<std::string>{"start_loss"});
}

TEST_CASE("losses of zero and of 1e300 do not break q-FFL") {
  Case world{qffl({.q = 5}), {{1}, {1}}, of_nodes(2)};
  world.contributions[0].metrics = {0.0};
  world.contributions[1].metrics = {1e300};
  CHECK(close(gradient_of(world)[0], 1));
  world.contributions[0].metrics = {-7.0};
  CHECK(close(gradient_of(world)[0], 1));
}

TEST_CASE("a rule over distances needs single updates and no more than one of them") {
  for (const Part& part : {geometric_median(), centered_clipping(), norm_bound(), radial_directional(), qffl()}) {
    const auto rule = make_rule(part);
    REQUIRE(rule.ok());
    CHECK(rule->needs.individual_updates);
    CHECK_FALSE(rule->needs.linear);
    CHECK(rule->needs.minimum_updates == 1);
    const Values given = gradient_of({part, {{3, -4, 0}}});
    CHECK(std::isfinite(given[0]));
  }
}

TEST_CASE("neither the size of blocks nor the SIMD target changes a rule's passes beyond float64") {
  for (const Part& part : {geometric_median(), centered_clipping({.radius = 2, .iterations = 2}), radial_directional()}) {
    Case world{part, random_rows(7, 2500, 8)};
    const Values expected = gradient_of(world, 640);
    on_every_target([&] { CHECK(gradient_of(world, 640) == expected); });
    const Values other = gradient_of(world, 2500);
    for (std::size_t i = 0; i < other.size(); ++i) REQUIRE(std::abs(other[i] - expected[i]) <= 1e-6);
  }
}

}  // namespace skerry::strategies
