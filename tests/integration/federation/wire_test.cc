// What crosses the wire: steps in the run's encoding, and whole models only for who joins.
#include <catch2/catch.hpp>

#include "tests/support/connect_proxy.h"
#include "tests/support/federation.h"

using namespace skerry;
using namespace skerry::test;

TEST_CASE("a node gets the whole model when it joins, and encoded steps from then on") {
  constexpr double kParameters = 229'352;
  Federation federation;
  ConnectProxy proxy;
  federation.add_node("alder", {.scripted = true, .proxy = proxy.url()});
  RunText run;
  run.model = "architecture = \"mlp\"\ninputs = 4\nhidden = [500, 450]\noutputs = 2\n";
  run.participation = "start_nodes = 1\nquorum = 1\n";
  run.exchange = "up = \"bf16\"\ndown = \"bf16\"\n";
  struct Bytes {
    double up = 0, down = 0;  // a parameter
  };
  const auto rounds = [&](unsigned count) {
    const double up = static_cast<double>(proxy.bytes_up()), down = static_cast<double>(proxy.bytes_down());
    run.rounds = count;
    federation.wait_for_status(federation.submit(run), "completed");
    return Bytes{(static_cast<double>(proxy.bytes_up()) - up) / kParameters, (static_cast<double>(proxy.bytes_down()) - down) / kParameters};
  };
  const Bytes few = rounds(2);
  const Bytes many = rounds(6);
  const Bytes round{(many.up - few.up) / 4, (many.down - few.down) / 4};
  CHECK(round.up == Approx(2.0).margin(0.1));
  CHECK(round.down == Approx(2.0).margin(0.1));
  CHECK(few.down - round.down == Approx(4.0).margin(0.2));  // the first of its two tasks read the whole model
}
