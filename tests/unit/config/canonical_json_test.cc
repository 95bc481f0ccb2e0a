#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "common/config/canonical_json.h"

using nlohmann::json;
using skerry::canonical_json;
using skerry::canonical_number;

TEST_CASE("numbers are printed as RFC 8785 appendix B prints them") {
  const std::pair<double, const char*> samples[] = {
      {0.0, "0"},
      {-0.0, "0"},
      {5e-324, "5e-324"},
      {-5e-324, "-5e-324"},
      {1.7976931348623157e308, "1.7976931348623157e+308"},
      {9007199254740992.0, "9007199254740992"},
      {-9007199254740992.0, "-9007199254740992"},
      {295147905179352830000.0, "295147905179352830000"},
      {9.999999999999997e22, "9.999999999999997e+22"},
      {1e23, "1e+23"},
      {1.0000000000000001e23, "1.0000000000000001e+23"},
      {999999999999999700000.0, "999999999999999700000"},
      {999999999999999900000.0, "999999999999999900000"},
      {1e21, "1e+21"},
      {9.999999999999997e-7, "9.999999999999997e-7"},
      {0.000001, "0.000001"},
      {333333333.3333332, "333333333.3333332"},
      {333333333.33333325, "333333333.33333325"},
      {333333333.3333334, "333333333.3333334"},
      {-0.0000033333333333333333, "-0.0000033333333333333333"},
      {1424953923781206.2, "1424953923781206.2"},
      {1.5, "1.5"},
      {10.0, "10"},
      {0.7, "0.7"},
  };
  for (const auto& [value, text] : samples) CHECK(canonical_number(value) == text);
}

TEST_CASE("the example of RFC 8785 section 3.2 becomes its canonical form") {
  const json document = json::parse(R"({
    "numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
    "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
    "literals": [null, true, false]
  })");
  CHECK(canonical_json(document).value() ==
        "{\"literals\":[null,true,false],\"numbers\":[333333333.3333333,1e+30,4.5,0.002,1e-27],"
        "\"string\":\"\xe2\x82\xac$\\u000f\\nA'B\\\"\\\\\\\\\\\"/\"}");
}

TEST_CASE("members are sorted by UTF-16 code units, as in RFC 8785 section 3.2.3") {
  const json document = json::parse(
      R"({"\u20ac":"Euro Sign","\r":"Carriage Return","\ufb33":"Hebrew Letter Dalet With Dagesh","1":"One",
          "\ud83d\ude00":"Emoji: Grinning Face","\u0080":"Control","\u00f6":"Latin Small Letter O With Diaeresis"})");
  const std::string text = canonical_json(document).value();
  std::size_t last = 0;
  for (const char* value : {"Carriage Return", "One", "Control", "Latin Small", "Euro Sign", "Emoji", "Hebrew"}) {
    const std::size_t at = text.find(value);
    INFO(value);
    CHECK(at > last);
    last = at;
  }
}

TEST_CASE("what has no canonical form is refused") {
  CHECK_FALSE(canonical_json(json(std::nan(""))).ok());
  CHECK_FALSE(canonical_json(json(std::numeric_limits<double>::infinity())).ok());
  CHECK_FALSE(canonical_json(json(std::uint64_t{9007199254740993})).ok());
  CHECK_FALSE(canonical_json(json("\xff")).ok());
  CHECK_FALSE(canonical_json(json("\xed\xa0\x80")).ok());  // half of a surrogate pair
  json deep = 1;
  for (int i = 0; i < 100; ++i) deep = json::array({deep});
  CHECK_FALSE(canonical_json(deep).ok());
}

TEST_CASE("a canonical document reads back to itself") {
  const json document = {{"big", 1e20}, {"integer", 9007199254740991}, {"whole", 3.0}, {"small", 1e-9}};
  const std::string once = canonical_json(document).value();
  CHECK(canonical_json(json::parse(once)).value() == once);
}
