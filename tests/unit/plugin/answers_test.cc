// What a helper answers is read as foreign text.
#include <catch2/catch.hpp>

#include <cmath>
#include <limits>

#include "server/plugin/answers.h"

namespace skerry::server {
namespace {

TEST_CASE("a description that cannot be right is refused with the member that is wrong") {
  const auto message = [](const char* text) {
    const auto parsed = parse_description(text);
    return parsed.ok() ? "accepted" : parsed.error().message;
  };
  CHECK(message(R"({"name": "a", "version": "1", "rules": [{"name": "r", "meaning": "m", "parameters": []}]})") == "accepted");
  CHECK(message("[]") == "its description is no JSON object: []");
  CHECK(message(R"({"name": "a", "version": "1", "rules": []})") == "its description names no rule");
  CHECK(message(R"({"name": "a", "version": "1", "rules": [], "more": 1})") == "its description has the member 'more', which this version does not know");
  CHECK(message(R"({"version": "1", "rules": []})") == "its description: name is missing, must be a text");
  CHECK(message(R"({"name": "a", "version": "1\n2", "rules": []})") == R"(its description: version is "1\n2", must be one line of 1 to 63 bytes)");
  CHECK(message(R"({"name":"a","version":"1","rules":[{"name":"r","meaning":"m","parameters":[{"name":"p","meaning":"m","default":7,"minimum":0,"maximum":1}]}]})") ==
        "the default of rule r.p is 7, must be in [0, 1]");
  CHECK(message(R"({"name":"a","version":"1","rules":[{"name":"r","meaning":"m","parameters":[{"name":"rule","meaning":"m","default":true}]}]})") ==
        R"(a parameter of rule r: name is "rule", must be another one: run specs use it already)");
  CHECK(message(R"({"name":"a","version":"1","rules":[{"name":"r","meaning":"m","parameters":[{"name":"p","meaning":"m","default":null}]}]})") ==
        "parameter p of rule r: default is null, must be a finite number, true, false or a text");
  CHECK(message((std::string(100, '[') + std::string(100, ']')).c_str()) == "its description is nested deeper than 8");
}

TEST_CASE("a pass is one of three, of a bounded size and with finite coefficients") {
  const auto message = [](const char* text, const std::vector<double>& numbers, std::size_t tensors = 0) {
    const auto parsed = parse_pass(text, numbers, 2, tensors);
    return parsed.ok() ? "accepted" : parsed.error().message;
  };
  CHECK(message(R"({"pass": "values"})", {}) == "accepted");
  CHECK(message(R"({"pass": "statistics", "rows": 2, "columns": 2})", {}) == "accepted");
  CHECK(message(R"({"pass": "statistics", "rows": 2})", {}) == "its table has 2 x 0 cells, must have from 1 to 4194304");
  CHECK(message(R"({"pass": "statistics", "rows": -1, "columns": 1})", {}) == "its answer to next: rows is -1, must be a whole number of at least 1");
  CHECK(message(R"({"pass": "linear"})", {0.5, 0.5}) == "accepted");
  CHECK(message(R"({"pass": "linear"})", {1, 2, 3, 4, 5, 6}, 3) == "accepted");
  CHECK(message(R"({"pass": "linear"})", {1, 2, 3, 4, 5, 6}) == "it gave 6 coefficients for 2 vectors");
  CHECK(message(R"({"pass": "linear"})", {1, std::numeric_limits<double>::infinity()}) == "its coefficient 1 is not finite");
  CHECK(message(R"({"pass": "wave"})", {}) == R"(its answer to next: pass is "wave", must be statistics, linear or values)");
}

}  // namespace
}  // namespace skerry::server
