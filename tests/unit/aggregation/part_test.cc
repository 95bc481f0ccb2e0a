#include "strategies/part.h"

#include <limits>

#include <catch2/catch.hpp>

namespace skerry::strategies {
namespace {

std::vector<PartInfo> catalogue() {
  ParameterInfo rate;
  rate.name = "rate";
  rate.fallback = 0.5;
  rate.maximum = 1;
  rate.above_minimum = true;
  ParameterInfo rounds;
  rounds.name = "rounds";
  rounds.fallback = 3.0;
  rounds.minimum = 1;
  rounds.maximum = 9;
  rounds.whole = true;
  ParameterInfo corrected;
  corrected.name = "corrected";
  corrected.fallback = false;
  ParameterInfo by;
  by.name = "by";
  by.fallback = std::string("size");
  by.choices = {"size", "age"};
  return {{"tide", "for tests", {rate, rounds, corrected, by}}, {"plain", "for tests", {}}};
}

std::string refusal(const Part& part) {
  const auto resolved = resolve(part, "outer", catalogue());
  REQUIRE(!resolved.ok());
  CHECK(resolved.error().code == Code::kInvalidArgument);
  return resolved.error().message;
}

}  // namespace

TEST_CASE("a resolved part says every default") {
  const auto resolved = resolve({"tide", {{"rate", 0.25}}}, "outer", catalogue());
  REQUIRE(resolved.ok());
  CHECK(number(*resolved, "rate") == 0.25);
  CHECK(number(*resolved, "rounds") == 3.0);
  CHECK(flag(*resolved, "corrected") == false);
  CHECK(text(*resolved, "by") == "size");
  CHECK(resolved->parameters.size() == 4);
}

TEST_CASE("resolving twice changes nothing") {
  const auto once = resolve({"tide", {{"corrected", true}}}, "outer", catalogue());
  REQUIRE(once.ok());
  const auto twice = resolve(*once, "outer", catalogue());
  REQUIRE(twice.ok());
  CHECK(*once == *twice);
}

TEST_CASE("an unknown part is refused with the names that are known") {
  CHECK(refusal({"tied", {}}) == "outer is \"tied\", must be one of tide, plain");
}

TEST_CASE("an unknown parameter is refused with those that are known") {
  CHECK(refusal({"tide", {{"speed", 1.0}}}) ==
        "outer.speed is not a parameter of tide; its parameters are: rate, rounds, corrected, by");
  CHECK(refusal({"plain", {{"speed", 1.0}}}) == "outer.speed is not a parameter of plain; its parameters are: none");
}

TEST_CASE("a number outside its range is refused with the range") {
  CHECK(refusal({"tide", {{"rate", 1.5}}}) == "outer.rate is 1.5, must be in (0, 1]");
  CHECK(refusal({"tide", {{"rate", 0.0}}}) == "outer.rate is 0, must be in (0, 1]");
  CHECK(resolve({"tide", {{"rate", 1.0}}}, "outer", catalogue()).ok());
  CHECK(refusal({"tide", {{"rounds", 0.5}}}) == "outer.rounds is 0.5, must be in [1, 9]");
  CHECK(refusal({"tide", {{"rounds", 2.5}}}) == "outer.rounds is 2.5, must be a whole number");
  CHECK(refusal({"tide", {{"rate", std::numeric_limits<double>::quiet_NaN()}}}) ==
        "outer.rate is nan, must be a finite number");
}

TEST_CASE("a value of another type is refused") {
  CHECK(refusal({"tide", {{"rate", true}}}) == "outer.rate is true, must be a number");
  CHECK(refusal({"tide", {{"corrected", 1.0}}}) == "outer.corrected is 1, must be true or false");
  CHECK(refusal({"tide", {{"by", 7.0}}}) == "outer.by is 7, must be a text");
}

TEST_CASE("a text that is not a choice is refused with the choices") {
  CHECK(refusal({"tide", {{"by", std::string("colour")}}}) == "outer.by is \"colour\", must be one of size, age");
}

}  // namespace skerry::strategies
