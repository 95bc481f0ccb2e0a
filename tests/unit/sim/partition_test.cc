// Partitions: every row exactly once, and to whom each kind gives them.
#include "server/sim/partition.h"

#include <catch2/catch.hpp>

#include <algorithm>
#include <map>
#include <set>

using namespace skerry;
using namespace skerry::sim;

namespace {

using Rows = std::vector<std::vector<std::uint64_t>>;

// 10 labels, 100 rows of each, in the order 0 1 … 9 0 1 ….
std::vector<std::int64_t> ten_labels() {
  std::vector<std::int64_t> labels(1000);
  for (std::size_t row = 0; row < labels.size(); ++row) labels[row] = static_cast<std::int64_t>(row % 10);
  return labels;
}

Rows divide(const char* text, std::uint64_t clients, std::uint64_t seed = 1) {
  const auto rows = partition_rows(parse_partition(text).value(), 1000, ten_labels(), clients, seed);
  REQUIRE(rows.ok());
  return *rows;
}

bool each_once(const Rows& rows) {
  std::vector<std::uint64_t> all;
  for (const auto& own : rows) all.insert(all.end(), own.begin(), own.end());
  std::sort(all.begin(), all.end());
  if (all.size() != 1000) return false;
  for (std::uint64_t i = 0; i < 1000; ++i)
    if (all[i] != i) return false;
  return true;
}

std::set<std::uint64_t> labels_of(const std::vector<std::uint64_t>& own) {
  std::set<std::uint64_t> labels;
  for (const std::uint64_t row : own) labels.insert(row % 10);
  return labels;
}

std::string refusal(const char* text) {
  const auto plan = parse_partition(text);
  REQUIRE_FALSE(plan.ok());
  return plan.error().message;
}

}  // namespace

TEST_CASE("every partition gives each row to exactly one client, the same for one seed, another for another") {
  for (const char* text : {"iid", "dirichlet:0.3", "shards:2", "labels:3", "power:1.5", "linear:9"}) {
    CAPTURE(text);
    CHECK(each_once(divide(text, 7)));
    CHECK(divide(text, 7) == divide(text, 7));
    CHECK(divide(text, 7) != divide(text, 7, 2));
  }
}

TEST_CASE("iid deals evenly") {
  for (const auto& own : divide("iid", 8)) CHECK(own.size() == 125);
}

TEST_CASE("a small Dirichlet parameter gives clients few labels, a large one all of them") {
  std::size_t skewed = 0;
  for (const auto& own : divide("dirichlet:0.05", 10)) {
    std::map<std::uint64_t, std::size_t> counts;
    for (const std::uint64_t row : own) ++counts[row % 10];
    std::size_t most = 0;
    for (const auto& [label, count] : counts) most = std::max(most, count);
    if (2 * most > own.size()) ++skewed;
  }
  CHECK(skewed >= 5);
  for (const auto& own : divide("dirichlet:1000", 10)) CHECK(labels_of(own).size() == 10);
}

TEST_CASE("a client below the minimum gets rows from the largest ones") {
  const Rows rows = divide("dirichlet:0.01,20", 30);
  CHECK(each_once(rows));
  for (const auto& own : rows) CHECK(own.size() >= 20);
}

TEST_CASE("shards cut the rows sorted by label, so that a client of two sees two labels or neighbours of one cut") {
  for (const auto& own : divide("shards:2", 10)) {
    CHECK(own.size() == 100);
    CHECK(labels_of(own).size() <= 2);  // 20 shards of 50 rows: each within one label
  }
}

TEST_CASE("labels gives each client so many labels") {
  for (const auto& own : divide("labels:3", 10)) CHECK(labels_of(own).size() == 3);
}

TEST_CASE("quantity skew: power and linear shares") {
  const Rows power = divide("power:1", 4);  // 1, 1/2, 1/3, 1/4 of 25/12
  CHECK(power[0].size() == 480);
  CHECK(power[1].size() == 240);
  CHECK(power[2].size() == 160);
  CHECK(power[3].size() == 120);
  const Rows linear = divide("linear:3", 3);  // 1, 2, 3
  CHECK(linear[0].size() == 166);
  CHECK(linear[1].size() == 334);
  CHECK(linear[2].size() == 500);
  CHECK(partition_sizes(parse_partition("linear:3").value(), 1000, 3) == std::vector<std::uint64_t>{166, 334, 500});
}

TEST_CASE("what is no partition is refused with what is allowed") {
  CHECK(refusal("even") == "\"even\" is no partition; known are iid, dirichlet:ALPHA, shards:N, labels:N, power:BETA, linear:RATIO, files");
  CHECK(refusal("dirichlet") == "\"dirichlet\": dirichlet takes one number and, after a comma, the least rows a client has");
  CHECK(refusal("dirichlet:0") == "\"dirichlet:0\": the number of dirichlet must be from 0.001 to 1e+06");
  CHECK(refusal("shards:1.5") == "\"shards:1.5\": the number of shards must be a whole number from 1 to 1e+06");
  CHECK(refusal("iid:0") == "\"iid:0\": the least rows a client has must be a whole number from 1");
  CHECK(refusal("dirichlet:x") == "\"x\" is not a finite number");
  const auto few = partition_rows(parse_partition("iid:5").value(), 9, {}, 2, 1);
  REQUIRE_FALSE(few.ok());
  CHECK(few.error().message == "2 clients with at least 5 rows each need more than the 9 rows there are");
  CHECK_FALSE(partition_rows(parse_partition("shards:2").value(), 9, {}, 2, 1).ok());
}
