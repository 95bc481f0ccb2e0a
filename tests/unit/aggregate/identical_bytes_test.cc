// The promise that makes a federation auditable: the same accepted updates give the same bytes.
#include <algorithm>

#include "common/crypto/content_id.h"
#include "tests/unit/aggregate/world.h"

namespace skerry::server {
namespace {

// Three chunks of a fragment file, a state of two vectors, both encodings, a step in bf16: all that has bytes.
World large_world() {
  const std::size_t count = 2'300'003;
  World world(some_values(count, 1), strategies::adam({.bias_correction = true}));
  world.down = "bf16";
  for (unsigned k = 0; k < 5; ++k) {
    const auto values = some_values(count, k + 2);
    const std::string task = "task-" + std::string(1, static_cast<char>('a' + k));
    if (k % 2 == 0) {
      world.update(task, values, 10 * k + 3);
    } else {
      world.update(task, bf16_of(values), 10 * k + 3, "bf16");
    }
  }
  return world;
}

bool same(const ReduceOutcome& a, const ReduceOutcome& b) {
  return a.fragment.bytes == b.fragment.bytes && a.state.bytes == b.state.bytes && a.step.bytes == b.step.bytes &&
         a.fragment.content_id == b.fragment.content_id && a.step.content_id == b.step.content_id &&
         a.statistics.outer_gradient_norm == b.statistics.outer_gradient_norm &&
         a.statistics.change_norm == b.statistics.change_norm &&
         a.statistics.update_norms == b.statistics.update_norms && a.statistics.cosines == b.statistics.cosines;
}

}  // namespace

TEST_CASE("threads and SIMD targets change no bit of model, state, step and statistics") {
  World world = large_world();
  auto job = world.job();
  job.measure_updates = true;
  const auto expected = reduced(job, 1);
  CHECK(expected.fragment.content_id == content_id(expected.fragment.bytes));
  CHECK(expected.step.content_id == content_id(expected.step.bytes));
  for (const unsigned threads : {2u, 3u, 7u}) CHECK(same(reduced(job, threads), expected));
  int targets = 0;
  on_every_target([&] {
    ++targets;
    CHECK(same(reduced(job, 2), expected));
  });
  CHECK(targets >= 2);
}

TEST_CASE("the order of arrival changes no bit") {
  World world = large_world();
  const auto expected = reduced(world.job(), 2);
  for (int turn = 0; turn < 4; ++turn) {
    std::rotate(world.payloads.begin(), world.payloads.begin() + 2, world.payloads.end());
    std::swap(world.payloads[0], world.payloads[1]);
    CHECK(same(reduced(world.job(), 2), expected));
  }
}

TEST_CASE("memory that is not aligned gives the bytes of memory that is") {
  World world = large_world();
  const auto expected = reduced(world.job(), 2);
  auto job = world.job();
  std::vector<std::string> shifted;
  shifted.reserve(job.updates.size() + 1);
  const auto shift = [&](Payload& payload) {
    shifted.push_back("?" + std::string(payload.bytes));
    payload.bytes = std::string_view(shifted.back()).substr(1);
  };
  for (UpdateInput& update : job.updates) shift(update.payload);
  shift(job.base);
  CHECK(same(reduced(job, 2), expected));
}

TEST_CASE("a second step from a state in files gives the same bytes on any number of threads") {
  World world = large_world();
  const auto first = reduced(world.job(), 2);
  world.base = first.fragment.bytes;
  world.state = first.state.bytes;
  const auto expected = reduced(world.job(), 1);
  CHECK(expected.outer_step == 2);
  const test::TempDir directory;
  auto job = world.job_in_files(directory);
  for (const unsigned threads : {1u, 4u}) CHECK(same(reduced(job, threads), expected));
}

}  // namespace skerry::server
