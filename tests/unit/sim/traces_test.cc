// Speeds and availability: from their distributions and from files.
#include "server/sim/traces.h"

#include <catch2/catch.hpp>

#include "common/os/files.h"
#include "tests/support/temp_dir.h"

using namespace skerry;
using namespace skerry::sim;
using skerry::test::TempDir;

namespace {

const std::vector<std::string> kNames{"a", "b", "c"};

std::string file(const TempDir& directory, const std::string& text) {
  const std::string path = directory / "trace.csv";
  REQUIRE(write_file_atomic(path, text).ok());
  return path;
}

}  // namespace

TEST_CASE("speeds are constant, uniform or lognormal, and the seed decides them") {
  const auto constant = draw_paces(parse_speed("constant:2").value(), kNames, {}, 1).value();
  for (const Pace& pace : constant) CHECK(pace.speed == 2);
  const auto uniform = draw_paces(parse_speed("uniform:0.5,2").value(), kNames, {.up_mbps = 8}, 1).value();
  for (const Pace& pace : uniform) {
    CHECK(pace.speed > 0.5);
    CHECK(pace.speed < 2);
    CHECK(pace.up_mbps == 8);
  }
  CHECK(uniform[0].speed != uniform[1].speed);
  CHECK(uniform == draw_paces(parse_speed("uniform:0.5,2").value(), kNames, {.up_mbps = 8}, 1).value());
  const auto median = draw_paces(parse_speed("lognormal:0").value(), kNames, {}, 1).value();
  for (const Pace& pace : median) CHECK(pace.speed == 1);
}

TEST_CASE("a file of speeds may leave clients and columns out, and its faults are named by line") {
  const TempDir directory;
  const auto from = [&](const std::string& text) {
    return draw_paces(parse_speed("file:" + file(directory, text)).value(), kNames, {.latency_ms = 5}, 1);
  };
  const auto paces = from("client,speed,up_mbps\nc,0.5,10\na,2,20\n").value();
  CHECK(paces[0] == Pace{2, 20, 0, 5});
  CHECK(paces[1] == Pace{1, 0, 0, 5});
  CHECK(paces[2] == Pace{0.5, 10, 0, 5});
  const std::string path = directory / "trace.csv";
  CHECK(from("client,speed\nd,1\n").error().message == path + " line 2: there is no client \"d\"; they are a … c");
  CHECK(from("client,speed\na,1\n\nb,fast\n").error().message == path + " line 4: speed is \"fast\", must be a number from 1e-06 to 1e+09");
  CHECK(from("client\na\n").error().message == path + ": has no column \"speed\"");
  CHECK(from("client,speed\na\n").error().message == path + " line 2: has 1 fields, the header has 2");
}

TEST_CASE("drawn availability follows the chance and differs from round to round") {
  const auto availability = Availability::make(parse_availability("random:0.3").value(), kNames, 1).value();
  REQUIRE(availability.by_round());
  int there = 0;
  for (std::uint64_t round = 0; round < 3000; ++round) there += availability.drawn(1, round) ? 1 : 0;
  CHECK(there == Approx(900).epsilon(0.1));
}

TEST_CASE("on and off spells alternate with their mean lengths") {
  auto availability = Availability::make(parse_availability("on_off:30,10").value(), kNames, 1).value();
  std::int64_t on_ms = 0;
  std::int64_t at_ms = 0;
  bool there = !availability.spell(0, 0).there;
  while (at_ms < 40'000'000) {
    const auto spell = availability.spell(0, at_ms);
    CHECK(spell.there != there);
    there = spell.there;
    if (there) on_ms += *spell.until_ms - at_ms;
    at_ms = *spell.until_ms;
  }
  CHECK(static_cast<double>(on_ms) / static_cast<double>(at_ms) == Approx(0.75).epsilon(0.05));
}

TEST_CASE("a file of spells: touching ones are one, clients that it leaves out are always there") {
  const TempDir directory;
  const std::string path = file(directory, "client,from_s,to_s\na,1,2\na,2,3\na,5,6\nb,0,4\n");
  auto availability = Availability::make(parse_availability("file:" + path).value(), kNames, 1).value();
  const auto expect = [&](std::size_t client, std::int64_t at_ms, bool there, std::int64_t until_ms) {
    const auto spell = availability.spell(client, at_ms);
    CHECK(spell.there == there);
    CHECK(spell.until_ms.value_or(-1) == until_ms);
  };
  expect(0, 0, false, 1000);
  expect(0, 1000, true, 3000);
  expect(0, 3500, false, 5000);
  expect(0, 5000, true, 6000);
  expect(0, 6000, false, -1);
  expect(1, 0, true, 4000);
  expect(1, 4000, false, -1);
  expect(2, 7000, true, -1);
}

TEST_CASE("what is no speed and no availability is refused with what is allowed") {
  CHECK(parse_speed("uniform:2,1").error().message ==
        "\"uniform:2,1\" must be one of constant:SPEED, uniform:FROM,TO, lognormal:SIGMA, file:PATH");
  CHECK_FALSE(parse_speed("constant:0").ok());
  CHECK_FALSE(parse_availability("random:1.5").ok());
  CHECK(parse_availability("sometimes").error().message ==
        "\"sometimes\" must be one of always, random:CHANCE, on_off:SECONDS,SECONDS, file:PATH");
}
