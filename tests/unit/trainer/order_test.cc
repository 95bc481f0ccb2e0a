// Orders, draws and the threads that share a step.
#include <algorithm>
#include <atomic>
#include <numeric>
#include <set>

#include <catch2/catch.hpp>

#include "client/trainer/example_order.h"
#include "client/trainer/sampling.h"
#include "client/trainer/shard_pool.h"

using namespace skerry::trainer;

namespace {

std::vector<std::uint64_t> take(ExampleOrder& order, std::uint64_t count) {
  std::vector<std::uint64_t> numbers;
  while (numbers.size() < count) {
    const auto piece = order.next(count - numbers.size());
    numbers.insert(numbers.end(), piece.numbers.begin(), piece.numbers.end());
  }
  return numbers;
}

}  // namespace

TEST_CASE("every pass sees every example once, in an order of its own") {
  ExampleOrder order(7, 100, 1);
  std::vector<std::uint64_t> all(100);
  std::iota(all.begin(), all.end(), std::uint64_t{0});
  const auto first = take(order, 100);
  const auto second = take(order, 100);
  CHECK(std::is_permutation(first.begin(), first.end(), all.begin()));
  CHECK(std::is_permutation(second.begin(), second.end(), all.begin()));
  CHECK(first != all);
  CHECK(first != second);
}

TEST_CASE("the seed alone decides the order") {
  ExampleOrder a(7, 50, 1);
  ExampleOrder b(7, 50, 1);
  ExampleOrder c(8, 50, 1);
  const auto expected = take(a, 130);
  CHECK(take(b, 130) == expected);
  CHECK(take(c, 130) != expected);
}

TEST_CASE("an order that seeks goes on as one that was walked") {
  for (const std::uint64_t skipped : {0, 3, 10, 11, 29, 30}) {
    ExampleOrder walked(5, 10, 4);
    take(walked, skipped);
    ExampleOrder sought(5, 10, 4);
    sought.seek(skipped);
    const auto expected = walked.next(3);
    const auto found = sought.next(3);
    CHECK(found.numbers == expected.numbers);
    CHECK(found.shift == expected.shift);
  }
}

TEST_CASE("shifts stay below their number and change from pass to pass") {
  ExampleOrder order(3, 2, 16);
  std::set<std::uint64_t> shifts;
  for (int pass = 0; pass < 40; ++pass) shifts.insert(order.next(2).shift);
  CHECK(*shifts.rbegin() < 16);
  CHECK(shifts.size() > 8);
}

TEST_CASE("temperature 0 takes the likeliest, the first of equals") {
  const std::vector<float> logits{1, 3, 2, 3};
  for (std::uint64_t i = 0; i < 20; ++i) CHECK(draw_class(logits, {.temperature = 0, .seed = 1}, i) == 1);
}

TEST_CASE("draws follow the softmax, top-k leaves the rest out, and a seed repeats them") {
  const std::vector<float> logits{0.0f, 1.0f, 2.0f, -1.0f};
  std::vector<int> all(4, 0);
  std::vector<int> two(4, 0);
  for (std::uint64_t i = 0; i < 20000; ++i) {
    const std::size_t drawn = draw_class(logits, {.seed = 42}, i);
    CHECK(drawn == draw_class(logits, {.seed = 42}, i));
    ++all[drawn];
    ++two[draw_class(logits, {.top_k = 2, .seed = 42}, i)];
  }
  const double total = 1 + std::exp(1.0) + std::exp(2.0) + std::exp(-1.0);
  for (std::size_t i = 0; i < 4; ++i) CHECK(all[i] / 20000.0 == Approx(std::exp(logits[i]) / total).margin(0.01));
  CHECK(two[0] == 0);
  CHECK(two[3] == 0);
  CHECK(two[2] / 20000.0 == Approx(1 / (1 + std::exp(-1.0))).margin(0.01));
}

TEST_CASE("top-p leaves the fewest likeliest that have the probability, and one at least") {
  const std::vector<float> logits{0.0f, 1.0f, 2.0f, -1.0f};  // probabilities 0.087, 0.237, 0.644, 0.032
  std::vector<int> drawn(4, 0);
  for (std::uint64_t i = 0; i < 5000; ++i) {
    CHECK(draw_class(logits, {.top_p = 0.6, .seed = 42}, i) == 2);
    CHECK(draw_class(logits, {.top_p = 1e-9, .seed = 42}, i) == 2);
    ++drawn[draw_class(logits, {.top_p = 0.65, .seed = 42}, i)];
  }
  CHECK(drawn[0] == 0);
  CHECK(drawn[3] == 0);
  CHECK(drawn[2] / 5000.0 == Approx(0.644 / (0.644 + 0.237)).margin(0.02));
}

TEST_CASE("a pool runs each part once, in a thread of its own, as often as it is asked") {
  ShardPool pool(3, [] {});
  for (std::size_t count = 1; count <= 3; ++count) {
    for (int i = 0; i < 200; ++i) {
      std::vector<int> calls(3, 0);
      std::vector<std::thread::id> threads(3);
      pool.run(count, [&](std::size_t part) {
        ++calls[part];
        threads[part] = std::this_thread::get_id();
      });
      CHECK(std::accumulate(calls.begin(), calls.end(), 0) == static_cast<int>(count));
      CHECK(threads[0] == std::this_thread::get_id());
      if (count == 3) CHECK(threads[1] != threads[2]);
    }
  }
}
